//! A virtio-serial port, found by name.
//!
//! While the host side is not connected such a port is always "ready" (POLLHUP) and reads give 0 at once. So
//! it is then left out of the poll set, and SIGIO, which the driver sends when the connection changes, is
//! waited for instead: a guest whose host is away wakes for nothing.

use std::fs;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::sys;

const CLASS: &str = "/sys/class/virtio-ports";

/// The device file of the port with this name, if it is there yet.
pub fn find(name: &str) -> Option<String> {
    let entries = fs::read_dir(CLASS).ok()?;
    entries.flatten().find_map(|entry| {
        let found = fs::read_to_string(entry.path().join("name")).ok()?;
        let device = entry.file_name().into_string().ok()?;
        (found.trim_end() == name).then(|| format!("/dev/{device}"))
    })
}

pub struct Port {
    fd: OwnedFd,
    connected: bool,
}

impl Port {
    /// Opens a port. SIGIO must be blocked by now.
    pub fn open(path: &str) -> Result<Self> {
        let fd = sys::open(path, libc::O_RDWR | libc::O_NONBLOCK)?;
        sys::request_sigio(&fd)?;
        Ok(Self { fd, connected: true })
    }

    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// False: the host hung up, and only SIGIO can tell when it is back.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// After SIGIO: the host may be back, or may have left bytes behind when it went.
    pub fn expect_host(&mut self) {
        self.connected = true;
    }

    /// Asks the driver whether the host is there. SIGIO must have been drained before.
    pub fn refresh(&mut self) -> Result<()> {
        // Without a host a read does not block, so POLLIN says nothing.
        self.connected = sys::poll_now(self.fd(), 0)? & libc::POLLHUP == 0;
        Ok(())
    }

    /// Some bytes; 0 if there are none now.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        without_blocking(sys::read(self.fd(), buffer))
    }

    /// Writes what the host takes now; 0 if it takes nothing.
    pub fn write(&mut self, data: &[u8]) -> Result<usize> {
        without_blocking(sys::write(self.fd(), data))
    }
}

fn without_blocking(result: Result<usize>) -> Result<usize> {
    match result {
        Err(error) if is_transient(&error) => Ok(0),
        other => other,
    }
}

/// True for "not now" and for an interruption.
pub fn is_transient(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
