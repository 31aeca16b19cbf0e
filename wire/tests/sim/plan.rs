//! What a seed decides before anything runs.

use crate::rng::Rng;

/// The shape of one simulation. Everything that may go wrong is off in one seed of four.
#[derive(Clone, Debug)]
pub struct Plan {
    pub sniffers: usize,
    pub workers: usize,
    pub viewers: usize,
    /// Ticks in which packets are made and things go wrong.
    pub ticks: u64,
    pub sniffer_cuts: bool,
    pub viewer_cuts: bool,
    pub restarts: bool,
    /// Sniffers are killed, and start anew; only with a spool is what they had packed known.
    pub sniffer_kills: bool,
    pub spool: bool,
    pub spool_bytes: usize,
    pub small_spool: bool,
    pub spool_fails: bool,
    pub recent_bytes: usize,
    pub small_recent: bool,
    pub leaving: bool,
    pub shedding: bool,
    pub giving_up: bool,
    /// Viewers that do not read before the end.
    pub stalling: bool,
    pub memory_bytes: usize,
    pub small_memory: bool,
    pub viewer_queue_bytes: usize,
    pub small_viewer_queue: bool,
    pub worker_queue_bytes: usize,
    pub small_worker_queue: bool,
    /// Control messages go through JSON, as they do on a line.
    pub json: bool,
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x506c_616e);
        let calm = rng.one_in(4);
        let rng_spool = rng.one_in(2);
        let mut rough = |n: u64| !calm && rng.one_in(n);
        let (sniffer_cuts, viewer_cuts, restarts, leaving) = (rough(2), rough(4), rough(5), rough(3));
        let (shedding, giving_up, stalling) = (rough(4), rough(4), rough(3));
        let (small_memory, small_viewer_queue, small_worker_queue) = (rough(3), rough(3), rough(3));
        let (sniffer_kills, small_spool, spool_fails) = (rough(4), rough(4), rough(5));
        let (small_recent, spool) = (rough(3), rng_spool);
        let mut bytes = |small: bool, low, high| if small { rng.range(low, high) as usize } else { 64 << 20 };
        Self {
            memory_bytes: bytes(small_memory, 3_000, 40_000),
            viewer_queue_bytes: bytes(small_viewer_queue, 600, 12_000),
            worker_queue_bytes: bytes(small_worker_queue, 600, 12_000),
            spool_bytes: bytes(small_spool, 20_000, 100_000),
            recent_bytes: bytes(small_recent, 0, 20_000),
            sniffers: rng.range(1, 3) as usize,
            workers: rng.pick(&[1, 1, 2, 3]),
            viewers: rng.range(1, 4) as usize,
            ticks: rng.range(60, 300),
            json: rng.one_in(4),
            sniffer_cuts,
            viewer_cuts,
            restarts,
            sniffer_kills: sniffer_kills && spool,
            spool,
            small_spool: small_spool && spool,
            spool_fails: spool_fails && spool,
            small_recent,
            leaving,
            shedding,
            giving_up,
            stalling,
            small_memory,
            small_viewer_queue,
            small_worker_queue,
        }
    }
}
