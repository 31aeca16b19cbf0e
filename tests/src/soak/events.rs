//! What is done to the chain, one after the other, by a schedule that follows from a seed.

use std::fs;
use std::time::{Duration, Instant};

use super::random::Random;
use super::world::{Chain, LONG, MORTAL, MOVING, RELAY, STEADY, TARDY, await_next};
use crate::faults::{cut_connections, set_link};
use crate::process::Process;

/// The relay is ended only in this part of the time: then it lives long enough to be judged.
const RELAY_DIES_UNTIL: f64 = 0.35;
/// What only silence tells takes longer.
const SILENCE: Duration = Duration::from_secs(25);

/// Long enough for the spools to be used.
const FIRST_CUT: Duration = Duration::from_secs(3);

/// Something that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The relay is told to end, and started again.
    RelayEnded,
    /// It is killed.
    RelayKilled,
    /// All connections of the sniffers are reset.
    LinesReset,
    /// The line between sniffers and relay is down, and nobody notices.
    LineBlinks,
    /// It is cut, and that is noticed at once.
    LineCut,
    /// It is down for so long that both ends give it up.
    LineSilent,
    /// The disk of a spool is full, and the line is cut.
    DiskFull,
    /// A sniffer is told to end, and started again.
    SnifferEnded,
    /// It is killed.
    SnifferKilled,
    /// It is killed while the line is cut.
    SnifferKilledInOutage,
    /// An interface is switched off and on.
    InterfaceDown,
    /// The far end of its wire is.
    WirePulled,
    /// It is deleted and made anew.
    InterfaceGone,
    /// The connections of the viewers are reset.
    ViewersReset,
    /// Their line is cut.
    ViewersCut,
    /// A viewer is stopped for a while.
    ViewerStopped,
    /// Who reads its output is slow for a while.
    ViewerSlow,
    /// It is stopped until the relay closes it.
    ViewerStalled,
    /// Everyone gets SIGHUP.
    HungUp,
    /// A sniffer gets another token.
    TokenRotated,
    /// A viewer is revoked while it watches.
    GuestRevoked,
}

impl Event {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::RelayEnded,
        Self::RelayKilled,
        Self::LinesReset,
        Self::LineBlinks,
        Self::LineCut,
        Self::LineSilent,
        Self::DiskFull,
        Self::SnifferEnded,
        Self::SnifferKilled,
        Self::SnifferKilledInOutage,
        Self::InterfaceDown,
        Self::WirePulled,
        Self::InterfaceGone,
        Self::ViewersReset,
        Self::ViewersCut,
        Self::ViewerStopped,
        Self::ViewerSlow,
        Self::ViewerStalled,
        Self::HungUp,
        Self::TokenRotated,
        Self::GuestRevoked,
    ];

    /// About how long it and what follows takes, s.
    fn seconds(self) -> u64 {
        match self {
            Self::ViewerStalled => 90,
            Self::LineSilent => 45,
            Self::LineCut | Self::DiskFull => 15,
            Self::SnifferKilledInOutage | Self::ViewersCut | Self::ViewerStopped | Self::ViewerSlow => 10,
            _ => 5,
        }
    }

    /// What comes first: what fills the most memory, since that is for the warm-up; then the relay's
    /// end, which has its time.
    fn precedence(self) -> u8 {
        match self {
            Self::RelayEnded | Self::RelayKilled => 1,
            _ if self.seconds() > 30 => 0,
            _ => 2,
        }
    }

    /// Whether it may begin, at this time of a soak that takes so long.
    fn may_begin(self, now: Duration, of: Duration) -> bool {
        let is_early = now.as_secs_f64() < RELAY_DIES_UNTIL * of.as_secs_f64();
        let is_short = self.seconds() <= of.as_secs() / 4;
        let has_time = now + Duration::from_secs(self.seconds()) < of;
        let spares_relay = !matches!(self, Self::RelayEnded | Self::RelayKilled);
        is_short && has_time && (is_early || spares_relay)
    }
}

/// Does one thing after the other until the time is over; after each of them all must flow again.
pub fn churn(chain: &mut Chain<'_>, random: &mut Random, time: Duration, go_on: impl Fn() -> bool) {
    // What a first outage makes them open, they keep.
    cut_line(chain, |_| std::thread::sleep(FIRST_CUT));
    chain.look_at_quiet();
    let mut waiting = random.shuffled(&Event::ALL);
    waiting.sort_by_key(|event| std::cmp::Reverse(event.precedence()));
    while chain.gauges.elapsed() < time && go_on() {
        if waiting.is_empty() {
            waiting = random.shuffled(&Event::ALL);
        }
        let Some(event) = waiting.pop().filter(|event| event.may_begin(chain.gauges.elapsed(), time)) else {
            // At the end there may be nothing left that is short enough.
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        let begin = Instant::now();
        eprintln!("[soak] {:.1} s: {event:?}", chain.gauges.elapsed().as_secs_f64());
        act(chain, random, event);
        chain.settle();
        eprintln!("[soak] {event:?} took {:.1} s", begin.elapsed().as_secs_f64());
        chain.place.count(&format!("{event:?}"));
        chain.look_at_quiet();
    }
}

fn act(chain: &mut Chain<'_>, random: &mut Random, event: Event) {
    let place = chain.place;
    let (bench, middle) = (&place.wide.bench, &place.wide.middle);
    // The fault lasts so long.
    let mut pause = |from_ms, to_ms| std::thread::sleep(Duration::from_millis(random.within(from_ms, to_ms)));
    match event {
        Event::RelayEnded | Event::RelayKilled => {
            chain.end_relay(event == Event::RelayEnded);
            pause(100, 4000);
            chain.start_relay();
        }
        Event::LinesReset => reset_lines(chain),
        Event::LineBlinks => {
            place.wide.set_line(false);
            pause(500, 3000);
            place.wide.set_line(true);
        }
        Event::LineCut => cut_line(chain, |_| pause(4000, 9000)),
        Event::LineSilent => {
            place.wide.set_line(false);
            std::thread::sleep(SILENCE);
            place.wide.set_line(true);
        }
        Event::DiskFull => {
            let filler = chain.disk.fill();
            cut_line(chain, |_| pause(4000, 9000));
            fs::remove_file(filler).expect("removed");
        }
        Event::SnifferEnded | Event::SnifferKilled => chain.with_absence(MORTAL, |chain| {
            chain.end_sniffer(MORTAL, event == Event::SnifferEnded);
            pause(0, 1000);
            chain.start_sniffer(MORTAL);
        }),
        Event::SnifferKilledInOutage => chain.with_absence(MORTAL, |chain| {
            cut_line(chain, |chain| {
                pause(500, 4000);
                chain.end_sniffer(MORTAL, false);
                chain.start_sniffer(MORTAL);
                pause(0, 2000);
            });
        }),
        Event::InterfaceDown => chain.with_absence(MOVING, |chain| {
            let sniffer = chain.parts[MOVING].running();
            await_next(sniffer, "interface w1: down", |_| set_link(&bench.here, "w1", false));
            pause(0, 3000);
            await_next(sniffer, "interface w1: up again", |_| set_link(&bench.here, "w1", true));
            bench.here.await_up("w1");
            bench.there.await_up("w2");
        }),
        Event::WirePulled => chain.with_absence(MOVING, |chain| {
            let sniffer = chain.parts[MOVING].running();
            await_next(sniffer, "interface w1: no carrier", |_| set_link(&bench.there, "w2", false));
            pause(0, 3000);
            await_next(sniffer, "interface w1: up again", |_| set_link(&bench.there, "w2", true));
            bench.here.await_up("w1");
            bench.there.await_up("w2");
        }),
        Event::InterfaceGone => chain.with_absence(MOVING, |chain| {
            let sniffer = chain.parts[MOVING].running();
            await_next(sniffer, "interface w1: gone", |_| bench.here.ip(&["link", "del", "w1"]));
            pause(0, 3000);
            let wire = |_: &mut Process| bench.wire("w1", [2, 0, 0, 0, 0, 3], "w2", [2, 0, 0, 0, 0, 4]);
            await_next(sniffer, "interface w1: there again", wire);
        }),
        Event::ViewersReset => {
            cut_connections(middle, &["sport", "=", ":9440", "and", "dst", "10.7.0.2"]);
        }
        Event::ViewersCut => {
            place.wide.set_far_line(false);
            cut_connections(&place.wide.far, &["dport", "=", ":9440"]);
            pause(1000, 5000);
            place.wide.set_far_line(true);
        }
        Event::ViewerStopped => {
            let tardy = &chain.stayers[TARDY].process;
            tardy.signal("STOP");
            pause(3000, 7000);
            tardy.signal("CONT");
        }
        Event::ViewerSlow => {
            let taker = &chain.stayers[TARDY].taker;
            taker.set_slow(true);
            pause(3000, 7000);
            taker.set_slow(false);
        }
        Event::ViewerStalled => {
            let relay = chain.relay.as_mut().expect("it runs");
            let tardy = &chain.stayers[TARDY].process;
            await_next(relay, "has not read", |_| tardy.signal("STOP"));
            tardy.signal("CONT");
        }
        Event::HungUp => {
            chain.hang_up_relay();
            chain.parts.iter_mut().for_each(|part| part.running().signal("HUP"));
            chain.stayers.iter().for_each(|stayer| stayer.process.signal("HUP"));
        }
        Event::TokenRotated => {
            let part = &chain.parts[*random.pick(&[STEADY, MOVING])];
            let (name, token) = (part.name, place.pki.path(&format!("{}.token", part.name)));
            place.pki.revoke(name);
            fs::remove_file(&token).expect("removed");
            place.pki.add(name, &["--role", "publish"]);
            let part = chain.parts.iter_mut().find(|part| part.name == name).expect("one of them");
            await_next(part.running(), "were read anew", |sniffer| sniffer.signal("HUP"));
            let relay = chain.relay.as_mut().expect("it runs");
            await_next(relay, &format!("access of {name} ended"), |relay| relay.signal("HUP"));
        }
        Event::GuestRevoked => {
            let name = format!("guest-{}", random.number());
            let token = place.pki.add(&name, &["--role", "subscribe"]);
            chain.hang_up_relay();
            let mut command = place.command(middle, "viewer", RELAY, &token);
            let guest = Process::start_as("guest", command.args(["-w", "/dev/null"]));
            let relay = chain.relay.as_mut().expect("it runs");
            relay.await_lines(&format!("subscription begins who=\"{name}\""), 1, LONG);
            place.pki.revoke(&name);
            await_next(relay, &format!("access of {name} ended"), |relay| relay.signal("HUP"));
            let ended = place.ended("guest", guest.terminate());
            assert_eq!(ended.code(), 0, "{}", ended.stderr);
            fs::remove_file(place.pki.path(&token)).expect("removed");
        }
    }
}

/// Resets the connections of all sniffers at their own end and at the relay's.
fn reset_lines(chain: &Chain<'_>) {
    let place = chain.place;
    cut_connections(&place.wide.bench.here, &["dport", "=", ":9440"]);
    cut_connections(&place.wide.middle, &["sport", "=", ":9440", "and", "dst", "10.8.0.1"]);
}

/// Cuts the line so that the sniffers know at once, and mends it after `meanwhile`.
fn cut_line(chain: &mut Chain<'_>, meanwhile: impl FnOnce(&mut Chain<'_>)) {
    let place = chain.place;
    place.wide.set_line(false);
    cut_connections(&place.wide.bench.here, &["dport", "=", ":9440"]);
    meanwhile(chain);
    place.wide.set_line(true);
}
