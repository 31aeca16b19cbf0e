//! The README's tables hold exactly the options that the programs have.

use std::collections::BTreeSet;
use std::process::Command;

/// Every `--option` that begins a line of a program's help.
fn options_of(program: &str) -> BTreeSet<String> {
    let output = Command::new(tests::program(program)).arg("--help").output().expect("help");
    let help = String::from_utf8(output.stdout).expect("text");
    help.lines()
        .filter(|line| line.trim_start().starts_with('-'))
        .flat_map(|line| line.split([' ', ',']).filter(|word| word.starts_with("--")))
        .map(str::to_owned)
        .filter(|option| option != "--help" && option != "--version")
        .collect()
}

/// Every `--option` of the first column of the table under `### program`.
fn options_in_readme(program: &str) -> BTreeSet<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let readme = std::fs::read_to_string(path).expect("README.md");
    let section = readme.split(&format!("### {program}\n")).nth(1).expect("a section for each program");
    let table = section.split("\n#").next().expect("split has a first piece");
    table
        .lines()
        .filter(|line| line.starts_with("| `"))
        .filter_map(|line| line.split('|').nth(1))
        .flat_map(|cell| cell.split(['`', ' ', ',']).filter(|word| word.starts_with("--")))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_tables_of_options_are_complete_and_hold_nothing_else() {
    for program in ["sniffer", "relay", "viewer"] {
        assert_eq!(options_in_readme(program), options_of(program), "{program}");
    }
}
