//! Captures as tshark and capinfos read them.

use std::path::Path;
use std::process::Command;

/// Whether tshark is there; says so if not.
pub fn is_available() -> bool {
    Command::new("tshark").arg("--version").output().is_ok() || !crate::skip("tshark is not installed")
}

/// The fields of every packet that matches `filter` (empty: all), a row each. Comments and other
/// repeated fields are joined by commas.
pub fn fields(file: &Path, filter: &str, names: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new("tshark");
    command
        .args(["-n", "-o", "frame.generate_md5_hash:TRUE", "-T", "fields", "-E", "occurrence=a", "-r"])
        .arg(file);
    if !filter.is_empty() {
        command.args(["-Y", filter]);
    }
    for name in names {
        command.args(["-e", name]);
    }
    let output = command.output().expect("tshark runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

/// What capinfos says of a file, and whether it complained.
pub fn capinfos(file: &Path) -> (String, bool) {
    let output = Command::new("capinfos").arg(file).output().expect("capinfos runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (text, output.status.success() && !String::from_utf8_lossy(&output.stderr).contains("appears to"))
}
