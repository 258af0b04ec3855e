//! The end of a file of packed memory: frames that lie one behind the other in the file, or a refusal.
#![cfg_attr(fuzzing, no_main)]

mod entry;
#[path = "../../pager/src/limits.rs"]
#[allow(dead_code)]
mod limits;
#[path = "../../pager/src/packed.rs"]
#[allow(dead_code)]
mod packed;

use entry::fuzz_target;
use limits::{SESSION_BYTES_MAX, WINDOW_BYTES};
use packed::{crc32, parse_footer, parse_table, Footer, Frame, FOOTER_BYTES};

fuzz_target!(|data: &[u8]| {
    let _ = check(data);
    // Once more with the sums put right, which nobody guesses.
    let mut data = data.to_vec();
    if let Some(footer) = footer_of(&data) {
        let start = footer.table_offset as usize;
        let sum = crc32(&data[start..start + footer.table_bytes]);
        let at = data.len() - FOOTER_BYTES as usize + 12;
        data[at..at + 4].copy_from_slice(&sum.to_le_bytes());
        let _ = check(&data);
    }
});

fn footer_of(data: &[u8]) -> Option<Footer> {
    let at = data.len().checked_sub(FOOTER_BYTES as usize)?;
    parse_footer(data[at..].try_into().ok()?, data.len() as u64).ok()
}

fn check(data: &[u8]) -> Option<()> {
    let footer = footer_of(data)?;
    let start = footer.table_offset as usize;
    let frames: Vec<Frame> = parse_table(&footer, &data[start..start + footer.table_bytes]).ok()?;
    let (mut window, mut end) = (None, 0);
    for frame in frames {
        assert!(Some(frame.window_index) > window, "windows are in order");
        assert!(frame.window_index < SESSION_BYTES_MAX / WINDOW_BYTES);
        assert!(frame.content_bytes() > 0 && frame.content_bytes() as u64 <= WINDOW_BYTES);
        assert!(frame.offset == end && frame.size_bytes > 0);
        window = Some(frame.window_index);
        end += u64::from(frame.size_bytes);
    }
    assert!(end <= footer.table_offset);
    Some(())
}
