//! `chart`: draws the JSON that `replay --json` has written, as SVG on standard output.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use bench::report::Report;
use clap::Parser;

/// Draws a report as SVG, on standard output.
#[derive(Debug, Parser)]
struct Args {
    /// What `replay --json` has written
    report: PathBuf,
}

fn main() -> ExitCode {
    let path = Args::parse().report;
    let report = std::fs::read(&path)
        .and_then(|bytes| Ok(serde_json::from_slice::<Report>(&bytes)?))
        .map_err(|error| format!("{}: {error}", path.display()));
    let written = report.and_then(|report| {
        let text = bench::svg::chart(&report);
        std::io::stdout().write_all(text.as_bytes()).map_err(|error| format!("standard output: {error}"))
    });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("chart: {text}");
            ExitCode::FAILURE
        }
    }
}
