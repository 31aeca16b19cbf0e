//! The admin port of a program, as those who watch over it see it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use crate::process::DEADLINE;

/// Status and body of what a path of the port answers.
pub fn get(port: u16, path: &str) -> (u16, String) {
    let mut client = TcpStream::connect(("127.0.0.1", port)).expect("the admin port is there");
    client.set_read_timeout(Some(DEADLINE)).expect("sets");
    write!(client, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n").expect("sends");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer to the end");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, body.to_owned())
}

/// What `/metrics` says.
pub fn scrape(port: u16) -> String {
    let (status, body) = get(port, "/metrics");
    assert_eq!(status, 200, "{body}");
    body
}

/// The value of a series, written as it stands in the text: `name` or `name{label="value"}`.
pub fn value(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    Some(line.parse().unwrap_or_else(|error| panic!("{series}: {line}: {error}")))
}

/// Values of all series of a metric, summed.
pub fn sum(text: &str, name: &str) -> f64 {
    let is_of = |line: &&str| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
    };
    let values = text.lines().filter(is_of).filter_map(|line| line.rsplit(' ').next());
    values.map(|value| value.parse::<f64>().expect("a number")).sum()
}

/// Whether `promtool`, of Debian's package prometheus, is there. If not, says so, or fails where nothing may be skipped.
pub fn has_promtool() -> bool {
    let started =
        Command::new("promtool").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    started.is_ok() || !crate::skip("no promtool: install Debian's package prometheus")
}

/// Has promtool judge; what it says if it finds something.
pub fn promtool(arguments: &[&str], input: &str) -> Result<(), String> {
    let mut command = Command::new("promtool");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool starts");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("promtool ends");
    let _ = writer.join().expect("the writer does not panic"); // promtool may not read to the end
    let said =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    if output.status.success() { Ok(()) } else { Err(said) }
}
