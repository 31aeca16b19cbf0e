//! The tables of interfaces: what each interface of a stream is in the output, and what happens to
//! its packets.

use std::sync::Arc;

use wire::block::StreamKey;
use wire::description::Description;
use wire::limited;
use wire::log::FEW;
use wire::pcapng::interface_description;
use wire::text::printable;

use super::Writer;
use crate::config::{compile_filter, filter_text};
use crate::output::{Stop, say};
use crate::unpack::{Fate, Route};

impl Writer {
    /// A stream's table is there, or has grown: every new interface is described in the output.
    pub(super) fn handle_description(
        &mut self,
        key: StreamKey,
        description: &Description,
    ) -> Result<(), Stop> {
        if let Some(predecessor) = description.predecessor {
            self.streams.succeed(key, predecessor);
        }
        let Some(stream) = self.streams.find(key) else { return Ok(()) };
        let sniffer = if stream.name.is_empty() { &description.name } else { &stream.name };
        self.scratch.clear();
        let known = stream.routes.len();
        for interface in description.interfaces.iter().skip(known) {
            let name = match (&description.file, interface.name.is_empty()) {
                (Some(file), true) => base_name(file),
                _ => interface.name.as_str(),
            };
            let full_name = format!("{sniffer}:{name}");
            let offset_ns = interface.ts_offset_s.saturating_mul(1_000_000_000);
            let mut route = Route { id: 0, fate: Fate::Keep, offset_ns };
            if !self.config.matcher.matches_interface(&interface.name)
                && !self.config.matcher.matches_interface(name)
            {
                route.fate = Fate::Unwanted;
                stream.routes.push(route);
                continue;
            }
            if let Some(expression) = &self.config.filter {
                let compile = || {
                    let program = compile_filter(expression, interface.link_type);
                    program.map(Arc::new).map_err(|error| filter_text(&error))
                };
                route.fate = match self.programs.entry(interface.link_type).or_insert_with(compile) {
                    Ok(program) => Fate::Filter(Arc::clone(program)),
                    Err(text) => {
                        let name = printable(&full_name);
                        say(&format!("interface {name}: nothing of it is written: {text}"));
                        Fate::Unfilterable
                    }
                };
            }
            if !matches!(route.fate, Fate::Unfilterable) {
                let opened_ns = description.opened_ns;
                let seen = &mut stream.seen;
                match self.interfaces.assign(key.epoch, &full_name, interface, opened_ns, seen) {
                    Some((id, is_new)) => {
                        route.id = id;
                        let local = stream.routes.len() as u32;
                        self.interfaces.join(id, key, local, description.predecessor);
                        if is_new {
                            interface_description(&mut self.scratch, interface, &full_name);
                        }
                    }
                    None => {
                        limited!(
                            warn,
                            FEW,
                            "interface {}: too many interfaces, it is left out",
                            printable(&full_name)
                        );
                        route.fate = Fate::Unfilterable;
                    }
                }
            }
            self.tally.lock().streams.entry(key).or_default().add_interface(&full_name);
            stream.routes.push(route);
        }
        self.output.write(&self.scratch)
    }
}

/// The last part of a path, whichever system it is from.
fn base_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_names() {
        assert_eq!(base_name("/a/b.pcap"), "b.pcap");
        assert_eq!(base_name("c:\\a\\b.pcap"), "b.pcap");
        assert_eq!(base_name("b.pcap"), "b.pcap");
    }
}
