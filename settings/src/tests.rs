use std::collections::HashMap;
use std::fmt::Write as _;

use clap::{ArgGroup, Parser, Subcommand, ValueEnum};

use super::*;

#[derive(Clone, Debug, Parser)]
#[command(name = "demo", group(ArgGroup::new("source").required(true).args(["interface", "read"])))]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
struct Demo {
    #[command(subcommand)]
    command: Option<Action>,
    /// Where to look.
    #[arg(short, long, value_name = "IFACE")]
    interface: Vec<String>,
    #[arg(long, value_name = "FILE", conflicts_with = "spool")]
    read: Option<PathBuf>,
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
    #[arg(long, default_value_t = 5, requires = "spool")]
    spool_size: u16,
    #[arg(long, default_value = "fast")]
    mode: Mode,
    #[arg(short, long)]
    quiet: bool,
    #[arg(long)]
    workers: Option<u16>,
    #[arg(long)]
    key: Option<PathBuf>,
    #[arg(long, requires = "quiet")]
    json: bool,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    Doctor(DoctorArgs),
    Other {
        #[arg(long)]
        json: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Fast,
    Slow,
}

/// Runs with the file, the variables and the words, in that order.
fn load(file: &str, variables: &[(&str, &str)], words: &str) -> Result<Settings<Demo>, String> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("demo.toml");
    std::fs::write(&path, file).expect("written");
    let mut arguments: Vec<OsString> = ["demo", "--config"].map(OsString::from).to_vec();
    arguments.push(path.clone().into());
    arguments.extend(words.split_whitespace().map(OsString::from));
    let variables: HashMap<_, _> = variables.iter().copied().collect();
    let loaded = Settings::load(arguments, |name| variables.get(name).map(OsString::from));
    loaded.map(settings_of).map_err(|failure| {
        let text = match failure {
            Failure::Clap(error) => error.to_string(),
            Failure::Mistakes { mistakes, .. } => mistakes.iter().fold(String::new(), |mut text, mistake| {
                writeln!(text, "{mistake}").expect("a string grows");
                text
            }),
        };
        text.replace(&format!("{}/", directory.path().display()), "")
    })
}

fn settings_of(loaded: Loaded<Demo>) -> Settings<Demo> {
    match loaded {
        Loaded::Settings(settings) => settings,
        other => panic!("{other:?}"),
    }
}

fn report(settings: &Settings<Demo>) -> String {
    let text = report::in_force(&settings.program, &settings.resolved);
    let directory = settings.file.as_ref().and_then(|path| path.parent()).expect("in a directory");
    text.replace(&format!("{}/", directory.display()), "")
}

#[test]
fn the_last_of_file_environment_and_command_line_wins() {
    let file = "interface = ['eth0', 'eth1']\nmode = \"slow\"\nworkers = 1\nquiet = true\n";
    let env =
        [("RINGCAST_DEMO_WORKERS", "2"), ("RINGCAST_DEMO_INTERFACE", "lo  eth9"), ("RINGCAST_DEMO_MODE", "")];
    let args = load(file, &[], "").expect("good").args;
    assert_eq!(
        (args.interface, args.mode, args.workers),
        (vec!["eth0".into(), "eth1".into()], Mode::Slow, Some(1))
    );
    let args = load(file, &env, "").expect("good").args;
    assert_eq!(
        (args.interface, args.mode, args.workers),
        (vec!["lo".into(), "eth9".into()], Mode::Slow, Some(2))
    );
    let args = load(file, &env, "-i br0 --workers 3").expect("good").args;
    assert_eq!((args.interface, args.mode, args.workers), (vec!["br0".into()], Mode::Slow, Some(3)));
    assert!(args.quiet);
    assert!(!load(file, &env, "--quiet=false").expect("good").args.quiet);
    assert!(!load(file, &env, "-q=false").expect("good").args.quiet);
    assert!(load("interface = 'a'", &[("RINGCAST_DEMO_QUIET", "true")], "").expect("good").args.quiet);
}

#[test]
fn what_is_above_sets_aside_what_does_not_go_with_it() {
    let file = "interface = ['eth0']\nspool = '/s'\nspool-size = 7\n";
    let settings = load(file, &[], "--read x").expect("the command line wins");
    assert_eq!(settings.args.read.as_deref(), Some(Path::new("x")));
    assert!(settings.args.interface.is_empty() && settings.args.spool.is_none());
    assert_eq!(settings.args.spool_size, 5, "which needs the spool");
    let report = report(&settings);
    assert!(
        report.contains("# interface = [\"eth0\"]  # demo.toml:1: not in force beside read (command line)"),
        "{report}"
    );
    assert!(report.contains("demo.toml:3: not in force beside read"), "{report}");
    let error = load("", &[], "--read x -i y").expect_err("both typed");
    assert!(error.contains("cannot be used with"), "{error}");
}

#[test]
fn the_doctor_looks_at_what_the_options_come_to() {
    let file = "interface = \"a\"\nquiet = true\n";
    for (words, interface, workers, quiet, json) in [
        ("doctor", "a", None, true, false),
        ("--workers 3 doctor --json", "a", Some(3), true, true),
        ("doctor -i b --workers 3 --quiet=false", "b", Some(3), false, false),
        ("-i b --workers 3 doctor --workers 4 --json", "b", Some(4), true, true),
    ] {
        let args = load(file, &[], words).unwrap_or_else(|error| panic!("{words}: {error}")).args;
        let Some(Action::Doctor(doctor)) = args.command else { panic!("{words}: {args:?}") };
        assert_eq!((args.interface, args.workers), (vec![interface.to_owned()], workers), "{words}");
        assert_eq!((args.quiet, doctor.json, args.json), (quiet, json, false), "{words}");
    }
    // It needs nothing, and what is wrong with the file is told as ever.
    assert!(load("", &[], "doctor").is_ok());
    assert_eq!(load("workers = \"x\"", &[], "doctor").expect_err("a mistake").lines().count(), 1);
    assert!(load("", &[], "doctor --walk").expect_err("a mistake").contains("--walk"));
    // Another subcommand has options of its own alone.
    assert!(load("", &[], "--workers 3 other").is_err());
}

#[test]
fn each_mistake_is_told_with_its_line_and_key() {
    let file = "\
interfaces = ['eth0']   # 1: unknown, alike
frobnicate = 1          # 2: unknown
workers = 70000         # 3: out of range
mode = 'medium'         # 4: none of the values
quiet = 'yes'           # 5: of another kind
spool = ['a', 'b']      # 6: takes one
read = 2026-01-01       # 7: no kind that any takes
config = 'x'            # 8: not in a file
spool_size = 5          # 9: another form
";
    let error = load(file, &[("RINGCAST_DEMO_QUIET", "perhaps"), ("RINGCAST_DEMO_WORKERS", "x")], "")
        .expect_err("all wrong");
    let expected = "\
RINGCAST_DEMO_QUIET: \"perhaps\": write true or false
RINGCAST_DEMO_WORKERS: \"x\": invalid digit found in string
demo.toml:1: interfaces: no such option; is interface meant?
demo.toml:2: frobnicate: no such option; demo --help lists them
demo.toml:3: workers: \"70000\": 70000 is not in 0..=65535
demo.toml:4: mode: \"medium\": write fast, slow
demo.toml:5: quiet: true or false is needed, not a text
demo.toml:6: spool: a text or a number is needed, not an array
demo.toml:7: read: a text or a number is needed, not a date or time
demo.toml:8: config: stands on the command line, not in a file
demo.toml:9: spool_size: no such option; is spool-size meant?
";
    assert_eq!(error, expected);
}

#[test]
fn mistakes_of_form_and_of_relation_have_lines_too() {
    let error = load("interface = ['a']\n\nworkers = = 1\nmode = 'none'\n", &[], "").expect_err("no TOML");
    assert!(error.starts_with("demo.toml:3: "), "{error}");
    assert!(error.contains("\ndemo.toml:4: mode: "), "the rest is read all the same: {error}");
    let error = load("interface = 'a'\ninterface = 'b'\n", &[], "").expect_err("twice");
    assert!(error.starts_with("demo.toml:2: ") && error.contains("duplicate"), "{error}");
    let error = load("interface = 'a'\nspool-size = 3\n", &[], "").expect_err("half");
    assert_eq!(error, "demo.toml:2: spool-size: needs spool beside it\n");
    let error = load("interface = 'a'\nread = 'b'\n", &[], "").expect_err("two of one");
    assert_eq!(error, "demo.toml:2: read: does not go together with interface (demo.toml:1)\n");
    let error = load("workers = 1\n", &[], "").expect_err("nothing to do");
    assert!(error.starts_with("demo.toml: the following required"), "{error}");
    assert!(error.contains("--interface"), "{error}");
    assert!(load("workers = 1\n", &[], "-i a").is_ok());
    assert!(
        load("interface = 'a'\nspool = 'false'\nspool-size = 1\n", &[], "").is_ok(),
        "a name like others"
    );
    assert!(
        load("interface = []\nread = 'b'\nquiet = false\n", &[], "").is_ok(),
        "an empty array is not there"
    );
}

#[test]
fn a_file_that_is_named_must_be_there() {
    let load = |name: &str| {
        let arguments = ["demo", "-i", "a", "--config", name].map(OsString::from).to_vec();
        Settings::<Demo>::load(arguments, |_| None)
    };
    match load("/nowhere/demo.toml") {
        Err(Failure::Mistakes { mistakes, .. }) => {
            assert_eq!(mistakes[0].to_string(), "--config /nowhere/demo.toml: no such file or directory");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_printed_reads_back_as_the_same() {
    let file = "interface = ['we \"quote\"', 'new\\nline', \"esc\\u001b\", \"new\\nline\"]\nquiet = false\nworkers = 0x10\n";
    let first = load(file, &[("RINGCAST_DEMO_SPOOL", "/a b")], "--spool-size 9").expect("good");
    let printed = report(&first);
    assert!(printed.contains("workers = 16"), "{printed}");
    assert!(
        printed.contains("# command line\n") && printed.contains("# environment RINGCAST_DEMO_SPOOL\n"),
        "{printed}"
    );
    assert!(printed.contains("# mode = \"fast\""), "defaults are comments: {printed}");
    let second = load(&printed, &[], "").unwrap_or_else(|error| panic!("{error}{printed}"));
    assert_eq!(format!("{:?}", second.args), format!("{:?}", first.args));
    assert!(first.changes(&second).is_empty());
}

#[test]
fn an_error_gets_the_place_of_its_option() {
    let file = "interface = 'a'\nspool = '/s'\nworkers = 3\n";
    let settings = load(file, &[("RINGCAST_DEMO_WORKERS", "4")], "--mode slow").expect("good");
    let at = |error: &str| {
        let directory = settings.file.as_ref().and_then(|path| path.parent()).expect("in a directory");
        settings.locate(error).replace(&format!("{}/", directory.display()), "")
    };
    assert_eq!(at("--spool /s: is full"), "demo.toml:2: spool: /s: is full");
    assert_eq!(at("--spool: needs more"), "demo.toml:2: spool: needs more");
    assert_eq!(at("interface a: no such device"), "demo.toml:1: interface: interface a: no such device");
    assert_eq!(at("--workers 4: too many"), "RINGCAST_DEMO_WORKERS: 4: too many");
    assert_eq!(at("--mode slow: is slow"), "--mode slow: is slow");
    assert_eq!(at("something else"), "something else");
}

#[test]
fn a_file_read_anew_changes_what_can_be() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("demo.toml");
    std::fs::write(&path, "interface = 'a'\nworkers = 1\nquiet = true\n").expect("written");
    let mut arguments = ["demo", "--mode", "slow", "--config"].map(OsString::from).to_vec();
    arguments.push(path.clone().into());
    let mut settings = settings_of(Settings::load(arguments, |_| None).expect("good"));
    let mut reload = |text: &str, mistakes: Vec<String>| {
        std::fs::write(&path, text).expect("written");
        let mut asked = Vec::new();
        settings.reload(
            |_| mistakes,
            |key, args| {
                asked.push(format!("{key} {:?}", args.workers));
                key == "workers"
            },
        );
        asked
    };
    let changed = "interface = ['a', 'b']\nworkers = 2\nmode = 'fast'\n";
    assert!(reload("workers = x", Vec::new()).is_empty(), "nothing of a file that is wrong");
    assert!(reload(changed, vec!["--workers 2: no".into()]).is_empty(), "nor of one that is objected to");
    let asked = reload(changed, Vec::new());
    assert_eq!(asked, ["interface Some(2)", "quiet Some(2)", "workers Some(2)"]);
    assert_eq!(
        reload(changed, Vec::new()),
        ["interface Some(2)", "quiet Some(2)"],
        "these wait for a restart"
    );
    assert_eq!(reload("interface = 'a'\nquiet = true", Vec::new()), ["workers None"]);
}

#[test]
fn the_reference_has_every_option() {
    let program = Program::new(<Demo as clap::CommandFactory>::command());
    let text = report::reference(&program);
    for line in [
        "#interface = [\"IFACE\"]",
        "#spool-size = 5",
        "#mode = \"fast\"",
        "#quiet = false",
        "# Where to look.",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    assert!(text.contains("# One of fast, slow."), "{text}");
    assert!(!text.contains("#config") && !text.contains("#help"), "{text}");
}

#[test]
fn a_credential_is_an_option_that_any_other_source_overrides() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("ringcast.demo.key");
    let variables = [("CREDENTIALS_DIRECTORY", directory.path().to_str().expect("text"))];
    let key =
        |file: &str, words: &str| load(file, &variables, &format!("-i eth0 {words}")).expect("good").args.key;
    assert_eq!(key("", ""), None); // it is not there
    std::fs::write(&path, "a key").expect("written");
    std::fs::write(directory.path().join("ringcast.demo.spool"), "").expect("written"); // no such credential
    let loaded = load("", &variables, "-i eth0").expect("good");
    assert_eq!((loaded.args.key, loaded.args.spool), (Some(path), None));
    assert_eq!(
        loaded.resolved.in_force["key"].origin.to_string(),
        "credential ringcast.demo.key",
        "what --print-config says"
    );
    assert_eq!(key("key = '/file'", ""), Some("/file".into()));
    assert_eq!(key("key = '/file'", "--key /typed"), Some("/typed".into()));
    assert_eq!(load("", &[("CREDENTIALS_DIRECTORY", "")], "-i eth0").expect("good").args.key, None);
}
