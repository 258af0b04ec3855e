//! Pseudo-terminals: a pair for an exec, its size, and the end of the session that lives on it.

use std::fs;
use std::io::Result;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::messages::TerminalSize;
use crate::sys;

/// The group called tty in every distribution; devpts is mounted with it.
const TTY_GROUP: u32 = 5;

/// Opens a pair: (master, not blocking; the terminal itself, owned by `uid`).
pub fn open(uid: u32, size: TerminalSize) -> Result<(OwnedFd, OwnedFd)> {
    let master = sys::open("/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK)?;
    // SAFETY: a live integer for TIOCSPTLCK; TIOCGPTPEER takes flags and returns a descriptor that is ours.
    let terminal = unsafe {
        let unlocked: libc::c_int = 0;
        sys::check(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &unlocked))?;
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        OwnedFd::from_raw_fd(sys::check(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags))?)
    };
    // SAFETY: no pointers.
    sys::check(unsafe { libc::fchown(terminal.as_raw_fd(), uid, TTY_GROUP) })?;
    resize(&master, size)?;
    Ok((master, terminal))
}

/// Sets the size; the kernel sends SIGWINCH to the foreground processes if it is another one.
pub fn resize(master: &OwnedFd, size: TerminalSize) -> Result<()> {
    let size = libc::winsize { ws_row: size.rows.get(), ws_col: size.cols.get(), ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: a live winsize.
    sys::check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &size) }).map(drop)
}

/// Makes the terminal on descriptor 0 that of the calling process, which leads a session.
pub fn take_control() -> Result<()> {
    // SAFETY: an integer argument.
    sys::check(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) }).map(drop)
}

/// The character that ends input (^D) if there is one, and whether the terminal itself takes it, line by line. A
/// shell that edits its lines takes it, too.
pub fn end_of_input(master: RawFd) -> Option<(u8, bool)> {
    // SAFETY: a live termios. That of the master is that of the terminal.
    let modes = unsafe {
        let mut modes: libc::termios = std::mem::zeroed();
        sys::check(libc::tcgetattr(master, &mut modes)).ok()?;
        modes
    };
    let character = modes.c_cc[libc::VEOF];
    (character != 0).then_some((character, modes.c_lflag & libc::ICANON != 0))
}

/// Kills every process of the session that `leader` leads: the jobs of a shell have groups of their own.
pub fn kill_session(leader: libc::pid_t) {
    let Ok(entries) = fs::read_dir("/proc") else {
        return;
    };
    for entry in entries.flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<libc::pid_t>().ok());
        let Some(pid) = pid else {
            continue;
        };
        // SAFETY: no pointers; a process that is gone has no session.
        unsafe {
            if libc::getsid(pid) == leader {
                libc::kill(pid, libc::SIGKILL);
            }
        }
    }
}
