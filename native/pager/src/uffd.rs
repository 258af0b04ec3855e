//! A userfaultfd as a VMM handed it over: its messages, and the calls that put pages into its memory.

use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::limits::{EVENTS_PER_READ, PAGE_BYTES};
use crate::sys;

// linux/userfaultfd.h
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
const UFFD_EVENT_FORK: u8 = 0x13;
const UFFD_EVENT_REMOVE: u8 = 0x15;
const UFFD_EVENT_UNMAP: u8 = 0x16;
const UFFD_PAGEFAULT_FLAG_WP: u64 = 1 << 1;
const UFFD_PAGEFAULT_FLAG_MINOR: u64 = 1 << 2;
const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_aa01;
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
const UFFD_MSG_BYTES: usize = 32;

#[repr(C)]
struct UffdioRange {
    start: u64,
    len: u64,
}

#[repr(C)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct UffdioZeropage {
    range: UffdioRange,
    mode: u64,
    zeropage: i64,
}

/// One message from the kernel.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A thread sleeps until the page at this address is there.
    Fault { address: u64 },
    /// This range gave its pages back; from now on it reads as zeroes.
    Remove { start: u64, end: u64 },
    /// This range is no longer mapped.
    Unmap { start: u64, end: u64 },
    /// Something that we do not serve: the session cannot go on.
    Foreign { what: String },
}

/// What became of an attempt to fill a range.
#[derive(Debug, PartialEq, Eq)]
pub enum Filled {
    /// So many bytes from its beginning are there now, and their sleepers awake.
    Bytes(u64),
    /// Its first page was there before.
    Present,
    /// Not while the memory map changes: read events first.
    Later,
    /// The process has no memory any more: it is exiting.
    Gone,
}

pub struct Uffd(OwnedFd);

impl Uffd {
    /// Takes what a VMM sent, if it is a userfaultfd at all.
    pub fn new(fd: OwnedFd) -> Result<Self> {
        // Before any other call on it: a descriptor of a hostile kind could keep us waiting.
        if !is_userfaultfd(&fd) {
            return Err(Error::new(ErrorKind::InvalidData, "not a userfaultfd"));
        }
        sys::set_nonblocking(fd.as_raw_fd())?;
        Ok(Self(fd))
    }

    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// The messages that are there now, at most EVENTS_PER_READ of them.
    pub fn read(&self) -> Result<Vec<Event>> {
        let mut buffer = [0; EVENTS_PER_READ * UFFD_MSG_BYTES];
        match sys::read_nowait(self.fd(), &mut buffer) {
            Ok(count) => {
                let messages = buffer[..count].chunks_exact(UFFD_MSG_BYTES);
                messages.clone().for_each(close_brought_along);
                Ok(messages.map(parse).collect())
            }
            // The file is the VMM's too. Without the flag a poll reports an error for ever, and before Linux
            // 6.10 a read would keep the worker.
            Err(error) if error.kind() == ErrorKind::WouldBlock && !sys::is_nonblocking(self.fd())? => {
                Err(Error::new(ErrorKind::InvalidData, "the VMM took O_NONBLOCK away"))
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    /// Copies `len` bytes of our memory at `src` to the guest's at `dst`; wakes who waits for them.
    pub fn copy(&self, dst: u64, src: u64, len: u64) -> Result<Filled> {
        // Older kernels leave `copy` as it is when they return EAGAIN before having begun.
        let mut call = UffdioCopy { dst, src, len, mode: 0, copy: 0 };
        // SAFETY: the kernel reads `src` as a user's pointer: a bad one is EFAULT, not a fault of ours.
        let result = unsafe { libc::ioctl(self.fd(), UFFDIO_COPY, &mut call) };
        filled(result, len, call.copy)
    }

    /// Maps zero pages at `dst`, `len` bytes; wakes who waits for them.
    pub fn zero(&self, dst: u64, len: u64) -> Result<Filled> {
        let mut call = UffdioZeropage { range: UffdioRange { start: dst, len }, mode: 0, zeropage: 0 };
        // SAFETY: `call` outlives the call.
        let result = unsafe { libc::ioctl(self.fd(), UFFDIO_ZEROPAGE, &mut call) };
        filled(result, len, call.zeropage)
    }

    /// Has the kernel serve this range alone from now on, and wakes who waits in it. What is missing becomes
    /// zeroes.
    pub fn unregister(&self, start: u64, len: u64) -> Result<()> {
        let mut range = UffdioRange { start, len };
        // SAFETY: `range` outlives the call.
        if unsafe { libc::ioctl(self.fd(), UFFDIO_UNREGISTER, &mut range) } < 0 {
            return Err(Error::last_os_error());
        }
        Ok(())
    }

    /// Whether somebody is about to change the memory map and has not been heard. `start` is an address that
    /// has been unregistered: nothing can be filled there, and before it says so the kernel looks for that.
    pub fn is_changing(&self, start: u64) -> Result<bool> {
        match self.zero(start, PAGE_BYTES) {
            Ok(Filled::Later) => Ok(true),
            Ok(Filled::Bytes(_) | Filled::Present | Filled::Gone) => Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Wakes who waits for a page of this range.
    pub fn wake(&self, start: u64, len: u64) -> Result<()> {
        let mut range = UffdioRange { start, len };
        // SAFETY: `range` outlives the call.
        if unsafe { libc::ioctl(self.fd(), UFFDIO_WAKE, &mut range) } < 0 {
            return Err(Error::last_os_error());
        }
        Ok(())
    }
}

/// Asks /proc, which no descriptor can keep waiting.
pub fn is_userfaultfd(fd: &OwnedFd) -> bool {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.is_ok_and(|target| target.as_os_str() == "anon_inode:[userfaultfd]")
}

fn filled(result: libc::c_int, len: u64, done: i64) -> Result<Filled> {
    if result == 0 {
        return Ok(Filled::Bytes(len));
    }
    let error = Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN) => {
            Ok(u64::try_from(done).ok().filter(|n| *n > 0).map_or(Filled::Later, Filled::Bytes))
        }
        Some(libc::EEXIST) => Ok(Filled::Present),
        Some(libc::ESRCH) => Ok(Filled::Gone),
        _ => Err(error),
    }
}

/// A fork's message brings a descriptor, which is ours by then, though we do not serve forks.
fn close_brought_along(message: &[u8]) {
    if message[0] == UFFD_EVENT_FORK {
        let fd = RawFd::from_ne_bytes([message[8], message[9], message[10], message[11]]);
        // SAFETY: the kernel made it during this read, and nobody else knows it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
}

fn parse(message: &[u8]) -> Event {
    // struct uffd_msg is packed: one byte of kind, seven reserved, then the arguments.
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&message[at..at + 8]);
        u64::from_ne_bytes(bytes)
    };
    match message[0] {
        UFFD_EVENT_PAGEFAULT if word(8) & (UFFD_PAGEFAULT_FLAG_WP | UFFD_PAGEFAULT_FLAG_MINOR) == 0 => {
            Event::Fault { address: word(16) }
        }
        UFFD_EVENT_PAGEFAULT => Event::Foreign { what: format!("a fault with flags {:#x}", word(8)) },
        UFFD_EVENT_REMOVE => Event::Remove { start: word(8), end: word(16) },
        UFFD_EVENT_UNMAP => Event::Unmap { start: word(8), end: word(16) },
        kind => Event::Foreign { what: format!("an event of kind {kind:#x}") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, first: u64, second: u64) -> Vec<u8> {
        let mut bytes = vec![0; UFFD_MSG_BYTES];
        bytes[0] = kind;
        bytes[8..16].copy_from_slice(&first.to_ne_bytes());
        bytes[16..24].copy_from_slice(&second.to_ne_bytes());
        bytes
    }

    #[test]
    fn messages_are_told_apart() {
        assert_eq!(parse(&message(0x12, 1, 0x7000)), Event::Fault { address: 0x7000 });
        assert_eq!(parse(&message(0x15, 0x1000, 0x3000)), Event::Remove { start: 0x1000, end: 0x3000 });
        assert_eq!(parse(&message(0x16, 0x1000, 0x3000)), Event::Unmap { start: 0x1000, end: 0x3000 });
    }

    #[test]
    fn what_is_not_a_missing_page_is_foreign() {
        for (kind, flags) in [(0x12, 2), (0x12, 4), (0x13, 0), (0x14, 0), (0xff, 0)] {
            assert!(matches!(parse(&message(kind, flags, 0)), Event::Foreign { .. }), "{kind:#x}");
        }
    }

    #[test]
    fn only_a_userfaultfd_is_taken() {
        let file = std::fs::File::open("/dev/null").expect("open");
        let refused = Uffd::new(file.into()).err().expect("refused");
        assert_eq!(refused.kind(), ErrorKind::InvalidData);
    }
}
