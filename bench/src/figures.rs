//! What the programs report to each other, as JSON.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::numbers::Gap;

/// What the generator has sent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Generated {
    /// Packets the kernel took; their numbers are 0 to this, without it.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// From the first to the last, in seconds.
    pub seconds: f64,
    /// Packets a second.
    pub offered_pps: f64,
    /// Times the kernel had no room and was asked again.
    pub refused: u64,
    /// Frames of the file that could not be played.
    pub left_out: u64,
}

/// What came out of a chain.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Counted {
    /// Packets, numbered or not.
    pub packets: u64,
    /// Captured bytes of them.
    pub captured_bytes: u64,
    /// Bytes of the file format.
    pub stream_bytes: u64,
    /// Different numbers that came.
    pub distinct: u64,
    /// Packets whose number had come before.
    pub twice: u64,
    /// Packets without a number: not the generator's.
    pub foreign: u64,
    /// One more than the highest number.
    pub end: u64,
    /// The first runs of missing numbers.
    pub gaps: Vec<Gap>,
    /// Times `read` was called.
    pub reads: u64,
    /// From capture time stamp to here.
    pub latency: Latency,
    /// CPU of this program, user and system, in ns.
    pub cpu_ns: u64,
}

/// Latency in µs; 0 where there was no packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Median.
    pub p50_us: u64,
    /// 99 of 100 are at most this.
    pub p99_us: u64,
    /// 999 of 1000.
    pub p999_us: u64,
    /// The largest.
    pub max_us: u64,
}

impl Latency {
    /// Of a histogram in µs.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            p50_us: histogram.value_at_quantile(0.5),
            p99_us: histogram.value_at_quantile(0.99),
            p999_us: histogram.value_at_quantile(0.999),
            max_us: histogram.max(),
        }
    }
}

/// Median, least and greatest of several runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Median; of an even number of values, the mean of the two in the middle.
    pub median: f64,
    /// Least.
    pub min: f64,
    /// Greatest.
    pub max: f64,
}

impl Spread {
    /// Of values; all 0 if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (values.first(), values.last()) else { return Self::default() };
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Self { median: (low + high) / 2.0, min: *min, max: *max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Spread::of([]), Spread::default());
    }
}
