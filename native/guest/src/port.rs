//! A way to the host: a virtio-serial port, found by name, or a socket (`vsock`).
//!
//! While the host side of a serial port is not connected it is always "ready" (POLLHUP) and reads give 0 at once. So
//! it is then left out of the poll set, and SIGIO, which the driver sends when the connection changes, is
//! waited for instead: a guest whose host is away wakes for nothing.

use std::fs;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::sys;
use crate::vsock::Socket;

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

pub enum Port {
    Serial(Serial),
    Socket(Socket),
}

pub struct Serial {
    fd: OwnedFd,
    connected: bool,
}

impl Port {
    /// Opens a serial port. SIGIO must be blocked by now.
    pub fn open(path: &str) -> Result<Self> {
        let fd = sys::open(path, libc::O_RDWR | libc::O_NONBLOCK)?;
        sys::request_sigio(&fd)?;
        Ok(Self::Serial(Serial { fd, connected: true }))
    }

    /// What to poll while the host is connected.
    pub fn fd(&self) -> RawFd {
        match self {
            Self::Serial(serial) => serial.fd.as_raw_fd(),
            Self::Socket(socket) => socket.fd(),
        }
    }

    /// What to poll for the host while it is not connected. None: only SIGIO can tell that it is back.
    pub fn door(&self) -> Option<RawFd> {
        match self {
            Self::Serial(_) => None,
            Self::Socket(socket) => Some(socket.door()),
        }
    }

    /// Lets the host in who stands at the door.
    pub fn admit(&mut self) -> Result<()> {
        match self {
            Self::Serial(_) => Ok(()),
            Self::Socket(socket) => socket.admit(),
        }
    }

    /// False: the host hung up, and the door or SIGIO will tell when it is back.
    pub fn is_connected(&self) -> bool {
        match self {
            Self::Serial(serial) => serial.connected,
            Self::Socket(socket) => socket.is_connected(),
        }
    }

    /// After SIGIO: the host may be back, or may have left bytes behind when it went.
    pub fn expect_host(&mut self) {
        if let Self::Serial(serial) = self {
            serial.connected = true;
        }
    }

    /// Asks the driver whether the host is there. SIGIO must have been drained before.
    pub fn refresh(&mut self) -> Result<()> {
        if let Self::Serial(serial) = self {
            // Without a host a read does not block, so POLLIN says nothing.
            serial.connected = sys::poll_now(serial.fd.as_raw_fd(), 0)? & libc::POLLHUP == 0;
        }
        Ok(())
    }

    /// Some bytes; 0 if there are none now.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        match self {
            Self::Serial(serial) => without_blocking(sys::read(serial.fd.as_raw_fd(), buffer)),
            Self::Socket(socket) => Ok(socket.read(buffer)),
        }
    }

    /// Writes what the host takes now; 0 if it takes nothing.
    pub fn write(&mut self, data: &[u8]) -> Result<usize> {
        match self {
            Self::Serial(serial) => without_blocking(sys::write(serial.fd.as_raw_fd(), data)),
            Self::Socket(socket) => Ok(socket.write(data)),
        }
    }

    /// Waits, for a bounded time, until the host has what was written. A serial port's has it already.
    pub fn close(&mut self) {
        if let Self::Socket(socket) = self {
            socket.close();
        }
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
