//! Volumes: disks behind the guest's own, mounted beside its root and bound into it.
//!
//! They are mounted in the initramfs, which stays under the root, so that at the end they can be taken off
//! clean whatever was done to their places in the root. One with an overlay has what is written on a part of
//! the overlay's own disk: that is the only disk that a fork of this guest has of its own.

use std::fs;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{chown, MetadataExt};
use std::path::Path;

use crate::disks::make_folder;
use crate::messages::Volume;
use crate::sys;

const FOLDER: &str = "/volumes";

/// A volume that is mounted, and not yet in the root.
pub struct Mounted {
    path: String,
    top: OwnedFd,
}

/// Mounts a volume in the initramfs and notes the mount points in `mounts`, in the order they were made.
///
/// `part` is the device of its overlay, if it has one.
pub fn mount(
    index: usize,
    volume: &Volume,
    device: &str,
    part: Option<&str>,
    mounts: &mut Vec<String>,
) -> Result<Mounted> {
    make_folder(FOLDER)?;
    let place = format!("{FOLDER}/{index}");
    make_folder(&place)?;
    let lower = format!("{place}/lower");
    // The tables of a new volume are zeros already: they need no thread of the guest's that writes them.
    let (flags, options) = if volume.read_only { (libc::MS_RDONLY, "") } else { (0, "noinit_itable") };
    mount_at(device, &lower, "ext4", flags | libc::MS_NOATIME, options, mounts)?;
    let top = match part {
        None => lower,
        Some(part) => mount_overlay(&place, &lower, part, mounts)?,
    };
    let top = sys::open(&top, libc::O_PATH | libc::O_DIRECTORY)?;
    Ok(Mounted { path: volume.path.clone(), top })
}

fn mount_overlay(place: &str, lower: &str, part: &str, mounts: &mut Vec<String>) -> Result<String> {
    let (own, top) = (format!("{place}/own"), format!("{place}/top"));
    mount_at(part, &own, "ext4", libc::MS_NOATIME, "", mounts)?;
    let (upper, work) = (format!("{own}/upper"), format!("{own}/work"));
    if !Path::new(&upper).is_dir() {
        // The root of an overlay is as its upper folder is.
        let facts = fs::metadata(lower)?;
        make_folder(&upper)?;
        chown(&upper, Some(facts.uid()), Some(facts.gid()))?;
        fs::set_permissions(&upper, facts.permissions())?;
    }
    make_folder(&work)?;
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    mount_at("overlay", &top, "overlay", 0, &options, mounts)?;
    Ok(top)
}

fn mount_at(
    device: &str,
    place: &str,
    kind: &str,
    flags: libc::c_ulong,
    options: &str,
    mounts: &mut Vec<String>,
) -> Result<()> {
    make_folder(place)?;
    sys::mount(device, place, kind, flags, options)?;
    mounts.push(place.to_owned());
    Ok(())
}

/// Has all volumes be at their paths of the root, which has been entered; one may lie within another.
pub fn bind_all(mut volumes: Vec<Mounted>) -> std::result::Result<(), String> {
    volumes.sort_by(|one, other| one.path.cmp(&other.path));
    for mounted in &volumes {
        bind(mounted).map_err(|error| format!("volume {}: {error}", mounted.path))?;
    }
    Ok(())
}

/// Makes the folders of its path that are not there.
fn bind(mounted: &Mounted) -> Result<()> {
    fs::create_dir_all(&mounted.path)?;
    let source = format!("/proc/self/fd/{}", mounted.top.as_raw_fd());
    sys::mount(&source, &mounted.path, "", libc::MS_BIND, "")
}

/// Takes off what `mount` noted, from the initramfs. What is still in use is left read-only, and so clean.
pub fn unmount(mounts: &[String]) -> Result<()> {
    let mut outcome = Ok(());
    for place in mounts.iter().rev() {
        let taken_off = sys::unmount(place, 0)
            .or_else(|_| sys::mount("", place, "", libc::MS_REMOUNT | libc::MS_RDONLY, ""));
        if let Err(error) = taken_off {
            outcome = Err(Error::other(format!("{place}: {error}")));
        }
    }
    outcome
}
