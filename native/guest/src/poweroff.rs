//! The end of the guest, in every case by powering off: PID 1 never returns and never panics.

use std::fs;
use std::io::Result;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::console;
use crate::disks::{self, OldRoot};
use crate::sys::{self, NANOS_PER_SECOND};

/// How long killed processes may take to be gone.
const KILL_TIMEOUT_S: u64 = 5;
const KILL_POLL_MS: i32 = 50;

/// Where there is no power button, a reset by the keyboard controller ends the VMM, and the kernel is told so.
const RESET_ARGUMENT: &str = "reboot=k";
static ENDS_BY_RESET: AtomicBool = AtomicBool::new(false);

/// Learns from the kernel's command line how this machine is ended. Before that it is powered off.
pub fn learn_the_way() {
    let told = fs::read_to_string("/proc/cmdline").is_ok_and(|line| ends_by_reset(&line));
    ENDS_BY_RESET.store(told, Ordering::Relaxed);
}

fn ends_by_reset(command_line: &str) -> bool {
    command_line.split_ascii_whitespace().any(|word| word == RESET_ARGUMENT)
}

/// Kills and reaps every process but this one. `children` is the descriptor of SIGCHLD.
pub fn kill_everything(children: &OwnedFd) -> Result<()> {
    // SAFETY: no pointers. From PID 1, -1 means everybody else.
    unsafe { libc::kill(-1, libc::SIGKILL) };
    let until_ns = sys::monotonic_ns() + KILL_TIMEOUT_S * NANOS_PER_SECOND;
    loop {
        sys::drain_signals(children);
        while sys::reap().is_some() {}
        if !has_children() || sys::monotonic_ns() >= until_ns {
            return Ok(());
        }
        // Grandchildren become ours without a signal, hence the bound.
        let mut one = [libc::pollfd { fd: children.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        sys::poll(&mut one, Some(KILL_POLL_MS))?;
    }
}

fn has_children() -> bool {
    let options = libc::WNOHANG | libc::WEXITED | libc::WNOWAIT;
    // SAFETY: a zeroed siginfo_t to be filled in.
    unsafe {
        let mut info = std::mem::zeroed();
        libc::waitid(libc::P_ALL, 0, &mut info, options) == 0
    }
}

/// Writes the file systems out and takes them off. What cannot be taken off is at least written out.
pub fn close_disks(old: &OldRoot) {
    // SAFETY: no arguments.
    unsafe { libc::sync() };
    if let Err(error) = disks::leave_root(old) {
        console::print(&format!("warning {error}"));
    }
}

pub fn power_off() -> ! {
    let by_reset = ENDS_BY_RESET.load(Ordering::Relaxed);
    loop {
        // SAFETY: no pointers; does not return when it succeeds.
        unsafe {
            libc::reboot(if by_reset { libc::RB_AUTOBOOT } else { libc::RB_POWER_OFF });
            libc::pause();
        }
    }
}

/// Says why the guest cannot go on, and powers off.
pub fn fail(reason: &str) -> ! {
    console::print(&format!("failed {reason}"));
    // SAFETY: no arguments.
    unsafe { libc::sync() };
    power_off()
}

/// A panic in PID 1 would be a kernel panic; it is a failure with a reason instead.
pub fn fail_on_panic() {
    std::panic::set_hook(Box::new(|panic| fail(&panic.to_string())));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_power_button_is_known_by_its_command_line() {
        assert!(ends_by_reset("console=ttyS0 reboot=k panic=-1\n"));
        assert!(!ends_by_reset("console=ttyS0 reboot=t reboot=kbd\n"));
        assert!(!ends_by_reset(""));
    }
}
