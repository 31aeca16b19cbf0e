//! Payloads of which TCP takes the pages rather than a copy: vmsplice(2) into a pipe of our own, and splice(2) out of
//! it. TCP reads them when it sends them and when it sends them again, so they must stay as they are until the peer has
//! said that it has them. MSG_ZEROCOPY would tell when TCP is done with them, but copies where both ends are on one host.

use std::io;
use std::os::fd::OwnedFd;

use mio::net::TcpStream;

/// Bytes that are under way in the pipe at most: a usual packed block, with what of its first and last pages is not of it.
#[cfg(target_os = "linux")]
const PIPE_BYTES: i32 = 512 << 10;

/// The pipe, made when it is first needed.
#[derive(Debug, Default)]
pub(super) struct PagePipe {
    ends: Option<(OwnedFd, OwnedFd)>,
    /// Bytes in it, which are next to be sent.
    filled: usize,
    /// The system does not do this.
    is_refused: bool,
}

impl PagePipe {
    /// Whether it is of no use here, and what is left has to be sent as a copy.
    pub fn is_refused(&self) -> bool {
        self.is_refused
    }

    /// Whether something has gone through it.
    #[cfg(test)]
    pub fn is_used(&self) -> bool {
        self.ends.is_some()
    }

    /// Makes the system refuse from now on: the end that is written to is none of a pipe.
    #[cfg(test)]
    pub fn refuse_when_used(&mut self) {
        let nothing = || OwnedFd::from(std::fs::File::open("/dev/null").expect("it is everywhere"));
        self.ends = Some((nothing(), nothing()));
    }
}

#[cfg(target_os = "linux")]
impl PagePipe {
    /// Sends from `bytes`, of which the first may be in the pipe already, and tells how many TCP has taken. An error of
    /// kind `Unsupported`: none, the pipe is empty, and it is refused from now on.
    pub fn send(&mut self, stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
        use nix::errno::Errno;
        use nix::fcntl::{SpliceFFlags, splice, vmsplice};
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
        if self.filled == 0 {
            let filled =
                self.ends().and_then(|(_, into)| Ok(vmsplice(into, &[io::IoSlice::new(bytes)], flags)?));
            match filled {
                Ok(filled) => self.filled = filled,
                Err(_) => {
                    self.is_refused = true;
                    return Err(io::ErrorKind::Unsupported.into());
                }
            }
        }
        let Some((out_of, _)) = &self.ends else { return Ok(0) };
        match splice(out_of, None, stream, None, self.filled, flags) {
            Ok(sent) => {
                self.filled -= sent.min(self.filled);
                Ok(sent)
            }
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EPERM) => {
                *self = Self { is_refused: true, ..Self::default() };
                Err(io::ErrorKind::Unsupported.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn ends(&mut self) -> io::Result<&(OwnedFd, OwnedFd)> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        if self.ends.is_none() {
            let ends = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
            // A smaller one does as well, in more steps.
            let _ = fcntl(&ends.1, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
            self.ends = Some(ends);
        }
        self.ends.as_ref().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }
}

/// Sends bytes behind which more follows at once (`MSG_MORE`, send(2)).
#[cfg(target_os = "linux")]
pub(super) fn send_before_more(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    socket2::SockRef::from(stream).send_with_flags(bytes, nix::libc::MSG_MORE)
}

#[cfg(not(target_os = "linux"))]
impl PagePipe {
    /// There is no such thing here.
    pub fn send(&mut self, _: &TcpStream, _: &[u8]) -> io::Result<usize> {
        self.is_refused = true;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Sends bytes.
#[cfg(not(target_os = "linux"))]
pub(super) fn send_before_more(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    socket2::SockRef::from(stream).send(bytes)
}
