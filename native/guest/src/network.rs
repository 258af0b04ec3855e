//! The guest's one network interface: giving it an address, and taking another guest's address from it.
//!
//! All changes go to the kernel in one batch, in an order in which no frame can leave with half an identity:
//! the former address goes first, the new one comes after the new MAC.

use std::io::{Error, Result};
use std::net::Ipv4Addr;

use crate::messages::Network;
use crate::netlink::{Batch, Netlink, Plain};
use crate::sys;

/// Debian's kernel names it so with `net.ifnames=0`.
const INTERFACE: &[u8] = b"eth0\0";
const LOOPBACK_INDEX: u32 = 1;

/// `struct ifinfomsg` (linux/rtnetlink.h).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct LinkMessage {
    family: u8,
    pad: u8,
    kind: u16,
    index: u32,
    flags: u32,
    change: u32,
}

/// `struct ifaddrmsg` (linux/if_addr.h).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct AddressMessage {
    family: u8,
    prefix_length: u8,
    flags: u8,
    scope: u8,
    index: u32,
}

/// `struct rtmsg` (linux/rtnetlink.h).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RouteMessage {
    family: u8,
    destination_length: u8,
    source_length: u8,
    tos: u8,
    table: u8,
    protocol: u8,
    scope: u8,
    kind: u8,
    flags: u32,
}

// SAFETY: as in linux/rtnetlink.h: no padding, integers only.
unsafe impl Plain for LinkMessage {}
// SAFETY: as in linux/if_addr.h: no padding, integers only.
unsafe impl Plain for AddressMessage {}
// SAFETY: as in linux/rtnetlink.h: no padding, integers only.
unsafe impl Plain for RouteMessage {}

/// What the kernel has now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current {
    pub mac: [u8; 6],
    pub ip: Option<Ipv4Addr>,
}

/// Brings the loopback interface up.
pub fn start_loopback() -> Result<()> {
    let mut batch = Batch::default();
    append_up(&mut batch, LOOPBACK_INDEX);
    fail_on_first(Netlink::open(libc::NETLINK_ROUTE)?.carry_out(batch)?, &["lo up"])
}

fn append_up(batch: &mut Batch, index: u32) {
    let up = libc::IFF_UP as u32;
    let message = LinkMessage { index, flags: up, change: up, ..LinkMessage::default() };
    batch.message(libc::RTM_NEWLINK, 0, &message);
}

/// Asks the kernel; None if there is no network interface.
pub fn current() -> Result<Option<Current>> {
    // SAFETY: `request` is a zeroed ifreq with a name; each ioctl fills the member read after it.
    unsafe {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        let socket = sys::check(libc::socket(libc::AF_INET, kind, 0))?;
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(INTERFACE) {
            *to = *from as libc::c_char;
        }
        let mut found = None;
        if libc::ioctl(socket, libc::SIOCGIFHWADDR as _, &mut request) == 0 {
            let data = request.ifr_ifru.ifru_hwaddr.sa_data;
            let mac = [0, 1, 2, 3, 4, 5].map(|at| data[at] as u8);
            let ip = (libc::ioctl(socket, libc::SIOCGIFADDR as _, &mut request) == 0).then(|| {
                let data = request.ifr_ifru.ifru_addr.sa_data;
                Ipv4Addr::from([2, 3, 4, 5].map(|at| data[at] as u8))
            });
            found = Some(Current { mac, ip });
        }
        libc::close(socket);
        Ok(found)
    }
}

/// Gives the interface the address, route and MAC of `wanted`, in place of what it has; None takes its
/// address away. All neighbours are forgotten.
///
/// Errors name the step. ENODEV without an interface, unless none is wanted.
pub fn configure(wanted: Option<&Network>) -> Result<Option<Current>> {
    let before = current()?;
    let Some(before) = before else {
        return match wanted {
            None => Ok(None),
            Some(_) => Err(Error::other("there is no interface eth0")),
        };
    };
    // SAFETY: a C string.
    let index = unsafe { libc::if_nametoindex(INTERFACE.as_ptr().cast()) };
    let mut batch = Batch::default();
    let mut steps = Vec::new();
    let kept = wanted.is_some_and(|wanted| Some(wanted.ip) == before.ip);
    if let (Some(former), false) = (before.ip, kept) {
        append_address(&mut batch, libc::RTM_DELADDR, 0, index, former, 32, None);
        steps.push("remove the former address");
    }
    if let Some(wanted) = wanted {
        append_wanted(&mut batch, &mut steps, index, wanted, before.mac)?;
    } else if before.ip.is_some() {
        let message = LinkMessage { index, change: libc::IFF_UP as u32, ..LinkMessage::default() };
        batch.message(libc::RTM_NEWLINK, 0, &message);
        steps.push("eth0 down");
    }
    fail_on_first(Netlink::open(libc::NETLINK_ROUTE)?.carry_out(batch)?, &steps)?;
    Ok(Some(before))
}

fn append_wanted(
    batch: &mut Batch,
    steps: &mut Vec<&'static str>,
    index: u32,
    wanted: &Network,
    mac_before: [u8; 6],
) -> Result<()> {
    let mac = parse_mac(&wanted.mac).ok_or_else(|| Error::other("the MAC is not one"))?;
    let up = libc::IFF_UP as u32;
    // A change of MAC makes the kernel forget all neighbours of the interface; so does a change of NOARP.
    let no_arp = if mac == mac_before { libc::IFF_NOARP as u32 } else { 0 };
    let mut message =
        LinkMessage { index, flags: up | no_arp, change: up | no_arp, ..LinkMessage::default() };
    batch.message(libc::RTM_NEWLINK, 0, &message);
    if mac != mac_before {
        batch.attribute(libc::IFLA_ADDRESS, &mac);
    }
    steps.push("set the MAC");
    if no_arp != 0 {
        message = LinkMessage { flags: 0, change: no_arp, ..message };
        batch.message(libc::RTM_NEWLINK, 0, &message);
        steps.push("forget neighbours");
    }
    let create = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    let length = wanted.prefix_length;
    append_address(batch, libc::RTM_NEWADDR, create, index, wanted.ip, length, Some(broadcast(wanted)));
    steps.push("set the address");
    if let Some(gateway) = wanted.gateway {
        let message = RouteMessage {
            family: libc::AF_INET as u8,
            table: libc::RT_TABLE_MAIN,
            protocol: libc::RTPROT_BOOT,
            scope: libc::RT_SCOPE_UNIVERSE,
            kind: libc::RTN_UNICAST,
            ..RouteMessage::default()
        };
        batch
            .message(libc::RTM_NEWROUTE, create, &message)
            .attribute(libc::RTA_GATEWAY, &gateway.octets())
            .attribute(libc::RTA_OIF, &index.to_ne_bytes());
        steps.push("set the route");
    }
    Ok(())
}

fn append_address(
    batch: &mut Batch,
    kind: u16,
    flags: libc::c_int,
    index: u32,
    ip: Ipv4Addr,
    prefix_length: u8,
    broadcast: Option<Ipv4Addr>,
) {
    let family = libc::AF_INET as u8;
    let message = AddressMessage { family, prefix_length, index, ..AddressMessage::default() };
    batch.message(kind, flags, &message).attribute(libc::IFA_LOCAL, &ip.octets());
    if let Some(broadcast) = broadcast {
        batch.attribute(libc::IFA_ADDRESS, &ip.octets()).attribute(libc::IFA_BROADCAST, &broadcast.octets());
    }
}

fn broadcast(network: &Network) -> Ipv4Addr {
    let host_bits = u32::MAX.checked_shr(u32::from(network.prefix_length)).unwrap_or(0);
    Ipv4Addr::from(u32::from(network.ip) | host_bits)
}

fn fail_on_first(failures: Vec<(u32, Error)>, steps: &[&str]) -> Result<()> {
    for (sequence, error) in failures {
        let step = steps.get(sequence as usize - 1).unwrap_or(&"netlink");
        let gone = error.raw_os_error() == Some(libc::EADDRNOTAVAIL);
        if *step != "remove the former address" || !gone {
            return Err(Error::other(format!("{step}: {error}")));
        }
    }
    Ok(())
}

pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

pub fn format_mac(mac: [u8; 6]) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_six_pairs_of_digits() {
        assert_eq!(parse_mac("52:54:00:ab:CD:01"), Some([0x52, 0x54, 0, 0xab, 0xcd, 1]));
        assert_eq!(format_mac([0x52, 0x54, 0, 0xab, 0xcd, 1]), "52:54:00:ab:cd:01");
        for wrong in ["", "52:54:00:ab:cd", "52:54:00:ab:cd:01:02", "5:54:00:ab:cd:011", "zz:54:00:ab:cd:01"]
        {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_broadcast_address_has_all_host_bits() {
        for (length, wanted) in [(24, [10, 1, 2, 255]), (16, [10, 1, 255, 255]), (32, [10, 1, 2, 3])] {
            let network = Network {
                mac: String::new(),
                ip: Ipv4Addr::new(10, 1, 2, 3),
                prefix_length: length,
                gateway: None,
                dns: Vec::new(),
            };
            assert_eq!(broadcast(&network), Ipv4Addr::from(wanted));
        }
    }
}
