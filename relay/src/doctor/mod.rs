//! `relay doctor`: whether a relay with these options can run here, and what to do about what would keep it from running
//! well. See [`wire::doctor`] for what findings are.

mod keys;
mod limits;
mod listen;

use std::process::ExitCode;

use settings::Settings;
use wire::clock::wall_s;
use wire::doctor::{Finding, Host, MemoryUse, clock, memory, show};
use wire::units::format_bytes;

use crate::args::Args;
use crate::config::Config;
use crate::{config, fail};

/// Looks at everything and shows what was found.
pub fn run(settings: &Settings<Args>, json: bool) -> ExitCode {
    let mistakes = config::mistakes(&settings.args);
    for mistake in &mistakes {
        fail(2, &settings.locate(&mistake.to_string()));
    }
    let Some(config) = Config::new(&settings.args).ok().filter(|_| mistakes.is_empty()) else {
        return ExitCode::from(2);
    };
    let host = Host::this();
    let mut findings = listen::check(&config);
    findings.extend(keys::check(&config, wall_s()));
    findings.extend(limits::check(&host, &config));
    findings.extend(budget(&host, &config));
    findings.extend(clock(&host));
    show(&findings, json)
}

/// Recent blocks, and what other workers are told, have bounds of their own beside --memory.
fn budget(host: &Host, config: &Config) -> Vec<Finding> {
    let bytes = (config.memory_bytes as u64).saturating_add(config.recent_bytes as u64);
    let what = format!(
        "packed blocks ({}, --memory) and recent ones ({}, --recent)",
        format_bytes(config.memory_bytes as u64),
        format_bytes(config.recent_bytes as u64)
    );
    memory(
        host,
        &MemoryUse { bytes, charged_bytes: bytes, what: &what, advice: "a smaller --memory or --recent" },
    )
}
