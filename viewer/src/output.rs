//! Where pcapng goes: standard output, unbuffered, or a file. A reader that went away is success.
//!
//! INVARIANT: a piece handed to [`Output::write`] is written whole, or nothing is written after it.
//! The standard library's own standard output is not used: it holds back what follows the last
//! line feed, and packets are not lines.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use wire::pool::Piece;

use crate::config::Target;

/// Bytes that a pipe to a reader holds, if it held less before: those of a packed block. With the usual
/// 64 KiB each side wakes the other for a quarter of it; more would leave a core's cache before it is read.
#[cfg(target_os = "linux")]
const PIPE_BYTES: i32 = 256 << 10;

/// Why nothing more is written.
#[derive(Debug)]
pub enum Stop {
    /// The reader closed its end: it is done, and so are we.
    ReaderGone,
    /// Writing failed.
    Failed(io::Error),
    /// As many packets as were asked for are written.
    CountReached,
}

/// The open output.
#[derive(Debug)]
pub struct Output {
    file: File,
    /// It is a pipe that takes pages.
    takes_pages: bool,
}

impl Output {
    /// Opens `target`.
    pub fn open(target: &Target) -> io::Result<Self> {
        let file = match target {
            Target::File(path) => create(path)?,
            Target::Stdout => stdout_file()?,
        };
        #[cfg(target_os = "linux")]
        let takes_pages = widen(&file) && gives_by_reference();
        #[cfg(not(target_os = "linux"))]
        let takes_pages = false;
        Ok(Self { file, takes_pages })
    }

    /// Whether it takes the pages of what is written, rather than a copy.
    pub fn takes_pages(&self) -> bool {
        self.takes_pages
    }

    /// Whether a person looks at it.
    pub fn is_terminal(&self) -> bool {
        self.file.is_terminal()
    }

    /// Writes all of `piece`.
    pub fn write<'a>(&mut self, piece: impl Into<Piece<'a>>) -> Result<(), Stop> {
        let mut piece = piece.into();
        while !piece.is_empty() {
            match self.write_some(piece) {
                Ok(0) => return Err(Stop::Failed(ErrorKind::WriteZero.into())),
                Ok(count) => piece = piece.after(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait_until_writable(),
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Err(Stop::ReaderGone),
                Err(error) => return Err(Stop::Failed(error)),
            }
        }
        Ok(())
    }

    fn write_some(&mut self, piece: Piece<'_>) -> io::Result<usize> {
        #[cfg(target_os = "linux")]
        if piece.is_given() && self.takes_pages {
            use nix::errno::Errno;
            use nix::fcntl::{SpliceFFlags, vmsplice};

            match vmsplice(&self.file, &[io::IoSlice::new(&piece)], SpliceFFlags::empty()) {
                Ok(count) => return Ok(count),
                Err(errno @ (Errno::EAGAIN | Errno::EINTR | Errno::EPIPE)) => return Err(errno.into()),
                // Not from us, or not into this pipe: a write says what is wrong, if anything is.
                Err(_) => self.takes_pages = false,
            }
        }
        self.file.write(&piece)
    }

    /// Looks whether the reader is still there while there is nothing to write.
    #[cfg(unix)]
    pub fn probe(&self) -> Result<(), Stop> {
        use std::os::fd::AsFd;

        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::empty())];
        let found = poll(&mut fds, PollTimeout::ZERO);
        let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
        let is_gone = found.is_ok() && fds[0].revents().is_some_and(|events| events.intersects(gone));
        if is_gone { Err(Stop::ReaderGone) } else { Ok(()) }
    }

    /// Looks whether the reader is still there: the statistics that are written find out here.
    #[cfg(not(unix))]
    pub fn probe(&self) -> Result<(), Stop> {
        Ok(())
    }

    /// Somebody who shares our standard output made it non-blocking.
    fn wait_until_writable(&self) {
        #[cfg(unix)]
        {
            use std::os::fd::AsFd;

            use nix::poll::{PollFd, PollFlags, poll};

            let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
            if poll(&mut fds, 1000u16).is_ok() {
                return; // an error of the pipe shows in the next write
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Has a pipe hold [`PIPE_BYTES`]; whether it is one. What is none, or may not grow, stays as it is.
#[cfg(target_os = "linux")]
fn widen(file: &File) -> bool {
    use nix::fcntl::{FcntlArg, fcntl};

    let Ok(bytes) = fcntl(file, FcntlArg::F_GETPIPE_SZ) else { return false };
    if bytes < PIPE_BYTES {
        let _ = fcntl(file, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
    }
    true
}

/// Whether vmsplice(2) hands pages over. A kernel that copies instead, as it may, is better served by a write.
#[cfg(target_os = "linux")]
fn gives_by_reference() -> bool {
    use nix::fcntl::{SpliceFFlags, vmsplice};

    let Ok((reader, writer)) = nix::unistd::pipe() else { return false };
    let (mut given, mut seen) = (vec![1], [0]);
    let is_given = vmsplice(&writer, &[io::IoSlice::new(&given)], SpliceFFlags::empty()).is_ok();
    given[0] = 2;
    is_given && nix::unistd::read(&reader, &mut seen).is_ok() && seen == given[..]
}

#[cfg(unix)]
fn stdout_file() -> io::Result<File> {
    use std::os::fd::AsFd;
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

#[cfg(windows)]
fn stdout_file() -> io::Result<File> {
    use std::os::windows::io::AsHandle;
    Ok(File::from(io::stdout().as_handle().try_clone_to_owned()?))
}

/// Makes the file for its owner alone: what was captured is nobody else's. One that is there keeps its mode.
fn create(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Writes to standard error why the program ends without success.
pub fn complain(line: &str) {
    wire::log::complain(&format!("viewer: {line}"));
}

/// Writes a line to standard error.
pub fn say(line: &str) {
    wire::log::say(&format!("viewer: {line}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_pipe_is_widened_and_never_narrowed() {
        use nix::fcntl::{FcntlArg, fcntl};

        let (_reader, writer) = nix::unistd::pipe().expect("a pipe");
        let file = File::from(writer);
        let bytes = || fcntl(&file, FcntlArg::F_GETPIPE_SZ).expect("it is a pipe");
        assert!(bytes() < PIPE_BYTES);
        widen(&file);
        assert_eq!(bytes(), PIPE_BYTES);
        if fcntl(&file, FcntlArg::F_SETPIPE_SZ(2 * PIPE_BYTES)).is_ok() {
            widen(&file);
            assert_eq!(bytes(), 2 * PIPE_BYTES, "who has the right may have set it so");
        }
        widen(&tempfile::tempfile().expect("a file"));
    }

    /// Given away or copied, short and long, to a pipe that waits or one that does not: it all arrives.
    #[cfg(target_os = "linux")]
    #[test]
    fn every_piece_arrives_in_order() {
        use std::io::Read;

        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        use wire::pool::Pool;

        let pool = Pool::new(8 << 20);
        pool.prefer_giving(true);
        for flags in [OFlag::empty(), OFlag::O_NONBLOCK] {
            let (reader, writer) = nix::unistd::pipe().expect("a pipe");
            fcntl(&writer, FcntlArg::F_SETFL(flags)).expect("a flag");
            let read = std::thread::spawn(move || {
                let mut bytes = Vec::new();
                File::from(reader).read_to_end(&mut bytes).map(|_| bytes)
            });
            let file = File::from(writer);
            let mut output = Output { takes_pages: widen(&file), file };
            assert!(output.takes_pages());
            let mut expected = Vec::new();
            for (number, len) in
                (0u8..).zip([100, 70_000, 1_000_001, 5, 300_000].into_iter().cycle().take(50))
            {
                let mut buffer = pool.take(len).expect("what was written is free");
                buffer.fill(number);
                let bytes = buffer.freeze();
                output.write(pool.give(&bytes).until(len / 2)).map_err(|_| ()).expect("written");
                output.write(pool.give(&bytes).after(len / 2)).map_err(|_| ()).expect("written");
                output.write(&vec![number; 7]).map_err(|_| ()).expect("written");
                expected.resize(expected.len() + len + 7, number);
            }
            assert!(output.takes_pages(), "none was refused");
            drop(output);
            assert!(read.join().expect("joins").expect("reads") == expected);
        }
        // No pipe, no pages.
        let output =
            Output::open(&Target::File(tempfile::NamedTempFile::new().expect("a file").path().into()));
        assert!(!output.expect("opens").takes_pages());
    }

    #[cfg(unix)]
    #[test]
    fn a_new_file_is_its_owners_and_one_that_is_there_keeps_its_mode() {
        use std::os::unix::fs::PermissionsExt;

        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("new.pcapng");
        let mode = || std::fs::metadata(&path).expect("it is there").permissions().mode() & 0o777;
        create(&path).expect("ours");
        assert_eq!(mode(), 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("ours");
        create(&path).expect("ours");
        assert_eq!(mode(), 0o644);
    }
}
