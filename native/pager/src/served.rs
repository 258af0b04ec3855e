//! The faults of one VMM: what a worker does when its userfaultfd has something to say.
//!
//! A thread of the VMM that faults sleeps until its page is there, so every way out of here either fills the
//! page, keeps the fault for later, or ends the session.

use std::collections::BTreeSet;
use std::io::Result;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use crate::base::{Base, WindowContent};
use crate::counters::{Counter, Counters};
use crate::job::{Job, Step};
use crate::limits::{AGAIN_DELAY, AGAIN_TRIES, PAGE_BYTES, PENDING_FAULTS_MAX, STEPS_PER_TURN};
use crate::memory::{Memory, Run, Source, Window, ALL_PAGES};
use crate::pages::{PageSet, WorkingSet};
use crate::sys::{Timer, Wakeup};
use crate::uffd::{Event, Filled, Uffd};

/// How a session came to its end.
#[derive(Debug)]
pub enum End {
    /// Somebody asked for it.
    Closed,
    /// Its VMM is gone: the usual end.
    VmmExited,
    /// All of its VMM's memory is there, and the kernel serves it from now on.
    Completed,
    /// It cannot go on, for this reason.
    Failed(String),
}

#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// Every fault that was there has been served.
    Idle,
    /// The VMM's memory map is changing; the timer tells when to try again.
    Deferred,
    /// There is more to do besides faults, as soon as it is this session's turn again.
    Again,
    /// Every fault has been served, but what was to be done besides cannot be, for this reason.
    GaveUp { is_completion: bool, reason: String },
}

/// Why memory could not be filled.
#[derive(Debug)]
pub enum Trouble {
    /// The VMM is exiting.
    Gone,
    Failed(String),
}

impl From<Trouble> for End {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Gone => End::VmmExited,
            Trouble::Failed(reason) => End::Failed(reason),
        }
    }
}

/// What a session begins with, beside its memory.
pub enum Start {
    Plain,
    /// Faults are answered page by page and remembered.
    Recording,
    Replaying(Arc<WorkingSet>),
}

struct State {
    memory: Memory,
    /// Addresses of pages that threads sleep for.
    pending: BTreeSet<u64>,
    /// The base's pages that were touched, while they are recorded.
    touched: Option<PageSet>,
    job: Option<Job>,
}

pub struct Served {
    uffd: Uffd,
    timer: Timer,
    /// Always readable.
    again: Wakeup,
    base: Arc<Base>,
    /// Pages of the base there can be.
    page_count: u64,
    state: Mutex<State>,
    pub counters: Counters,
}

impl Served {
    pub fn new(uffd: Uffd, memory: Memory, base: Arc<Base>, start: Start) -> Result<Self> {
        let page_count = memory.mappings().iter().map(|m| (m.offset + m.size_bytes) / PAGE_BYTES).max();
        let (touched, job) = match start {
            Start::Plain => (None, None),
            Start::Recording => (Some(PageSet::default()), None),
            Start::Replaying(set) => (None, Some(Job::replay(set))),
        };
        let again = Wakeup::new()?;
        again.wake();
        Ok(Self {
            uffd,
            timer: Timer::new()?,
            again,
            base,
            page_count: page_count.unwrap_or(0),
            state: Mutex::new(State { memory, pending: BTreeSet::new(), touched, job }),
            counters: Counters::default(),
        })
    }

    pub fn uffd_fd(&self) -> RawFd {
        self.uffd.fd()
    }

    /// Is always ready: who waits for it gets a turn when the others have had theirs.
    pub fn again_fd(&self) -> RawFd {
        self.again.fd()
    }

    pub fn timer_fd(&self) -> RawFd {
        self.timer.fd()
    }

    /// Ends the recording and returns what was touched; none if nothing is recorded.
    pub fn take_recorded(&self) -> Option<WorkingSet> {
        self.lock().touched.take().map(|touched| WorkingSet::new(&touched))
    }

    /// Has all memory be filled and then given over to the kernel, in the turns that come.
    pub fn complete(&self) {
        let mut state = self.lock();
        if !state.job.as_ref().is_some_and(Job::is_completion) {
            state.job = Some(Job::completion());
        }
    }

    /// Serves what is there now; bounded, so that each session gets its turn.
    pub fn turn(&self) -> std::result::Result<Turn, End> {
        let mut state = self.lock();
        let (mut tries, mut steps) = (0, 0);
        loop {
            // Removals first, always: a fault that is served from what they made stale would bring back
            // memory that the guest gave away. The kernel helps: while a removal has not been read, and
            // until its caller woke up, nothing can be filled (EAGAIN).
            self.take_events(&mut state)?;
            if state.job.as_ref().is_some_and(Job::is_settling) {
                state.pending.clear(); // The kernel woke them, and serves them.
            }
            self.serve_pending(&mut state)?;
            // What is not asked for waits until every fault that is there has been answered.
            if state.pending.is_empty() {
                match self.step(&mut state)? {
                    Turn::Again if steps < STEPS_PER_TURN => steps += 1,
                    turn => return Ok(turn),
                }
                continue;
            }
            self.counters.deferrals.add(1);
            if tries == AGAIN_TRIES {
                return self.defer();
            }
            tries += 1;
            thread::yield_now();
        }
    }

    /// Fills some of what nobody has asked for yet, if there is something to be filled.
    fn step(&self, state: &mut State) -> std::result::Result<Turn, End> {
        let State { memory, job, .. } = state;
        let Some(unfinished) = job else { return Ok(Turn::Idle) };
        match unfinished.step(self, memory) {
            Ok(Step::More) => Ok(Turn::Again),
            Ok(Step::Later) => {
                self.counters.deferrals.add(1);
                self.defer()
            }
            Ok(Step::Replayed) => {
                *job = None;
                Ok(Turn::Idle)
            }
            Ok(Step::Completed) => Err(End::Completed),
            Err(Trouble::Gone) => Err(End::VmmExited),
            Err(Trouble::Failed(reason)) => {
                let is_completion = unfinished.is_completion();
                *job = None;
                Ok(Turn::GaveUp { is_completion, reason })
            }
        }
    }

    fn defer(&self) -> std::result::Result<Turn, End> {
        self.timer.arm(AGAIN_DELAY).map_err(|error| End::Failed(format!("timer: {error}")))?;
        Ok(Turn::Deferred)
    }

    fn take_events(&self, state: &mut State) -> std::result::Result<(), End> {
        let events =
            self.uffd.read().map_err(|error| End::Failed(format!("reading the userfaultfd: {error}")))?;
        for event in events {
            match event {
                Event::Fault { address } => {
                    self.counters.faults.add(1);
                    state.pending.insert(address & !(PAGE_BYTES - 1));
                }
                Event::Remove { start, end } => {
                    self.counters.removed_bytes.add(state.memory.remove(start, end));
                }
                Event::Unmap { start, end } => {
                    self.counters.removed_bytes.add(state.memory.unmap(start, end));
                }
                Event::Foreign { what } => return Err(End::Failed(format!("the VMM caused {what}"))),
            }
        }
        if state.pending.len() > PENDING_FAULTS_MAX {
            return Err(End::Failed(format!("more than {PENDING_FAULTS_MAX} faults are waiting")));
        }
        Ok(())
    }

    fn serve_pending(&self, state: &mut State) -> std::result::Result<(), End> {
        let State { memory, pending, touched, job } = state;
        while let Some(address) = pending.first().copied() {
            let began = Instant::now();
            let Some(window) = memory.window(address) else {
                return Err(End::Failed(format!("a fault at {address:#x}, outside the mappings")));
            };
            let page = window.page_at(address);
            // While what is touched is recorded, nothing else comes with it.
            let pages = match (&touched, &job) {
                (Some(_), _) => page,
                (None, Some(job)) => job.answer_of(window.index(), page),
                (None, None) => ALL_PAGES,
            };
            let Some(filled_bytes) = self.fill(memory, &window, pages)? else { break };
            if filled_bytes < u64::from((pages & window.pages()).count_ones()) * PAGE_BYTES {
                // Somebody may sleep for a page that was there before, or that was unmapped: let it look again.
                self.uffd
                    .wake(window.start, window.size_bytes)
                    .map_err(|error| End::Failed(format!("waking at {:#x}: {error}", window.start)))?;
            }
            self.counters.add_answer(began);
            if let Some(touched) = touched {
                let page = (window.offset + (address - window.start)) / PAGE_BYTES;
                touched.insert(page..page + 1, self.page_count);
            }
            // In order of address, so those of this window are the first.
            let is_answered =
                |address: &u64| window.contains(*address) && window.page_at(*address) & pages != 0;
            while pending.first().is_some_and(is_answered) {
                pending.pop_first();
            }
        }
        Ok(())
    }

    /// Fills these pages of a window, where they are mapped. Returns how many bytes were not there before; none
    /// if it cannot be done now.
    pub fn fill(
        &self,
        memory: &Memory,
        window: &Window,
        pages: u16,
    ) -> std::result::Result<Option<u64>, Trouble> {
        let content = self
            .base
            .window(window.index())
            .map_err(|error| Trouble::Failed(format!("the base cannot be read: {error}")))?;
        let mut filled_bytes = 0;
        for run in memory.runs(window, pages, content.data_pages) {
            let mut done = 0;
            while done < run.size_bytes {
                match self.fill_some(memory, &content, &run, done) {
                    Ok(Filled::Bytes(bytes)) => {
                        self.counter_of(run.source).add(bytes);
                        filled_bytes += bytes;
                        done += bytes;
                    }
                    Ok(Filled::Present) => done += PAGE_BYTES,
                    Ok(Filled::Later) => return Ok(None),
                    Ok(Filled::Gone) => return Err(Trouble::Gone),
                    Err(error) => {
                        let at = run.start + done;
                        return Err(Trouble::Failed(format!("filling memory at {at:#x}: {error}")));
                    }
                }
            }
        }
        Ok(Some(filled_bytes))
    }

    fn fill_some(&self, memory: &Memory, content: &WindowContent, run: &Run, done: u64) -> Result<Filled> {
        let (start, size_bytes) = (run.start + done, run.size_bytes - done);
        match run.source {
            Source::Data { page } => self.uffd.copy(start, content.address_of(page) + done, size_bytes),
            Source::Overlay { offset } => match memory.overlay(offset) {
                Some(page) => self.uffd.copy(start, page.as_ptr() as u64, size_bytes),
                None => unreachable!("a run is of an overlay page that there is"),
            },
            Source::Zeroes => self.uffd.zero(start, size_bytes),
        }
    }

    fn counter_of(&self, source: Source) -> &Counter {
        match source {
            Source::Data { .. } => &self.counters.copied_bytes,
            Source::Overlay { .. } => &self.counters.overlaid_bytes,
            Source::Zeroes => &self.counters.zeroed_bytes,
        }
    }

    pub fn uffd(&self) -> &Uffd {
        &self.uffd
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
