//! Where the options of a program come from, and what is made of them.
//!
//! ```text
//!  credentials ------+
//!  FILE (--config) --+
//!  environment ------+--> layers: the last that has a key wins --> a command line --> clap --> the program's Args
//!  command line -----+
//! ```
//!
//! The one description of an option is its clap argument. A key of the file is the long name of an option, a variable is
//! that name with the program's in front; their values become arguments, so that ranges, units and texts of errors are
//! clap's for all. No file of options is read but the one that `--config` names. Credentials are files that a service manager
//! hands over; one of the right name is as if its option named it.

mod credential;
mod file;
mod generate;
mod layers;
mod mistake;
mod program;
mod report;

use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use tracing::{error, info, warn};
use wire::text::io_text;

use layers::{Layer, Resolved};
use mistake::{Mistake, Origin};
use program::{Program, Typed};

/// The options about options, which every program has.
#[derive(Clone, Debug, Default, clap::Args)]
struct Options {
    /// Read options from this TOML file: `name = value`, names as here. The environment wins over it,
    /// and the command line over both. Default: none is read.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Tell what is wrong with the options and the files they name, with file, line and key, and leave.
    #[arg(long)]
    check_config: bool,

    /// Show the options in force as TOML, each with where it comes from, and leave.
    #[arg(long, conflicts_with = "check_config")]
    print_config: bool,
}

/// Name that clap has for the option of the doctor: a program may have a `--json` that is another.
const FINDINGS_AS_JSON: &str = "findings_as_json";

/// What the subcommand `doctor` of a program takes beside all options of the program.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct DoctorArgs {
    /// The findings as JSON: an array of objects with subject, level, text and advice.
    #[arg(id = FINDINGS_AS_JSON, long = "json")]
    pub json: bool,
}

/// What packages ask for at build time; nobody else sees it.
#[derive(Clone, Debug, Default, clap::Args)]
struct Packaging {
    /// Write man pages, completions of shells and a configuration file with every key into this
    /// directory, and leave: for packages.
    #[arg(long, value_name = "DIR", hide = true)]
    generate: Option<PathBuf>,
}

/// The options in force.
#[derive(Clone, Debug)]
pub struct Settings<A> {
    /// As the program reads them, at its start.
    pub args: A,
    program: Program,
    file: Option<PathBuf>,
    fixed: Fixed,
    resolved: Resolved,
    is_asked_to_check: bool,
}

/// What stays as it is while the program runs, however often the file is read.
#[derive(Clone, Debug, Default)]
struct Fixed {
    typed: Layer,
    environment: Layer,
    credentials: Layer,
}

/// What the command line asks for.
#[derive(Debug)]
enum Loaded<A> {
    /// To run, or to check.
    Settings(Settings<A>),
    /// To show what is in force.
    Print(Program, Resolved),
    /// To write what packages need into a directory.
    Generate(Program, PathBuf),
}

/// A key whose value in the file is another than the one in force.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    /// Long name of the option.
    key: String,
    /// What is in force, `unset` if nothing is.
    from: String,
    /// What the file now says, `unset` if nothing.
    to: String,
}

/// Why there are no options.
#[derive(Debug)]
enum Failure {
    /// What clap has to say: help, the version, a mistake on the command line.
    Clap(clap::Error),
    /// Mistakes in the file or the environment.
    Mistakes {
        mistakes: Vec<Mistake>,
        /// They were asked for.
        asked: bool,
    },
}

/// Reads the options of this process. `check` tells what else is wrong with them, for `--check-config`: relations between
/// them, files that they name.
///
/// The error is the exit status with which to leave at once: all has been said.
pub fn start<A: Parser>(check: impl FnOnce(&Settings<A>) -> Vec<String>) -> Result<Settings<A>, ExitCode> {
    let variables = |name: &str| std::env::var_os(name);
    let settings = match Settings::<A>::load(std::env::args_os().collect(), variables) {
        Ok(Loaded::Settings(settings)) => settings,
        Ok(Loaded::Print(program, resolved)) => return Err(print(&report::in_force(&program, &resolved))),
        Ok(Loaded::Generate(program, directory)) => {
            return Err(match generate::all(&program, &directory) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    let error = format!("--generate {}: {}", directory.display(), io_text(&error));
                    refuse([format!("{}: {error}", program.name)].into_iter());
                    ExitCode::FAILURE
                }
            });
        }
        Err(Failure::Clap(error)) => error.exit(),
        Err(Failure::Mistakes { mistakes, asked }) => {
            let name = A::command().get_name().to_owned();
            let begin = if asked { String::new() } else { format!("{name}: ") };
            return Err(refuse(mistakes.iter().map(|mistake| format!("{begin}{mistake}"))));
        }
    };
    if settings.is_asked_to_check {
        let mistakes = check(&settings);
        let what = settings.file.as_ref().map_or("options".to_owned(), |path| path.display().to_string());
        return Err(match mistakes.is_empty() {
            true => print(&format!("{what}: no mistakes\n")),
            false => refuse(mistakes.iter().map(|text| settings.locate(text))),
        });
    }
    Ok(settings)
}

fn refuse(lines: impl Iterator<Item = String>) -> ExitCode {
    lines.for_each(|line| wire::log::complain(&line));
    ExitCode::from(2)
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            refuse([format!("standard output: {}", io_text(&error))].into_iter());
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

impl<A: Parser> Settings<A> {
    fn load(
        arguments: Vec<OsString>,
        variables: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Loaded<A>, Failure> {
        let program = Program::new(A::command());
        let Typed { layer: typed, asked, packaging, doctor } =
            match program.read_command_line(&arguments).map_err(Failure::Clap)? {
                Some(typed) => typed,
                // A subcommand has options of its own, which no file has.
                None => {
                    let args = A::try_parse_from(arguments).map_err(Failure::Clap)?;
                    let (fixed, resolved) = Default::default();
                    let settings =
                        Self { args, program, file: None, fixed, resolved, is_asked_to_check: false };
                    return Ok(Loaded::Settings(settings));
                }
            };
        if let Some(directory) = packaging.generate {
            return Ok(Loaded::Generate(program, directory));
        }
        let credentials = credential::find(&program, &variables);
        let (environment, mut mistakes) = program.read_environment(variables);
        let fixed = Fixed { typed, environment, credentials };
        let file = asked.config;
        let (resolved, more) = layered(&program, file.as_deref(), &fixed);
        mistakes.extend(more);
        if mistakes.is_empty() && asked.print_config {
            return Ok(Loaded::Print(program, resolved)); // also where they are not all that it takes
        }
        let is_asked_to_check = asked.check_config;
        if !mistakes.is_empty() {
            return Err(Failure::Mistakes { mistakes, asked: is_asked_to_check });
        }
        let mut words = resolved.arguments(&program);
        words.extend(doctor);
        let command = A::command().args_conflicts_with_subcommands(false);
        let args = command.try_get_matches_from(words).and_then(|matches| A::from_arg_matches(&matches));
        let args = args.map_err(|error| {
            // A mistake in what was typed alone is shown as clap shows it.
            if resolved.in_force.values().all(|given| given.origin == Origin::CommandLine) {
                return Failure::Clap(error);
            }
            let place = file.as_ref().map(|path| path.display().to_string());
            let mistakes = vec![Mistake::whole(place, program::one_line(&error))];
            Failure::Mistakes { mistakes, asked: is_asked_to_check }
        })?;
        Ok(Loaded::Settings(Self { args, program, file, fixed, resolved, is_asked_to_check }))
    }

    /// Reads the file anew, as on SIGHUP; the command line and the environment are what they were. Logs what came of it.
    ///
    /// If something is wrong with the file, or `check` objects to what it comes to, all stays as it is. Otherwise `apply`
    /// is asked for each key that has changed to put it into force; `false`: that takes a restart, and what is in force
    /// stays.
    pub fn reload(
        &mut self,
        check: impl FnOnce(&Self) -> Vec<String>,
        mut apply: impl FnMut(&str, &A) -> bool,
    ) {
        let Some(file) = self.file.as_ref().map(|path| path.display().to_string()) else { return };
        let reread = self.reread().and_then(|new| {
            let mistakes = check(&new);
            if mistakes.is_empty() {
                Ok(new)
            } else {
                Err(mistakes.iter().map(|text| new.locate(text)).collect())
            }
        });
        let new = match reread {
            Ok(new) => new,
            Err(lines) => {
                for line in lines {
                    error!("{line}");
                }
                error!("{file}: nothing of it is taken over, what was read before stays in force");
                return;
            }
        };
        for Change { key, from, to } in self.changes(&new) {
            if apply(&key, &new.args) {
                info!("{key} changed from {from} to {to}");
                match new.resolved.in_force.get(&key) {
                    Some(given) => drop(self.resolved.in_force.insert(key, given.clone())),
                    None => drop(self.resolved.in_force.remove(&key)),
                }
            } else {
                warn!("{key} changed from {from} to {to}: needs a restart");
            }
        }
        info!("{file} was read anew");
    }

    fn reread(&self) -> Result<Self, Vec<String>> {
        let (resolved, mistakes) = layered(&self.program, self.file.as_deref(), &self.fixed);
        if !mistakes.is_empty() {
            return Err(mistakes.iter().map(ToString::to_string).collect());
        }
        let args = A::try_parse_from(resolved.arguments(&self.program));
        let args = args.map_err(|error| vec![program::one_line(&error)])?;
        Ok(Self {
            args,
            program: self.program.clone(),
            file: self.file.clone(),
            fixed: self.fixed.clone(),
            resolved,
            is_asked_to_check: false,
        })
    }

    /// Every key that has another value in `new`.
    fn changes(&self, new: &Self) -> Vec<Change> {
        let keys = self.program.keys().map(|option| option.key.clone());
        keys.map(|key| Change {
            from: report::value_text(&self.program, &self.resolved, &key),
            to: report::value_text(&new.program, &new.resolved, &key),
            key,
        })
        .filter(|change| change.from != change.to)
        .collect()
    }
}

impl<A> Settings<A> {
    /// The file that was read, for a sandbox that has to leave it readable.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// An error about options with the place where the one that it is about stands. The error begins with the option,
    /// `--key value: ...` or `key: ...`; one that stands on the command line, or nowhere, needs no place.
    pub fn locate(&self, error: &str) -> String {
        mistake::locate(&self.program, &self.resolved, error)
    }
}

/// What the three layers come to, and every mistake in the file and between the layers.
fn layered(program: &Program, file: Option<&Path>, fixed: &Fixed) -> (Resolved, Vec<Mistake>) {
    let (from_file, mut mistakes) = file.map(|path| file::read(program, path)).unwrap_or_default();
    let Fixed { typed, environment, credentials } = fixed;
    let resolved = Resolved::new(program, [typed, environment, &from_file, credentials]);
    mistakes.extend(resolved.relations(program));
    mistakes.sort_by_key(Mistake::order);
    (resolved, mistakes)
}

#[cfg(test)]
mod tests;
