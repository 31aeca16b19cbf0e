//! What a program tells by its admin port, asked from within a network namespace.

use crate::admin::{sum, value};
use crate::live::python;
use crate::netns::Netns;

/// Asks by HTTP: port of loopback, path. Prints the status, and below it the body.
const GET: &str = "
import http.client, sys
connection = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]), timeout=30)
connection.request('GET', sys.argv[2])
answer = connection.getresponse()
print(answer.status)
print(answer.read().decode(), end='')
";

/// Status and body of an answer.
pub fn get(netns: &Netns, port: u16, path: &str) -> (u16, String) {
    let output = python(netns, GET, &[&port.to_string(), path]);
    let (status, body) = output.split_once('\n').expect("a status");
    (status.parse().expect("a number"), body.to_owned())
}

/// Figures at one time.
#[derive(Debug)]
pub struct Scrape(String);

impl Scrape {
    /// Asks for `/metrics`.
    pub fn new(netns: &Netns, port: u16) -> Self {
        let (status, body) = get(netns, port, "/metrics");
        assert_eq!(status, 200, "{body}");
        Self(body)
    }

    /// The sum over all series of a metric of the sniffer, whole; panics if there is none.
    pub fn sniffer(&self, name: &str) -> u64 {
        let name = format!("ringcast_sniffer_{name}");
        assert!(self.0.contains(&format!("# TYPE {name} ")), "no {name} in {}", self.0);
        sum(&self.0, &name) as u64
    }

    /// The value of one series, named with its labels; `None` if there is none.
    pub fn series(&self, series: &str) -> Option<f64> {
        value(&self.0, series)
    }
}
