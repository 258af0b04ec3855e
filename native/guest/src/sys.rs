//! System calls with `io::Result`, and nothing of our own in them.

use std::ffi::CString;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

pub const NANOS_PER_SECOND: u64 = 1_000_000_000;
pub const NANOS_PER_MILLI: u64 = 1_000_000;

/// The result of a call that returns -1 and sets errno.
pub fn check(returned: libc::c_int) -> Result<libc::c_int> {
    if returned < 0 {
        return Err(Error::last_os_error());
    }
    Ok(returned)
}

fn check_size(returned: isize) -> Result<usize> {
    usize::try_from(returned).map_err(|_| Error::last_os_error())
}

pub fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::from_raw_os_error(libc::EINVAL))
}

pub fn open(path: &str, flags: libc::c_int) -> Result<OwnedFd> {
    let path = c_string(path)?;
    // SAFETY: `path` is a C string; the descriptor returned is new and ours.
    unsafe {
        let fd = check(libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, 0o644))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// One read; 0 is the end of the file.
pub fn read(fd: RawFd, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes into a live slice.
    check_size(unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) })
}

/// One write, which may be short.
pub fn write(fd: RawFd, data: &[u8]) -> Result<usize> {
    // SAFETY: the kernel reads at most `data.len()` bytes of a live slice.
    check_size(unsafe { libc::write(fd, data.as_ptr().cast(), data.len()) })
}

/// The whole of `data` at offset 0, which then is all the file holds.
pub fn replace_content(fd: RawFd, data: &[u8]) -> Result<()> {
    // SAFETY: as in `write`; ftruncate takes no pointer.
    unsafe {
        check(libc::ftruncate(fd, data.len() as libc::off_t))?;
        let written = check_size(libc::pwrite(fd, data.as_ptr().cast(), data.len(), 0))?;
        if written != data.len() {
            return Err(Error::from_raw_os_error(libc::ENOSPC));
        }
    }
    Ok(())
}

/// A pipe, close-on-exec: (read end, write end).
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: pipe2 fills two descriptors, both new and ours.
    unsafe {
        check(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

/// Asks for another size of a pipe; if there are too many pipes already, it keeps the one it has.
pub fn set_pipe_size(fd: &OwnedFd, size_bytes: libc::c_int) {
    // SAFETY: fcntl with an integer argument.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETPIPE_SZ, size_bytes) };
}

pub fn set_nonblocking(fd: &OwnedFd) -> Result<()> {
    // SAFETY: fcntl with an integer argument.
    unsafe {
        let flags = check(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL))?;
        check(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK))?;
    }
    Ok(())
}

/// Waits until a descriptor is ready; None waits without end. Interrupted waits begin again.
pub fn poll(fds: &mut [libc::pollfd], timeout_ms: Option<i32>) -> Result<()> {
    loop {
        // SAFETY: the kernel writes only the `revents` of a live slice.
        let ready =
            unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms.unwrap_or(-1)) };
        match check(ready) {
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

/// True if `events` (or an error) is ready on this descriptor now.
pub fn poll_now(fd: RawFd, events: libc::c_short) -> Result<libc::c_short> {
    let mut one = [libc::pollfd { fd, events, revents: 0 }];
    poll(&mut one, Some(0))?;
    Ok(one[0].revents)
}

/// Blocks a signal and returns a descriptor on which it is read.
///
/// A blocked signal is kept even for PID 1, for which unhandled signals are otherwise dropped.
pub fn signal_fd(signal: libc::c_int) -> Result<OwnedFd> {
    // SAFETY: `set` is initialised by sigemptyset; the descriptor returned is new and ours.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        check(libc::sigprocmask(libc::SIG_BLOCK, &set, ptr::null_mut()))?;
        let fd = check(libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Forgets the signals that wait on a descriptor of `signal_fd`.
pub fn drain_signals(fd: &OwnedFd) {
    let mut buffer = [0; std::mem::size_of::<libc::signalfd_siginfo>() * 4];
    while matches!(read(fd.as_raw_fd(), &mut buffer), Ok(count) if count > 0) {}
}

/// Lets the kernel send SIGIO to this process when something happens on `fd`.
pub fn request_sigio(fd: &OwnedFd) -> Result<()> {
    // SAFETY: fcntl with integer arguments.
    unsafe {
        check(libc::fcntl(fd.as_raw_fd(), libc::F_SETOWN, libc::getpid()))?;
        let flags = check(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL))?;
        check(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_ASYNC))?;
    }
    Ok(())
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a live timespec. These clocks exist on every kernel, so the call cannot fail.
    unsafe { libc::clock_gettime(clock, &mut now) };
    now.tv_sec as u64 * NANOS_PER_SECOND + now.tv_nsec as u64
}

pub fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

pub fn uptime_ns() -> u64 {
    clock_ns(libc::CLOCK_BOOTTIME)
}

/// Sets the wall clock to a Unix time.
pub fn set_wall_clock(unix_ns: u64) -> Result<()> {
    let time = libc::timespec {
        tv_sec: (unix_ns / NANOS_PER_SECOND) as libc::time_t,
        tv_nsec: (unix_ns % NANOS_PER_SECOND) as libc::c_long,
    };
    // SAFETY: `time` is a live timespec.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &time) }).map(drop)
}

pub fn set_hostname(name: &str) -> Result<()> {
    // SAFETY: the kernel reads `name.len()` bytes of a live string.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

pub fn hostname() -> Result<String> {
    let mut buffer = [0_u8; 256];
    // SAFETY: the kernel writes at most `buffer.len()` bytes into a live array.
    check(unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len()) })?;
    let length = buffer.iter().position(|byte| *byte == 0).unwrap_or(buffer.len());
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

pub fn mount(source: &str, target: &str, kind: &str, flags: libc::c_ulong, data: &str) -> Result<()> {
    let (source, target) = (c_string(source)?, c_string(target)?);
    let (kind, data) = (c_string(kind)?, c_string(data)?);
    // SAFETY: four C strings that live through the call.
    check(unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast())
    })
    .map(drop)
}

pub fn unmount(target: &str, flags: libc::c_int) -> Result<()> {
    let target = c_string(target)?;
    // SAFETY: a C string that lives through the call.
    check(unsafe { libc::umount2(target.as_ptr(), flags) }).map(drop)
}

/// Has `size` bytes from `start` on of an open disk be a device, whose name ends in `number` (from 1).
pub fn add_partition(disk: &OwnedFd, number: libc::c_int, start: u64, size: u64) -> Result<()> {
    // linux/blkpg.h
    const BLKPG: libc::c_int = 0x1269;
    const BLKPG_ADD_PARTITION: libc::c_int = 1;
    #[repr(C)]
    struct Partition {
        start: libc::c_longlong,
        length: libc::c_longlong,
        number: libc::c_int,
        names: [u8; 128],
    }
    #[repr(C)]
    struct Argument {
        op: libc::c_int,
        flags: libc::c_int,
        length: libc::c_int,
        data: *mut Partition,
    }
    let (start, length) = (start as libc::c_longlong, size as libc::c_longlong);
    let mut partition = Partition { start, length, number, names: [0; 128] };
    let length = std::mem::size_of::<Partition>() as libc::c_int;
    let mut argument = Argument { op: BLKPG_ADD_PARTITION, flags: 0, length, data: &mut partition };
    // SAFETY: both structures are the kernel's, and live through the call.
    check(unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG as _, &mut argument) }).map(drop)
}

pub fn chroot(path: &str) -> Result<()> {
    let path = c_string(path)?;
    // SAFETY: a C string that lives through the call.
    check(unsafe { libc::chroot(path.as_ptr()) }).map(drop)
}

pub fn change_dir(path: &str) -> Result<()> {
    let path = c_string(path)?;
    // SAFETY: a C string that lives through the call.
    check(unsafe { libc::chdir(path.as_ptr()) }).map(drop)
}

pub fn change_dir_to(fd: &OwnedFd) -> Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::fchdir(fd.as_raw_fd()) }).map(drop)
}

pub fn change_owner(fd: &OwnedFd, uid: u32) -> Result<()> {
    // SAFETY: no pointers; gid -1 leaves the group alone.
    check(unsafe { libc::fchown(fd.as_raw_fd(), uid, u32::MAX) }).map(drop)
}

/// Loads one kernel module.
pub fn load_module(fd: &OwnedFd) -> Result<()> {
    // SAFETY: an empty C string as parameters.
    let returned = unsafe { libc::syscall(libc::SYS_finit_module, fd.as_raw_fd(), b"\0".as_ptr(), 0) };
    check(returned as libc::c_int).map(drop)
}

/// Sends a signal to a process group, and to its leader, which may not have made its group yet.
///
/// Processes that have ended already are no error.
pub fn signal_group(leader: libc::pid_t, signal: libc::c_int) {
    // SAFETY: no pointers. `leader` is a child not yet waited for, so its number belongs to nobody else.
    unsafe {
        if libc::kill(-leader, signal) < 0 {
            libc::kill(leader, signal);
        }
    }
}

/// How a process ended: exactly one of the two is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

/// Takes one ended child, if there is one.
pub fn reap() -> Option<(libc::pid_t, Ending)> {
    let mut status = 0;
    // SAFETY: `status` is a live integer.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
    if pid <= 0 {
        return None;
    }
    let ending = if libc::WIFSIGNALED(status) {
        Ending { code: None, signal: Some(libc::WTERMSIG(status)) }
    } else {
        Ending { code: Some(libc::WEXITSTATUS(status)), signal: None }
    };
    Some((pid, ending))
}
