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

pub struct Pool {
    epoll: Epoll,
    sessions: Mutex<HashMap<u64, Arc<Served>>>,
    ended: Mutex<Vec<(u64, End)>>,
    /// Readable when a session came to its end in a worker's hands.
    pub wakeup: Wakeup,
}

impl Pool {
    pub fn start(worker_count: usize) -> Result<Arc<Self>> {
        let pool = Arc::new(Self {
            epoll: Epoll::new()?,
            sessions: Mutex::default(),
            ended: Mutex::default(),
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
        self.epoll.add(served.timer_fd(), ONCE, token)?;
        self.epoll.add(served.uffd_fd(), READABLE | ONCE, token)
    }

    /// Serves it no more; a turn that is under way comes to its end by itself.
    pub fn remove(&self, token: u64) {
        let Some(served) = lock(&self.sessions).remove(&token) else { return };
        for fd in [served.uffd_fd(), served.timer_fd()] {
            // The VMM holds the same file, so closing our descriptor would not take it off the epoll.
            // It is not on it only if adding it failed.
            let _ = self.epoll.remove(fd);
        }
    }

    /// Sessions that came to their end by themselves since the last call.
    pub fn take_ended(&self) -> Vec<(u64, End)> {
        self.wakeup.clear();
        std::mem::take(&mut *lock(&self.ended))
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
        let armed = served.turn().map(|turn| match turn {
            Turn::Idle => self.epoll.modify(served.uffd_fd(), READABLE | ONCE, token),
            Turn::Deferred => self.epoll.modify(served.timer_fd(), READABLE | ONCE, token),
        });
        let end = match armed {
            Ok(Ok(())) => return,
            Ok(Err(_)) if !lock(&self.sessions).contains_key(&token) => return, // Removed meanwhile.
            Ok(Err(error)) => End::Failed(format!("waiting for faults: {error}")),
            Err(end) => end,
        };
        lock(&self.ended).push((token, end));
        self.wakeup.wake();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
