//! The workload's stdout and stderr, on their way to the host.
//!
//! The workload gets a pipe and not the port itself, although that costs a copy: a virtio port can be opened
//! once only, and images open `/dev/stdout` a second time (nginx's logs are links to it).

use std::io::Result;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::port::{is_transient, Port};
use crate::sys::{self, NANOS_PER_MILLI, NANOS_PER_SECOND};

const CHUNK_BYTES: usize = 32 * 1024;
/// How long the last output may wait for a host who has to come for it.
const FAREWELL_TIMEOUT_NS: u64 = 5 * NANOS_PER_SECOND;

pub struct Output {
    pipe: Option<OwnedFd>,
    port: Port,
    /// Read from the pipe and not yet taken by the port.
    held: Vec<u8>,
}

impl Output {
    /// Returns the write end for the workload too.
    pub fn new(port: Port, uid: u32) -> Result<(Self, OwnedFd)> {
        let (pipe, end) = sys::pipe()?;
        sys::set_nonblocking(&pipe)?;
        sys::change_owner(&end, uid)?;
        Ok((Self { pipe: Some(pipe), port, held: Vec::new() }, end))
    }

    /// What to wait for: the pipe, or the port while it is full, or its door while nobody is there. None:
    /// SIGIO, or nothing any more.
    pub fn interest(&self) -> Option<(RawFd, libc::c_short)> {
        if !self.held.is_empty() {
            if self.port.is_connected() {
                return Some((self.port.fd(), libc::POLLOUT));
            }
            return self.port.door().map(|door| (door, libc::POLLIN));
        }
        self.pipe.as_ref().map(|pipe| (pipe.as_raw_fd(), libc::POLLIN))
    }

    /// True while only SIGIO can tell that the host takes output again.
    pub fn waits_for_sigio(&self) -> bool {
        !self.held.is_empty() && !self.port.is_connected() && self.port.door().is_none()
    }

    pub fn expect_host(&mut self) {
        self.port.expect_host();
    }

    /// Moves one chunk. Returns false if nothing could be moved now.
    pub fn pump(&mut self) -> Result<bool> {
        if self.held.is_empty() && !self.fill()? {
            return Ok(false);
        }
        self.port.admit()?;
        let taken = self.port.write(&self.held)?;
        self.held.drain(..taken);
        if taken == 0 {
            self.port.refresh()?;
        }
        Ok(taken > 0)
    }

    /// Moves all that is left, once nobody writes any more. A host who has to come for it is waited for.
    pub fn finish(mut self) {
        let until_ns = sys::monotonic_ns() + FAREWELL_TIMEOUT_NS;
        loop {
            match self.pump() {
                Ok(true) => continue,
                Ok(false) if !self.held.is_empty() && self.port.door().is_some() => {}
                _ => break,
            }
            let left_ns = until_ns.saturating_sub(sys::monotonic_ns());
            let Some((fd, events)) = self.interest() else { break };
            let mut one = [libc::pollfd { fd, events, revents: 0 }];
            let left_ms = i32::try_from(left_ns / NANOS_PER_MILLI).unwrap_or(i32::MAX);
            if left_ms == 0 || sys::poll(&mut one, Some(left_ms)).is_err() {
                break;
            }
        }
        self.port.close();
    }

    fn fill(&mut self) -> Result<bool> {
        let Some(pipe) = &self.pipe else {
            return Ok(false);
        };
        self.held.resize(CHUNK_BYTES, 0);
        let result = sys::read(pipe.as_raw_fd(), &mut self.held);
        self.held.truncate(*result.as_ref().unwrap_or(&0));
        match result {
            Ok(0) => self.pipe = None,
            Ok(_) => return Ok(true),
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(false)
    }
}
