//! What a guest's memory was: a file, raw or packed, that never changes and that sessions share.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::Arc;

use crate::cache::Cache;
use crate::limits::{PAGE_BYTES, SESSION_BYTES_MAX};
use crate::packed_base::PackedBase;
use crate::protocol::Format;
use crate::raw_base::RawBase;

/// What tells one content from another: a base is immutable while sessions use it, and a file that is written
/// anew, or that got the number of one that was deleted, has another time of its last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
    format: Format,
}

#[cfg(test)]
impl Identity {
    pub fn for_test(number: u64, format: Format) -> Self {
        Self { device: 0, inode: number, size_bytes: 0, modified: (0, 0), format }
    }
}

pub struct Base {
    identity: Identity,
    content: Content,
}

enum Content {
    Raw(RawBase),
    Packed(PackedBase),
}

/// One window of a base, as long as it is needed.
pub struct WindowContent {
    /// Bit n: page n holds data. All others are zeroes.
    pub data_pages: u16,
    place: Place,
}

enum Place {
    /// All pages of the window, at this address of ours.
    Mapped(u64),
    /// Its data pages, one behind the other.
    Held(Arc<[u8]>),
}

impl Base {
    /// Opens a file for `identify` and `new`.
    pub fn open_file(path: &str) -> Result<File> {
        // Without O_NONBLOCK, opening a pipe that nobody writes would wait for ever.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(Error::new(ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(file)
    }

    pub fn identify(file: &File, format: Format) -> Result<Identity> {
        let facts = file.metadata()?;
        Ok(Identity {
            device: facts.dev(),
            inode: facts.ino(),
            size_bytes: facts.len(),
            modified: (facts.mtime(), facts.mtime_nsec()),
            format,
        })
    }

    /// `serial` is of this base alone among all that use `cache`.
    pub fn new(file: File, identity: Identity, serial: u64, cache: &Arc<Cache>) -> Result<Self> {
        let content = match identity.format {
            Format::Raw => Content::Raw(RawBase::open(file, identity.size_bytes.min(SESSION_BYTES_MAX))?),
            Format::Packed => {
                Content::Packed(PackedBase::open(file, identity.size_bytes, serial, Arc::clone(cache))?)
            }
        };
        Ok(Self { identity, content })
    }

    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// What is in a window; beyond the end there are zeroes.
    pub fn window(&self, window_index: u64) -> Result<WindowContent> {
        match &self.content {
            Content::Raw(raw) => {
                let place = Place::Mapped(raw.address_of(window_index));
                Ok(WindowContent { data_pages: raw.data_pages(window_index)?, place })
            }
            Content::Packed(packed) => {
                let (data_pages, bytes) = packed.window(window_index)?;
                Ok(WindowContent { data_pages, place: Place::Held(bytes) })
            }
        }
    }
}

impl WindowContent {
    /// Where in our memory a data page is; the data pages that follow it in the window follow it there.
    pub fn address_of(&self, page: usize) -> u64 {
        match &self.place {
            Place::Mapped(address) => address + page as u64 * PAGE_BYTES,
            Place::Held(bytes) => {
                let before = (self.data_pages & ((1 << page) - 1)).count_ones();
                bytes.as_ptr() as u64 + u64::from(before) * PAGE_BYTES
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_bases() {
        for path in ["/dev/zero", "/tmp", "/nowhere/at/all", "a\0b"] {
            assert!(Base::open_file(path).is_err(), "{path}");
        }
    }

    #[test]
    fn data_pages_that_are_held_lie_one_behind_the_other() {
        let bytes: Arc<[u8]> = vec![0; 3 * PAGE_BYTES as usize].into();
        let start = bytes.as_ptr() as u64;
        let content = WindowContent { data_pages: 0b1000_0000_0001_0010, place: Place::Held(bytes) };
        let found: Vec<u64> = [1, 4, 15].into_iter().map(|page| content.address_of(page) - start).collect();
        assert_eq!(found, [0, 4096, 8192]);
    }
}
