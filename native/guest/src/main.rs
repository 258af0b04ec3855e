//! PID 1 and agent inside every guest.
//!
//! One thread and one poll loop: under emulation every instruction of the guest is dear, and a fork runs this
//! program before anything else. `docs/guest-protocol.md` is the contract.

// The C entry point, because the runtime of std aborts where /dev/null does not exist yet.
#![cfg_attr(not(test), no_main)]

mod agent;
mod archive;
mod boot;
mod cgroup;
mod connections;
mod console;
mod disks;
mod etc_files;
mod exec;
mod files;
mod frames;
mod identity;
mod messages;
mod modules;
mod netlink;
mod network;
mod oom;
mod output;
mod pack;
mod port;
mod poweroff;
mod pty;
mod session;
mod spawn;
mod sys;
mod unpack;
mod users;
mod virtio;
mod volumes;
mod vsock;
mod workload;

#[cfg_attr(not(test), no_mangle)]
pub extern "C" fn main() -> libc::c_int {
    // SAFETY: no arguments.
    if unsafe { libc::getpid() } != 1 {
        let version = concat!("ramet-guest ", env!("CARGO_PKG_VERSION"), ": runs as PID 1 of a guest\n");
        // There is nobody to tell if that cannot be written.
        let _ = sys::write(1, version.as_bytes());
        return 2;
    }
    poweroff::fail_on_panic();
    match boot::boot() {
        Ok(agent) => agent.run(),
        Err(reason) => poweroff::fail(&reason),
    }
}
