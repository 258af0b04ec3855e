//! A port that is a listening socket: what the host has of us where the VMM has a vsock and no serial ports.
//!
//! As on a serial port there is one connection at a time; who comes meanwhile waits. A snapshot of the guest
//! ends them all, in the guest and in its children, and the listening socket stays.

use std::io::{ErrorKind, Result};
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::port::is_transient;
use crate::{sys, virtio};

const BACKLOG: libc::c_int = 8;
/// How long the kernel may take at the end to hand over what was sent.
const LINGER_S: libc::c_int = 2;

/// True if this machine has a vsock. After the drivers of its bus were loaded.
pub fn is_there() -> bool {
    virtio::is_there(virtio::VSOCK)
}

pub struct Socket {
    listener: OwnedFd,
    peer: Option<OwnedFd>,
}

impl Socket {
    /// Listens to the host at a port of the vsock.
    pub fn listen(port: u32) -> Result<Self> {
        // SAFETY: plain integers, and a zeroed sockaddr_vm that is filled in; the descriptor is new and ours.
        unsafe {
            let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            let listener = OwnedFd::from_raw_fd(sys::check(libc::socket(libc::AF_VSOCK, kind, 0))?);
            let mut address: libc::sockaddr_vm = std::mem::zeroed();
            address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
            address.svm_cid = libc::VMADDR_CID_ANY;
            address.svm_port = port;
            let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
            sys::check(libc::bind(listener.as_raw_fd(), (&raw const address).cast(), length))?;
            sys::check(libc::listen(listener.as_raw_fd(), BACKLOG))?;
            Ok(Self::of(listener))
        }
    }

    fn of(listener: OwnedFd) -> Self {
        Self { listener, peer: None }
    }

    /// The connection, -1 where there is none: poll(2) passes over that.
    pub fn fd(&self) -> RawFd {
        self.peer.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Where the next connection announces itself.
    pub fn door(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    pub fn is_connected(&self) -> bool {
        self.peer.is_some()
    }

    /// Takes the next connection if there is none now.
    pub fn admit(&mut self) -> Result<()> {
        while self.peer.is_none() {
            // SAFETY: a zeroed address that the kernel fills up to its length; the descriptor is new and ours.
            let accepted = unsafe {
                let mut address: libc::sockaddr_vm = std::mem::zeroed();
                let mut length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
                let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
                let place = (&raw mut address).cast();
                sys::check(libc::accept4(self.door(), place, &mut length, flags))
                    .map(|fd| (OwnedFd::from_raw_fd(fd), address))
            };
            match accepted {
                Ok((peer, address)) if may_enter(&address) => self.peer = Some(peer),
                Ok(_) => {}
                Err(error) if is_transient(&error) || error.kind() == ErrorKind::ConnectionAborted => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Some bytes; 0 if there are none now, or the host has hung up.
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        match sys::read(self.fd(), buffer) {
            Ok(count) if count > 0 => return count,
            Err(error) if is_transient(&error) => {}
            _ => self.peer = None, // However it ended, the next one comes by the door.
        }
        0
    }

    /// Writes what the host takes now; 0 if it takes nothing, or has hung up.
    pub fn write(&mut self, data: &[u8]) -> usize {
        match sys::write(self.fd(), data) {
            Ok(count) => return count,
            Err(error) if is_transient(&error) => {}
            Err(_) => self.peer = None,
        }
        0
    }

    /// Ends the connection when the host has all that was sent, or after a while.
    pub fn close(&mut self) {
        let Some(peer) = self.peer.take() else {
            return;
        };
        let linger = libc::linger { l_onoff: 1, l_linger: LINGER_S };
        // SAFETY: a live struct linger and its size. If it fails, the close does not wait.
        unsafe {
            let length = size_of::<libc::linger>() as libc::socklen_t;
            let place = (&raw const linger).cast();
            libc::setsockopt(peer.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, place, length);
        }
    }
}

/// No process of the guest may speak to its agent, by whatever way the kernel would let it.
fn may_enter(address: &libc::sockaddr_vm) -> bool {
    libc::c_int::from(address.svm_family) != libc::AF_VSOCK || address.svm_cid == libc::VMADDR_CID_HOST
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    fn socket(name: &str) -> (Socket, std::path::PathBuf) {
        let path = std::env::temp_dir().join(format!("ramet-vsock-{}-{name}", std::process::id()));
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        (Socket::of(listener.into()), path)
    }

    #[test]
    fn one_connection_is_served_and_the_next_waits_for_its_end() {
        let (mut socket, path) = socket("turns");
        socket.admit().unwrap();
        assert!(!socket.is_connected());
        let mut first = UnixStream::connect(&path).unwrap();
        let mut second = UnixStream::connect(&path).unwrap();
        first.write_all(b"one").unwrap();
        second.write_all(b"two").unwrap();
        let mut buffer = [0; 8];
        socket.admit().unwrap();
        socket.admit().unwrap();
        assert_eq!(socket.read(&mut buffer), 3);
        assert_eq!(&buffer[..3], b"one");
        assert_eq!(socket.read(&mut buffer), 0);
        assert!(socket.is_connected());
        drop(first);
        assert_eq!(socket.read(&mut buffer), 0);
        assert!(!socket.is_connected());
        socket.admit().unwrap();
        assert_eq!(socket.read(&mut buffer), 3);
        assert_eq!(&buffer[..3], b"two");
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_host_that_has_hung_up_is_noticed_by_a_write() {
        let (mut socket, path) = socket("write");
        let peer = UnixStream::connect(&path).unwrap();
        socket.admit().unwrap();
        assert_eq!(socket.write(b"hello"), 5);
        drop(peer);
        // SIGPIPE is ignored by Rust's runtime, as it is in a guest.
        assert_eq!(socket.write(b"hello"), 0);
        assert!(!socket.is_connected());
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_was_sent_arrives_before_the_end() {
        let (mut socket, path) = socket("close");
        let mut peer = UnixStream::connect(&path).unwrap();
        socket.admit().unwrap();
        assert_eq!(socket.write(b"last words"), 10);
        socket.close();
        let mut heard = String::new();
        peer.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "last words");
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn only_the_host_may_enter() {
        // SAFETY: integers only.
        let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_cid = libc::VMADDR_CID_LOCAL;
        assert!(!may_enter(&address));
        address.svm_cid = libc::VMADDR_CID_HOST;
        assert!(may_enter(&address));
    }
}
