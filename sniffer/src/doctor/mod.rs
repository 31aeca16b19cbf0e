//! `sniffer doctor`: whether the capture that these options describe can run here, what would make it lose packets, and
//! what to do about it. See [`wire::doctor`] for what findings are.

mod cores;
mod interfaces;
mod kernel;
mod memory;
mod offloads;
mod rights;
mod spool;
#[cfg(test)]
mod testing;

use std::process::ExitCode;

use settings::Settings;
use wire::connection::RelayUrl;
use wire::doctor::{Client, Finding, Host, clock, reach, show};
use wire::message::Role;

use crate::args::Args;
use crate::{AGENT, config, confine, fail, fresh_epoch, host_name, text};

/// Looks at everything and shows what was found.
pub fn run(settings: &Settings<Args>, json: bool) -> ExitCode {
    let args = &settings.args;
    let mistakes = config::option_mistakes(args, &host_name());
    for mistake in &mistakes {
        wire::log::say(&format!("sniffer: {}", settings.locate(&text(mistake))));
    }
    let (relay, epoch) = match (RelayUrl::parse(&args.relay), fresh_epoch()) {
        (Ok(relay), Ok(epoch)) if mistakes.is_empty() => (relay, epoch),
        (_, Err(error)) => return fail(1, &format!("random numbers: {error}")),
        _ => return ExitCode::from(2),
    };
    let host = Host::this();
    let mut findings = kernel::check(&host, args);
    findings.extend(rights::check(args));
    let links = match &args.read {
        Some(path) => {
            findings.push(rights::file(path));
            Vec::new()
        }
        None => interfaces::links(args, &mut findings),
    };
    for link in &links {
        findings.extend(interfaces::check(&host, link, args));
        findings.extend(offloads::check(link));
        if !interfaces::is_foreign(&host, link) {
            findings.extend(cores::check_interface(&host, &link.name, args));
        }
    }
    findings.extend(interfaces::doubled(&host, &links));
    if args.read.is_none() {
        findings.extend(cores::check(&host, args, &links));
    }
    findings.extend(memory::check(&host, args, links.len()));
    findings.extend(clock(&host));
    findings.extend(reach_relay(args, &relay, epoch));
    // What is root's to write is not ours: the capture, too, opens its spool without capabilities.
    confine::give_up_capabilities(false);
    if let Some(directory) = &args.spool {
        let speed_bits = links.iter().filter_map(|link| link.speed_bits).sum();
        findings.extend(spool::check(&host, directory, args.spool_size as u64, speed_bits));
    }
    show(&findings, json)
}

fn reach_relay(args: &Args, relay: &RelayUrl, epoch: wire::block::Epoch) -> Vec<Finding> {
    let name = args.name.clone().unwrap_or_else(host_name);
    let files = config::credential_files(args);
    let client = Client { url: relay, files: &files, role: Role::Publish, name: &name, agent: AGENT, epoch };
    reach(&client).findings
}
