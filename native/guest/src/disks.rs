//! The guest's disks, by their virtio serials or else by their order, and the root file system made of them.

use std::fs;
use std::io::{Error, Read, Result};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::messages::BootConfig;
use crate::sys;
use crate::volumes;

const CONFIG_MAGIC: &[u8; 8] = b"RAMETCF1";
const CONFIG_BYTES_MAX: u32 = 1 << 20;

const LOWER: &str = "/lower";
const OVERLAY: &str = "/overlay";
const NEW_ROOT: &str = "/newroot";

/// The device file of the disk with this serial, if it is there yet.
pub fn find(serial: &str) -> Option<String> {
    let entries = fs::read_dir("/sys/block").ok()?;
    entries.flatten().find_map(|entry| {
        let found = fs::read_to_string(entry.path().join("serial")).ok()?;
        let device = entry.file_name().into_string().ok()?;
        (found.trim_end() == serial).then(|| format!("/dev/{device}"))
    })
}

/// The device file of the disk at this place among the machine's disks, if it is there yet: of a VMM that lets
/// us choose the order only, and no serials.
pub fn at(place: usize) -> Option<String> {
    nth_disk(
        fs::read_dir("/sys/block").ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok()),
        place,
    )
    .map(|name| format!("/dev/{name}"))
}

fn nth_disk(names: impl Iterator<Item = String>, place: usize) -> Option<String> {
    let mut disks: Vec<_> = names.filter(|name| name.starts_with("vd")).collect();
    disks.sort();
    disks.into_iter().nth(place)
}

/// Reads the boot configuration from its disk.
pub fn read_config(device: &str) -> std::result::Result<BootConfig, String> {
    let mut file = fs::File::open(device).map_err(|error| format!("{device}: {error}"))?;
    let mut head = [0; 12];
    file.read_exact(&mut head).map_err(|error| format!("{device}: {error}"))?;
    let (magic, length) = head.split_at(8);
    let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]);
    if magic != CONFIG_MAGIC || length > CONFIG_BYTES_MAX {
        return Err("the config disk does not hold a boot configuration".to_owned());
    }
    let mut text = vec![0; length as usize];
    file.read_exact(&mut text).map_err(|error| format!("{device}: {error}"))?;
    serde_json::from_slice(&text).map_err(|error| format!("the boot configuration: {error}"))
}

/// The initramfs, which stays mounted under the root that hides it.
pub struct OldRoot {
    folder: OwnedFd,
    /// Where volumes are mounted in it, in the order of their mounts.
    mounts: Vec<String>,
}

/// Has the parts of a disk, by their sizes in bytes, be devices of their own, and returns these; no part is
/// all of the disk. Nothing on the disk says so: the host does, each time.
pub fn split(device: &str, parts: &[u64]) -> Result<Vec<String>> {
    if parts.is_empty() {
        return Ok(vec![device.to_owned()]);
    }
    let disk = sys::open(device, libc::O_RDWR)?;
    let mut start = 0;
    let mut devices = Vec::new();
    for (index, size) in parts.iter().enumerate() {
        sys::add_partition(&disk, index as libc::c_int + 1, start, *size)?;
        devices.push(format!("{device}{}", index + 1));
        start += size;
    }
    Ok(devices)
}

/// Mounts the image under its overlay, moves /dev, /proc and /sys there, and makes it the root.
///
/// `pivot_root` fails from an initramfs, so the new root is moved over the old one and entered by chroot.
pub fn enter_root(root: &str, overlay: &str, mounts: Vec<String>) -> Result<OldRoot> {
    for folder in [LOWER, OVERLAY, NEW_ROOT] {
        make_folder(folder)?;
    }
    named("mounting the root disk", sys::mount(root, LOWER, "erofs", libc::MS_RDONLY, ""))?;
    let mounted = sys::mount(overlay, OVERLAY, "ext4", libc::MS_NOATIME, "");
    named("mounting the overlay disk", mounted)?;
    make_folder("/overlay/upper")?;
    make_folder("/overlay/work")?;
    let options = "lowerdir=/lower,upperdir=/overlay/upper,workdir=/overlay/work";
    named("mounting the overlay", sys::mount("overlay", NEW_ROOT, "overlay", 0, options))?;
    for folder in ["dev", "proc", "sys"] {
        let target = format!("{NEW_ROOT}/{folder}");
        make_folder(&target)?;
        named(&target, sys::mount(&format!("/{folder}"), &target, "", libc::MS_MOVE, ""))?;
    }
    let folder = sys::open("/", libc::O_PATH | libc::O_DIRECTORY)?;
    sys::change_dir(NEW_ROOT)?;
    named("moving the root", sys::mount(".", "/", "", libc::MS_MOVE, ""))?;
    sys::chroot(".")?;
    sys::change_dir("/")?;
    Ok(OldRoot { folder, mounts })
}

/// What programs expect under /dev besides devtmpfs.
pub fn furnish_dev() -> Result<()> {
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, Path::new("/dev").join(name))?;
    }
    let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
    make_folder("/dev/pts")?;
    sys::mount("devpts", "/dev/pts", "devpts", flags, "mode=620,gid=5,ptmxmode=666")?;
    make_folder("/dev/shm")?;
    sys::mount("shm", "/dev/shm", "tmpfs", flags | libc::MS_NODEV, "mode=1777")
}

/// Goes back to the initramfs and takes the file systems off, so that the overlay's disk and the volumes are
/// left clean. Every other process must be gone.
pub fn leave_root(old: &OldRoot) -> Result<()> {
    sys::unmount("/", libc::MNT_DETACH)?;
    sys::change_dir_to(&old.folder)?;
    sys::chroot(".")?;
    let volumes = volumes::unmount(&old.mounts);
    sys::unmount(OVERLAY, 0).or_else(|_| {
        let flags = libc::MS_REMOUNT | libc::MS_RDONLY;
        sys::mount("", OVERLAY, "", flags, "")
    })?;
    volumes
}

/// Makes a folder with mode 755 where there is none.
pub fn make_folder(path: &str) -> Result<()> {
    match fs::create_dir(path) {
        Err(_) if Path::new(path).is_dir() => Ok(()),
        other => named(path, other),
    }
}

fn named<T>(what: &str, result: Result<T>) -> Result<T> {
    result.map_err(|error| Error::other(format!("{what}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_disk(name: &str, content: &[u8]) -> std::result::Result<BootConfig, String> {
        let path = std::env::temp_dir().join(format!("ramet-guest-{}-{name}", std::process::id()));
        fs::write(&path, content).unwrap();
        let read = read_config(path.to_str().unwrap());
        fs::remove_file(&path).unwrap();
        read
    }

    #[test]
    fn disks_without_serials_are_counted_in_their_order() {
        let names = ["vdc", "loop0", "vda", "sr0", "vdb"].map(str::to_owned);
        assert_eq!(nth_disk(names.clone().into_iter(), 2).as_deref(), Some("vdc"));
        assert_eq!(nth_disk(names.into_iter(), 3), None);
    }

    #[test]
    fn a_config_disk_is_read_up_to_its_length_and_no_further() {
        let json = br#"{"argv": ["a"], "hostname": "h", "machine_id": "", "clock_ns": 0,
                        "entropy": "", "network": null, "overlay": "disk"}"#;
        let mut disk = CONFIG_MAGIC.to_vec();
        disk.extend((json.len() as u32).to_be_bytes());
        disk.extend(json);
        disk.extend([0; 300]);
        assert_eq!(config_disk("good", &disk).unwrap().argv, ["a"]);
    }

    #[test]
    fn a_config_disk_that_is_none_is_refused() {
        let mut too_long = CONFIG_MAGIC.to_vec();
        too_long.extend((CONFIG_BYTES_MAX + 1).to_be_bytes());
        for (name, content) in [
            ("empty", &b""[..]),
            ("foreign", b"something else"),
            ("cut", b"RAMETCF1\0\0\0\x09{}"),
            ("long", &too_long),
        ] {
            assert!(config_disk(name, content).is_err(), "{name}");
        }
    }
}
