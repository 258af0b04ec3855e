//! What is done for a session beside its faults, step by step: a working set is replayed, memory is completed.
//!
//! Completing fills every page and only then takes the memory off the userfaultfd. In the other order a page
//! that is not there yet would become zeroes. Whatever fails before leaves the session as it was.

use std::ops::Range;
use std::sync::Arc;

use crate::limits::STEP_WINDOWS;
use crate::memory::{Memory, ALL_PAGES};
use crate::pages::WorkingSet;
use crate::served::{Served, Trouble};

pub enum Job {
    Replay {
        set: Arc<WorkingSet>,
        next: usize,
    },
    /// Fills the windows from this one on.
    Complete {
        mapping_index: usize,
        nth: u64,
    },
    /// All is filled and the kernel's; some who change the memory map may still wait to be heard.
    Settle {
        start: u64,
    },
}

#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    More,
    /// Not now: the memory map is changing.
    Later,
    Replayed,
    Completed,
}

impl Job {
    pub fn replay(set: Arc<WorkingSet>) -> Self {
        Self::Replay { set, next: 0 }
    }

    pub fn completion() -> Self {
        Self::Complete { mapping_index: 0, nth: 0 }
    }

    pub fn is_completion(&self) -> bool {
        !matches!(self, Self::Replay { .. })
    }

    pub fn is_settling(&self) -> bool {
        matches!(self, Self::Settle { .. })
    }

    /// What a fault in a window of the base is to be answered with: while a set is replayed, what that will
    /// bring anyhow and no more.
    pub fn answer_of(&self, window_index: u64, page: u16) -> u16 {
        match self {
            Self::Replay { set, .. } if set.pages_of(window_index) & page != 0 => set.pages_of(window_index),
            _ => ALL_PAGES,
        }
    }

    pub fn step(&mut self, served: &Served, memory: &mut Memory) -> Result<Step, Trouble> {
        match self {
            Self::Replay { set, next } => replay(served, memory, set, next),
            Self::Complete { mapping_index, nth } => {
                let step = complete(served, memory, mapping_index, nth)?;
                if step != Step::Completed {
                    return Ok(step);
                }
                let start = give_over(served, memory)?;
                *self = Self::Settle { start };
                Ok(Step::More)
            }
            // While somebody changes the map, closing the userfaultfd would leave it asleep: the VMM holds the
            // same file. Who begins now does not ask us any more.
            Self::Settle { start } => match served.uffd().is_changing(*start) {
                Ok(true) => Ok(Step::Later),
                Ok(false) => Ok(Step::Completed),
                Err(error) => Err(Trouble::Failed(format!("looking for changes of the map: {error}"))),
            },
        }
    }
}

fn replay(served: &Served, memory: &Memory, set: &WorkingSet, next: &mut usize) -> Result<Step, Trouble> {
    for _ in 0..STEP_WINDOWS {
        let Some(wanted) = set.windows.get(*next) else { return Ok(Step::Replayed) };
        for place in memory.places(u64::from(wanted.index)) {
            // What the guest gave back it does not want.
            match served.fill(memory, &place, memory.kept(&place, wanted.pages))? {
                Some(bytes) => served.counters.replayed_bytes.add(bytes),
                None => return Ok(Step::Later),
            }
        }
        *next += 1;
    }
    Ok(Step::More)
}

fn complete(
    served: &Served,
    memory: &Memory,
    mapping_index: &mut usize,
    nth: &mut u64,
) -> Result<Step, Trouble> {
    for _ in 0..STEP_WINDOWS {
        if *mapping_index == memory.mappings().len() {
            return Ok(Step::Completed);
        }
        let Some(window) = memory.nth(*mapping_index, *nth) else {
            (*mapping_index, *nth) = (*mapping_index + 1, 0);
            continue;
        };
        // What the guest gave back is zeroes, with us and without us.
        if served.fill(memory, &window, memory.kept(&window, ALL_PAGES))?.is_none() {
            return Ok(Step::Later);
        }
        *nth += 1;
    }
    Ok(Step::More)
}

/// Takes all memory off the userfaultfd; returns an address of it. If it fails, what it has taken off is as
/// good as unmapped for us.
fn give_over(served: &Served, memory: &mut Memory) -> Result<u64, Trouble> {
    let mut first = 0;
    for index in 0..memory.mappings().len() {
        first = memory.mappings()[index].start;
        for Range { start, end } in memory.mapped_ranges(index) {
            let uffd = served.uffd();
            // The kernel wakes who waits for pages of the range before it locks out who is about to: since
            // Linux 6.7 faults are handled under the lock of their area alone. So they are woken once more.
            uffd.unregister(start, end - start).and_then(|()| uffd.wake(start, end - start)).map_err(
                |error| Trouble::Failed(format!("giving memory at {start:#x} over to the kernel: {error}")),
            )?;
            memory.unmap(start, end);
        }
    }
    Ok(first)
}
