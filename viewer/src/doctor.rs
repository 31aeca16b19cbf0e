//! `viewer doctor`: whether packets can come from the relay and go where they are to go. See [`wire::doctor`] for what
//! findings are.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use settings::Settings;
use wire::block::Epoch;
use wire::connection::RelayUrl;
use wire::doctor::{Client, Finding, Host, clock, reach, show};
use wire::message::{Role, Selection, StreamStatus};
use wire::text::io_text;

use crate::args::Args;
use crate::config;
use crate::output::say;

/// This program and its version, as the relay sees it.
const AGENT: &str = concat!("ringcast-viewer/", env!("CARGO_PKG_VERSION"));
/// Programs that read what a viewer writes.
const READERS: [&str; 2] = ["wireshark", "tshark"];

/// Looks at everything and shows what was found.
pub fn run(settings: &Settings<Args>, json: bool) -> ExitCode {
    let args = &settings.args;
    let mistakes = config::option_mistakes(args);
    for mistake in &mistakes {
        say(&settings.locate(&mistake.to_string()));
    }
    let Some(relay) = RelayUrl::parse(&args.relay).ok().filter(|_| mistakes.is_empty()) else {
        return ExitCode::from(2);
    };
    let files = config::credential_files(args);
    let client = Client {
        url: &relay,
        files: &files,
        role: Role::Subscribe,
        name: "",
        agent: AGENT,
        epoch: Epoch::default(),
    };
    let reached = reach(&client);
    let mut findings = reached.findings;
    findings.extend(reached.streams.map(|streams| who_is_there(args, &streams)));
    findings.extend(output(args));
    findings.extend(filter(args));
    let path = std::env::var_os("PATH").unwrap_or_default();
    findings.push(readers(std::env::split_paths(&path).collect()));
    findings.extend(clock(&Host::this()));
    show(&findings, json)
}

/// Whether anything would come.
fn who_is_there(args: &Args, streams: &[StreamStatus]) -> Finding {
    let (sniffers, interfaces) = (args.sniffer.clone(), args.interface.clone());
    let selection = Selection { sniffers, interfaces, ..Selection::default() };
    let matches = |status: &StreamStatus| {
        wire::hub::Matcher::new(&selection).is_ok_and(|matcher| matcher.matches(status))
    };
    let live = streams.iter().filter(|status| status.state == "live");
    let (live, matching) =
        live.fold((0, 0), |(live, matching), status| (live + 1, matching + u64::from(matches(status))));
    let text = format!("{matching} of {live} live streams match");
    if matching > 0 {
        return Finding::ok("sniffers", text);
    }
    let advice = match live {
        0 => {
            "viewer --list shows who is there; sniffer doctor, on the capture host, tells what keeps one from it"
        }
        _ => "correct --sniffer and --interface: viewer --list shows the names",
    };
    Finding::note("sniffers", format!("{text}: nothing would come now")).advise(advice)
}

/// Whether what is written has a place. The file itself is left alone.
fn output(args: &Args) -> Vec<Finding> {
    let Some(path) = args.write.as_ref().filter(|path| path.as_os_str() != "-") else { return Vec::new() };
    let what = format!("-w {}", path.display());
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            return vec![Finding::problem("output", format!("{what}: is a directory"), "name a file in it")];
        }
        // A pipe, /dev/null: opening it might wake somebody.
        Ok(metadata) if !metadata.is_file() => {
            return vec![Finding::ok("output", format!("{what}: no file, but there"))];
        }
        Ok(_) => match std::fs::OpenOptions::new().write(true).open(path) {
            Ok(_) => {}
            Err(error) => return vec![not_writable(&what, &error)],
        },
        Err(_) => {
            let parent =
                path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            if let Err(error) = may_write(parent) {
                return vec![not_writable(&what, &error)];
            }
        }
    }
    room(path, &what)
}

fn not_writable(what: &str, error: &std::io::Error) -> Finding {
    Finding::problem(
        "output",
        format!("{what}: {}", io_text(error)),
        "write where this user may, or to standard output",
    )
}

#[cfg(unix)]
fn may_write(directory: &Path) -> std::io::Result<()> {
    use nix::unistd::{AccessFlags, access};
    Ok(access(directory, AccessFlags::W_OK | AccessFlags::X_OK)?)
}

#[cfg(not(unix))]
fn may_write(directory: &Path) -> std::io::Result<()> {
    std::fs::metadata(directory).map(drop)
}

#[cfg(target_os = "linux")]
fn room(path: &Path, what: &str) -> Vec<Finding> {
    use wire::doctor::{DiskUse, disk, room};
    let used = DiskUse { subject: "output", what, bytes: None, advice: "", rate: None };
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    disk(&room(&Host::this(), &absolute), &used)
}

#[cfg(not(target_os = "linux"))]
fn room(_path: &Path, what: &str) -> Vec<Finding> {
    vec![Finding::ok("output", format!("{what}: can be written"))]
}

/// A filter here takes libpcap; that it compiles has been seen already.
fn filter(args: &Args) -> Option<Finding> {
    args.filter.as_ref().filter(|filter| !filter.trim().is_empty())?;
    Some(Finding::ok("filter", format!("compiled by {}", bpf::library_version().unwrap_or_default())))
}

/// Which programs are there to show the packets, and of what version.
fn readers(directories: Vec<PathBuf>) -> Finding {
    let suffix = std::env::consts::EXE_SUFFIX;
    let find = |name: &&str| {
        let path = directories
            .iter()
            .map(|directory| directory.join(format!("{name}{suffix}")))
            .find(|path| path.is_file());
        path.map(|path| version(&path).unwrap_or_else(|| path.display().to_string()))
    };
    let found: Vec<String> = READERS.iter().filter_map(find).collect();
    match found.is_empty() {
        true => Finding::note("readers", "neither wireshark nor tshark is in PATH here").advise(
            "to look at packets on this host install one of them (Debian: apt install wireshark), or write a file with -w",
        ),
        false => Finding::ok("readers", found.join(", ")),
    }
}

/// The first line of what it says of itself, up to the version: `TShark (Wireshark) 4.0.17`.
fn version(path: &Path) -> Option<String> {
    let output =
        Command::new(path).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut words = Vec::new();
    for word in text.lines().next()?.split_whitespace() {
        words.push(word.trim_end_matches('.'));
        if word.starts_with(|one: char| one.is_ascii_digit()) {
            return Some(wire::text::printable(&words.join(" ")));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use wire::doctor::Level;

    fn args(line: &str) -> Args {
        Args::try_parse_from(std::iter::once("viewer").chain(line.split_whitespace())).expect("parses")
    }

    #[test]
    fn whether_anything_would_come() {
        let stream = |name: &str, state: &str| StreamStatus {
            name: name.into(),
            state: state.into(),
            interfaces: vec!["eth0".into()],
            ..StreamStatus::default()
        };
        let streams = [stream("web-1", "live"), stream("db-1", "live"), stream("web-2", "ended")];
        let found = |line: &str| who_is_there(&args(line), &streams);
        assert_eq!(found("--sniffer web-*"), Finding::ok("sniffers", "1 of 2 live streams match"));
        assert!(found("--sniffer nobody").advice.is_some_and(|advice| advice.contains("correct --sniffer")));
        assert!(who_is_there(&args(""), &[]).advice.is_some_and(|advice| advice.contains("sniffer doctor")));
    }

    #[test]
    fn the_output_is_looked_at_and_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let found = |path: &Path| output(&args(&format!("-w {}", path.display())));
        let file = directory.path().join("out.pcapng");
        assert!(found(&file).iter().all(|one| one.level < Level::Problem) && !file.exists());
        std::fs::write(&file, "kept").expect("written");
        assert!(found(&file).iter().all(|one| one.level < Level::Problem));
        assert_eq!(std::fs::read_to_string(&file).expect("there"), "kept");
        assert!(found(directory.path())[0].text.ends_with("is a directory"));
        assert_eq!(found(&directory.path().join("none/x"))[0].level, Level::Problem);
        assert_eq!(output(&args("")), []);
        assert_eq!(found(Path::new("/dev/null"))[0].level, Level::Ok);
    }

    #[test]
    #[cfg(unix)]
    fn readers_are_found_by_what_they_say() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(readers(vec![directory.path().to_owned()]).level, Level::Note);
        let path = directory.path().join("tshark");
        std::fs::write(&path, "#!/bin/sh\necho 'TShark (Wireshark) 4.0.17 (Git v4).'\n").expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("set");
        let found = readers(vec![directory.path().to_owned()]);
        assert_eq!(found, Finding::ok("readers", "TShark (Wireshark) 4.0.17"));
    }
}
