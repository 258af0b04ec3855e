//! The serial console, on which a few lines are ours.

use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use crate::sys;

const NONE: RawFd = -1;
/// A panic has to find it too, from anywhere.
static CONSOLE: AtomicI32 = AtomicI32::new(NONE);

/// Keeps the console open for good.
pub fn keep(console: OwnedFd) {
    CONSOLE.store(console.into_raw_fd(), Ordering::Relaxed);
}

/// Prints `RAMET-GUEST <text>` as a line of its own and waits until the UART has sent it.
pub fn print(text: &str) {
    let console = CONSOLE.load(Ordering::Relaxed);
    if console == NONE {
        return;
    }
    let line = format!("\nRAMET-GUEST {}\n", text.replace('\n', " "));
    let mut rest = line.as_bytes();
    // There is nowhere to report a console that cannot be written.
    while let Ok(count) = sys::write(console, rest) {
        rest = &rest[count..];
        if count == 0 || rest.is_empty() {
            break;
        }
    }
    // SAFETY: no pointers.
    unsafe { libc::tcdrain(console) };
}
