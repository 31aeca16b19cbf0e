//! What goes on, as a live line at the bottom of a terminal. Where standard error is not a terminal, or one that can
//! do nothing (TERM=dumb), not a byte of it is written.
//!
//! A thread of its own draws, four times a second at most, two for each frame: a terminal that is stopped, or at the end of a slow line, holds
//! up nobody else. Lines that are written meanwhile go above it (see [`around`]).

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Time between two frames.
const FRAME_TIME: Duration = Duration::from_millis(500);
/// The text is cut where the terminal ends.
const LINE: &str = "{spinner} {wide_msg}";
const BAR: &str = "[{bar:12}] {percent}%, {eta} left: {wide_msg}";
/// What the drawing library may draw in a second; the thread draws less.
const FRAMES_MAX: u8 = 20;
/// A rate is that of the last so many frames.
const RATE_FRAMES: usize = 4;

/// One picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A line of text.
    Line(String),
    /// How much of something is done, the time that is left, and a text.
    Bar {
        /// So much is done...
        done: u64,
        /// ... of so much.
        whole: u64,
        /// What else there is to say.
        text: String,
    },
}

/// The line that stands on the terminal.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn shown() -> MutexGuard<'static, Option<ProgressBar>> {
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes to standard error while the live line, if there is one, is not there.
pub fn around<R>(write: impl FnOnce() -> R) -> R {
    let bar = shown().clone();
    match bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// Takes the line away in a program that ends at once.
pub fn abandon() {
    if let Some(bar) = shown().take() {
        bar.finish_and_clear();
    }
}

/// The live line of a program.
#[derive(Debug)]
pub struct Progress {
    drawing: Option<Drawing>,
    /// A frame is wanted from then on.
    due: Instant,
}

#[derive(Debug)]
struct Drawing {
    board: Arc<Board>,
    thread: JoinHandle<()>,
}

/// Where the frame lies that is to be drawn next.
#[derive(Debug, Default)]
struct Board {
    state: Mutex<State>,
    over: Condvar,
}

#[derive(Debug, Default)]
struct State {
    frame: Option<Frame>,
    is_over: bool,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    /// A line on standard error if that is a terminal, else nothing.
    pub fn start(is_wanted: bool) -> Self {
        if !is_wanted || !std::io::stderr().is_terminal() {
            return Self::nothing();
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(FRAMES_MAX));
        Self::on(bar)
    }

    /// Never anything.
    pub fn nothing() -> Self {
        Self { drawing: None, due: Instant::now() }
    }

    fn on(bar: ProgressBar) -> Self {
        if bar.is_hidden() {
            return Self::nothing();
        }
        let board = Arc::new(Board::default());
        let drawn = Arc::clone(&board);
        // Without a thread there is no line: no reason to fail.
        let thread =
            std::thread::Builder::new().name("progress".to_owned()).spawn(move || draw(&drawn, &bar));
        Self { drawing: thread.ok().map(|thread| Drawing { board, thread }), due: Instant::now() }
    }

    /// Whether there is a line at all.
    pub fn is_shown(&self) -> bool {
        self.drawing.is_some()
    }

    /// Whether a new frame is wanted, a few times a second.
    pub fn is_due(&self, now: Instant) -> bool {
        self.drawing.is_some() && now >= self.due
    }

    /// When a new frame is wanted.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.drawing.as_ref().map(|_| self.due)
    }

    /// Has a frame drawn soon.
    pub fn show(&mut self, now: Instant, frame: Frame) {
        self.due = now + FRAME_TIME;
        if let Some(drawing) = &self.drawing {
            drawing.board.lock().frame = Some(frame);
        }
    }

    /// Takes the line away for good.
    pub fn finish(&mut self) {
        if let Some(Drawing { board, thread }) = self.drawing.take() {
            board.lock().is_over = true;
            board.over.notify_one();
            let _ = thread.join(); // one that panicked has said so
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Draws frames until it is over.
fn draw(board: &Board, bar: &ProgressBar) {
    let mut was_bar = None;
    loop {
        let frame = {
            let state = board.lock();
            let waited = board.over.wait_timeout_while(state, FRAME_TIME, |state| !state.is_over);
            let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if state.is_over {
                break;
            }
            state.frame.take()
        };
        let Some(frame) = frame else { continue };
        let is_bar = matches!(frame, Frame::Bar { .. });
        if was_bar.replace(is_bar) != Some(is_bar) {
            bar.set_style(style(is_bar));
            bar.reset_eta();
        }
        match frame {
            Frame::Line(text) => {
                bar.set_message(text);
                bar.tick(); // the spinner turns
            }
            Frame::Bar { done, whole, text } => {
                bar.set_message(text);
                if bar.length() != Some(whole) {
                    bar.set_length(whole);
                }
                bar.set_position(done.min(whole));
            }
        }
        let mut shown = shown();
        if shown.is_none() {
            *shown = Some(bar.clone());
        }
    }
    bar.finish_and_clear();
    *shown() = None;
}

fn style(is_bar: bool) -> ProgressStyle {
    let template = if is_bar { BAR } else { LINE };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ").tick_chars("|/-\\ ")
}

/// Something that becomes less, as a bar shows it: from the most that there was, down to nothing.
#[derive(Debug, Default)]
pub struct Drain {
    most: u64,
}

impl Drain {
    /// So much is left: how much is done, and of how much. `None` where nothing is left.
    pub fn look(&mut self, left: u64) -> Option<(u64, u64)> {
        self.most = if left == 0 { 0 } else { self.most.max(left) };
        (left > 0).then(|| (self.most - left, self.most))
    }
}

/// The rate of a count that grows, over the last frames.
#[derive(Debug, Default)]
pub struct Rate {
    samples: VecDeque<(Instant, u64)>,
}

impl Rate {
    /// What came in the last two seconds, and how long these are; with the count of now.
    pub fn look(&mut self, now: Instant, count: u64) -> (u64, Duration) {
        self.samples.push_back((now, count));
        if self.samples.len() > RATE_FRAMES + 1 {
            self.samples.pop_front();
        }
        let (since, before) = self.samples.front().copied().unwrap_or((now, count));
        (count.saturating_sub(before), now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_drains_is_measured_from_its_most() {
        let mut drain = Drain::default();
        let looks = [0, 50, 100, 70, 1, 0, 10].map(|left| drain.look(left));
        let expected =
            [None, Some((0, 50)), Some((0, 100)), Some((30, 100)), Some((99, 100)), None, Some((0, 10))];
        assert_eq!(looks, expected);
    }

    #[test]
    fn a_rate_is_of_the_last_two_seconds() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        assert_eq!(rate.look(start, 7), (0, Duration::ZERO));
        for frame in 1..=20u32 {
            let (came, time) = rate.look(start + FRAME_TIME * frame, 7 + u64::from(frame) * 100);
            let frames = frame.min(RATE_FRAMES as u32);
            assert_eq!((came, time), (u64::from(frames) * 100, FRAME_TIME * frames));
        }
        assert_eq!(rate.look(start + FRAME_TIME * 21, 0).0, 0, "a count that begins anew");
    }

    #[test]
    fn without_a_terminal_there_is_no_line_and_nobody_is_asked_for_one() {
        let mut progress = Progress::start(false);
        assert!(!progress.is_due(Instant::now()) && progress.poll_timeout().is_none());
        progress.show(Instant::now(), Frame::Line("nobody sees it".to_owned()));
        progress.finish();
        assert!(shown().is_none());
    }

    #[test]
    fn templates_are_valid() {
        for template in [LINE, BAR] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
