//! A base that lies in its file as it is: mapped, never written, shared by the sessions that need it.
//!
//! The mapping is only ever read by the kernel, as the source of a copy. A file that somebody cuts short, or
//! that cannot be read, therefore is an error of that copy (EFAULT), never a signal that kills the pager.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::sync::{Mutex, PoisonError};

use crate::limits::{PAGE_BYTES, WINDOW_BYTES, WINDOW_PAGES};
use crate::sys::{self, Mapped};

/// A window whose pages have been looked at; the bits below tell which of them hold data.
const KNOWN: u32 = 1 << 31;

pub struct RawBase {
    file: File,
    size_bytes: u64,
    mapped: Mapped,
    /// For each window: 0, or KNOWN and its data pages. Zeroes take no memory until they are written.
    windows: Mutex<Vec<u32>>,
}

impl RawBase {
    pub fn open(file: File, size_bytes: u64) -> Result<Self> {
        let mapped = Mapped::new(&file, size_bytes)?;
        let windows = Mutex::new(vec![0; size_bytes.div_ceil(WINDOW_BYTES) as usize]);
        Ok(Self { file, size_bytes, mapped, windows })
    }

    /// Where in our memory a window of the base is.
    pub fn address_of(&self, window_index: u64) -> u64 {
        self.mapped.address() + window_index * WINDOW_BYTES
    }

    /// Which pages of a window hold data: bit n is page n. Holes and all that is beyond the end are zeroes,
    /// and are not read: reading a hole of a tmpfs file would fill it.
    pub fn data_pages(&self, window_index: u64) -> Result<u16> {
        let index = window_index as usize;
        let known = self.windows.lock().unwrap_or_else(PoisonError::into_inner).get(index).copied();
        match known {
            None => Ok(0),
            Some(pages) if pages & KNOWN != 0 => Ok(pages as u16),
            Some(_) => {
                let pages = self.find_data(window_index * WINDOW_BYTES)?;
                self.windows.lock().unwrap_or_else(PoisonError::into_inner)[index] = KNOWN | u32::from(pages);
                Ok(pages)
            }
        }
    }

    /// Asks the file system for a window's data, page by page. Not for the next hole: in a tmpfs file that
    /// walks over all data before it, 0.2 ms where there are 128 MiB.
    fn find_data(&self, offset: u64) -> Result<u16> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn with_file(name: &str, fill: impl Fn(&File), test: impl Fn(&File, &RawBase)) {
        // tmpfs: its holes are known page by page, whatever the file system of the checkout.
        let path = format!("/dev/shm/ramet-pager-test-{}-{name}", std::process::id());
        let file = File::options().read(true).write(true).create_new(true).open(&path).expect("create");
        std::fs::remove_file(&path).expect("remove");
        fill(&file);
        let size_bytes = file.metadata().expect("stat").len();
        test(&file, &RawBase::open(file.try_clone().expect("clone"), size_bytes).expect("open"));
    }

    #[test]
    fn holes_and_the_end_are_not_data() {
        let fill = |file: &File| {
            file.write_all_at(&[1; 4096], 4096).expect("write");
            file.write_all_at(&[1; 100], 3 * 4096).expect("write");
        };
        with_file("holes", fill, |_, base| {
            for _ in 0..2 {
                assert_eq!(base.data_pages(0).expect("seek"), 0b1010);
            }
            assert_eq!(base.data_pages(1 << 20).expect("seek"), 0);
        });
    }

    #[test]
    fn data_is_found_in_each_window() {
        let fill = |file: &File| {
            file.write_all_at(&[1; 4096], WINDOW_BYTES - 4096).expect("write");
            file.write_all_at(&[1; 4096], 3 * WINDOW_BYTES).expect("write");
        };
        with_file("windows", fill, |_, base| {
            let found: Vec<u16> = (0..5).map(|index| base.data_pages(index).expect("seek")).collect();
            assert_eq!(found, [1 << 15, 0, 0, 1, 0]);
        });
    }

    #[test]
    fn a_file_cut_short_is_an_error() {
        let fill = |file: &File| file.write_all_at(&[1; 2 * WINDOW_BYTES as usize], 0).expect("write");
        with_file("short", fill, |file, base| {
            file.set_len(4096).expect("truncate");
            assert!(base.data_pages(1).is_err());
        });
    }

    #[test]
    fn an_empty_file_is_all_zeroes() {
        with_file("empty", |_| (), |_, base| assert_eq!(base.data_pages(0).expect("seek"), 0));
    }
}
