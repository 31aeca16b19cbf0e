//! Paths and names in lines that people paste.

use std::path::Path;

/// The text as one word of a shell.
pub fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |one: char| one.is_ascii_alphanumeric() || "_-./:@%+=,".contains(one);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_one_word() {
        for (text, expected) in [
            ("/etc/a-b_1.pem", "/etc/a-b_1.pem"),
            ("a b", "'a b'"),
            ("it's", "'it'\\''s'"),
            ("", "''"),
            ("$x", "'$x'"),
        ] {
            assert_eq!(quoted(Path::new(text)), expected);
        }
    }
}
