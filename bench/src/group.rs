//! CPU by control group, so that a program's threads and kernel work are counted together: the
//! controller cpuacct of version 1, or `cpu.stat` of version 2, whichever the machine has.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const V1: &str = "/sys/fs/cgroup/cpuacct";
const V2: &str = "/sys/fs/cgroup";

/// A control group of our own. Removed when dropped, once nothing runs in it.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
    is_v1: bool,
}

impl Group {
    /// Makes an empty group.
    pub fn new(name: &str) -> io::Result<Self> {
        let is_v1 = Path::new(V1).join("cpuacct.usage").exists();
        let path = Path::new(if is_v1 { V1 } else { V2 })
            .join(format!("ringcast-bench-{}-{name}", std::process::id()));
        fs::create_dir(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        Ok(Self { path, is_v1 })
    }

    /// The file that a process writes its id into to be in the group.
    pub fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// CPU of all that ran in it so far, in ns.
    pub fn cpu_ns(&self) -> io::Result<u64> {
        let file = self.path.join(if self.is_v1 { "cpuacct.usage" } else { "cpu.stat" });
        let text = fs::read_to_string(file)?;
        let value = if self.is_v1 { Some(text.trim()) } else { usage_usec(&text) };
        let number: Option<u64> = value.and_then(|value| value.parse().ok());
        let unit = if self.is_v1 { 1 } else { 1000 };
        number.map(|number| number * unit).ok_or_else(|| io::Error::other(format!("no usage in {text:?}")))
    }
}

fn usage_usec(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("usage_usec "))
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn usage_of_version_2() {
        assert_eq!(super::usage_usec("usage_usec 12\nuser_usec 5\n"), Some("12"));
    }
}
