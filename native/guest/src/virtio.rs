//! Which virtio devices this machine has. After the drivers of their bus were loaded.

use std::fs;

const DEVICES: &str = "/sys/bus/virtio/devices";
// linux/virtio_ids.h, as sysfs has them.
pub const VSOCK: &str = "0x0013";
pub const MEMORY: &str = "0x0018";

/// True if there is one of the kind `id`.
pub fn is_there(id: &str) -> bool {
    fs::read_dir(DEVICES).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            fs::read_to_string(entry.path().join("device")).is_ok_and(|found| found.trim_end() == id)
        })
    })
}
