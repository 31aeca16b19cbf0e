//! Files with secrets in them.

use std::path::Path;

use super::Finding;

/// Says where a file with a secret can be read or written by others than its owner. That it is there and readable is for
/// whoever reads it to say.
pub fn private(subject: &str, option: &str, path: &Path) -> Option<Finding> {
    let mode = mode(path)?;
    let shown = path.display();
    (mode & 0o077 != 0).then(|| {
        Finding::warning(
            subject,
            format!("{option} {shown}: mode {mode:04o}, so others than its owner get at it"),
            format!("chmod 600 {shown}"),
        )
    })
}

/// The mode of a regular file.
#[cfg(unix)]
fn mode(path: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    Some(metadata.mode() & 0o7777)
}

#[cfg(not(unix))]
fn mode(_path: &Path) -> Option<u32> {
    None
}
