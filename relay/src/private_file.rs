//! Files that are nobody else's: made new with mode 0600, or replaced in one step.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A file and what happened to it.
#[derive(Debug, Error)]
#[error("{}: {source}", path.display())]
pub struct FileError {
    /// Which.
    pub path: PathBuf,
    /// What.
    pub source: std::io::Error,
}

fn at(path: &Path) -> impl Fn(std::io::Error) -> FileError {
    move |source| FileError { path: path.to_owned(), source }
}

/// Makes a file that must not be there yet.
pub fn create(path: &Path, mode: u32, content: &[u8]) -> Result<(), FileError> {
    create_of(path, mode, &[content])
}

/// The same, of pieces that are written one after the other.
pub fn create_of(path: &Path, mode: u32, pieces: &[&[u8]]) -> Result<(), FileError> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(at(path))?;
    let written = pieces.iter().try_for_each(|piece| file.write_all(piece)).and_then(|()| file.sync_all());
    written.map_err(|error| {
        let _ = std::fs::remove_file(path); // it is ours, and of no use
        at(path)(error)
    })
}

/// Puts new content in the place of a file, which others see whole: the former or the new one. The
/// owner stays, and so does the mode as far as `mode` allows, and the group may read; a file that was
/// not there gets `mode`.
pub fn replace(path: &Path, mode: u32, content: &[u8]) -> Result<(), FileError> {
    let path = &resolved(path)?;
    let former = match std::fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        former => Some(former.map_err(at(path))?),
    };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    create(&new, 0o600, content)?;
    let put = || -> std::io::Result<()> {
        let file = File::open(&new)?;
        let mode = former.as_ref().map_or(mode, |former| former.mode() & (mode | 0o040) | 0o600);
        if let Some(former) = &former {
            let made = file.metadata()?;
            if (former.uid(), former.gid()) != (made.uid(), made.gid()) {
                fchown(&file, Some(former.uid()), Some(former.gid()))?;
            }
        }
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        File::open(directory(path))?.sync_all()
    };
    put().map_err(|error| {
        let _ = std::fs::remove_file(&new);
        at(path)(error)
    })
}

/// Keeps others who do the same from changing files beside this one, until it is dropped.
pub fn lock_beside(path: &Path) -> Result<File, FileError> {
    let path = resolved(path)?;
    let directory = directory(&path);
    let lock = File::open(directory).map_err(at(directory))?;
    lock.lock().map_err(at(directory))?;
    Ok(lock)
}

/// The file itself, where the path is a link to it: a link stays a link.
fn resolved(path: &Path) -> Result<PathBuf, FileError> {
    match std::fs::canonicalize(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(path.to_owned()),
        target => target.map_err(at(path)),
    }
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}
