//! Ends the TCP connections that a forked guest inherited together with its parent's address.
//!
//! Their peers talk to the parent. After the address is gone no packet can be sent from them, not even a reset,
//! so the workload learns at once (ECONNABORTED) and the network learns nothing.

use std::io::{Error, Result};
use std::mem::size_of;
use std::net::Ipv4Addr;

use crate::netlink::{self, Batch, Netlink, Plain};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_BC_S_COND: u8 = 7;
const TCP_LISTEN: u32 = 10;
/// Connections destroyed by one message to the kernel.
const BATCH_MAX: usize = 64;

/// `struct inet_diag_sockid` (linux/inet_diag.h).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct SocketId {
    ports: [u16; 2],
    source: [u32; 4],
    destination: [u32; 4],
    interface: u32,
    cookie: [u32; 2],
}

/// `struct inet_diag_req_v2` (linux/inet_diag.h).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct DiagRequest {
    family: u8,
    protocol: u8,
    extensions: u8,
    pad: u8,
    states: u32,
    id: SocketId,
}

/// The beginning of `struct inet_diag_msg` (linux/inet_diag.h).
#[repr(C)]
#[derive(Clone, Copy)]
struct DiagAnswer {
    family: u8,
    state: u8,
    timer: u8,
    retransmits: u8,
    id: SocketId,
}

// SAFETY: as in linux/inet_diag.h: no padding, integers only.
unsafe impl Plain for DiagRequest {}
// SAFETY: as in linux/inet_diag.h: no padding, integers only.
unsafe impl Plain for DiagAnswer {}

/// A program of one condition: the local address is `address`. The kernel runs it on every socket, and
/// matches sockets of IPv6 with a mapped address too (inet_diag_bc_run).
fn local_address_is(address: Ipv4Addr) -> Vec<u8> {
    const OP_BYTES: u8 = 4;
    const CONDITION_BYTES: u8 = 8;
    let whole = OP_BYTES + CONDITION_BYTES + 4;
    let mut code = vec![INET_DIAG_BC_S_COND, whole];
    code.extend_from_slice(&u16::from(whole + 4).to_ne_bytes());
    // struct inet_diag_hostcond: family, prefix_len, padding, port (-1: any)
    code.extend_from_slice(&[libc::AF_INET as u8, 32, 0, 0]);
    code.extend_from_slice(&(-1_i32).to_ne_bytes());
    code.extend_from_slice(&address.octets());
    code
}

/// Destroys every connection whose local address is `address`; returns how many there were.
///
/// Errors: the kernel's, when its diagnosis modules are missing (ENOENT) or refuse.
pub fn destroy_from(address: Ipv4Addr) -> Result<usize> {
    let netlink = Netlink::open(libc::NETLINK_SOCK_DIAG)?;
    let mut count = destroy_family(&netlink, libc::AF_INET, address)?;
    if has_ipv6() {
        count += destroy_family(&netlink, libc::AF_INET6, address)?;
    }
    Ok(count)
}

fn has_ipv6() -> bool {
    // SAFETY: a C string.
    unsafe { libc::access(b"/proc/net/if_inet6\0".as_ptr().cast(), libc::F_OK) == 0 }
}

fn destroy_family(netlink: &Netlink, family: libc::c_int, address: Ipv4Addr) -> Result<usize> {
    let mut ask = Batch::default();
    let mut request = DiagRequest {
        family: family as u8,
        protocol: libc::IPPROTO_TCP as u8,
        states: !(1 << TCP_LISTEN),
        ..DiagRequest::default()
    };
    ask.message(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, &request)
        .attribute(INET_DIAG_REQ_BYTECODE, &local_address_is(address));
    let mut found = Vec::new();
    netlink.dump(&ask, |body| {
        let answer: Option<DiagAnswer> = netlink::struct_of(body);
        found.extend(answer.map(|answer| answer.id));
    })?;
    for group in found.chunks(BATCH_MAX) {
        let mut destroy = Batch::default();
        for id in group {
            request.id = *id;
            destroy.message(SOCK_DESTROY, 0, &request);
        }
        for (_, error) in netlink.carry_out(destroy)? {
            if !is_gone(&error) {
                return Err(error);
            }
        }
    }
    Ok(found.len())
}

/// A connection may end by itself between the question and the deed.
fn is_gone(error: &Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}

const _: () = assert!(size_of::<SocketId>() == 48 && size_of::<DiagRequest>() == 56);

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn connections_from_one_address_end_and_others_live() {
        let kept_address = Ipv4Addr::new(127, 77, 1, 1);
        let ended_address = Ipv4Addr::new(127, 77, 1, 2);
        let kept = TcpListener::bind((kept_address, 0)).unwrap();
        let ended = TcpListener::bind((ended_address, 0)).unwrap();
        let kept_client = TcpStream::connect(kept.local_addr().unwrap()).unwrap();
        let ended_client = TcpStream::connect(ended.local_addr().unwrap()).unwrap();
        let (mut kept_server, _) = kept.accept().unwrap();
        let (mut ended_server, _) = ended.accept().unwrap();
        match destroy_from(ended_address) {
            Ok(count) => assert_eq!(count, 1),
            Err(error) => {
                // Not root, or a kernel without tcp_diag: nothing to be shown here.
                eprintln!("skipped: {error}");
                return;
            }
        }
        assert!(ended_server.read(&mut [0]).is_err());
        drop(ended_client);
        drop(kept_client);
        assert_eq!(kept_server.read(&mut [0]).unwrap(), 0);
        // The listener was not destroyed with its connections.
        TcpStream::connect(ended.local_addr().unwrap()).unwrap();
    }
}
