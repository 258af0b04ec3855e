//! Whether the kernel ended a process because there was no memory left: its log says so, by number.

use std::io::ErrorKind;
use std::os::fd::AsRawFd;

use crate::sys;

/// What the host is told in the message of such an end.
pub const MESSAGE: &str = "OOM";

/// A record of the log is never longer.
const RECORD_BYTES_MAX: usize = 8192;

/// Looks through the kernel's log, which may have forgotten what is long ago.
pub fn has_killed(pid: libc::pid_t) -> bool {
    let Ok(log) = sys::open("/dev/kmsg", libc::O_RDONLY | libc::O_NONBLOCK) else {
        return false;
    };
    let mut record = [0; RECORD_BYTES_MAX];
    loop {
        match sys::read(log.as_raw_fd(), &mut record) {
            Ok(0) => return false,
            Ok(length) if tells_of(&record[..length], pid) => return true,
            Ok(_) => {}
            // A record was overwritten before it was read; the next one is there.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(_) => return false,
        }
    }
}

fn tells_of(record: &[u8], pid: libc::pid_t) -> bool {
    String::from_utf8_lossy(record).contains(&format!("Killed process {pid} ("))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &[u8] =
        b"3,417,9216,-;Out of memory: Killed process 71 (sh) total-vm:312356kB, anon-rss:87712kB\n";

    #[test]
    fn a_record_tells_of_one_process_and_no_other() {
        assert!(tells_of(RECORD, 71));
        assert!(!tells_of(RECORD, 7));
        assert!(!tells_of(RECORD, 1));
        assert!(!tells_of(b"6,1,0,-;Linux version 6.1\n", 71));
    }

    #[test]
    fn a_process_that_lives_was_not_killed() {
        assert!(!has_killed(std::process::id().try_into().unwrap()));
    }
}
