//! `/etc/hostname`, `/etc/hosts`, `/etc/resolv.conf` and `/etc/machine-id`.
//!
//! The files lie in the initramfs's memory and are bound over the image's, as Docker does it. PID 1 keeps them
//! open: a fork's new identity is then written without looking up a path and without touching a disk.

use std::fs;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use crate::disks::make_folder;
use crate::messages::Identity;
use crate::sys;

const FOLDER: &str = "/etc-files";

pub struct EtcFiles {
    hostname: OwnedFd,
    hosts: OwnedFd,
    resolver: OwnedFd,
    machine_id: OwnedFd,
}

impl EtcFiles {
    /// Makes the files, in the initramfs.
    pub fn create() -> Result<Self> {
        make_folder(FOLDER)?;
        let create =
            |name: &str| sys::open(&format!("{FOLDER}/{name}"), libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC);
        Ok(Self {
            hostname: create("hostname")?,
            hosts: create("hosts")?,
            resolver: create("resolv.conf")?,
            machine_id: create("machine-id")?,
        })
    }

    /// Binds the files over those of the image; `/etc/machine-id` only where the image has one.
    pub fn bind(&self) -> Result<()> {
        make_folder("/etc")?;
        bind(&self.hostname, "/etc/hostname")?;
        bind(&self.hosts, "/etc/hosts")?;
        bind(&self.resolver, "/etc/resolv.conf")?;
        if Path::new("/etc/machine-id").exists() {
            bind(&self.machine_id, "/etc/machine-id")?;
        }
        Ok(())
    }

    pub fn write_hostname(&self, identity: &Identity) -> Result<()> {
        let name = &identity.hostname;
        sys::replace_content(self.hostname.as_raw_fd(), format!("{name}\n").as_bytes())?;
        sys::replace_content(self.hosts.as_raw_fd(), hosts(identity).as_bytes())
    }

    pub fn write_machine_id(&self, machine_id: &str) -> Result<()> {
        sys::replace_content(self.machine_id.as_raw_fd(), format!("{machine_id}\n").as_bytes())
    }

    pub fn write_resolver(&self, identity: &Identity) -> Result<()> {
        let servers = identity.network.iter().flat_map(|network| &network.dns);
        let text: String = servers.map(|server| format!("nameserver {server}\n")).collect();
        sys::replace_content(self.resolver.as_raw_fd(), text.as_bytes())
    }
}

fn hosts(identity: &Identity) -> String {
    let own = match &identity.network {
        Some(network) => network.ip.to_string(),
        None => "127.0.1.1".to_owned(),
    };
    format!("127.0.0.1\tlocalhost\n{own}\t{}\n", identity.hostname)
}

fn bind(file: &OwnedFd, target: &str) -> Result<()> {
    let path = Path::new(target);
    if !path.exists() {
        // A link that leads nowhere would stay in the way.
        if path.is_symlink() {
            fs::remove_file(path)?;
        }
        fs::File::create(path)?;
    }
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    sys::mount(&source, target, "", libc::MS_BIND, "")
        .map_err(|error| Error::other(format!("binding {target}: {error}")))
}
