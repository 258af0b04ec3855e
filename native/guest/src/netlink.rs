//! Netlink messages: building them, and reading the kernel's answers.

use std::io::{Error, Result};
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use crate::sys;

const HEADER_BYTES: usize = 16;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
const RECEIVE_BYTES: usize = 16 * 1024;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// A struct of a kernel header whose bytes go on the wire as they lie in memory.
///
/// # Safety
/// `repr(C)`, without padding, and any bytes are a valid value.
pub unsafe trait Plain: Copy {}

fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain` has no padding, so all its bytes are initialised.
    unsafe { std::slice::from_raw_parts(ptr::addr_of!(*value).cast(), size_of::<T>()) }
}

/// The struct at the front of `bytes`.
pub fn struct_of<T: Plain>(bytes: &[u8]) -> Option<T> {
    // SAFETY: the length is checked, any bytes are a valid `Plain`, and the read needs no alignment.
    (bytes.len() >= size_of::<T>()).then(|| unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) })
}

/// Several messages that go to the kernel in one call.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    last: usize,
    count: u32,
}

impl Batch {
    /// Begins a message; its sequence number is its place in the batch, from 1.
    pub fn message<T: Plain>(&mut self, kind: u16, flags: libc::c_int, body: &T) -> &mut Self {
        self.last = self.bytes.len();
        self.count += 1;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&self.count.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(bytes_of(body));
        self.close()
    }

    /// Adds an attribute to the message begun last.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = (ATTRIBUTE_HEADER_BYTES + value.len()) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.close()
    }

    fn close(&mut self) -> &mut Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        let length = (self.bytes.len() - self.last) as u32;
        self.bytes[self.last..self.last + 4].copy_from_slice(&length.to_ne_bytes());
        self
    }

    fn ask_for_ack(&mut self) {
        let flags = &mut self.bytes[self.last + 6..self.last + 8];
        flags[0] |= libc::NLM_F_ACK as u8;
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

pub struct Netlink {
    fd: OwnedFd,
}

impl Netlink {
    pub fn open(protocol: libc::c_int) -> Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers; the descriptor returned is new and ours.
        unsafe {
            let fd = sys::check(libc::socket(libc::AF_NETLINK, kind, protocol))?;
            Ok(Self { fd: OwnedFd::from_raw_fd(fd) })
        }
    }

    /// Sends a batch and returns the messages that failed: (sequence number, error). The kernel carries a
    /// batch out before the send returns, and goes on behind a message that fails.
    pub fn carry_out(&self, mut batch: Batch) -> Result<Vec<(u32, Error)>> {
        let mut failures = Vec::new();
        if batch.is_empty() {
            return Ok(failures);
        }
        batch.ask_for_ack();
        sys::write(self.fd.as_raw_fd(), &batch.bytes)?;
        let mut done = false;
        while !done {
            self.receive(|kind, sequence, body| {
                if let (NLMSG_ERROR, Some(code)) = (kind, struct_of::<i32>(body)) {
                    if code != 0 {
                        failures.push((sequence, Error::from_raw_os_error(-code)));
                    }
                    done |= sequence == batch.count;
                }
            })?;
        }
        Ok(failures)
    }

    /// Sends one dump request and calls `each` with the body of every message of the answer.
    pub fn dump(&self, batch: &Batch, mut each: impl FnMut(&[u8])) -> Result<()> {
        sys::write(self.fd.as_raw_fd(), &batch.bytes)?;
        let mut outcome = None;
        while outcome.is_none() {
            self.receive(|kind, _, body| match kind {
                NLMSG_DONE => outcome = Some(Ok(())),
                NLMSG_ERROR => {
                    let code = struct_of::<i32>(body).unwrap_or(-libc::EPROTO);
                    outcome = Some(Err(Error::from_raw_os_error(-code)));
                }
                _ => each(body),
            })?;
        }
        outcome.unwrap_or(Ok(()))
    }

    fn receive(&self, mut each: impl FnMut(u16, u32, &[u8])) -> Result<()> {
        let mut buffer = [0; RECEIVE_BYTES];
        let count = sys::read(self.fd.as_raw_fd(), &mut buffer)?;
        let mut rest = &buffer[..count];
        while let (Some(length), Some(header)) = (struct_of::<u32>(rest), rest.get(4..HEADER_BYTES)) {
            let length = (length as usize).clamp(HEADER_BYTES, rest.len());
            let kind = u16::from_ne_bytes([header[0], header[1]]);
            let sequence = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
            each(kind, sequence, &rest[HEADER_BYTES..length]);
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
        Ok(())
    }
}

// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: an integer.
unsafe impl Plain for i32 {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_a_batch_are_padded_numbered_and_know_their_lengths() {
        let mut batch = Batch::default();
        batch.message(16, 0, &7_u32).attribute(3, b"eth0\0");
        batch.message(20, libc::NLM_F_CREATE, &8_u32);
        batch.ask_for_ack();
        assert_eq!(batch.bytes.len(), 16 + 4 + 12 + 16 + 4);
        assert_eq!(struct_of::<u32>(&batch.bytes), Some(32));
        assert_eq!(batch.bytes[20..24], [9, 0, 3, 0]);
        assert_eq!(struct_of::<u32>(&batch.bytes[32..]), Some(20));
        assert_eq!(struct_of::<u32>(&batch.bytes[40..]), Some(2));
        let flags = u16::from_ne_bytes([batch.bytes[38], batch.bytes[39]]);
        assert_eq!(i32::from(flags), libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE);
    }
}
