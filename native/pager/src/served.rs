//! The faults of one VMM: what a worker does when its userfaultfd has something to say.
//!
//! A thread of the VMM that faults sleeps until its page is there, so every way out of here either fills the
//! page, keeps the fault for later, or ends the session.

use std::collections::BTreeSet;
use std::io::Result;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::base::Base;
use crate::limits::{AGAIN_DELAY, AGAIN_TRIES, PAGE_BYTES, PENDING_FAULTS_MAX};
use crate::memory::{Memory, Window};
use crate::sys::Timer;
use crate::uffd::{Event, Filled, Uffd};

/// How a session came to its end.
#[derive(Debug)]
pub enum End {
    /// Somebody asked for it.
    Closed,
    /// Its VMM is gone: the usual end.
    VmmExited,
    /// It cannot go on, for this reason.
    Failed(String),
}

#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// Every fault that was there has been served.
    Idle,
    /// The VMM's memory map is changing; the timer tells when to try again.
    Deferred,
}

#[derive(Default)]
pub struct Counters {
    pub faults: AtomicU64,
    pub copied_bytes: AtomicU64,
    pub zeroed_bytes: AtomicU64,
    pub removed_bytes: AtomicU64,
    pub deferrals: AtomicU64,
}

struct State {
    memory: Memory,
    /// Addresses of pages that threads sleep for.
    pending: BTreeSet<u64>,
}

pub struct Served {
    uffd: Uffd,
    timer: Timer,
    base: Arc<Base>,
    state: Mutex<State>,
    pub counters: Counters,
}

impl Served {
    pub fn new(uffd: Uffd, memory: Memory, base: Arc<Base>) -> Result<Self> {
        let state = Mutex::new(State { memory, pending: BTreeSet::new() });
        Ok(Self { uffd, timer: Timer::new()?, base, state, counters: Counters::default() })
    }

    pub fn uffd_fd(&self) -> RawFd {
        self.uffd.fd()
    }

    pub fn timer_fd(&self) -> RawFd {
        self.timer.fd()
    }

    /// Serves what is there now; bounded, so that each session gets its turn.
    pub fn turn(&self) -> std::result::Result<Turn, End> {
        let mut state = self.lock();
        for _ in 0..AGAIN_TRIES {
            // Removals first, always: a fault that is served from what they made stale would bring back
            // memory that the guest gave away. The kernel helps: while a removal has not been read, and
            // until its caller woke up, nothing can be filled (EAGAIN).
            self.take_events(&mut state)?;
            self.serve_pending(&mut state)?;
            if state.pending.is_empty() {
                return Ok(Turn::Idle);
            }
            self.counters.deferrals.fetch_add(1, Ordering::Relaxed);
            thread::yield_now();
        }
        self.timer.arm(AGAIN_DELAY).map_err(|error| End::Failed(format!("timer: {error}")))?;
        Ok(Turn::Deferred)
    }

    fn take_events(&self, state: &mut State) -> std::result::Result<(), End> {
        let events =
            self.uffd.read().map_err(|error| End::Failed(format!("reading the userfaultfd: {error}")))?;
        for event in events {
            match event {
                Event::Fault { address } => {
                    self.counters.faults.fetch_add(1, Ordering::Relaxed);
                    state.pending.insert(address & !(PAGE_BYTES - 1));
                }
                Event::Remove { start, end } => {
                    let bytes = state.memory.remove(start, end);
                    self.counters.removed_bytes.fetch_add(bytes, Ordering::Relaxed);
                }
                Event::Unmap { start, end } => {
                    let bytes = state.memory.unmap(start, end);
                    self.counters.removed_bytes.fetch_add(bytes, Ordering::Relaxed);
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
        while let Some(address) = state.pending.first().copied() {
            let Some(window) = state.memory.window(address) else {
                return Err(End::Failed(format!("a fault at {address:#x}, outside the mappings")));
            };
            if !self.fill(&state.memory, &window)? {
                break;
            }
            // In order of address, so those of this window are the first.
            while state.pending.first().is_some_and(|address| window.contains(*address)) {
                state.pending.pop_first();
            }
        }
        Ok(())
    }

    /// True: every page of the window is there. False: not now.
    fn fill(&self, memory: &Memory, window: &Window) -> std::result::Result<bool, End> {
        let data_pages = self
            .base
            .data_pages(window.offset, window.page_count())
            .map_err(|error| End::Failed(format!("the base cannot be read: {error}")))?;
        let mut woken_bytes = 0;
        for run in memory.runs(window, data_pages) {
            let mut done = 0;
            while done < run.size_bytes {
                let (start, size_bytes) = (run.start + done, run.size_bytes - done);
                let (filled, counter) = match run.offset {
                    Some(offset) => {
                        let source = self.base.address_of(offset + done);
                        (self.uffd.copy(start, source, size_bytes), &self.counters.copied_bytes)
                    }
                    None => (self.uffd.zero(start, size_bytes), &self.counters.zeroed_bytes),
                };
                match filled {
                    Ok(Filled::Bytes(bytes)) => {
                        counter.fetch_add(bytes, Ordering::Relaxed);
                        woken_bytes += bytes;
                        done += bytes;
                    }
                    Ok(Filled::Present) => done += PAGE_BYTES,
                    Ok(Filled::Later) => return Ok(false),
                    Ok(Filled::Gone) => return Err(End::VmmExited),
                    Err(error) => {
                        return Err(End::Failed(format!("filling {size_bytes} bytes at {start:#x}: {error}")))
                    }
                }
            }
        }
        if woken_bytes < window.size_bytes {
            // Somebody may sleep for a page that was there before, or that was unmapped: let it look again.
            self.uffd
                .wake(window.start, window.size_bytes)
                .map_err(|error| End::Failed(format!("waking at {:#x}: {error}", window.start)))?;
        }
        Ok(true)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
