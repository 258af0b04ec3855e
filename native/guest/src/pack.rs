//! A tree of files, written as a POSIX pax archive.
//!
//! Nothing is held but one folder per level, and the names of files with several links.

use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions, ReadDir};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::archive::{self, Entry};
use crate::files::{absolute, refused, write_all};
use crate::messages::Refused;

/// How much is read and written at a time.
const CHUNK_BYTES: usize = 256 * 1024;
/// Of how many files with several links the first name is remembered; later ones are copied for each name.
const LINKS_MAX: usize = 100_000;
/// The kernel's own file systems; below a folder that is copied, they are left empty.
const KERNEL_FOLDERS: [&str; 3] = ["/dev", "/proc", "/sys"];

pub struct Pack {
    root: PathBuf,
    name: Vec<u8>,
    links: HashMap<(u64, u64), Vec<u8>>,
    out: Vec<u8>,
    fd: RawFd,
}

/// A folder being read: where it is, what it is called in the archive, and what is left of it.
struct Level {
    path: PathBuf,
    name: Vec<u8>,
    entries: ReadDir,
}

type Done = Result<(), Refused>;

impl Pack {
    /// Finds what is to be copied. `follow_links`: what `path` leads to, if it is a symbolic link.
    pub fn open(path: &str, follow_links: bool) -> Result<Self, Refused> {
        let told = path.as_bytes();
        let last = told.rsplit(|byte| *byte == b'/').find(|part| !part.is_empty()).unwrap_or(b".");
        let name = if last == b".." { b".".to_vec() } else { last.to_vec() };
        let full = absolute(path);
        // "link/" and "link/." mean what it leads to, as everywhere.
        let is_link = fs::symlink_metadata(&full).map_err(|error| refused(told, &error))?.is_symlink();
        let root = if is_link && !follow_links {
            full
        } else {
            full.canonicalize().map_err(|error| refused(told, &error))?
        };
        Ok(Self { root, name, links: HashMap::new(), out: Vec::new(), fd: -1 })
    }

    /// Writes the archive.
    pub fn write_to(mut self, fd: RawFd) -> Done {
        self.fd = fd;
        let mut levels: Vec<Level> = Vec::new();
        let (root, name) = (self.root.clone(), self.name.clone());
        levels.extend(self.add(root, name, true)?);
        while let Some(level) = levels.last_mut() {
            let Some(entry) = level.entries.next() else {
                levels.pop();
                continue;
            };
            let entry = entry.map_err(|error| refused(&level.name, &error))?;
            let path = level.path.join(entry.file_name());
            let name = [&level.name, entry.file_name().as_bytes()].join(&b'/');
            levels.extend(self.add(path, name, false)?);
        }
        self.out.resize(self.out.len() + 2 * archive::BLOCK_BYTES, 0);
        self.flush()
    }

    /// Writes one file; a folder is returned to be gone into. What is gone by now is left out.
    fn add(&mut self, path: PathBuf, name: Vec<u8>, is_root: bool) -> Result<Option<Level>, Refused> {
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound && !is_root => return Ok(None),
            Err(error) => return Err(refused(&name, &error)),
        };
        let mut entry = described(&metadata, name);
        let kind = metadata.file_type();
        if kind.is_dir() {
            let name = entry.name.clone();
            entry.name.push(b'/');
            entry.kind = archive::DIRECTORY;
            self.put(&entry)?;
            let is_kernels = KERNEL_FOLDERS.iter().any(|folder| path == Path::new(folder));
            if is_kernels && !is_root {
                return Ok(None);
            }
            let entries = fs::read_dir(&path).map_err(|error| refused(&name, &error))?;
            return Ok(Some(Level { path, name, entries }));
        }
        if self.is_another_link(&metadata, &mut entry) {
            self.put(&entry)?;
        } else if kind.is_file() {
            self.put_file(&path, entry, &metadata)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).map_err(|error| refused(&entry.name, &error))?;
            entry.kind = archive::SYMLINK;
            entry.link = target.as_os_str().as_bytes().to_vec();
            self.put(&entry)?;
        } else if kind.is_fifo() || kind.is_char_device() || kind.is_block_device() {
            entry.kind = if kind.is_fifo() {
                archive::FIFO
            } else if kind.is_char_device() {
                archive::CHARACTER
            } else {
                archive::BLOCK
            };
            (entry.major, entry.minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
            self.put(&entry)?;
        }
        // An archive has no sockets.
        Ok(None)
    }

    fn is_another_link(&mut self, metadata: &Metadata, entry: &mut Entry) -> bool {
        if metadata.nlink() < 2 {
            return false;
        }
        let key = (metadata.dev(), metadata.ino());
        if let Some(first) = self.links.get(&key) {
            entry.kind = archive::HARD_LINK;
            entry.link.clone_from(first);
            return true;
        }
        if self.links.len() < LINKS_MAX {
            self.links.insert(key, entry.name.clone());
        }
        false
    }

    /// A file that changes meanwhile is copied with the size it had: cut, or filled up with zeros.
    fn put_file(&mut self, path: &Path, mut entry: Entry, metadata: &Metadata) -> Done {
        let name = entry.name.clone();
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let mut file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(refused(&name, &error)),
        };
        entry.kind = archive::REGULAR;
        entry.size = metadata.size();
        self.put(&entry)?;
        let has_holes = metadata.blocks() * 512 < metadata.size();
        self.put_content(&mut file, entry.size, has_holes).map_err(|error| match error {
            Failure::Reading(error) => refused(&name, &error),
            Failure::Writing(refused) => refused,
        })?;
        self.out.resize(self.out.len() + archive::padding(entry.size), 0);
        self.flush_if_full()
    }

    fn put_content(&mut self, file: &mut File, size: u64, has_holes: bool) -> Result<(), Failure> {
        let mut at = 0;
        while at < size {
            let data_at = if has_holes { next_data(file, at, size)? } else { at };
            self.put_zeros(data_at - at).map_err(Failure::Writing)?;
            at = data_at;
            let end = if has_holes { next_hole(file, at, size)? } else { size };
            while at < end {
                let count = self.read_piece(file, end - at)?;
                if count == 0 {
                    self.put_zeros(size - at).map_err(Failure::Writing)?;
                    return Ok(());
                }
                at += count as u64;
                self.flush_if_full().map_err(Failure::Writing)?;
            }
        }
        Ok(())
    }

    /// Reads once, behind what is unwritten.
    fn read_piece(&mut self, file: &mut File, limit: u64) -> Result<usize, Failure> {
        let held = self.out.len();
        let room = usize::try_from(limit).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        self.out.resize(held + room, 0);
        let count = loop {
            match file.read(&mut self.out[held..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.out.truncate(held + *count.as_ref().unwrap_or(&0));
        count.map_err(Failure::Reading)
    }

    fn put_zeros(&mut self, mut count: u64) -> Done {
        while count > 0 {
            let piece = usize::try_from(count).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            self.out.resize(self.out.len() + piece, 0);
            count -= piece as u64;
            self.flush_if_full()?;
        }
        Ok(())
    }

    fn put(&mut self, entry: &Entry) -> Done {
        entry.append_to(&mut self.out);
        self.flush_if_full()
    }

    fn flush_if_full(&mut self) -> Done {
        if self.out.len() >= CHUNK_BYTES {
            return self.flush();
        }
        Ok(())
    }

    fn flush(&mut self) -> Done {
        write_all(self.fd, &self.out)?;
        self.out.clear();
        Ok(())
    }
}

enum Failure {
    Reading(std::io::Error),
    Writing(Refused),
}

fn described(metadata: &Metadata, name: Vec<u8>) -> Entry {
    Entry {
        name,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime_s: metadata.mtime(),
        mtime_ns: metadata.mtime_nsec() as u32,
        ..Entry::default()
    }
}

/// Where data begins at or behind `at`, and the file's position is then; `size` if there is none.
fn next_data(file: &mut File, at: u64, size: u64) -> Result<u64, Failure> {
    // SAFETY: no pointers.
    let found = unsafe { libc::lseek(file.as_raw_fd(), at as libc::off_t, libc::SEEK_DATA) };
    if let Ok(found) = u64::try_from(found) {
        return Ok(found.min(size));
    }
    match std::io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENXIO) => Ok(size),
        error => Err(Failure::Reading(error)),
    }
}

/// Where the data at `at` ends; the file's position is `at` again.
fn next_hole(file: &mut File, at: u64, size: u64) -> Result<u64, Failure> {
    if at >= size {
        return Ok(size);
    }
    // SAFETY: no pointers.
    let found = unsafe { libc::lseek(file.as_raw_fd(), at as libc::off_t, libc::SEEK_HOLE) };
    let end = u64::try_from(found).map_err(|_| Failure::Reading(std::io::Error::last_os_error()))?;
    file.seek(SeekFrom::Start(at)).map_err(Failure::Reading)?;
    Ok(end.min(size).max(at + 1))
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
