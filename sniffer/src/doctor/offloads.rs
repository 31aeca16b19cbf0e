//! Offloads: a capture stands between the NIC and the stack, so it sees frames that were joined after the wire, or are yet
//! to be cut for it.

use wire::doctor::Finding;

use crate::interfaces::InterfaceInfo;

/// What is on, what that does to what is seen, and how to switch it off.
pub fn check(link: &InterfaceInfo) -> Vec<Finding> {
    if link.loopback {
        return Vec::new(); // there is no wire
    }
    let (subject, name, offloads) = (format!("interface {}", link.name), &link.name, link.offloads);
    let on = |all: &[(&'static str, Option<bool>)]| -> Vec<&'static str> {
        all.iter().filter_map(|(name, is_on)| (*is_on == Some(true)).then_some(*name)).collect()
    };
    let (received, sent) = (
        on(&[("gro", offloads.gro), ("lro", offloads.lro)]),
        on(&[("tso", offloads.tso), ("gso", offloads.gso)]),
    );
    let upper = |names: &[&str]| names.join(" and ").to_uppercase().replace(" AND ", " and ");
    let are = |names: &[&str]| if names.len() == 1 { "is" } else { "are" };
    let command = |names: &[&str]| {
        let off = names.iter().map(|name| format!("{name} off")).collect::<Vec<_>>().join(" ");
        format!("ethtool -K {name} {off}")
    };
    let mut findings = Vec::new();
    if !received.is_empty() {
        let more = if received.contains(&"lro") { "; LRO writes new headers for them" } else { "" };
        findings.push(Finding::warning(
            &subject,
            format!(
                "{} {} on: received segments are joined before they are captured, into frames of up to 64 KiB and more{more}",
                upper(&received),
                are(&received)
            ),
            format!("for frames as they were on the wire: {} (costs the stack CPU)", command(&received)),
        ));
    }
    if !sent.is_empty() {
        findings.push(
            Finding::note(
                &subject,
                format!(
                    "{} {} on: what this host sends is captured before it is cut into packets, with checksums unfinished",
                    upper(&sent),
                    are(&sent)
                ),
            )
            .advise(format!("for frames as they will be on the wire: {} (costs CPU)", command(&sent))),
        );
    }
    let is_known = [offloads.gro, offloads.lro, offloads.tso, offloads.gso].iter().any(Option::is_some);
    if is_known && findings.is_empty() {
        findings.push(Finding::ok(&subject, "no offload joins or cuts frames: they are seen as on the wire"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::testing::text;
    use super::*;
    use crate::interfaces::Offloads;

    fn found(offloads: Offloads, loopback: bool) -> String {
        let link = InterfaceInfo { offloads, loopback, ..super::super::interfaces::tests::link() };
        text(&check(&link))
    }

    #[test]
    fn each_direction_has_its_command() {
        let all = Offloads { gro: Some(true), lro: Some(true), tso: Some(true), gso: Some(true) };
        let both = found(all, false);
        assert!(both.starts_with("Warning interface eth0: GRO and LRO are on: "), "{both}");
        assert!(both.contains("LRO writes new headers"), "{both}");
        assert!(
            both.contains("ethtool -K eth0 gro off lro off (")
                && both.contains("ethtool -K eth0 tso off gso off (")
        );
        assert_eq!(found(all, true), "");
        let gro = Offloads { gro: Some(true), lro: Some(false), ..Offloads::default() };
        assert!(
            found(gro, false).starts_with("Warning interface eth0: GRO is on: "),
            "{}",
            found(gro, false)
        );
        assert!(
            found(Offloads { gro: Some(false), ..Offloads::default() }, false)
                .starts_with("Ok interface eth0")
        );
        assert_eq!(found(Offloads::default(), false), "");
    }
}
