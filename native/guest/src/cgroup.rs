//! The cgroup in which the workload and all execs live, and which stands still while a fork is made of it.
//!
//! PID 1 is outside it, so that it can answer while everything else is frozen.

use std::fs;
use std::io::Result;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::sys;

const MOUNT: &str = "/sys/fs/cgroup";
const WORKLOAD: &str = "/sys/fs/cgroup/workload";

pub struct Cgroup {
    procs: OwnedFd,
    freeze: OwnedFd,
    events: OwnedFd,
}

impl Cgroup {
    /// Mounts cgroup2 and makes the workload's group.
    pub fn create() -> Result<Self> {
        sys::mount("cgroup2", MOUNT, "cgroup2", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, "")?;
        fs::create_dir(WORKLOAD)?;
        Ok(Self {
            procs: sys::open("/sys/fs/cgroup/workload/cgroup.procs", libc::O_WRONLY)?,
            freeze: sys::open("/sys/fs/cgroup/workload/cgroup.freeze", libc::O_WRONLY)?,
            events: sys::open("/sys/fs/cgroup/workload/cgroup.events", libc::O_RDONLY)?,
        })
    }

    /// A process that writes `0` here joins.
    pub fn procs(&self) -> RawFd {
        self.procs.as_raw_fd()
    }

    /// POLLPRI on this descriptor says that `is_frozen` may have changed.
    pub fn events(&self) -> RawFd {
        self.events.as_raw_fd()
    }

    /// Asks the kernel to freeze; it is done when `is_frozen`.
    pub fn freeze(&self) -> Result<()> {
        sys::write(self.freeze.as_raw_fd(), b"1").map(drop)
    }

    pub fn thaw(&self) -> Result<()> {
        sys::write(self.freeze.as_raw_fd(), b"0").map(drop)
    }

    /// True if every process of the group stands still. Reading it also re-arms POLLPRI.
    pub fn is_frozen(&self) -> Result<bool> {
        let mut buffer = [0_u8; 64];
        // SAFETY: the kernel writes at most `buffer.len()` bytes into a live array.
        let count =
            unsafe { libc::pread(self.events.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let count = usize::try_from(count).map_err(|_| std::io::Error::last_os_error())?;
        Ok(buffer[..count].windows(8).any(|window| window == b"frozen 1"))
    }
}
