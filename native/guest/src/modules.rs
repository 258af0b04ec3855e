//! Kernel modules, loaded from the initramfs in the order that the host wrote down.

use std::fs;
use std::io::ErrorKind;

use crate::sys;
use crate::virtio;

const FOLDER: &str = "/modules";
/// Modules, by a part of their name, that only some machines need; and the device that such a machine has.
const FOR_DEVICES: [(&str, &str); 2] = [("vsock", virtio::VSOCK), ("virtio_mem", virtio::MEMORY)];

/// Loads every module of `/modules/order` and then removes the files: the memory of an initramfs is the
/// guest's, and would be part of every snapshot.
///
/// Those of `FOR_DEVICES` are left alone where there is none: they are behind those that find devices.
/// A module that is loaded or built in already, or whose hardware is missing, is no error.
pub fn load_all() -> Result<(), String> {
    let order = match fs::read_to_string(format!("{FOLDER}/order")) {
        Ok(order) => order,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("{FOLDER}/order: {error}")),
    };
    for name in order.lines().filter(|name| !name.is_empty()) {
        if FOR_DEVICES.iter().any(|(part, id)| name.contains(part) && !virtio::is_there(id)) {
            continue;
        }
        let path = format!("{FOLDER}/{name}");
        let loaded = sys::open(&path, libc::O_RDONLY).and_then(|file| sys::load_module(&file));
        match loaded {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENODEV)) => {
                return Err(format!("module {name}: {error}"));
            }
            _ => {}
        }
    }
    fs::remove_dir_all(FOLDER).map_err(|error| format!("{FOLDER}: {error}"))
}
