//! How a connection answers pings and a close frame, over a real socket.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use wire::connection::{Connection, ConnectionError, ReadShare, Received};
use wire::pool::Pool;

/// Far longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(30);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Protocol: ringcast.1\r\n\r\n";

/// A frame of a client, with a mask of zeros.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    [&[0x80 | opcode, 0x80 | payload.len() as u8, 0, 0, 0, 0][..], payload].concat()
}

/// Our end of a connection, and a client's that is made by hand.
fn pair() -> (Connection, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is there");
    let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
    client.set_read_timeout(Some(PATIENCE)).expect("sets");
    let (stream, _) = listener.accept().expect("it connects");
    stream.set_nonblocking(true).expect("sets");
    let stream = mio::net::TcpStream::from_std(stream);
    (Connection::server(stream, None, Instant::now()).expect("without TLS"), client)
}

/// Serves what `client` has sent, until the connection ends.
fn serve(mut connection: Connection) -> ConnectionError {
    let pool = Pool::new(1 << 20);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = Instant::now();
        assert!(now < deadline, "the connection does not end");
        connection.set_ready(true, true);
        let mut turn = || {
            while let Some(received) = connection.receive(now, &pool, &mut ReadShare::default())? {
                assert!(matches!(received, Received::Open), "{received:?}");
            }
            connection.drive(now)
        };
        if let Err(error) = turn() {
            return error;
        }
        std::thread::yield_now();
    }
}

/// What the server says to `frames` until it closes, without its handshake.
fn answer(frames: &[Vec<u8>]) -> (Vec<u8>, ConnectionError) {
    let (connection, mut client) = pair();
    client.write_all(&[REQUEST, &frames.concat()].concat()).expect("room for a little");
    let error = serve(connection);
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).expect("it closes");
    let head = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a handshake") + 4;
    (bytes.split_off(head), error)
}

#[test]
fn a_close_is_answered_with_its_code() {
    for code in [1000u16, 1001, 4999] {
        let code = code.to_be_bytes();
        let (bytes, error) = answer(&[frame(8, &[&code[..], b"bye"].concat())]);
        assert_eq!(bytes, [&[0x88, 2][..], &code].concat());
        assert_eq!(error.to_string(), "the peer closed the connection: bye");
    }
    assert_eq!(answer(&[frame(8, b"")]).0, [0x88, 0]);
}

#[test]
fn pings_are_answered_in_order() {
    let pings: Vec<Vec<u8>> = (0..10u8).map(|number| vec![number; 125]).collect();
    let mut frames: Vec<Vec<u8>> = pings.iter().map(|payload| frame(9, payload)).collect();
    frames.insert(5, frame(10, b"a pong that nobody asked for"));
    frames.push(frame(8, b""));
    let mut expected: Vec<u8> =
        pings.iter().flat_map(|payload| [&[0x8a, 125][..], payload].concat()).collect();
    expected.extend([0x88, 0]);
    assert_eq!(answer(&frames).0, expected);
}

#[test]
fn of_many_pings_the_last_are_answered() {
    let mut frames: Vec<Vec<u8>> = (0..100u8).map(|number| frame(9, &[number])).collect();
    frames.push(frame(8, b""));
    let (bytes, _) = answer(&frames);
    // All pings are read at once, before anything is sent.
    let expected: Vec<u8> = (84..100).flat_map(|number| [0x8a, 1, number]).chain([0x88, 0]).collect();
    assert!(bytes.ends_with(&expected), "{bytes:?}");
}
