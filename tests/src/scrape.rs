//! What a program tells by its admin port, asked from within a network namespace.

use std::collections::BTreeMap;

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
pub struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    /// Asks for `/metrics`.
    pub fn new(netns: &Netns, port: u16) -> Self {
        let (status, body) = get(netns, port, "/metrics");
        assert_eq!(status, 200, "{body}");
        let series = body.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
            (series.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
        });
        Self(series.collect())
    }

    /// The sum over all series of a metric of the sniffer, whole; panics if there is none.
    pub fn sniffer(&self, name: &str) -> u64 {
        self.sum(&format!("ringcast_sniffer_{name}"))
    }

    /// The sum over all series whose text, with its labels, is `name` or begins with `name{`.
    fn sum(&self, name: &str) -> u64 {
        let is_of = |series: &str| {
            series.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
        };
        let values: Vec<f64> =
            self.0.iter().filter(|(series, _)| is_of(series)).map(|(_, value)| *value).collect();
        assert!(!values.is_empty(), "no {name} in {self:?}");
        values.iter().sum::<f64>() as u64
    }

    /// The value of one series, named with its labels; `None` if there is none.
    pub fn series(&self, series: &str) -> Option<f64> {
        self.0.get(series).copied()
    }
}
