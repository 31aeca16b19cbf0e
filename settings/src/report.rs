//! What is in force, and every option there is, as TOML.

use clap::Arg;
use toml_writer::{ToTomlValue, TomlStringBuilder};

use crate::layers::{Given, Resolved};
use crate::program::{Kind, Opt, Program, possible_values};

/// Signs in a line of the reference, at most.
const LINE_CHARS: usize = 110;

/// A configuration file that says the same as what is in force, each line with where it comes from. Defaults are comments,
/// so that what is made of it does not hold them fast, and options that go only with others stay out.
pub fn in_force(program: &Program, resolved: &Resolved) -> String {
    let mut lines = vec![(format!("# {}: what is in force", program.name), None)];
    for option in program.keys() {
        let key = &option.key;
        let given = resolved.in_force.get(key);
        lines.push(match (given.map(|given| (given, toml(option, given))), resolved.set_aside.get(key)) {
            (Some((given, Some(value))), _) => (format!("{key} = {value}"), Some(given.origin.to_string())),
            (Some((given, None)), _) => {
                (format!("# {key}"), Some(format!("{}: not UTF-8, which TOML cannot write", given.origin)))
            }
            (None, Some((given, above))) => {
                let value = toml(option, given).unwrap_or_default();
                let above = match resolved.in_force.get(above) {
                    Some(given) => format!("{above} ({})", given.origin),
                    None => above.clone(),
                };
                let note = format!("{}: not in force beside {above}", given.origin);
                (format!("# {key} = {value}"), Some(note))
            }
            (None, None) => match default(option) {
                Some(value) => (format!("# {key} = {value}"), Some("default".to_owned())),
                None => (format!("# {key}"), Some("unset".to_owned())),
            },
        });
    }
    let width = lines.iter().skip(1).map(|(text, _)| text.chars().count()).filter(|width| *width < 50).max();
    let mut report = String::new();
    for (line, note) in lines {
        match note {
            Some(note) => {
                let note = note.replace(|one: char| one.is_control(), "?"); // a path may be anything
                report.push_str(&format!("{line:0$}  # {note}\n", width.unwrap_or(0)));
            }
            None => report.push_str(&format!("{line}\n")),
        }
    }
    report
}

/// A configuration file with every option as a comment: its meaning, and its default or the form of its value.
pub fn reference(program: &Program) -> String {
    let name = &program.name;
    let mut text = wrapped(&format!(
        "Settings of the {name}: the options of its command line under the same names, with their defaults. \
         {name} --config FILE reads this; {name} --config FILE --check-config tells what is wrong with it, and \
         --print-config what is in force. The environment wins over the file ({}), and the command line over both.",
        program.variable("option").replace("OPTION", "OPTION_NAME")
    ));
    for option in program.keys() {
        text.push('\n');
        let help = help(&option.argument);
        if !help.is_empty() {
            text.push_str(&wrapped(&help));
        }
        let values = possible_values(option);
        if !values.is_empty() && option.kind != Kind::Flag {
            text.push_str(&wrapped(&format!("One of {}.", values.join(", "))));
        }
        text.push_str(&format!("#{} = {}\n", option.key, default(option).unwrap_or_else(|| form(option))));
    }
    text
}

/// What is in force of an option, or its default, on one line; `unset` if there is neither.
pub fn value_text(program: &Program, resolved: &Resolved, key: &str) -> String {
    let Some(option) = program.option(key) else { return String::new() };
    match resolved.in_force.get(key) {
        Some(given) if option.kind == Kind::Flag => given.is_present().to_string(),
        Some(given) => {
            let values: Vec<_> = given.values.iter().map(|value| value.to_string_lossy()).collect();
            values.join(", ")
        }
        None => match option.kind {
            Kind::Flag => "false".to_owned(),
            _ if option.argument.get_default_values().is_empty() => "unset".to_owned(),
            _ => default_values(option).join(", "),
        },
    }
}

fn help(argument: &Arg) -> String {
    let help = argument.get_long_help().or_else(|| argument.get_help());
    let mut text = help.map(ToString::to_string).unwrap_or_default();
    if !text.is_empty() && !text.ends_with('.') {
        text.push('.'); // clap takes the last one away
    }
    text
}

fn wrapped(text: &str) -> String {
    let mut lines = vec![String::from("#")];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= LINE_CHARS => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(format!("# {word}")),
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn default_values(option: &Opt) -> Vec<String> {
    option.argument.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect()
}

fn default(option: &Opt) -> Option<String> {
    match option.kind {
        Kind::Flag => Some("false".to_owned()),
        _ => default_values(option).first().map(|value| literal(option, value)),
    }
}

/// What takes the place of a value where there is no default.
fn form(option: &Opt) -> String {
    let names = option.argument.get_value_names().unwrap_or_default();
    let name = names.first().map_or("VALUE", |name| name.as_str());
    match option.kind {
        Kind::Many => format!("[{}]", text(name)),
        _ => text(name),
    }
}

/// What was given as TOML; `None`: it is not text.
fn toml(option: &Opt, given: &Given) -> Option<String> {
    let values: Option<Vec<String>> =
        given.values.iter().map(|value| value.to_str().map(|value| literal(option, value))).collect();
    let values = values?;
    match option.kind {
        Kind::Many => Some(format!("[{}]", values.join(", "))),
        Kind::Flag => Some(given.is_present().to_string()),
        Kind::One => values.into_iter().next(),
    }
}

fn literal(option: &Opt, value: &str) -> String {
    let is_plain = option.is_number() && value.parse::<i64>().is_ok_and(|number| number.to_string() == value);
    if is_plain { value.to_owned() } else { text(value) }
}

/// A text on one line, whatever is in it.
fn text(value: &str) -> String {
    TomlStringBuilder::new(value).as_basic().to_toml_value()
}
