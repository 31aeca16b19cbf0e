//! The TOML file.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use wire::text::io_text;

use crate::layers::{Given, Layer};
use crate::mistake::{Mistake, Origin};
use crate::program::{self, Kind, Opt, Program};

/// Most bytes of a file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads a file: what it says, and every mistake in it.
pub fn read(program: &Program, path: &Path) -> (Layer, Vec<Mistake>) {
    match read_text(path) {
        Ok(text) => understand(program, path, &text),
        Err(problem) => {
            let problem = format!("--config {}: {problem}", path.display());
            (Layer::default(), vec![Mistake::whole(None, problem)])
        }
    }
}

fn read_text(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    read.map_err(|error| io_text(&error))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("over {FILE_BYTES_MAX} bytes, which no file of options is"));
    }
    String::from_utf8(bytes).map_err(|_| "not UTF-8 text".to_owned())
}

fn understand(program: &Program, path: &Path, text: &str) -> (Layer, Vec<Mistake>) {
    let origin = |at: usize| Origin::File { path: path.to_owned(), line: line_of(text, at) };
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut mistakes: Vec<Mistake> = errors
        .iter()
        .map(|error| {
            let line = line_of(text, error.span().map_or(0, |span| span.start));
            let origin = Origin::File { path: path.to_owned(), line };
            Mistake::form(&origin, error.message().lines().collect::<Vec<_>>().join("; "))
        })
        .collect();
    let mut layer = Layer::default();
    for (key, value) in table.get_ref() {
        let origin = origin(key.span().start);
        let name: &str = key.get_ref();
        let Some(option) = program.option(name) else {
            mistakes.push(program::unknown(program, name, &origin));
            continue;
        };
        // Where the form is wrong, what stands there may be half of it, and has been told.
        let is_told = mistakes.iter().any(|mistake| mistake.order() == line_of(text, key.span().start));
        let found = given(option, value, &origin);
        match found.and_then(|given| program.fault(option, &given).map_or(Ok(given), Err)) {
            Ok(given) => drop(layer.insert(name.to_owned(), given)),
            Err(_) if is_told => {}
            Err(fault) => mistakes.push(Mistake::of(name, &origin, fault)),
        }
    }
    (layer, mistakes)
}

/// What stands there, as it would be typed.
fn given(option: &Opt, value: &Spanned<DeValue<'_>>, origin: &Origin) -> Result<Given, String> {
    let values = match (option.kind, value.get_ref()) {
        (Kind::Flag, DeValue::Boolean(is_set)) => return Ok(Given::flag(*is_set, origin.clone())),
        (Kind::Flag, other) => return Err(format!("true or false is needed, not {}", name_of(other))),
        (Kind::One, value) => vec![scalar(value, "a text or a number")?],
        (Kind::Many, DeValue::Array(array)) => {
            let values = array.iter().map(|one| scalar(one.get_ref(), "an array of texts or numbers"));
            values.collect::<Result<_, _>>()?
        }
        (Kind::Many, value) => vec![scalar(value, "an array of texts or numbers")?],
    };
    Ok(Given { values, origin: origin.clone() })
}

fn scalar(value: &DeValue<'_>, needed: &str) -> Result<OsString, String> {
    match value {
        DeValue::String(text) => Ok(OsString::from(&**text)),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Ok(number.to_string().into()),
            Err(_) => Err(format!("{number}: too large")),
        },
        DeValue::Float(number) => Ok(number.as_str().into()),
        other => Err(format!("{needed} is needed, not {}", name_of(other))),
    }
}

fn name_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// Counted from 1.
fn line_of(text: &str, at: usize) -> usize {
    1 + text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count()
}
