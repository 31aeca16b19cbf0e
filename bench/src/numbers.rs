//! Which numbers have come: a bit for each, so that what is missing or came twice is known exactly.

use serde::{Deserialize, Serialize};

/// Numbers beyond this are not ours: 2^36 bits would be 8 GiB.
const NUMBER_MAX: u64 = 1 << 36;

/// The numbers that have come.
#[derive(Debug, Default)]
pub struct Numbers {
    bits: Vec<u64>,
    distinct: u64,
    twice: u64,
    highest: Option<u64>,
}

/// A run of numbers that are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The first.
    pub from: u64,
    /// How many.
    pub count: u64,
}

impl Numbers {
    /// Takes a number. `false`: it is none that can be kept.
    #[inline]
    pub fn take(&mut self, number: u64) -> bool {
        if number >= NUMBER_MAX {
            return false;
        }
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if word >= self.bits.len() {
            self.bits.resize((word + 1).next_multiple_of(1 << 16), 0);
        }
        if self.bits[word] & bit == 0 {
            self.bits[word] |= bit;
            self.distinct += 1;
        } else {
            self.twice += 1;
        }
        self.highest = self.highest.max(Some(number));
        true
    }

    /// How many different ones have come.
    pub fn distinct(&self) -> u64 {
        self.distinct
    }

    /// How many came that had come before.
    pub fn twice(&self) -> u64 {
        self.twice
    }

    /// One more than the highest; 0 if none came.
    pub fn end(&self) -> u64 {
        self.highest.map_or(0, |highest| highest + 1)
    }

    /// The first `most` runs of missing numbers below the highest.
    pub fn gaps(&self, most: usize) -> Vec<Gap> {
        let mut gaps: Vec<Gap> = Vec::new();
        for number in 0..self.end() {
            let word = self.bits[(number / 64) as usize];
            if word & (1 << (number % 64)) != 0 {
                continue;
            }
            let told = gaps.len();
            match gaps.last_mut() {
                Some(gap) if gap.from + gap.count == number => gap.count += 1,
                _ if told == most => break,
                _ => gaps.push(Gap { from: number, count: 1 }),
            }
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_twice_are_told() {
        let mut numbers = Numbers::default();
        assert_eq!((numbers.end(), numbers.gaps(9)), (0, vec![]));
        for number in (0..200).filter(|number| !(64..130).contains(number) && *number != 5) {
            assert!(numbers.take(number));
        }
        assert!(numbers.take(3) && !numbers.take(u64::MAX));
        assert_eq!((numbers.distinct(), numbers.twice(), numbers.end()), (133, 1, 200));
        assert_eq!(numbers.gaps(9), [Gap { from: 5, count: 1 }, Gap { from: 64, count: 66 }]);
        assert_eq!(numbers.gaps(1).len(), 1);
    }
}
