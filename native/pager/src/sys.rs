//! System calls that std does not have, each with an owned descriptor and a `Result`.

use std::fs::File;
use std::io::{Error, Result};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

// linux/socket.h, since Linux 6.5.
const SO_PEERPIDFD: libc::c_int = 77;
/// Descriptors that one message may bring; a handshake brings one.
const RECEIVED_FDS_MAX: usize = 4;

fn check(result: libc::c_int) -> Result<libc::c_int> {
    if result < 0 {
        return Err(Error::last_os_error());
    }
    Ok(result)
}

fn check_length(result: isize) -> Result<usize> {
    usize::try_from(result).map_err(|_| Error::last_os_error())
}

/// Takes ownership of a descriptor that a system call just returned.
fn owned(result: libc::c_int) -> Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the kernel just gave it to us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub struct Epoll(OwnedFd);

pub const READABLE: u32 = libc::EPOLLIN as u32;
pub const WRITABLE: u32 = libc::EPOLLOUT as u32;
pub const ONCE: u32 = libc::EPOLLONESHOT as u32;

impl Epoll {
    pub fn new() -> Result<Self> {
        // SAFETY: no pointers.
        owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(Self)
    }

    pub fn add(&self, fd: RawFd, events: u32, token: u64) -> Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, events, token)
    }

    pub fn modify(&self, fd: RawFd, events: u32, token: u64) -> Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, events, token)
    }

    pub fn remove(&self, fd: RawFd) -> Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }

    fn control(&self, operation: libc::c_int, fd: RawFd, events: u32, token: u64) -> Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: `event` outlives the call.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, fd, &mut event) }).map(drop)
    }

    /// The tokens that are ready, at most as many as `room`; none after a time-out or a signal.
    pub fn wait(&self, room: usize, timeout: Option<Duration>) -> Result<Vec<u64>> {
        let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; room];
        // Rounded up, or the last millisecond would be spent spinning.
        let millis = timeout.map_or(-1, |t| t.as_millis().saturating_add(1).min(60_000) as libc::c_int);
        // SAFETY: `events` has room for `room` entries.
        let result =
            unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), room as libc::c_int, millis) };
        match check(result) {
            Ok(count) => Ok(events[..count as usize].iter().map(|event| event.u64).collect()),
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// An eventfd: one thread wakes another's poll.
pub struct Wakeup(File);

impl Wakeup {
    pub fn new() -> Result<Self> {
        // SAFETY: no pointers.
        owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }).map(|fd| Self(fd.into()))
    }

    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    pub fn wake(&self) {
        // Fails only when the counter is full, and then the other side is awake.
        let _ = std::io::Write::write(&mut &self.0, &1u64.to_ne_bytes());
    }

    pub fn clear(&self) {
        // Fails only when there is nothing to clear.
        let _ = std::io::Read::read(&mut &self.0, &mut [0; 8]);
    }
}

/// A timerfd that fires once after each `arm`.
pub struct Timer(OwnedFd);

impl Timer {
    pub fn new() -> Result<Self> {
        // SAFETY: no pointers.
        owned(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) })
            .map(Self)
    }

    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Fires after `delay`; whatever fired before is forgotten.
    pub fn arm(&self, delay: Duration) -> Result<()> {
        // SAFETY: all zeroes is a valid itimerspec.
        let mut when: libc::itimerspec = unsafe { zeroed() };
        when.it_value.tv_sec = delay.as_secs() as libc::time_t;
        when.it_value.tv_nsec = libc::c_long::from(delay.subsec_nanos());
        // SAFETY: `when` outlives the call; the old value is not asked for.
        check(unsafe { libc::timerfd_settime(self.fd(), 0, &when, std::ptr::null_mut()) }).map(drop)
    }
}

/// Blocks these signals in this thread, and in those it starts, and returns a signalfd for them.
pub fn receive_signals(numbers: &[libc::c_int]) -> Result<OwnedFd> {
    // SAFETY: all zeroes is a valid sigset_t.
    let mut set: libc::sigset_t = unsafe { zeroed() };
    // SAFETY: `set` outlives the calls.
    unsafe {
        libc::sigemptyset(&mut set);
        for number in numbers {
            libc::sigaddset(&mut set, *number);
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()))?;
        owned(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))
    }
}

/// One signal's number from a signalfd, if one is there.
pub fn next_signal(fd: &OwnedFd) -> Option<libc::c_int> {
    // SAFETY: all zeroes is a valid signalfd_siginfo.
    let mut info: libc::signalfd_siginfo = unsafe { zeroed() };
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: `info` has `size` bytes of room.
    let got = unsafe { libc::read(fd.as_raw_fd(), std::ptr::addr_of_mut!(info).cast(), size) };
    (got == size as isize).then_some(info.ssi_signo as libc::c_int)
}

/// Files that we make are the owner's alone.
pub fn restrict_umask() {
    // SAFETY: cannot fail.
    unsafe { libc::umask(0o077) };
}

/// Bytes that arrived on a unix socket and descriptors that came with them; 0 bytes is the end.
pub fn receive(socket: RawFd, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize> {
    let mut piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = [0u64; 8]; // u64 for the alignment of cmsghdr
                                 // SAFETY: all zeroes is a valid msghdr.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &mut piece;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: arithmetic only.
    message.msg_controllen =
        unsafe { libc::CMSG_SPACE((RECEIVED_FDS_MAX * size_of::<RawFd>()) as u32) as usize };
    assert!(message.msg_controllen <= size_of::<[u64; 8]>());
    // SAFETY: `message` points at buffers that outlive the call.
    let count = check_length(unsafe {
        libc::recvmsg(socket, &mut message, libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC)
    })?;
    // SAFETY: the kernel filled `control` up to msg_controllen; the macros stay inside.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*header).cmsg_len - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                for index in 0..bytes / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&message, header);
        }
    }
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(Error::new(std::io::ErrorKind::InvalidData, "too many descriptors"));
    }
    Ok(count)
}

/// The process at the other end of a unix socket, as the kernel knows it.
pub struct Peer {
    pub pid: libc::pid_t,
    pub pidfd: OwnedFd,
}

/// The process that connected. It is held by descriptor: what is killed later can be no other one.
pub fn peer_of(socket: RawFd) -> Result<Peer> {
    // SAFETY: all zeroes is a valid ucred.
    let mut credentials: libc::ucred = unsafe { zeroed() };
    read_option(socket, libc::SO_PEERCRED, &mut credentials)?;
    if credentials.pid <= 0 {
        return Err(Error::new(std::io::ErrorKind::InvalidInput, "the VMM is in a foreign pid namespace"));
    }
    let mut pidfd: RawFd = -1;
    let held = match read_option(socket, SO_PEERPIDFD, &mut pidfd) {
        Ok(()) => owned(pidfd)?,
        // Before Linux 6.5: by number, while the connection shows that it still is the same process.
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
            // SAFETY: no pointers.
            let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, credentials.pid, 0) };
            let held = owned(opened as libc::c_int)?;
            if is_hung_up(socket)? {
                return Err(Error::new(std::io::ErrorKind::NotConnected, "the VMM is gone"));
            }
            held
        }
        Err(error) => return Err(error),
    };
    Ok(Peer { pid: credentials.pid, pidfd: held })
}

impl Peer {
    /// SIGKILL; harmless if the process is gone.
    pub fn kill(&self) -> Result<()> {
        // SAFETY: no siginfo is given.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match check(result as libc::c_int) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(error),
            _ => Ok(()),
        }
    }
}

fn read_option<T>(socket: RawFd, option: libc::c_int, value: &mut T) -> Result<()> {
    let mut size = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` has `size` bytes of room.
    let result =
        unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, option, (value as *mut T).cast(), &mut size) };
    check(result).map(drop)
}

fn is_hung_up(socket: RawFd) -> Result<bool> {
    let mut entry = libc::pollfd { fd: socket, events: 0, revents: 0 };
    // SAFETY: one entry, which outlives the call.
    check(unsafe { libc::poll(&mut entry, 1, 0) })?;
    Ok(entry.revents & libc::POLLHUP != 0)
}

/// Makes reads of this descriptor return at once where there is nothing to read.
pub fn set_nonblocking(fd: RawFd) -> Result<()> {
    // SAFETY: no pointers.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) }).map(drop)
}

pub fn is_nonblocking(fd: RawFd) -> Result<bool> {
    // SAFETY: no pointers.
    Ok(check(unsafe { libc::fcntl(fd, libc::F_GETFL) })? & libc::O_NONBLOCK != 0)
}

/// Reads without ever sleeping, even where another holder of the file took O_NONBLOCK away.
///
/// RWF_NOWAIT serves for that since a userfaultfd has it (Linux 6.10); before, O_NONBLOCK is trusted.
pub fn read_nowait(fd: RawFd, buffer: &mut [u8]) -> Result<usize> {
    let piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: `piece` points at `buffer`, which outlives the call.
    match check_length(unsafe { libc::preadv2(fd, &piece, 1, -1, libc::RWF_NOWAIT) }) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            // SAFETY: as above.
            check_length(unsafe { libc::read(fd, piece.iov_base, piece.iov_len) })
        }
        other => other,
    }
}

/// A file, mapped to be read by the kernel alone.
pub struct Mapped {
    address: *mut libc::c_void,
    size_bytes: usize,
}

// SAFETY: nobody reads or writes through the address but the kernel, as the source of copies.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    pub fn new(file: &File, size_bytes: u64) -> Result<Self> {
        let size_bytes = usize::try_from(size_bytes).map_err(Error::other)?;
        if size_bytes == 0 {
            return Ok(Self { address: std::ptr::null_mut(), size_bytes });
        }
        // Private, as a sealed memfd refuses shared mappings before Linux 6.7; the pages are the same.
        let (protection, kind) = (libc::PROT_READ, libc::MAP_PRIVATE);
        // SAFETY: a fresh mapping at an address the kernel chooses.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), size_bytes, protection, kind, file.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        Ok(Self { address, size_bytes })
    }

    pub fn address(&self) -> u64 {
        self.address as u64
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if self.size_bytes > 0 {
            // SAFETY: our own mapping; nothing refers to it but addresses handed to the kernel.
            let result = unsafe { libc::munmap(self.address, self.size_bytes) };
            debug_assert_eq!(result, 0);
        }
    }
}

/// The first byte at or after `from` that is data; None: there is none.
pub fn seek_data(file: &File, from: u64) -> Result<Option<u64>> {
    // SAFETY: no pointers.
    let found = unsafe { libc::lseek(file.as_raw_fd(), from as libc::off_t, libc::SEEK_DATA) };
    match u64::try_from(found) {
        Ok(position) => Ok(Some(position)),
        Err(_) => match Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

/// Allows as many open files as the hard limit does, and returns how many.
pub fn raise_descriptor_limit() -> Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives the calls.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    Ok(limit.rlim_cur)
}
