//! Changes of one entry in the text of an access file, which leave the rest of it as it is.

use super::entry::Entry;
use super::{Access, AccessError, file};

/// The text with one entry more at its end. A new file, of which nothing is there yet, gets some
/// lines that say what it is.
pub fn with_entry(text: &str, entry: Entry) -> Result<String, AccessError> {
    let mut access = Access::parse(text)?;
    access.add(entry)?;
    let before = if text.trim().is_empty() { file::HEAD } else { text };
    let last = access.entries.last().map(file::entry_text).unwrap_or_default();
    Ok(checked(format!("{}\n\n{last}", before.trim_end()), &access))
}

/// The text without the entry of this name, and that entry; `None` if there is none.
pub fn without_entry(text: &str, name: &str) -> Result<Option<(String, Entry)>, AccessError> {
    let found = file::read(text)?;
    let mut access = Access::parse(text)?;
    let Some(removed) = access.remove(name) else { return Ok(None) };
    let starts: Vec<usize> = found.iter().map(|found| found.start).collect();
    let index = found.iter().position(|found| found.entry.name == name).unwrap_or_default();
    let start = starts.get(index).copied().unwrap_or_default();
    let end = starts.get(index + 1).copied().unwrap_or(text.len());
    let (before, rest) = text.split_at_checked(start).unwrap_or((text, ""));
    let (lines, after) = rest.split_at_checked(end.saturating_sub(start)).unwrap_or((rest, ""));
    // Comments above the next entry are about that one.
    let is_kept = |line: &&str| line.trim().is_empty() || line.trim_start().starts_with('#');
    let lines: Vec<&str> = lines.split_inclusive('\n').collect();
    let kept = lines.iter().rev().take_while(|line| is_kept(line)).count();
    let comments = lines.get(lines.len() - kept..).unwrap_or_default().concat();
    let edited = format!("{before}{}{after}", comments.trim_start());
    Ok(Some((checked(format!("{}\n", edited.trim_end()), &access), removed)))
}

/// The edited text, if it says the same as `access`. A file that is written in another way, as one
/// array of inline tables, is written anew.
fn checked(edited: String, access: &Access) -> String {
    match Access::parse(&edited) {
        Ok(found) if found.entries == access.entries => edited,
        _ => access.to_text(),
    }
}
