//! The workers: a fixed number of threads that take turns with whichever session has faults.
//!
//! All wait on one epoll in which each session is armed for one event at a time, so one worker has a session
//! at once and a session that never stops faulting goes to the end of the queue after each turn.

use std::collections::HashMap;
use std::io::Result;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::log;
use crate::served::{End, Served, Turn};
use crate::sys::{Epoll, Wakeup, ONCE, READABLE};

/// What a worker found of a session, for the control thread.
pub enum Notice {
    Ended(End),
    /// It goes on, but what was to be done besides its faults was given up, for this reason.
    GaveUp {
        is_completion: bool,
        reason: String,
    },
}

pub struct Pool {
    epoll: Epoll,
    sessions: Mutex<HashMap<u64, Arc<Served>>>,
    notices: Mutex<Vec<(u64, Notice)>>,
    /// Readable when there are notices.
    pub wakeup: Wakeup,
}

impl Pool {
    pub fn start(worker_count: usize) -> Result<Arc<Self>> {
        let pool = Arc::new(Self {
            epoll: Epoll::new()?,
            sessions: Mutex::default(),
            notices: Mutex::default(),
            wakeup: Wakeup::new()?,
        });
        for index in 0..worker_count {
            let own = Arc::clone(&pool);
            thread::Builder::new().name(format!("faults-{index}")).spawn(move || own.work())?;
        }
        Ok(pool)
    }

    /// Serves a session from now on, under a token of the caller's that no other session has.
    pub fn add(&self, token: u64, served: &Arc<Served>) -> Result<()> {
        lock(&self.sessions).insert(token, Arc::clone(served));
        for fd in [served.uffd_fd(), served.timer_fd()] {
            self.epoll.add(fd, ONCE, token)?;
        }
        // Its first turn, which sees to the faults that are there already, is now.
        self.epoll.add(served.again_fd(), READABLE | ONCE, token)
    }

    /// Serves it no more; a turn that is under way comes to its end by itself.
    pub fn remove(&self, token: u64) {
        let Some(served) = lock(&self.sessions).remove(&token) else { return };
        for fd in [served.uffd_fd(), served.timer_fd(), served.again_fd()] {
            // The VMM holds the same file, so closing our descriptor would not take it off the epoll.
            // It is not on it only if adding it failed.
            let _ = self.epoll.remove(fd);
        }
    }

    /// Gives a session that was told to do more a turn.
    pub fn give_turn(&self, token: u64, served: &Served) -> Result<()> {
        self.epoll.modify(served.again_fd(), READABLE | ONCE, token)
    }

    /// What has been found since the last call.
    pub fn take_notices(&self) -> Vec<(u64, Notice)> {
        self.wakeup.clear();
        std::mem::take(&mut *lock(&self.notices))
    }

    fn work(&self) {
        loop {
            let tokens = match self.epoll.wait(1, None) {
                Ok(tokens) => tokens,
                Err(error) => log::die(&format!("a worker cannot wait for faults: {error}")),
            };
            for token in tokens {
                let served = lock(&self.sessions).get(&token).cloned();
                if let Some(served) = served {
                    self.take_turn(token, &served);
                }
            }
        }
    }

    fn take_turn(&self, token: u64, served: &Served) {
        let turn = match served.turn() {
            Ok(turn) => turn,
            Err(end) => return self.notify(token, Notice::Ended(end)),
        };
        let fd = match &turn {
            Turn::Idle | Turn::GaveUp { .. } => served.uffd_fd(),
            Turn::Deferred => served.timer_fd(),
            Turn::Again => served.again_fd(),
        };
        if let Turn::GaveUp { is_completion, reason } = turn {
            self.notify(token, Notice::GaveUp { is_completion, reason });
        }
        match self.epoll.modify(fd, READABLE | ONCE, token) {
            Err(_) if !lock(&self.sessions).contains_key(&token) => {} // Removed meanwhile.
            Err(error) => {
                self.notify(token, Notice::Ended(End::Failed(format!("waiting for faults: {error}"))));
            }
            Ok(()) => {}
        }
    }

    fn notify(&self, token: u64, notice: Notice) {
        lock(&self.notices).push((token, notice));
        self.wakeup.wake();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
