//! Kernel modules, loaded from the initramfs in the order that the host wrote down.

use std::fs;
use std::io::ErrorKind;

use crate::sys;
use crate::vsock;

const FOLDER: &str = "/modules";

/// Loads every module of `/modules/order` and then removes the files: the memory of an initramfs is the
/// guest's, and would be part of every snapshot.
///
/// Those of the vsock are left alone where there is none: they are the last, behind those that find devices.
/// A module that is loaded or built in already, or whose hardware is missing, is no error.
pub fn load_all() -> Result<(), String> {
    let order = match fs::read_to_string(format!("{FOLDER}/order")) {
        Ok(order) => order,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("{FOLDER}/order: {error}")),
    };
    for name in order.lines().filter(|name| !name.is_empty()) {
        if name.contains("vsock") && !vsock::is_there() {
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
