//! The format of packed memory (docs/pager.md): a zstd stream that can be read from any window.
//!
//! Each window of the memory that holds data is one zstd frame, with its data pages one behind the other. The
//! table behind them is a frame that every zstd decoder skips. Nothing it says is believed before it has been
//! checked here: a snapshot may come from elsewhere.

use crate::limits::{PAGE_BYTES, SESSION_BYTES_MAX, WINDOW_BYTES};

/// Of the skippable frame that holds the table (RFC 8878, 3.1.2); it is there for other decoders.
const HEADER_BYTES: u64 = 8;
const ENTRY_BYTES: usize = 10;
pub const FOOTER_BYTES: u64 = 28;
const MAGIC: &[u8; 8] = b"RAMETMP1";

/// Where a window's frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    pub window_index: u64,
    /// Bit n: page n of the window is in the frame.
    pub data_pages: u16,
    pub offset: u64,
    pub size_bytes: u32,
}

impl Frame {
    /// What it unpacks to.
    pub fn content_bytes(&self) -> usize {
        self.data_pages.count_ones() as usize * PAGE_BYTES as usize
    }
}

/// The end of a packed file, which tells where the table is.
#[derive(Debug, PartialEq, Eq)]
pub struct Footer {
    pub table_offset: u64,
    pub table_bytes: usize,
    memory_bytes: u64,
    checksum: u32,
}

/// Reads the last bytes of a file of `file_bytes` bytes.
pub fn parse_footer(footer: &[u8; FOOTER_BYTES as usize], file_bytes: u64) -> Result<Footer, String> {
    let (numbers, magic) = footer.split_at(20);
    if magic != MAGIC {
        return Err("it is not packed memory".to_owned());
    }
    let entry_count = u32_at(numbers, 0);
    let memory_bytes = u64_at(numbers, 4);
    let checksum = u32_at(numbers, 12);
    if memory_bytes > SESSION_BYTES_MAX || memory_bytes % PAGE_BYTES != 0 {
        return Err(format!("memory of {memory_bytes} bytes is not served"));
    }
    if u64::from(entry_count) > memory_bytes.div_ceil(WINDOW_BYTES) {
        return Err("its table is longer than the memory".to_owned());
    }
    let table_bytes = entry_count as usize * ENTRY_BYTES;
    let payload_bytes = table_bytes as u64 + FOOTER_BYTES;
    let Some(table_offset) = file_bytes.checked_sub(payload_bytes) else {
        return Err("it is cut off".to_owned());
    };
    if table_offset < HEADER_BYTES || u64::from(u32_at(numbers, 16)) != payload_bytes {
        return Err("its table is not where it should be".to_owned());
    }
    Ok(Footer { table_offset, table_bytes, memory_bytes, checksum })
}

/// Reads the table: its frames are ordered by window, and follow each other from the file's beginning.
pub fn parse_table(footer: &Footer, table: &[u8]) -> Result<Vec<Frame>, String> {
    assert_eq!(table.len(), footer.table_bytes);
    if crc32(table) != footer.checksum {
        return Err("its table is damaged".to_owned());
    }
    let mut frames: Vec<Frame> = Vec::with_capacity(table.len() / ENTRY_BYTES);
    let mut offset = 0;
    for entry in table.chunks_exact(ENTRY_BYTES) {
        let window_index = u64::from(u32_at(entry, 0));
        let size_bytes = u32_at(entry, 4);
        let data_pages = u16::from_le_bytes([entry[8], entry[9]]);
        let left_bytes = footer.memory_bytes.saturating_sub(window_index * WINDOW_BYTES);
        let page_count = left_bytes.min(WINDOW_BYTES) / PAGE_BYTES;
        let is_ordered = frames.last().map_or(true, |last| last.window_index < window_index);
        if !is_ordered || data_pages == 0 || u64::from(data_pages) >> page_count != 0 {
            return Err(format!("its table tells nonsense of window {window_index}"));
        }
        // A frame that is much larger than its content was not made by us.
        if size_bytes == 0 || u64::from(size_bytes) > 2 * WINDOW_BYTES {
            return Err(format!("a frame of {size_bytes} bytes is not served"));
        }
        frames.push(Frame { window_index, data_pages, offset, size_bytes });
        offset += u64::from(size_bytes);
    }
    if offset + HEADER_BYTES != footer.table_offset {
        return Err("its frames do not end where its table begins".to_owned());
    }
    Ok(frames)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// The CRC of zlib and of IEEE 802.3; bit by bit, as a table is read once.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| sum >> 1 ^ (0xedb8_8320 & (sum & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY_BYTES: u64 = 3 * WINDOW_BYTES + 2 * PAGE_BYTES;

    /// What is behind the frames, for a table of (window, size, pages), all of whose sums are right.
    fn tail(entries: &[(u32, u32, u16)], memory_bytes: u64) -> Vec<u8> {
        let mut table = Vec::new();
        for (window, size, pages) in entries {
            table.extend(window.to_le_bytes());
            table.extend(size.to_le_bytes());
            table.extend(pages.to_le_bytes());
        }
        let payload_bytes = (table.len() as u64 + FOOTER_BYTES) as u32;
        let mut tail = [0x184d_2a5e_u32.to_le_bytes(), payload_bytes.to_le_bytes()].concat();
        tail.extend(&table);
        tail.extend((entries.len() as u32).to_le_bytes());
        tail.extend(memory_bytes.to_le_bytes());
        tail.extend(crc32(&table).to_le_bytes());
        tail.extend(payload_bytes.to_le_bytes());
        tail.extend(MAGIC);
        tail
    }

    fn parse(file: &[u8]) -> Result<Vec<Frame>, String> {
        let at = file.len().checked_sub(FOOTER_BYTES as usize).ok_or("short")?;
        let footer = parse_footer(file[at..].try_into().expect("length"), file.len() as u64)?;
        let start = footer.table_offset as usize;
        parse_table(&footer, &file[start..start + footer.table_bytes])
    }

    fn file(entries: &[(u32, u32, u16)]) -> Vec<u8> {
        let frame_bytes = entries.iter().map(|entry| entry.1 as usize).sum();
        [vec![0; frame_bytes], tail(entries, MEMORY_BYTES)].concat()
    }

    #[test]
    fn frames_follow_each_other() {
        let frames = parse(&file(&[(0, 100, 1), (2, 7, 0xffff), (3, 9, 0b10)])).expect("parsed");
        let places: Vec<(u64, u64)> = frames.iter().map(|frame| (frame.window_index, frame.offset)).collect();
        assert_eq!(places, [(0, 0), (2, 100), (3, 107)]);
        assert_eq!(frames[1].content_bytes(), 65536);
        assert_eq!(parse(&file(&[])), Ok(vec![]));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for entries in [
            &[(1, 10, 1), (0, 10, 1)][..],          // not in order
            &[(0, 10, 1), (0, 10, 1)],              // twice
            &[(0, 10, 0)],                          // no page
            &[(3, 10, 0b100)],                      // beyond the memory
            &[(4, 10, 1)],                          // beyond the memory
            &[(0, 0, 1)],                           // no frame
            &[(0, 2 * WINDOW_BYTES as u32 + 1, 1)], // larger than any
            &[(0, 1, 1), (1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 1, 1)],
        ] {
            assert!(parse(&file(entries)).is_err(), "{entries:?}");
        }
        assert!(parse(&tail(&[], SESSION_BYTES_MAX + PAGE_BYTES)).is_err());
        assert!(parse(&tail(&[], 4097)).is_err());
    }

    #[test]
    fn no_bit_of_the_table_can_change_unseen() {
        let good = file(&[(0, 100, 1), (2, 7, 0xffff)]);
        // Behind the frames and the skippable frame's own header, which only other decoders read.
        for bit in (107 + HEADER_BYTES as usize) * 8..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // The size of the memory bounds the windows alone: a larger one is another good file.
            if let Ok(frames) = parse(&bad) {
                assert_eq!(Ok(frames), parse(&good), "bit {bit}");
                let footer_bit = bit - (good.len() - FOOTER_BYTES as usize) * 8;
                assert!((32..96).contains(&footer_bit), "bit {bit}");
            }
        }
    }

    #[test]
    fn a_file_cut_off_anywhere_is_refused() {
        let good = file(&[(0, 100, 1), (2, 7, 0xffff)]);
        for size in 0..good.len() {
            assert!(parse(&good[..size]).is_err(), "{size} bytes");
            assert!(parse(&good[good.len() - size..]).is_err(), "{size} bytes");
        }
    }

    #[test]
    fn the_checksum_is_that_of_zlib() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
