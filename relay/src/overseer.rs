//! Whom the admin port asks: all workers, and what they share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use wire::admin::{PATIENCE, Picture, Subject};
use wire::clock::wall_s;
use wire::metrics::Exposition;
use wire::metrics::table::relay::*;

use crate::figures::{self, Figures};
use crate::inbox::Note;
use crate::worker::Shared;

/// See the module's head.
pub struct Overseer {
    shared: Shared,
    viewer_queue_bytes: usize,
    stop: Arc<AtomicBool>,
    answer: Sender<(usize, Box<Figures>)>,
    answers: Receiver<(usize, Box<Figures>)>,
    /// Workers that were asked and have not answered: they are not asked again, so that nothing piles up before one that
    /// hangs.
    asked: Vec<bool>,
}

impl Overseer {
    /// Asks the workers that these things are shared by.
    pub fn new(shared: Shared, viewer_queue_bytes: usize, stop: Arc<AtomicBool>) -> Self {
        let (answer, answers) = channel();
        let asked = vec![false; shared.inboxes.len()];
        Self { shared, viewer_queue_bytes, stop, answer, answers, asked }
    }

    /// What all workers tell now, or which do not.
    fn ask(&mut self) -> Result<Vec<Figures>, String> {
        let inboxes = &self.shared.inboxes;
        while let Ok((worker, _)) = self.answers.try_recv() {
            self.asked[worker] = false; // it came too late for the look before
        }
        for (worker, is_asked) in self.asked.iter_mut().enumerate() {
            if !std::mem::replace(is_asked, true) {
                inboxes.send(worker, worker, Note::Look(self.answer.clone()));
            }
            inboxes.wake(worker);
        }
        let deadline = Instant::now() + PATIENCE;
        let mut all: Vec<Option<Figures>> = inboxes.all().map(|_| None).collect();
        while all.iter().any(Option::is_none)
            && let Ok((worker, figures)) =
                self.answers.recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            self.asked[worker] = false;
            all[worker] = Some(*figures);
        }
        let silent: Vec<String> = (0..all.len())
            .filter(|worker| all[*worker].is_none())
            .map(|worker| format!("worker {worker}: no answer within {} s", PATIENCE.as_secs()))
            .collect();
        if silent.is_empty() { Ok(all.into_iter().flatten().collect()) } else { Err(silent.join("\n")) }
    }

    /// Why the relay does not do what it was started for.
    fn unready(&self, certificate_ends_s: Option<u64>) -> Vec<String> {
        let now_s = wall_s();
        let is_over = certificate_ends_s.is_some_and(|end_s| now_s > end_s);
        let text =
            "the relay's certificate has expired: relay init --renew makes a new one, then send SIGHUP";
        is_over.then(|| text.to_owned()).into_iter().collect()
    }
}

impl Subject for Overseer {
    fn look(&mut self) -> Result<Picture, String> {
        if self.stop.load(Ordering::Acquire) {
            let unready = vec!["the relay is being stopped".to_owned()];
            return Ok(Picture { unready, ..Picture::default() });
        }
        let workers = self.ask()?;
        let mut exposition = Exposition::default();
        figures::describe(&workers, &mut exposition);
        let Shared { gate, pool, rights, .. } = &self.shared;
        exposition.count(CONNECTIONS_LIMIT, [], gate.connections_max() as u64);
        exposition.count(VIEWER_QUEUE_LIMIT_BYTES, [], self.viewer_queue_bytes as u64);
        exposition.count(MEMORY_USED_BYTES, [], pool.used_bytes() as u64);
        exposition.count(MEMORY_LIMIT_BYTES, [], pool.budget_bytes() as u64);
        let certificate_ends_s = rights.certificate_ends_s();
        if let Some(end_s) = certificate_ends_s {
            exposition.count(CERTIFICATE_EXPIRY, [], end_s);
        }
        let unready = self.unready(certificate_ends_s);
        Ok(Picture { unready, figures: exposition, ..Picture::default() })
    }
}
