//! Who wins: credentials, file, environment, command line.

use std::collections::BTreeMap;
use std::ffi::OsString;

use crate::mistake::{Mistake, Origin};
use crate::program::Program;

/// What one source says of one option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// As they would be typed. None: a flag that is false, or an empty array; the option is not there.
    pub values: Vec<OsString>,
    /// Where they stand.
    pub origin: Origin,
}

impl Given {
    /// A flag.
    pub fn flag(is_set: bool, origin: Origin) -> Self {
        Self { values: is_set.then(|| "true".into()).into_iter().collect(), origin }
    }

    /// Whether the option is there at all.
    pub fn is_present(&self) -> bool {
        !self.values.is_empty()
    }
}

/// What one source says, by key.
pub type Layer = BTreeMap<String, Given>;

/// What is in force.
#[derive(Clone, Debug, Default)]
pub struct Resolved {
    /// By key; defaults are not here.
    pub in_force: Layer,
    /// What does not go with something above it, and with what.
    pub set_aside: BTreeMap<String, (Given, String)>,
}

impl Resolved {
    /// From the highest layer to the lowest. A key is taken from the first layer that has it, whole: arrays are not
    /// joined. What cannot be given together with an option of a higher layer is set aside: `-D` on the command line
    /// does not fail for the interface in the file.
    pub fn new(program: &Program, layers: [&Layer; 4]) -> Self {
        let mut resolved = Self::default();
        for layer in layers {
            let mut taken = Layer::default();
            for (key, given) in layer {
                if resolved.in_force.contains_key(key) {
                    continue;
                }
                match resolved.excluding(program, key).filter(|_| given.is_present()) {
                    Some(above) => drop(resolved.set_aside.insert(key.clone(), (given.clone(), above))),
                    None => drop(taken.insert(key.clone(), given.clone())),
                }
            }
            resolved.in_force.append(&mut taken);
        }
        while let Some((key, above)) = resolved.stranded(program) {
            if let Some(given) = resolved.in_force.remove(&key) {
                resolved.set_aside.insert(key, (given, above));
            }
        }
        resolved
    }

    /// A key above, present, that does not go with this one.
    fn excluding(&self, program: &Program, key: &str) -> Option<String> {
        let option = program.option(key)?;
        let above = self.in_force.iter().find(|(other, given)| {
            let other = program.option(other);
            given.is_present() && other.is_some_and(|other| program.exclude_each_other(option, other))
        });
        above.map(|(other, _)| other.clone())
    }

    /// A key in force that needs one that was set aside, and for what that was.
    fn stranded(&self, program: &Program) -> Option<(String, String)> {
        self.set_aside.iter().find_map(|(missing, (_, above))| {
            let needs = |(key, given): &(&String, &Given)| {
                given.origin != Origin::CommandLine && self.missing(program, key, given).contains(missing)
            };
            self.in_force.iter().find(needs).map(|(key, _)| (key.clone(), above.clone()))
        })
    }

    /// What this key needs beside it, and is not there.
    fn missing(&self, program: &Program, key: &str, given: &Given) -> Vec<String> {
        let Some(option) = program.option(key).filter(|_| given.is_present()) else { return Vec::new() };
        let mut needed = program.needs(option, given);
        needed.retain(|other| !self.in_force.get(other).is_some_and(Given::is_present));
        needed
    }

    /// What is wrong between the options of the file and of the environment. What is wrong with what was typed is
    /// clap's to tell.
    pub fn relations(&self, program: &Program) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        let present: Vec<_> = self.in_force.iter().filter(|(_, given)| given.is_present()).collect();
        for (index, (key, given)) in present.iter().enumerate() {
            if given.origin == Origin::CommandLine {
                continue;
            }
            for missing in self.missing(program, key, given) {
                mistakes.push(Mistake::of(key, &given.origin, format!("needs {missing} beside it")));
            }
            for (other, others) in &present[..index] {
                let pair = program.option(key).zip(program.option(other));
                if pair.is_some_and(|(one, other)| program.exclude_each_other(one, other)) {
                    let text = format!("does not go together with {other} ({})", others.origin);
                    mistakes.push(Mistake::of(key, &given.origin, text));
                }
            }
        }
        mistakes
    }

    /// What is in force as a command line.
    pub fn arguments(&self, program: &Program) -> Vec<OsString> {
        let mut arguments = vec![OsString::from(&program.name)];
        for option in program.keys() {
            if let Some(given) = self.in_force.get(&option.key) {
                arguments.extend(option.arguments(given));
            }
        }
        arguments
    }
}
