//! The headers of an archive that is copied in: read or refused, and an entry is written as it was read.
//!
//! The first byte is nothing; the host's target of archives has one, and both can be given each other's inputs.
#![cfg_attr(fuzzing, no_main)]

#[path = "../../guest/src/archive.rs"]
#[allow(dead_code)]
mod archive;
mod entry;

use archive::{padding, parse, Entry, Extensions, Header, BLOCK_BYTES, EXTENSION_BYTES_MAX, REGULAR};
use entry::fuzz_target;

/// What a header block can say of a device's number.
const DEVICE_NUMBER_MAX: u32 = 0o7_777_777;

/// Reads headers up to an entry, and drops them from `bytes`.
fn read(bytes: &mut &[u8]) -> Option<Entry> {
    let mut extensions = Extensions::default();
    loop {
        let block = bytes.get(..BLOCK_BYTES)?.try_into().ok()?;
        *bytes = &bytes[BLOCK_BYTES..];
        match parse(block, &mut extensions).ok()? {
            Header::End => return None,
            Header::Entry(entry) => return Some(entry),
            Header::Extension { kind, size } => {
                assert!(size <= EXTENSION_BYTES_MAX);
                let content = bytes.get(..size as usize)?;
                extensions.take(kind, content).ok()?;
                *bytes = bytes.get(content.len() + padding(size)..)?;
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((_, mut bytes)) = data.split_first() else { return };
    while let Some(entry) = read(&mut bytes) {
        assert!(entry.mode <= 0o7777 && entry.mtime_ns < 1_000_000_000);
        assert!(entry.kind == REGULAR || entry.size == 0);
        let is_of_a_file_system = !entry.name.contains(&0) && !entry.link.contains(&0);
        if is_of_a_file_system && entry.major.max(entry.minor) <= DEVICE_NUMBER_MAX {
            let mut wire = Vec::new();
            entry.append_to(&mut wire);
            assert_eq!(read(&mut &wire[..]), Some(entry.clone()));
        }
        let skipped = usize::try_from(entry.size).ok().and_then(|size| size.checked_add(padding(entry.size)));
        let Some(rest) = skipped.and_then(|count| bytes.get(count..)) else { return };
        bytes = rest;
    }
});
