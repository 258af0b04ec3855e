//! The file that holds what a guest's memory was: mapped, never written, shared by the sessions that need it.
//!
//! The mapping is only ever read by the kernel, as the source of a copy. A file that somebody cuts short, or
//! that cannot be read, therefore is an error of that copy (EFAULT), never a signal that kills the pager.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Result};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::{Mutex, PoisonError};

use crate::limits::{PAGE_BYTES, SESSION_BYTES_MAX, WINDOW_BYTES, WINDOW_PAGES};
use crate::sys;

/// What tells one content from another; a base is immutable while sessions use it.
pub type Identity = (u64, u64, u64);

/// A window whose pages have been looked at; the bits below tell which of them hold data.
const KNOWN: u32 = 1 << 31;

pub struct Base {
    file: File,
    identity: Identity,
    size_bytes: u64,
    address: u64,
    /// For each window: 0, or KNOWN and its data pages. Zeroes take no memory until they are written.
    windows: Mutex<Vec<u32>>,
}

impl Base {
    pub fn open(path: &str) -> Result<Self> {
        // Without O_NONBLOCK, opening a pipe that nobody writes would wait for ever.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let facts = file.metadata()?;
        if !facts.is_file() {
            return Err(Error::new(ErrorKind::InvalidInput, "not a regular file"));
        }
        let size_bytes = facts.len().min(SESSION_BYTES_MAX);
        let identity = (facts.dev(), facts.ino(), size_bytes);
        let address = if size_bytes == 0 { 0 } else { map(&file, size_bytes)? };
        let windows = Mutex::new(vec![0; size_bytes.div_ceil(WINDOW_BYTES) as usize]);
        Ok(Self { file, identity, size_bytes, address, windows })
    }

    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Where in our memory the byte at `offset` is.
    pub fn address_of(&self, offset: u64) -> u64 {
        self.address + offset
    }

    /// Which of `page_count` pages from `offset`, all of one window, hold data: bit n is page n. Holes and
    /// all that is beyond the end are zeroes, and are not read: reading a hole of a tmpfs file would fill it.
    pub fn data_pages(&self, offset: u64, page_count: usize) -> Result<u32> {
        let first = (offset % WINDOW_BYTES / PAGE_BYTES) as usize;
        assert!(offset % PAGE_BYTES == 0 && first + page_count <= WINDOW_PAGES);
        let index = (offset / WINDOW_BYTES) as usize;
        let known = self.windows.lock().unwrap_or_else(PoisonError::into_inner).get(index).copied();
        let pages = match known {
            None => 0,
            Some(pages) if pages & KNOWN != 0 => pages,
            Some(_) => {
                let pages = KNOWN | self.find_data(index as u64 * WINDOW_BYTES)?;
                self.windows.lock().unwrap_or_else(PoisonError::into_inner)[index] = pages;
                pages
            }
        };
        Ok(pages >> first & ((1 << page_count) - 1))
    }

    /// Asks the file system for a window's data, page by page. Not for the next hole: in a tmpfs file that
    /// walks over all data before it, 0.2 ms where there are 128 MiB.
    fn find_data(&self, offset: u64) -> Result<u32> {
        let mut pages = 0;
        let mut page = 0;
        while page < WINDOW_PAGES as u64 {
            let position = offset + page * PAGE_BYTES;
            let Some(data) = sys::seek_data(&self.file, position)? else {
                // What is beyond the end now was not when the base was opened.
                if position < self.size_bytes && self.file.metadata()?.len() < self.size_bytes {
                    return Err(Error::new(ErrorKind::UnexpectedEof, "it was cut short"));
                }
                break;
            };
            page = (data - offset) / PAGE_BYTES;
            if page < WINDOW_PAGES as u64 && data < self.size_bytes {
                pages |= 1 << page;
            }
            page += 1;
        }
        Ok(pages)
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        if self.size_bytes > 0 {
            // SAFETY: our own mapping; nothing refers to it but addresses handed to the kernel.
            let result = unsafe { libc::munmap(self.address as *mut libc::c_void, self.size_bytes as usize) };
            debug_assert_eq!(result, 0);
        }
    }
}

fn map(file: &File, size_bytes: u64) -> Result<u64> {
    // Private, as a sealed memfd refuses shared mappings before Linux 6.7; the pages are the same.
    // SAFETY: a fresh mapping at an address the kernel chooses.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size_bytes as usize,
            libc::PROT_READ,
            libc::MAP_PRIVATE,
            file.as_raw_fd(),
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(Error::last_os_error());
    }
    Ok(address as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use std::path::PathBuf;

    fn scratch(name: &str) -> PathBuf {
        // tmpfs: its holes are known page by page, whatever the file system of the checkout.
        PathBuf::from(format!("/dev/shm/ramet-pager-test-{}-{name}", std::process::id()))
    }

    fn with_file(name: &str, fill: impl Fn(&File), test: impl Fn(&Base)) {
        let path = scratch(name);
        fill(&File::create(&path).expect("create"));
        let base = Base::open(path.to_str().expect("text")).expect("open");
        std::fs::remove_file(&path).expect("remove");
        test(&base);
    }

    #[test]
    fn holes_and_the_end_are_not_data() {
        let fill = |file: &File| {
            file.write_all_at(&[1; 4096], 4096).expect("write");
            file.write_all_at(&[1; 100], 3 * 4096).expect("write");
        };
        with_file("holes", fill, |base| {
            for _ in 0..2 {
                assert_eq!(base.data_pages(0, 16).expect("seek"), 0b1010);
                assert_eq!(base.data_pages(4096, 3).expect("seek"), 0b101);
                assert_eq!(base.data_pages(0, 1).expect("seek"), 0);
            }
            assert_eq!(base.data_pages(1 << 30, 16).expect("seek"), 0);
        });
    }

    #[test]
    fn data_is_found_in_each_window() {
        let fill = |file: &File| {
            file.write_all_at(&[1; 4096], WINDOW_BYTES - 4096).expect("write");
            file.write_all_at(&[1; 4096], 3 * WINDOW_BYTES).expect("write");
        };
        with_file("windows", fill, |base| {
            let found: Vec<u32> =
                (0..5).map(|index| base.data_pages(index * WINDOW_BYTES, 16).expect("seek")).collect();
            assert_eq!(found, [1 << 15, 0, 0, 1, 0]);
        });
    }

    #[test]
    fn a_file_cut_short_is_an_error() {
        let path = scratch("short");
        let file = File::create(&path).expect("create");
        file.write_all_at(&[1; 2 * WINDOW_BYTES as usize], 0).expect("write");
        let base = Base::open(path.to_str().expect("text")).expect("open");
        file.set_len(4096).expect("truncate");
        std::fs::remove_file(&path).expect("remove");
        assert!(base.data_pages(WINDOW_BYTES, 16).is_err());
    }

    #[test]
    fn an_empty_file_is_all_zeroes() {
        with_file("empty", |_| (), |base| assert_eq!(base.data_pages(0, 16).expect("seek"), 0));
    }

    #[test]
    fn only_regular_files_are_bases() {
        for path in ["/dev/zero", "/tmp", "/nowhere/at/all", "a\0b"] {
            assert!(Base::open(path).is_err(), "{path}");
        }
    }
}
