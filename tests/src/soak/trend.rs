//! Whether a process grows: a judge of what [`super::gauge`] saw of one life.
//!
//! A quarter of a life is warm-up. Then three rules, each for figures at quiet moments, when there is
//! nothing but traffic and so the same work to do each time:
//!
//! - the greatest of the last quarter is at most the greatest of the second, and an allowance: for
//!   memory it is greater, since what one great backlog once needed the allocator may keep;
//! - the line through them (the median of the slopes of all pairs, which no outlier bends) rises by
//!   at most an allowance. It is drawn for each third of the time, and the flattest counts: a leak
//!   rises in all of them, a step in one;
//! - and always, quiet or not: memory stays below a budget.
//!
//! So a descriptor for each reconnection is found as soon as three were lost after the warm-up.

use super::gauge::{Life, Sample};

/// Quiet moments after the warm-up that a trend needs.
const QUIET_MIN: usize = 4;
/// Those that a third needs for a line of its own.
const THIRD_MIN: usize = 4;

/// What is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// By which memory at quiet moments may be greater in the last quarter than in the second, KiB.
    pub memory_step_kib: u64,
    /// By which the line through it may rise, KiB.
    pub memory_growth_kib: u64,
    /// By which the numbers of descriptors, sockets and threads may.
    pub count_growth: u64,
    /// Most resident memory at any time, KiB.
    pub memory_max_kib: u64,
}

/// A figure of a sample, by how much it may be greater later, and by how much its line may rise.
type Figure = (&'static str, fn(&Sample) -> u64, u64, u64);

/// What is wrong with a life; nothing, if it is too short to tell.
pub fn judge(life: &Life, bounds: &Bounds) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut complain = |text: String| complaints.push(format!("{} {}: {text}", life.part, life.number));
    let most = life.samples.iter().map(|sample| sample.rss_kib).max().unwrap_or(0);
    if most > bounds.memory_max_kib {
        complain(format!("{most} KiB of memory at most, over {}", bounds.memory_max_kib));
    }
    let Some((quiet, quarters)) = quarters(life) else { return complaints };
    let (step, growth, count) = (bounds.memory_step_kib, bounds.memory_growth_kib, bounds.count_growth);
    let figures: [Figure; 6] = [
        ("KiB of resident memory", |one| one.rss_kib, step, growth),
        ("KiB of proportional memory", |one| one.pss_kib, step, growth),
        ("KiB of memory of its own", |one| one.private_dirty_kib, step, growth),
        ("descriptors", |one| one.descriptors, count, count),
        ("sockets", |one| one.sockets, count, count),
        ("threads", |one| one.threads, count, count),
    ];
    for (what, figure, step, growth) in figures {
        let greatest = |samples: &[Sample]| samples.iter().map(figure).max();
        if let [Some(early), Some(late)] = quarters.each_ref().map(|quarter| greatest(quarter))
            && late > early + step
        {
            complain(format!("{early} {what} in the second quarter, {late} in the last, over +{step}"));
        }
        let rise = steady_rise(&quiet, figure);
        if rise > growth as f64 {
            complain(format!("{what} rise by {rise:.1} after the warm-up, over +{growth}"));
        }
    }
    complaints
}

/// Whether a life is long enough for a trend.
pub fn is_judged(life: &Life) -> bool {
    quarters(life).is_some()
}

/// The quiet moments after the warm-up, and those of the second and of the last quarter.
fn quarters(life: &Life) -> Option<(Vec<Sample>, [Vec<Sample>; 2])> {
    let (first, last) = (life.samples.first()?.at_s, life.samples.last()?.at_s);
    let place = |sample: &Sample| (sample.at_s - first) / (last - first).max(f64::EPSILON);
    let quiet = life.samples.iter().copied().filter(|one| one.is_quiet && place(one) >= 0.25);
    let quiet: Vec<Sample> = quiet.collect();
    let part = |from: f64, to: f64| -> Vec<Sample> {
        quiet.iter().copied().filter(|one| (from..=to).contains(&place(one))).collect()
    };
    let quarters = [part(0.25, 0.5), part(0.75, 1.0)];
    (quiet.len() >= QUIET_MIN).then_some((quiet, quarters))
}

/// By how much the samples rise in all, if they did it all the time as where they do it least. Never by more than there is
/// between any two of them: through a few, with a step in the middle, a line can be steeper than that.
fn steady_rise(samples: &[Sample], figure: fn(&Sample) -> u64) -> f64 {
    let figures = || samples.iter().map(figure);
    let range = figures().max().unwrap_or(0) - figures().min().unwrap_or(0);
    let third = samples.len().div_ceil(3);
    let steady = if third < THIRD_MIN {
        rise(samples, figure)
    } else {
        let rises = samples.chunks(third).filter(|part| part.len() > 1).map(|part| rise(part, figure));
        3.0 * rises.fold(f64::INFINITY, f64::min)
    };
    steady.min(range as f64)
}

/// By how much a line through the samples rises from the first to the last.
fn rise(samples: &[Sample], figure: fn(&Sample) -> u64) -> f64 {
    let mut slopes = Vec::new();
    for (at, early) in samples.iter().enumerate() {
        for late in &samples[at + 1..] {
            let seconds = late.at_s - early.at_s;
            if seconds > 0.0 {
                slopes.push((figure(late) as f64 - figure(early) as f64) / seconds);
            }
        }
    }
    slopes.sort_by(f64::total_cmp);
    let span_s = samples.last().map_or(0.0, |one| one.at_s) - samples.first().map_or(0.0, |one| one.at_s);
    slopes.get(slopes.len() / 2).map_or(0.0, |median| median * span_s)
}

#[cfg(test)]
mod tests {
    use super::super::random::Random;
    use super::*;

    const BOUNDS: Bounds = Bounds {
        memory_step_kib: 8192,
        memory_growth_kib: 4096,
        count_growth: 2,
        memory_max_kib: 200 * 1024,
    };

    /// A life of ten minutes: a sample each 2 s, each fourth of them quiet. `more` is what comes on
    /// top of what is steady, by the part of life that has passed, from 0 to 1.
    fn life(more: impl Fn(f64, &mut Sample)) -> Life {
        let mut random = Random::new(7);
        let samples = (0..300).map(|index| {
            let noise = random.within(0, 1500);
            let is_quiet = index % 4 == 3;
            // Between quiet moments there is more of all.
            let busy = if is_quiet { 0 } else { random.within(0, 20) };
            let mut sample = Sample {
                at_s: 2.0 * index as f64,
                is_quiet,
                rss_kib: 40_000 + noise + 1000 * busy,
                pss_kib: 38_000 + noise + 1000 * busy,
                private_dirty_kib: 30_000 + noise + 1000 * busy,
                descriptors: 20 + busy,
                sockets: 10 + busy,
                threads: 5 + busy / 5,
            };
            more(index as f64 / 299.0, &mut sample);
            sample
        });
        Life::made_up("part", samples.collect())
    }

    fn complaints(more: impl Fn(f64, &mut Sample)) -> Vec<String> {
        judge(&life(more), &BOUNDS)
    }

    #[test]
    fn what_is_steady_is_right() {
        assert_eq!(complaints(|_, _| ()), [""; 0]);
        // Growing into its buffers is what the warm-up is for.
        assert_eq!(complaints(|at, one| one.rss_kib += (50_000.0 * (4.0 * at).min(1.0)) as u64), [""; 0]);
        // One that is there for a moment, and a step back.
        assert_eq!(
            complaints(|at, one| one.descriptors += u64::from(((at * 10.0) as u64).is_multiple_of(2))),
            [""; 0]
        );
    }

    #[test]
    fn a_descriptor_for_each_reconnection_is_found() {
        // Twelve reconnections in ten minutes.
        let found = complaints(|at, one| {
            one.descriptors += (12.0 * at) as u64;
            one.sockets += (12.0 * at) as u64;
        });
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found[0].contains("descriptors in the second quarter"), "{found:?}");
        assert!(found[1].contains("descriptors rise by"), "{found:?}");
        // Three after the warm-up, the last of them late, are still found.
        let found = complaints(|at, one| {
            one.descriptors += [0.55, 0.7, 0.9].iter().filter(|of| at > **of).count() as u64
        });
        assert!(found.iter().any(|text| text.contains("descriptors in the second quarter")), "{found:?}");
    }

    #[test]
    fn a_thread_that_stays_is_found() {
        let found = complaints(|at, one| one.threads += (6.0 * at) as u64);
        assert!(found.iter().any(|text| text.contains("threads")), "{found:?}");
    }

    #[test]
    fn memory_that_grows_slowly_is_found() {
        // 20 KiB a second.
        for which in 0..3 {
            let found = complaints(|at, one| {
                let field =
                    [&mut one.rss_kib, &mut one.pss_kib, &mut one.private_dirty_kib].into_iter().nth(which);
                *field.expect("one of three") += (12_000.0 * at) as u64;
            });
            assert!(found.iter().any(|text| text.contains("rise by")), "{found:?}");
        }
    }

    #[test]
    fn a_step_is_allowed_up_to_its_bound() {
        let step = |kib: u64| complaints(move |at, one| one.rss_kib += if at > 0.7 { kib } else { 0 });
        assert_eq!(step(6000), [""; 0]);
        let found = step(11_000);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("resident memory in the second quarter"), "{found:?}");
    }

    /// A spool that is opened in the middle of a life of twenty seconds takes two descriptors, and no more come.
    #[test]
    fn a_step_in_a_short_life_is_no_more_than_it_is() {
        let step = |count: u64| {
            let steady = life(|_, _| ()).samples[3];
            let at = |index: u32| Sample {
                at_s: f64::from(index),
                descriptors: steady.descriptors + if index > 12 { count } else { 0 },
                ..steady
            };
            judge(&Life::made_up("part", [0, 6, 10, 12, 13, 15, 18, 20].map(at).to_vec()), &BOUNDS)
        };
        assert_eq!(step(2), [""; 0]);
        assert!(!step(3).is_empty());
    }

    #[test]
    fn memory_over_its_budget_is_found_at_any_time() {
        let found = complaints(|at, one| {
            if (0.1..0.104).contains(&at) {
                one.rss_kib = 300 * 1024;
            }
        });
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("at most, over"), "{found:?}");
    }

    #[test]
    fn a_short_life_has_no_trend() {
        let mut short = life(|at, one| one.descriptors += (100.0 * at) as u64);
        assert!(is_judged(&short));
        short.samples.truncate(12);
        assert!(!is_judged(&short));
        assert_eq!(judge(&short, &BOUNDS), [""; 0]);
        assert_eq!(judge(&Life::made_up("part", Vec::new()), &BOUNDS), [""; 0]);
    }
}
