//! Facts of a host: files under /proc and /sys.

use std::path::{Path, PathBuf};

/// Where the facts of a host are read.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

impl Host {
    /// This host.
    pub fn this() -> Self {
        Self::at("/")
    }

    /// What stands below `root` in place of `/`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where a path of the host is.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The text of a file, without space at its ends; `None` where it cannot be read.
    pub fn text(&self, path: &str) -> Option<String> {
        Some(std::fs::read_to_string(self.path(path)).ok()?.trim().to_owned())
    }

    /// A number in a file.
    pub fn number<N: std::str::FromStr>(&self, path: &str) -> Option<N> {
        self.text(path)?.parse().ok()
    }

    /// CPUs, nodes or others that a file lists as `0-3,8`.
    pub fn list(&self, path: &str) -> Option<Vec<usize>> {
        list(&self.text(path)?)
    }

    /// Names in a directory, in order; none where it is not there.
    pub fn names(&self, path: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Whether there is such a file or directory.
    pub fn has(&self, path: &str) -> bool {
        Path::exists(&self.path(path))
    }

    /// Which of these programs run, by the names that the kernel knows (at most 15 bytes, proc_pid_comm(5)).
    pub fn running<'a>(&self, names: &[&'a str]) -> Vec<&'a str> {
        let is_process = |name: &String| name.bytes().all(|byte| byte.is_ascii_digit());
        let processes = self.names("/proc").into_iter().filter(is_process);
        let commands: Vec<String> =
            processes.filter_map(|id| self.text(&format!("/proc/{id}/comm"))).collect();
        names.iter().copied().filter(|name| commands.iter().any(|command| command == name)).collect()
    }
}

/// `0-3,8` as numbers; nothing for nothing. Ranges of more than 65,536 are no list.
fn list(text: &str) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last.checked_sub(first)? > 65_536 {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        for (text, numbers) in [
            ("0-3,8", Some(vec![0, 1, 2, 3, 8])),
            ("", Some(vec![])),
            ("5", Some(vec![5])),
            ("3-1", None),
            ("x", None),
        ] {
            assert_eq!(list(text), numbers, "{text}");
        }
        assert_eq!(list("0-9999999999"), None);
    }

    #[test]
    fn what_runs_is_known_by_its_name() {
        let root = tempfile::tempdir().expect("a directory");
        for (process, command) in [("1", "systemd"), ("77", "chronyd"), ("self", "ntpd")] {
            std::fs::create_dir_all(root.path().join("proc").join(process)).expect("made");
            std::fs::write(root.path().join(format!("proc/{process}/comm")), format!("{command}\n"))
                .expect("written");
        }
        let host = Host::at(root.path());
        assert_eq!(host.running(&["ntpd", "chronyd"]), ["chronyd"]);
        assert_eq!(
            (host.text("/proc/1/comm").as_deref(), host.text("/proc/2/comm")),
            (Some("systemd"), None)
        );
    }
}
