//! Text for people: of errors of the system, and of peers.

use std::io;

/// Most characters that are shown of a peer's text, and a few.
const PEER_CHARS_MAX: usize = 500;

/// The text of an error of the system, without its number: `connection refused`.
pub fn io_text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split_once(" (os error").map_or(text.as_str(), |(text, _)| text);
    let mut characters = text.chars();
    match characters.next() {
        Some(first) => first.to_lowercase().chain(characters).collect(),
        None => format!("{:?}", error.kind()),
    }
}

/// Text that may be a peer's, made harmless for a terminal and a log: no line of its own, no control
/// character as it is, and not long.
pub fn printable(text: &str) -> String {
    let (mut out, mut chars) = (String::new(), 0);
    for character in text.chars() {
        if chars >= PEER_CHARS_MAX {
            return out + "...";
        }
        let shown = character.is_control().then(|| character.escape_default().to_string());
        let shown = shown.unwrap_or_else(|| character.to_string());
        chars += shown.chars().count();
        out.push_str(&shown);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_no_numbers() {
        assert_eq!(io_text(&io::Error::from_raw_os_error(2)), "no such file or directory");
        assert_eq!(io_text(&io::Error::other("Odd thing")), "odd thing");
        assert_eq!(io_text(&io::Error::other("")), "Other");
    }

    #[test]
    fn what_a_terminal_obeys_is_escaped_and_what_is_long_is_cut() {
        assert_eq!(printable("a\u{1b}[2J\nb größer"), "a\\u{1b}[2J\\nb größer");
        assert_eq!(printable(&"x".repeat(500)).len(), 500);
        assert_eq!(printable(&"x".repeat(501)), "x".repeat(500) + "...");
        assert!(printable(&"\u{7f}".repeat(60_000)).len() < 520, "escapes count as they are shown");
    }
}
