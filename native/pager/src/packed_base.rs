//! A base that lies packed in its file: a window is unpacked when it is first needed, and kept in the cache.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ruzstd::{BlockDecodingStrategy, FrameDecoder};

use crate::cache::Cache;
use crate::packed::{self, Frame, FOOTER_BYTES};

pub struct PackedBase {
    file: File,
    frames: Vec<Frame>,
    serial: u64,
    cache: Arc<Cache>,
}

impl PackedBase {
    pub fn open(file: File, file_bytes: u64, serial: u64, cache: Arc<Cache>) -> Result<Self> {
        let mut footer = [0; FOOTER_BYTES as usize];
        let at = file_bytes.checked_sub(FOOTER_BYTES).ok_or_else(|| damaged("it is cut off"))?;
        file.read_exact_at(&mut footer, at)?;
        let footer = packed::parse_footer(&footer, file_bytes).map_err(damaged)?;
        let mut table = vec![0; footer.table_bytes];
        file.read_exact_at(&mut table, footer.table_offset)?;
        let frames = packed::parse_table(&footer, &table).map_err(damaged)?;
        Ok(Self { file, frames, serial, cache })
    }

    /// The data pages of a window and their content, one behind the other.
    pub fn window(&self, window_index: u64) -> Result<(u16, Arc<[u8]>)> {
        let Ok(at) = self.frames.binary_search_by_key(&window_index, |frame| frame.window_index) else {
            return Ok((0, Arc::new([])));
        };
        let frame = &self.frames[at];
        let key = (self.serial, window_index);
        if let Some(content) = self.cache.get(key) {
            return Ok((frame.data_pages, content));
        }
        let content: Arc<[u8]> = self.unpack(frame)?.into();
        self.cache.insert(key, Arc::clone(&content));
        Ok((frame.data_pages, content))
    }

    fn unpack(&self, frame: &Frame) -> Result<Vec<u8>> {
        let mut packed = vec![0; frame.size_bytes as usize];
        self.file.read_exact_at(&mut packed, frame.offset)?;
        unpack(&packed, frame.content_bytes())
            .map_err(|error| damaged(format!("window {}: {error}", frame.window_index)))
    }
}

impl Drop for PackedBase {
    fn drop(&mut self) {
        self.cache.forget(self.serial);
    }
}

/// The content of one frame, whose checksum it must have and fit.
fn unpack(packed: &[u8], content_bytes: usize) -> std::result::Result<Vec<u8>, String> {
    let mut decoder = FrameDecoder::new();
    let mut content = vec![0; content_bytes];
    let mut left = packed;
    decoder.reset(&mut left).map_err(|error| error.to_string())?;
    // What a frame claims to be is bounded before it is decoded.
    if decoder.content_size() != content_bytes as u64 {
        return Err(format!("it holds {} bytes, not {content_bytes}", decoder.content_size()));
    }
    let bounded = BlockDecodingStrategy::UptoBytes(content_bytes);
    decoder.decode_blocks(&mut left, bounded).map_err(|error| error.to_string())?;
    let read = decoder.read(&mut content).map_err(|error| error.to_string())?;
    if !decoder.is_finished() || read != content_bytes || !left.is_empty() {
        return Err("it does not end where it should".to_owned());
    }
    match (decoder.get_checksum_from_data(), decoder.get_calculated_checksum()) {
        (Some(told), Some(found)) if told == found => Ok(content),
        (None, _) => Err("it has no checksum".to_owned()),
        _ => Err("its checksum is wrong".to_owned()),
    }
}

fn damaged(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, reason.into())
}
