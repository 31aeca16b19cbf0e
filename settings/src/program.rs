//! A program's options as clap knows them.

use std::error::Error;
use std::ffi::{OsStr, OsString};

use clap::builder::PossibleValue;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, value_parser};

use crate::layers::{Given, Layer};
use crate::mistake::{Mistake, Origin};
use crate::{FINDINGS_AS_JSON, Options, Packaging};

/// Options that are about options: they stand on the command line alone.
const ABOUT_OPTIONS: [&str; 4] = ["config", "check-config", "print-config", "generate"];
/// The subcommand that looks at what the options come to, and so takes them, on both sides of its name.
const DOCTOR: &str = "doctor";

/// What an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: in a file, true or false.
    Flag,
    /// One value.
    One,
    /// Any number of values: in a file, an array.
    Many,
}

/// An option that can stand in a file.
#[derive(Clone, Debug)]
pub struct Opt {
    /// Its long name.
    pub key: String,
    /// What it takes.
    pub kind: Kind,
    /// As clap has it.
    pub argument: Arg,
}

/// A program and its options.
#[derive(Clone, Debug)]
pub struct Program {
    /// As it is called.
    pub name: String,
    /// As its users see it.
    pub shown: Command,
    /// The same, with what packages ask for.
    command: Command,
    options: Vec<Opt>,
}

/// A command line.
#[derive(Debug)]
pub struct Typed {
    /// Options of the program.
    pub layer: Layer,
    /// Those about options.
    pub asked: Options,
    /// What packages ask for.
    pub packaging: Packaging,
    /// The doctor was called for: its name and what it takes itself. Otherwise empty.
    pub doctor: Vec<OsString>,
}

impl Program {
    /// Takes the program's own description.
    pub fn new(command: Command) -> Self {
        let name = command.get_name().to_owned();
        let options = command.get_arguments().filter_map(Opt::new).collect();
        let shown = with_options_of_doctor(Options::augment_args(command)).after_help(format!(
            "Every option can also stand in the file of --config, and in the environment as {}. \
             A flag that is true there is undone by --flag=false.",
            variable(&name, "option").replace("OPTION", "OPTION_NAME")
        ));
        Self { name, command: Packaging::augment_args(shown.clone()), shown, options }
    }

    /// Every option that can stand in a file, in the order of the help.
    pub fn keys(&self) -> impl Iterator<Item = &Opt> {
        self.options.iter()
    }

    /// The option of this long name.
    pub fn option(&self, key: &str) -> Option<&Opt> {
        self.options.iter().find(|option| option.key == key)
    }

    /// The variable of the environment that stands for an option.
    pub fn variable(&self, key: &str) -> String {
        variable(&self.name, key)
    }

    /// What was typed. `None`: a subcommand that has options of its own, which no file has.
    pub fn read_command_line(&self, arguments: &[OsString]) -> Result<Option<Typed>, clap::Error> {
        // A flag can be taken back here: --flag=false.
        let mut command = with_values_of_flags(self.command.clone(), &self.options);
        let is_for_doctor = asks_for_doctor(&command, arguments);
        if is_for_doctor {
            let flags = &self.options;
            command = command
                .args_conflicts_with_subcommands(false)
                .mut_subcommand(DOCTOR, |doctor| with_values_of_flags(doctor, flags));
        }
        let parsed = match command.clone().try_get_matches_from(arguments) {
            // What is missing may stand in the file: it is looked at again when all is together.
            Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => {
                command.ignore_errors(true).try_get_matches_from(arguments)
            }
            // The help is the one without the values of flags, if it comes to that.
            Err(error) if error.kind() == ErrorKind::DisplayHelp => {
                match self.command.clone().try_get_matches_from(arguments) {
                    Err(plain) if plain.kind() == ErrorKind::DisplayHelp => Err(plain),
                    _ => Err(error),
                }
            }
            other => other,
        };
        let matches = parsed?;
        let doctor = matches.subcommand_matches(DOCTOR).filter(|_| is_for_doctor);
        if matches.subcommand_name().is_some() && doctor.is_none() {
            return Ok(None);
        }
        // What stands behind its name wins.
        let places: Vec<&ArgMatches> = doctor.into_iter().chain([&matches]).collect();
        let mut typed = Layer::default();
        for option in &self.options {
            let id = option.argument.get_id().as_str();
            let Some(matches) = places.iter().find(|matches| is_typed(matches, id)) else { continue };
            let origin = Origin::CommandLine;
            let given = match option.kind {
                Kind::Flag => Given::flag(matches.get_one(id) == Some(&true), origin),
                _ => {
                    let values = matches.get_raw(id).into_iter().flatten().map(OsStr::to_owned).collect();
                    Given { values, origin }
                }
            };
            typed.insert(option.key.clone(), given);
        }
        let config = places.iter().find(|matches| is_typed(matches, "config"));
        let asked = Options {
            config: config.and_then(|matches| matches.get_one("config").cloned()),
            check_config: places.iter().any(|matches| matches.get_flag("check_config")),
            print_config: places.iter().any(|matches| matches.get_flag("print_config")),
        };
        let packaging = Packaging { generate: matches.get_one("generate").cloned() };
        let words = doctor.map(|doctor| {
            let json = doctor.get_flag(FINDINGS_AS_JSON).then_some("--json");
            [DOCTOR].into_iter().chain(json).map(OsString::from).collect()
        });
        Ok(Some(Typed { layer: typed, asked, packaging, doctor: words.unwrap_or_default() }))
    }

    /// What the environment says, and what is wrong with it. A variable that is empty is as if it were not there.
    pub fn read_environment(&self, variables: impl Fn(&str) -> Option<OsString>) -> (Layer, Vec<Mistake>) {
        let (mut layer, mut mistakes) = (Layer::default(), Vec::new());
        for option in &self.options {
            let name = self.variable(&option.key);
            let Some(value) = variables(&name).filter(|value| !value.is_empty()) else { continue };
            let origin = Origin::Environment { name };
            let given = match (option.kind, value.to_str()) {
                (Kind::Flag, Some("true")) => Given::flag(true, origin),
                (Kind::Flag, Some("false")) => Given::flag(false, origin),
                (Kind::Flag, _) => {
                    let text = format!("{:?}: write true or false", value.to_string_lossy());
                    mistakes.push(Mistake::of(&option.key, &origin, text));
                    continue;
                }
                // Names of interfaces and patterns have no spaces, but may have any other sign.
                (Kind::Many, Some(text)) => {
                    Given { values: text.split_whitespace().map(OsString::from).collect(), origin }
                }
                _ => Given { values: vec![value], origin },
            };
            match self.fault(option, &given) {
                Some(text) => mistakes.push(Mistake::of(&option.key, &given.origin, text)),
                None => drop(layer.insert(option.key.clone(), given)),
            }
        }
        (layer, mistakes)
    }

    /// What is wrong with the values of this option alone.
    pub fn fault(&self, option: &Opt, given: &Given) -> Option<String> {
        let error = self.parse_alone(option, given).err()?;
        let value = context_text(&error, ContextKind::InvalidValue);
        let value = value.map_or(String::new(), |value| format!("{value:?}: "));
        match error.kind() {
            // These are about other options; see `Resolved::relations`.
            ErrorKind::MissingRequiredArgument | ErrorKind::ArgumentConflict => None,
            ErrorKind::InvalidValue => match possible_values(option) {
                names if names.is_empty() => Some(format!("{value}a value is needed")),
                names => Some(format!("{value}write {}", names.join(", "))),
            },
            _ => match error.source() {
                // Some name the value themselves.
                Some(source) if source.to_string().starts_with(value.trim_end_matches(": ")) => {
                    Some(source.to_string())
                }
                Some(source) => Some(format!("{value}{source}")),
                None => Some(one_line(&error)),
            },
        }
    }

    /// The options that this one needs beside it.
    pub fn needs(&self, option: &Opt, given: &Given) -> Vec<String> {
        let Err(error) = self.parse_alone(option, given) else { return Vec::new() };
        let Some(ContextValue::Strings(missing)) = error.get(ContextKind::InvalidArg) else {
            return Vec::new();
        };
        if error.kind() != ErrorKind::MissingRequiredArgument {
            return Vec::new();
        }
        // `--key <FILE>`; what is needed in any case is a group, `<--interface <IFACE>|...>`.
        let names = missing.iter().filter_map(|usage| usage.strip_prefix("--"));
        names.filter_map(|usage| usage.split(' ').next()).map(str::to_owned).collect()
    }

    /// Whether the two cannot be given together.
    pub fn exclude_each_other(&self, one: &Opt, other: &Opt) -> bool {
        let names = |from: &Opt, to: &Opt| {
            let conflicts = self.command.get_arg_conflicts_with(&from.argument);
            conflicts.iter().any(|argument| argument.get_id() == to.argument.get_id())
        };
        let share_a_place = self.command.get_groups().any(|group| {
            let has = |option: &Opt| group.get_args().any(|id| id == option.argument.get_id());
            !group.clone().is_multiple() && has(one) && has(other)
        });
        one.key != other.key && (names(one, other) || names(other, one) || share_a_place)
    }

    /// What clap would think was meant by an unknown key.
    pub fn suggestion(&self, key: &str) -> Option<String> {
        let flag = format!("--{}", key.replace('_', "-"));
        let error = self.command.clone().try_get_matches_from([&self.name, &flag]).err();
        let meant = match error {
            Some(error) => match error.get(ContextKind::SuggestedArg) {
                Some(ContextValue::String(meant)) => meant.clone(),
                // It is an option but for its form: ring_size.
                _ => flag,
            },
            None => flag,
        };
        let meant = meant.trim_start_matches('-').to_owned();
        self.option(&meant).map(|option| option.key.clone())
    }

    fn parse_alone(&self, option: &Opt, given: &Given) -> Result<(), clap::Error> {
        let arguments = option.arguments(given);
        let words = std::iter::once(OsString::from(&self.name)).chain(arguments);
        self.command.clone().try_get_matches_from(words).map(drop)
    }
}

/// The command with the options of the program taken by its doctor, too.
fn with_options_of_doctor(command: Command) -> Command {
    if command.find_subcommand(DOCTOR).is_none() {
        return command;
    }
    let options: Vec<Arg> = command.get_arguments().cloned().collect();
    command.mut_subcommand(DOCTOR, |doctor| {
        let own: Vec<String> = doctor.get_arguments().filter_map(Arg::get_long).map(str::to_owned).collect();
        let is_own = |option: &Arg| option.get_long().is_some_and(|name| own.iter().any(|one| one == name));
        doctor.args(options.into_iter().filter(|option| !is_own(option)))
    })
}

/// The command with flags that take `=false`.
fn with_values_of_flags(command: Command, options: &[Opt]) -> Command {
    let has = |command: &Command, flag: &Opt| {
        command.get_arguments().any(|argument| argument.get_id() == flag.argument.get_id())
    };
    options.iter().filter(|option| option.kind == Kind::Flag).fold(command, |command, flag| {
        if !has(&command, flag) {
            return command;
        }
        command.mut_arg(flag.argument.get_id(), |argument| {
            argument
                .action(ArgAction::Set)
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_parser(value_parser!(bool))
        })
    })
}

fn asks_for_doctor(command: &Command, arguments: &[OsString]) -> bool {
    let parsed = command
        .clone()
        .args_conflicts_with_subcommands(false)
        .ignore_errors(true)
        .try_get_matches_from(arguments);
    parsed.is_ok_and(|matches| matches.subcommand_name() == Some(DOCTOR))
}

/// Whether this was typed here; what the command does not know was not.
fn is_typed(matches: &ArgMatches, id: &str) -> bool {
    matches.try_contains_id(id).unwrap_or(false) && matches.value_source(id) == Some(ValueSource::CommandLine)
}

impl Opt {
    fn new(argument: &Arg) -> Option<Self> {
        let key = argument.get_long().filter(|key| !ABOUT_OPTIONS.contains(key))?.to_owned();
        let kind = match argument.get_action() {
            ArgAction::SetTrue => Kind::Flag,
            ArgAction::Append => Kind::Many,
            ArgAction::Set => Kind::One,
            _ => return None,
        };
        Some(Self { key, kind, argument: argument.clone() })
    }

    /// These values as arguments.
    pub fn arguments(&self, given: &Given) -> Vec<OsString> {
        let name = format!("--{}", self.key);
        match self.kind {
            Kind::Flag => given.values.iter().map(|_| OsString::from(&name)).collect(),
            _ => given
                .values
                .iter()
                .map(|value| {
                    let mut argument = OsString::from(format!("{name}="));
                    argument.push(value);
                    argument
                })
                .collect(),
        }
    }

    /// Whether its values are plain numbers, which TOML can write as such.
    pub fn is_number(&self) -> bool {
        use std::any::TypeId;
        let found = self.argument.get_value_parser().type_id();
        [TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>(), TypeId::of::<usize>()]
            .iter()
            .any(|number| found == *number)
    }
}

/// The values that an option takes, if they can be counted.
pub fn possible_values(option: &Opt) -> Vec<String> {
    let values = option.argument.get_possible_values();
    values.iter().map(PossibleValue::get_name).map(str::to_owned).collect()
}

/// What clap says, without how to get help.
pub fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let what = text.split("\n\n").next().unwrap_or(text);
    what.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn context_text(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    }
}

fn variable(program: &str, key: &str) -> String {
    format!("RINGCAST_{program}_{key}").to_uppercase().replace('-', "_")
}

/// The text of a mistake with a key that is no option.
pub fn unknown(program: &Program, key: &str, origin: &Origin) -> Mistake {
    let text = match program.suggestion(key) {
        _ if ABOUT_OPTIONS.contains(&key) => "stands on the command line, not in a file".to_owned(),
        Some(meant) => format!("no such option; is {meant} meant?"),
        None => format!("no such option; {} --help lists them", program.name),
    };
    Mistake::of(key, origin, text)
}
