//! An archive, unpacked below one folder and nowhere else.
//!
//! The archive is believed to be hostile. Every folder is opened anew from the destination with RESOLVE_BENEATH,
//! so neither `..` nor a symbolic link, whoever made it, leads out. Files and links are made under another name
//! and moved to theirs when they are whole.

use std::ffi::CString;
use std::io::Error;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::archive::{self, Entry, Extensions, Header, BLOCK_BYTES};
use crate::files::{absolute, refused, Temporary};
use crate::messages::Refused;
use crate::sys;

const INPUT_BYTES: usize = 256 * 1024;
/// So many zeros at a multiple of as many bytes are left out of a file: the block of our file systems.
const HOLE_BYTES: usize = 4096;
const ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];
const FOLDER_MODE: u32 = 0o755;
const NAME_BYTES_MAX: usize = 4095;

// linux/openat2.h
const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
const RESOLVE_BENEATH: u64 = 0x08;
const RESOLVE_IN_ROOT: u64 = 0x10;
/// EAGAIN: somebody renamed something meanwhile.
const RESOLVE_ATTEMPTS: usize = 100;

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

type Done = Result<(), Refused>;

pub struct Unpack {
    destination: OwnedFd,
    resolve: u64,
    owner: Option<(u32, u32)>,
    /// The folder that was needed last: archives list a folder's files one after the other.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Folders entered, the innermost last, whose times are set when nothing more comes into them.
    folders: Vec<Entry>,
}

impl Unpack {
    /// `owner`: whose everything becomes; None: as the archive says.
    pub fn open(path: &str, owner: Option<(u32, u32)>) -> Result<Self, Refused> {
        let name = path.as_bytes();
        let full = absolute(path);
        let full = full.to_str().unwrap_or(path);
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let destination = sys::open(full, flags).map_err(|error| refused(name, &error))?;
        // In the root itself an absolute link means what it means everywhere.
        let is_root = full.bytes().all(|byte| byte == b'/');
        let within = if is_root { RESOLVE_IN_ROOT } else { RESOLVE_BENEATH };
        let resolve = within | RESOLVE_NO_MAGICLINKS;
        Ok(Self { destination, resolve, owner, parent: None, folders: Vec::new() })
    }

    /// Unpacks what comes from `fd`, and reads that to its end.
    pub fn read_from(mut self, fd: RawFd) -> Done {
        let mut input = Input::new(fd);
        let mut extensions = Extensions::default();
        loop {
            let block = input.block()?;
            match archive::parse(&block, &mut extensions).map_err(bad)? {
                Header::End => break,
                Header::Extension { kind, size } => {
                    let content = input.small(size)?;
                    extensions.take(kind, &content).map_err(bad)?;
                }
                Header::Entry(entry) => self.add(entry, &mut input)?,
            }
        }
        while let Some(folder) = self.folders.pop() {
            self.finish_folder(&folder)?;
        }
        input.drain()
    }

    fn add(&mut self, mut entry: Entry, input: &mut Input) -> Done {
        entry.name = clean(&entry.name)?;
        while let Some(folder) = self.folders.pop_if_not_above(&entry.name) {
            self.finish_folder(&folder)?;
        }
        if entry.name.is_empty() {
            // The destination itself: it was there before, and is left as it is.
            return if entry.kind == archive::DIRECTORY { Ok(()) } else { Err(bad("a file has no name")) };
        }
        let (parent, name) = split(&entry.name)?;
        let folder = self.enter(parent)?;
        let done = match entry.kind {
            archive::DIRECTORY => self.add_folder(folder, &name, entry.clone()),
            archive::REGULAR => self.add_file(folder, &name, &entry, input),
            archive::HARD_LINK => self.add_link(folder, &name, &entry),
            _ => self.add_special(folder, &name, &entry),
        };
        done.map_err(|trouble| trouble.refusal(&entry.name))
    }

    /// Opens the folder of this name, and makes it where there is none. The descriptor is kept by `self`.
    fn enter(&mut self, name: &[u8]) -> Result<RawFd, Refused> {
        if name.is_empty() {
            return Ok(self.destination.as_raw_fd());
        }
        match &self.parent {
            Some((known, folder)) if known == name => return Ok(folder.as_raw_fd()),
            _ => {}
        }
        let folder = match self.resolve(name) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                let mut made = Vec::new();
                for part in name.split(|byte| *byte == b'/') {
                    self.make_folder(&made, part).map_err(|error| escape(name, &error))?;
                    if !made.is_empty() {
                        made.push(b'/');
                    }
                    made.extend_from_slice(part);
                }
                self.resolve(name)
            }
            other => other,
        };
        let folder = folder.map_err(|error| escape(name, &error))?;
        let fd = folder.as_raw_fd();
        self.parent = Some((name.to_vec(), folder));
        Ok(fd)
    }

    fn make_folder(&self, parent: &[u8], name: &[u8]) -> std::io::Result<()> {
        let folder = if parent.is_empty() { None } else { Some(self.resolve(parent)?) };
        let fd = folder.as_ref().map_or(self.destination.as_raw_fd(), AsRawFd::as_raw_fd);
        let name = CString::new(name)?;
        // SAFETY: C strings that live through the calls; integers.
        unsafe {
            match sys::check(libc::mkdirat(fd, name.as_ptr(), FOLDER_MODE)) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => return Ok(()),
                other => other?,
            };
            if let Some((uid, gid)) = self.owner {
                let flags = libc::AT_SYMLINK_NOFOLLOW;
                sys::check(libc::fchownat(fd, name.as_ptr(), uid, gid, flags))?;
            }
        }
        Ok(())
    }

    /// Opens an existing folder beneath the destination.
    fn resolve(&self, name: &[u8]) -> std::io::Result<OwnedFd> {
        let path = CString::new(name)?;
        let flags = (libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC) as u64;
        let how = OpenHow { flags, mode: 0, resolve: self.resolve };
        let mut attempts = 0;
        loop {
            // SAFETY: a C string and a struct of the size told; the descriptor returned is new and ours.
            let fd = unsafe {
                libc::syscall(
                    libc::SYS_openat2,
                    self.destination.as_raw_fd(),
                    path.as_ptr(),
                    &how,
                    std::mem::size_of::<OpenHow>(),
                )
            };
            match sys::check(fd as libc::c_int) {
                // SAFETY: as above.
                Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && attempts < RESOLVE_ATTEMPTS => {
                    attempts += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn add_folder(&mut self, folder: RawFd, name: &CString, entry: Entry) -> Result<(), Trouble> {
        // SAFETY: C strings that live through the calls; integers.
        unsafe {
            let made = sys::check(libc::mkdirat(folder, name.as_ptr(), FOLDER_MODE));
            let is_new = made.is_ok();
            if let Err(error) = made {
                if error.raw_os_error() != Some(libc::EEXIST) {
                    return Err(error.into());
                }
                // A link to a folder beneath the destination serves as one, and is left as it is.
                drop(self.resolve(&entry.name)?);
                if !is_own_folder(folder, name)? {
                    return Ok(());
                }
            }
            let owner = if is_new { self.owner } else { None };
            let owner = owner.or(if self.owner.is_none() { Some((entry.uid, entry.gid)) } else { None });
            if let Some((uid, gid)) = owner {
                let flags = libc::AT_SYMLINK_NOFOLLOW;
                sys::check(libc::fchownat(folder, name.as_ptr(), uid, gid, flags))?;
            }
            sys::check(libc::fchmodat(folder, name.as_ptr(), entry.mode, 0))?;
        }
        self.folders.push(entry);
        Ok(())
    }

    fn finish_folder(&mut self, entry: &Entry) -> Done {
        let (parent, name) = split(&entry.name)?;
        let folder = self.enter(parent)?;
        set_times(folder, &name, entry).map_err(|error| refused(&entry.name, &error))
    }

    fn add_file(
        &self,
        folder: RawFd,
        name: &CString,
        entry: &Entry,
        input: &mut Input,
    ) -> Result<(), Trouble> {
        let temporary = Temporary::claim(folder)?;
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        // SAFETY: a C string that lives through the call; the descriptor returned is new and ours.
        let file = unsafe {
            OwnedFd::from_raw_fd(sys::check(libc::openat(folder, temporary.name().as_ptr(), flags, 0o600))?)
        };
        write_content(&file, entry.size, input)?;
        let (uid, gid) = self.owner.unwrap_or((entry.uid, entry.gid));
        let times = times(entry);
        // SAFETY: integers and a live array. The owner comes first: changing it takes set-user-id bits away.
        unsafe {
            sys::check(libc::fchown(file.as_raw_fd(), uid, gid))?;
            sys::check(libc::fchmod(file.as_raw_fd(), entry.mode))?;
            sys::check(libc::futimens(file.as_raw_fd(), times.as_ptr()))?;
        }
        Ok(temporary.keep_as(name)?)
    }

    fn add_link(&self, folder: RawFd, name: &CString, entry: &Entry) -> Result<(), Trouble> {
        let target = clean(&entry.link).map_err(Trouble::Refused)?;
        let (parent, target_name) = split(&target).map_err(Trouble::Refused)?;
        let opened = if parent.is_empty() { None } else { Some(self.resolve(parent)?) };
        let target_folder = opened.as_ref().map_or(self.destination.as_raw_fd(), AsRawFd::as_raw_fd);
        let temporary = Temporary::claim(folder)?;
        // SAFETY: C strings that live through the call. Without AT_SYMLINK_FOLLOW a link is linked itself.
        sys::check(unsafe {
            let link = temporary.name().as_ptr();
            libc::linkat(target_folder, target_name.as_ptr(), folder, link, 0)
        })
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => Trouble::Refused(bad("a hard link in it leads nowhere")),
            _ => Trouble::Kernel(error),
        })?;
        Ok(temporary.keep_as(name)?)
    }

    /// A symbolic link, a pipe or a device.
    fn add_special(&self, folder: RawFd, name: &CString, entry: &Entry) -> Result<(), Trouble> {
        let temporary = Temporary::claim(folder)?;
        let path = temporary.name().as_ptr();
        let (uid, gid) = self.owner.unwrap_or((entry.uid, entry.gid));
        // SAFETY: C strings that live through the calls; integers.
        unsafe {
            if entry.kind == archive::SYMLINK {
                let target = text(&entry.link).map_err(Trouble::Refused)?;
                sys::check(libc::symlinkat(target.as_ptr(), folder, path))?;
            } else {
                let kind = match entry.kind {
                    archive::FIFO => libc::S_IFIFO,
                    archive::CHARACTER => libc::S_IFCHR,
                    _ => libc::S_IFBLK,
                };
                let device = libc::makedev(entry.major, entry.minor);
                sys::check(libc::mknodat(folder, path, kind | 0o600, device))?;
            }
            sys::check(libc::fchownat(folder, path, uid, gid, libc::AT_SYMLINK_NOFOLLOW))?;
            if entry.kind != archive::SYMLINK {
                sys::check(libc::fchmodat(folder, path, entry.mode, 0))?;
            }
        }
        set_times(folder, temporary.name(), entry)?;
        Ok(temporary.keep_as(name)?)
    }
}

trait Folders {
    /// Takes the innermost folder off if what is called `name` is not in it.
    fn pop_if_not_above(&mut self, name: &[u8]) -> Option<Entry>;
}

impl Folders for Vec<Entry> {
    fn pop_if_not_above(&mut self, name: &[u8]) -> Option<Entry> {
        let innermost = &self.last()?.name;
        let is_above =
            name.len() > innermost.len() && name.starts_with(innermost) && name[innermost.len()] == b'/';
        if is_above {
            return None;
        }
        self.pop()
    }
}

/// What goes wrong with one entry.
enum Trouble {
    Kernel(Error),
    Refused(Refused),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Trouble::Kernel(error)
    }
}

impl Trouble {
    fn refusal(self, name: &[u8]) -> Refused {
        match self {
            Trouble::Kernel(error) => escape(name, &error),
            Trouble::Refused(refused) => refused,
        }
    }
}

/// The refusal for an error of the kernel, which tells of ways out of the destination too.
fn escape(name: &[u8], error: &Error) -> Refused {
    match error.raw_os_error() {
        Some(libc::EXDEV | libc::ELOOP) => {
            let name = String::from_utf8_lossy(name).into_owned();
            bad_owned(format!("{name} leads out of the directory it is unpacked into"))
        }
        _ => refused(name, error),
    }
}

fn bad(reason: &str) -> Refused {
    bad_owned(format!("the archive cannot be unpacked: {reason}"))
}

fn bad_owned(message: String) -> Refused {
    Refused::new("bad_archive", message.chars().take(300).collect::<String>())
}

/// A name without its empty parts and dots; it is relative to the destination then.
fn clean(name: &[u8]) -> Result<Vec<u8>, Refused> {
    let parts: Vec<&[u8]> =
        name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.contains(&&b".."[..]) {
        return Err(bad("a name in it has a part .."));
    }
    if name.len() > NAME_BYTES_MAX || name.contains(&0) {
        return Err(bad("a name in it is longer than any path"));
    }
    Ok(parts.join(&b'/'))
}

/// The folder's name and the file's.
fn split(name: &[u8]) -> Result<(&[u8], CString), Refused> {
    let slash = name.iter().rposition(|byte| *byte == b'/');
    let (parent, name) = slash.map_or((&b""[..], name), |at| (&name[..at], &name[at + 1..]));
    Ok((parent, text(name)?))
}

fn text(name: &[u8]) -> Result<CString, Refused> {
    if name.is_empty() {
        return Err(bad("a name in it is empty"));
    }
    CString::new(name).map_err(|_| bad("a name in it holds a zero byte"))
}

fn is_own_folder(folder: RawFd, name: &CString) -> std::io::Result<bool> {
    // SAFETY: a C string and a live struct.
    unsafe {
        let mut found: libc::stat = std::mem::zeroed();
        sys::check(libc::fstatat(folder, name.as_ptr(), &mut found, libc::AT_SYMLINK_NOFOLLOW))?;
        Ok(found.st_mode & libc::S_IFMT == libc::S_IFDIR)
    }
}

fn times(entry: &Entry) -> [libc::timespec; 2] {
    let omit = libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT };
    [omit, libc::timespec { tv_sec: entry.mtime_s, tv_nsec: libc::c_long::from(entry.mtime_ns) }]
}

fn set_times(folder: RawFd, name: &CString, entry: &Entry) -> std::io::Result<()> {
    let times = times(entry);
    // SAFETY: a C string and a live array.
    sys::check(unsafe { libc::utimensat(folder, name.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW) })
        .map(drop)
}

/// Writes `size` bytes of the archive to a new file; long runs of zeros become holes.
fn write_content(file: &OwnedFd, size: u64, input: &mut Input) -> Result<(), Trouble> {
    let mut at = 0_u64;
    while at < size {
        let wanted = usize::try_from(size - at).unwrap_or(INPUT_BYTES).min(HOLE_BYTES);
        let held = input.at_least(wanted).map_err(Trouble::Refused)?;
        let left = usize::try_from(size - at).unwrap_or(held.len());
        let whole = held.len().min(left);
        // Only the last piece may end within a block: the next one begins at a multiple again.
        let count = if whole == left { whole } else { whole - whole % HOLE_BYTES };
        write_piece(file, &held[..count], at)?;
        input.consume(count);
        at += count as u64;
    }
    // SAFETY: no pointers. A hole at the end is only as long as the file is said to be.
    sys::check(unsafe { libc::ftruncate(file.as_raw_fd(), size as libc::off_t) })?;
    input.skip(archive::padding(size)).map_err(Trouble::Refused)
}

fn write_piece(file: &OwnedFd, data: &[u8], at: u64) -> std::io::Result<()> {
    let mut begin = 0;
    while begin < data.len() {
        let is_hole = |from: usize| {
            data[from..].iter().next().is_some_and(|byte| *byte == 0) && {
                let end = data.len().min(from + HOLE_BYTES);
                data[from..end] == ZEROS[..end - from]
            }
        };
        if is_hole(begin) {
            begin += HOLE_BYTES;
            continue;
        }
        let mut end = begin + HOLE_BYTES;
        while end < data.len() && !is_hole(end) {
            end += HOLE_BYTES;
        }
        let end = end.min(data.len());
        write_at(file, &data[begin..end], at + begin as u64)?;
        begin = end;
    }
    Ok(())
}

fn write_at(file: &OwnedFd, mut data: &[u8], mut at: u64) -> std::io::Result<()> {
    while !data.is_empty() {
        // SAFETY: the kernel reads at most `data.len()` bytes of a live slice.
        let written =
            unsafe { libc::pwrite(file.as_raw_fd(), data.as_ptr().cast(), data.len(), at as libc::off_t) };
        match usize::try_from(written) {
            Ok(count) => {
                data = &data[count..];
                at += count as u64;
            }
            Err(_) => match Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::EINTR) => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

/// The bytes of the archive, as they come.
struct Input {
    fd: RawFd,
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
}

impl Input {
    fn new(fd: RawFd) -> Self {
        Self { fd, buffer: vec![0; INPUT_BYTES], begin: 0, end: 0 }
    }

    /// Reads until so many bytes are held, and returns all that are.
    fn at_least(&mut self, count: usize) -> Result<&[u8], Refused> {
        while self.end - self.begin < count {
            if self.read()? == 0 {
                return Err(bad("it ends too early"));
            }
        }
        Ok(&self.buffer[self.begin..self.end])
    }

    fn read(&mut self) -> Result<usize, Refused> {
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
        } else if self.begin > INPUT_BYTES / 2 {
            self.buffer.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        loop {
            match sys::read(self.fd, &mut self.buffer[self.end..]) {
                Ok(count) => {
                    self.end += count;
                    return Ok(count);
                }
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => return Err(refused(b"the archive", &error)),
            }
        }
    }

    fn consume(&mut self, count: usize) {
        self.begin += count;
    }

    fn block(&mut self) -> Result<[u8; BLOCK_BYTES], Refused> {
        let mut block = [0; BLOCK_BYTES];
        block.copy_from_slice(&self.at_least(BLOCK_BYTES)?[..BLOCK_BYTES]);
        self.consume(BLOCK_BYTES);
        Ok(block)
    }

    /// A content short enough to be held, without its padding.
    fn small(&mut self, size: u64) -> Result<Vec<u8>, Refused> {
        let mut content = Vec::new();
        let mut left = usize::try_from(size).map_err(|_| bad("an extension header is too long"))?;
        while left > 0 {
            let held = self.at_least(1)?;
            let count = held.len().min(left);
            content.extend_from_slice(&held[..count]);
            self.consume(count);
            left -= count;
        }
        self.skip(archive::padding(size))?;
        Ok(content)
    }

    fn skip(&mut self, count: usize) -> Done {
        self.at_least(count)?;
        self.consume(count);
        Ok(())
    }

    /// What comes behind the archive is nobody's.
    fn drain(&mut self) -> Done {
        loop {
            (self.begin, self.end) = (0, 0);
            if self.read()? == 0 {
                return Ok(());
            }
        }
    }
}
