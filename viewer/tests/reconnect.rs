//! Connections that are lost: what the user is told, and when the viewer comes back.

#[allow(dead_code)] // the other tests use the rest
mod common;

use std::io::Read;
use std::time::{Duration, Instant};

use common::{Capture, Relay, Source, Viewer, ethernet};

#[test]
fn the_reason_that_a_relay_gives_is_said_once_and_the_viewer_comes_back() {
    let relay = Relay::start();
    let mut viewer = Viewer::start(&relay.url, &["--until-end"]);
    let output = viewer.read();
    let mut source = Source::new(1, 0, "web", &[ethernet("eth0")]);
    relay.accept(&[&source]);
    relay.data(&source.packets(&[0]));
    std::thread::sleep(Duration::from_millis(200));
    relay.close("has not read for 60 s");
    relay.accept(&[&source]);
    relay.data(&source.packets(&[0]));
    relay.data(&source.end());
    let ended = viewer.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let said = "connection lost: the relay closed the connection: has not read for 60 s; connecting again\n";
    assert_eq!(ended.stderr.matches(said).count(), 1, "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("has not read").count(), 1, "{}", ended.stderr);
    assert_eq!(Capture::read(&output.join().expect("reads")).packets.len(), 2);
}

/// It comes back for ever, and not more often than every ten seconds or so.
#[test]
fn a_relay_that_stays_away_is_tried_again_and_again() {
    let relay = Relay::start();
    let mut viewer = Viewer::start(&relay.url, &["--until-end"]);
    let output = viewer.read();
    let mut source = Source::new(1, 0, "web", &[ethernet("eth0")]);
    relay.accept(&[&source]);
    relay.data(&source.packets(&[0]));
    std::thread::sleep(Duration::from_millis(200));
    let begin = Instant::now();
    for _ in 0..3 {
        relay.cut();
        relay.subscription(); // it is not accepted, and cut again
    }
    // Half of 0.5, 1 and 2 s at least, and all of it at most.
    let took = begin.elapsed();
    assert!((Duration::from_millis(1000)..Duration::from_millis(8000)).contains(&took), "{took:?}");
    relay.cut();
    relay.accept(&[&source]);
    relay.data(&source.end());
    let ended = viewer.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("connection lost").count(), 1, "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("connected again").count(), 1, "{}", ended.stderr);
    drop(output);
}

/// While the reader of the output does not read, a new connection would be stalled at once.
#[cfg(unix)]
#[test]
fn a_viewer_that_is_full_comes_back_when_there_is_room() {
    let relay = Relay::start();
    let mut viewer = Viewer::start(&relay.url, &["--until-end"]);
    let mut pipe = viewer.stdout();
    let mut source = Source::new(1, 0, "web", &[ethernet("eth0")]);
    relay.accept(&[&source]);
    let (mut state, mut sent) = (1u64, 0u64);
    for block in 0..150u64 {
        for packet in 0..15 {
            let noise = std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            });
            source.push(0, block * 100 + packet, &noise.take(64_000).collect::<Vec<u8>>());
            sent += 1;
        }
        relay.data(&source.packer.seal().expect("packets"));
    }
    relay.wait_until_waiting(|bytes| bytes > 0);
    std::thread::sleep(Duration::from_millis(2500));
    relay.cut();
    assert!(relay.is_left_alone(Duration::from_secs(3)), "it does not come back while it is full");
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).map(|_| bytes)
    });
    relay.accept(&[&source]);
    relay.data(&source.end());
    let ended = viewer.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let said = "since the reader of the output does not read; connecting again when it does";
    assert!(ended.stderr.contains(said), "{}", ended.stderr);
    let capture = Capture::read(&reader.join().expect("ends").expect("reads"));
    assert!((capture.packets.len() as u64) < sent, "the rest was lost with the connection");
    assert!(!capture.packets.is_empty());
}
