//! Overlay pages, read when their session is opened: what becomes of their files afterwards is nobody's concern.

use std::io::Read;

use crate::base::Base;
use crate::limits::PAGE_BYTES;
use crate::memory::Overlays;
use crate::protocol::OverlayPage;

/// Reads all of a session's pages.
pub fn read(pages: &[OverlayPage]) -> Result<Overlays, String> {
    pages.iter().map(|page| Ok((page.offset, read_page(&page.path)?))).collect()
}

fn read_page(path: &str) -> Result<Box<[u8; PAGE_BYTES as usize]>, String> {
    let mut content = Vec::new();
    Base::open_file(path)
        .and_then(|file| file.take(PAGE_BYTES + 1).read_to_end(&mut content))
        .map_err(|error| format!("{path}: {error}"))?;
    content.try_into().map_err(|content: Vec<u8>| match content.len() as u64 {
        size_bytes @ 0..=PAGE_BYTES => format!("{path} holds {size_bytes} bytes, not a page"),
        _ => format!("{path} holds more than a page"),
    })
}
