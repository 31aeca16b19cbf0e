//! The opening handshake, both sides: an answer is made or more bytes are asked for, up to the bound.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::connection::HANDSHAKE_BYTES_MAX;
use wire::connection::fuzzing::{Policy, ServerReply, client_response, server_request};

fuzz_target!(|input: &[u8]| {
    let policy = Policy::default();
    match server_request(input, &policy) {
        None => assert!(input.len() < HANDSHAKE_BYTES_MAX),
        Some(ServerReply::Upgrade { response, consumed }) => {
            assert!(consumed <= input.len() && response.starts_with(b"HTTP/1.1 101 "));
        }
        Some(ServerReply::Refuse { response, reason }) => {
            // The reason goes to a log and to the peer: it must not break either.
            assert!(response.starts_with(b"HTTP/1.1 ") && reason.len() < 4096);
            assert!(!reason.contains(|c: char| c.is_control()), "{reason:?}");
        }
    }
    match client_response(input, "dGhlIHNhbXBsZSBub25jZQ==", &policy) {
        Ok(None) => assert!(input.len() < HANDSHAKE_BYTES_MAX),
        Ok(Some(consumed)) => assert!(consumed <= input.len()),
        Err(error) => assert!(error.to_string().len() < 64 << 10),
    }
});
