//! Who this guest is: taken on at boot, and again by every fork.
//!
//! A fork does this before anything else of it may run, emulated, with every instruction it executes for the
//! first time translated; so there is no process, no path look-up and no disk in it.

use std::io::{Error, Result};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::connections;
use crate::etc_files::EtcFiles;
use crate::messages::{self, Identity};
use crate::network;
use crate::sys;

/// What a fork must bring along.
pub const ENTROPY_BYTES_MIN: usize = 32;
const ENTROPY_BYTES_MAX: usize = 512;

/// `linux/random.h`: `_IOW('R', 0x03, int[2])`.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
/// `linux/random.h`: `_IO('R', 0x07)`.
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// The places an identity is written to, opened at boot.
pub struct Seats {
    pub files: EtcFiles,
    pub random: OwnedFd,
}

/// A step that failed.
#[derive(Debug)]
pub struct Failure {
    pub step: &'static str,
    pub error: Error,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "{}: {}", self.step, self.error)
    }
}

fn step<T>(step: &'static str, result: Result<T>) -> std::result::Result<T, Failure> {
    result.map_err(|error| Failure { step, error })
}

impl Seats {
    /// Takes on `identity` and returns the address the guest had before, if it had another one.
    ///
    /// A clock of 0 and entropy of no bytes are left alone.
    pub fn take_on(&self, identity: &Identity) -> std::result::Result<Option<Ipv4Addr>, Failure> {
        if identity.clock_ns != 0 {
            step("clock", sys::set_wall_clock(identity.clock_ns))?;
        }
        step("entropy", self.mix_entropy(&identity.entropy))?;
        step("hostname", sys::set_hostname(&identity.hostname))?;
        step("hostname", self.files.write_hostname(identity))?;
        step("machine_id", self.files.write_machine_id(&identity.machine_id))?;
        let before = step("network", network::configure(identity.network.as_ref()))?;
        step("resolver", self.files.write_resolver(identity))?;
        let now = identity.network.as_ref().map(|network| network.ip);
        Ok(before.and_then(|before| before.ip).filter(|ip| Some(*ip) != now))
    }

    /// The same in a fork, which also ends the connections it inherited.
    pub fn take_over(&self, identity: &Identity) -> std::result::Result<(), Failure> {
        if let Some(former) = self.take_on(identity)? {
            step("connections", connections::destroy_from(former))?;
        }
        Ok(())
    }

    fn mix_entropy(&self, hex: &str) -> Result<()> {
        let bytes = messages::from_hex(hex)
            .filter(|bytes| bytes.len() <= ENTROPY_BYTES_MAX)
            .ok_or_else(|| Error::from_raw_os_error(libc::EINVAL))?;
        if bytes.is_empty() {
            return Ok(());
        }
        // struct rand_pool_info: entropy_count in bits, buf_size in bytes, then the bytes.
        let mut pool = Vec::with_capacity(8 + bytes.len());
        pool.extend_from_slice(&(bytes.len() as i32 * 8).to_ne_bytes());
        pool.extend_from_slice(&(bytes.len() as i32).to_ne_bytes());
        pool.extend_from_slice(&bytes);
        // SAFETY: `pool` is a rand_pool_info of the size it says; the second call takes no argument.
        unsafe {
            sys::check(libc::ioctl(self.random.as_raw_fd(), RNDADDENTROPY, pool.as_ptr()))?;
            sys::check(libc::ioctl(self.random.as_raw_fd(), RNDRESEEDCRNG, 0))?;
        }
        Ok(())
    }
}
