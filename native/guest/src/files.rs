//! Operations on files, each in a process of its own: it stands still with the workload when the guest is
//! frozen, a file system that hangs hangs it alone, and the loop of PID 1 never touches a file.
//!
//! It has the pipes of an exec. A failure before anything was written is the refusal of the request; a later one
//! is a line of JSON on stderr and exit code 1.

use std::ffi::CString;
use std::fs;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

use crate::messages::{self, ErrorBody, PathReport, Refused};
use crate::spawn::Child;
use crate::sys;
use crate::{pack, unpack};

const REPORT_FD: RawFd = 3;
/// PIPE_BUF: written whole or not at all.
const REPORT_BYTES_MAX: usize = 4096;
const EXIT_FAILED: i32 = 1;
const EXIT_ENDED: i32 = 143;

/// Every code with which such a process may fail: a code that comes out of its pipe is one of these.
const CODES: [&str; 9] = [
    "path_not_found",
    "not_a_directory",
    "is_a_directory",
    "path_busy",
    "read_only",
    "no_space",
    "bad_archive",
    "file_failed",
    "internal",
];

pub enum Task {
    Stat {
        path: String,
        follow_links: bool,
    },
    ReadArchive {
        path: String,
        follow_links: bool,
    },
    /// `owner`: whose everything becomes; None: as the archive says.
    WriteArchive {
        path: String,
        owner: Option<(u32, u32)>,
    },
}

impl Task {
    pub fn reads_stdin(&self) -> bool {
        matches!(self, Task::WriteArchive { .. })
    }

    /// Forks; the child joins the cgroup of `procs`, takes `stdio` as its 0, 1 and 2, and does it.
    pub fn spawn(&self, stdio: [RawFd; 3], procs: Option<RawFd>) -> Result<Child> {
        let (status, report) = sys::pipe()?;
        // SAFETY: this process has one thread, so the child may do everything the parent may.
        let pid = sys::check(unsafe { libc::fork() })?;
        if pid == 0 {
            // PID 1's hook powers the guest off.
            std::panic::set_hook(Box::new(|_| exit(EXIT_FAILED)));
            let code = match prepare(stdio, report.as_raw_fd(), procs) {
                Ok(()) => self.work(),
                Err(_) => EXIT_FAILED,
            };
            exit(code);
        }
        Ok(Child { pid, status })
    }

    fn work(&self) -> i32 {
        // SAFETY: `prepare` put it there, and nobody else has it.
        let mut report = Some(unsafe { OwnedFd::from_raw_fd(REPORT_FD) });
        let outcome = match self {
            Task::Stat { path, follow_links } => {
                report = None;
                write_all(1, messages::to_json(&stat(path, *follow_links)).as_bytes())
            }
            Task::ReadArchive { path, follow_links } => {
                pack::Pack::open(path, *follow_links).and_then(|pack| {
                    report = None;
                    pack.write_to(1)
                })
            }
            Task::WriteArchive { path, owner } => unpack::Unpack::open(path, *owner).and_then(|unpack| {
                report = None;
                unpack.read_from(0)
            }),
        };
        let Err(Refused { code, message }) = outcome else {
            return 0;
        };
        let text = messages::to_json(&ErrorBody { code, message: &message });
        let target = report.as_ref().map_or(2, AsRawFd::as_raw_fd);
        // A failure that cannot be told is still an exit code.
        let _ = write_all(target, text.as_bytes());
        EXIT_FAILED
    }

    /// What the status pipe said: success, or the refusal the host is told.
    pub fn outcome(status: &OwnedFd) -> std::result::Result<(), Refused> {
        #[derive(serde::Deserialize)]
        struct Told {
            code: String,
            message: String,
        }
        let mut report = [0; REPORT_BYTES_MAX];
        let count = sys::read(status.as_raw_fd(), &mut report)
            .map_err(|error| Refused::new("internal", format!("the child's report: {error}")))?;
        if count == 0 {
            return Ok(());
        }
        let told: Told = serde_json::from_slice(&report[..count])
            .map_err(|error| Refused::new("internal", format!("the child's report: {error}")))?;
        let code = CODES.iter().find(|code| **code == told.code).copied().unwrap_or("internal");
        Err(Refused::new(code, told.message))
    }
}

fn exit(code: i32) -> ! {
    // SAFETY: ends the process at once, without destructors of what belongs to PID 1.
    unsafe { libc::_exit(code) }
}

fn prepare(stdio: [RawFd; 3], report: RawFd, procs: Option<RawFd>) -> Result<()> {
    if let Some(procs) = procs {
        sys::write(procs, b"0")?;
    }
    // SAFETY: integers, and a live signal set. The handler makes async-signal-safe calls only.
    unsafe {
        sys::check(libc::setsid())?;
        for (target, fd) in stdio.into_iter().chain([report]).enumerate() {
            if fd != target as RawFd {
                sys::check(libc::dup2(fd, target as RawFd))?;
            }
        }
        // Unlike an exec, this keeps every descriptor of PID 1 unless told otherwise.
        let closed =
            libc::syscall(libc::SYS_close_range, REPORT_FD as libc::c_uint + 1, libc::c_uint::MAX, 0);
        sys::check(closed as libc::c_int)?;
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let handler: extern "C" fn(libc::c_int) = end;
        libc::signal(libc::SIGTERM, handler as libc::sighandler_t);
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        sys::check(libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut()))?;
        libc::umask(0);
    }
    sys::change_dir("/")
}

/// The unfinished file, for the signal that ends its writer.
static TEMPORARY_FOLDER: AtomicI32 = AtomicI32::new(-1);
static TEMPORARY_NAME: AtomicPtr<libc::c_char> = AtomicPtr::new(ptr::null_mut());

/// A name in a folder that is gone when this is dropped, or the process is told to end.
pub struct Temporary {
    folder: RawFd,
    name: CString,
}

impl Temporary {
    /// Claims the name; what an earlier process left there is removed. `folder` stays open meanwhile.
    pub fn claim(folder: RawFd) -> Result<Self> {
        let name = sys::c_string(&format!(".ramet-copy-{}", std::process::id()))?;
        let temporary = Self { folder, name };
        temporary.remove();
        TEMPORARY_NAME.store(temporary.name.as_ptr().cast_mut(), Ordering::SeqCst);
        TEMPORARY_FOLDER.store(folder, Ordering::SeqCst);
        Ok(temporary)
    }

    pub fn name(&self) -> &CString {
        &self.name
    }

    /// Moves it to its real name, in place of what is there.
    pub fn keep_as(self, name: &CString) -> Result<()> {
        // SAFETY: two C strings that live through the call.
        sys::check(unsafe { libc::renameat(self.folder, self.name.as_ptr(), self.folder, name.as_ptr()) })?;
        // If both were links to one file, rename does nothing; the name goes with `self`.
        Ok(())
    }

    fn remove(&self) {
        // SAFETY: a C string that lives through the call. That it is gone already is no error.
        unsafe { libc::unlinkat(self.folder, self.name.as_ptr(), 0) };
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        self.remove();
        TEMPORARY_FOLDER.store(-1, Ordering::SeqCst);
    }
}

extern "C" fn end(_signal: libc::c_int) {
    let folder = TEMPORARY_FOLDER.load(Ordering::SeqCst);
    if folder >= 0 {
        // SAFETY: the name lives as long as the folder is set.
        unsafe { libc::unlinkat(folder, TEMPORARY_NAME.load(Ordering::SeqCst), 0) };
    }
    exit(EXIT_ENDED);
}

/// The refusal for an error of the kernel about this file.
pub fn refused(path: &[u8], error: &Error) -> Refused {
    let code = match error.raw_os_error() {
        Some(libc::ENOENT) => "path_not_found",
        Some(libc::ENOTDIR) => "not_a_directory",
        Some(libc::EISDIR) => "is_a_directory",
        Some(libc::EBUSY | libc::ETXTBSY) => "path_busy",
        Some(libc::EROFS) => "read_only",
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => "no_space",
        _ => "file_failed",
    };
    let name: String = String::from_utf8_lossy(path).chars().take(200).collect();
    Refused::new(code, format!("{name}: {error}"))
}

/// Writes all of `data`; waits while nobody reads.
pub fn write_all(fd: RawFd, mut data: &[u8]) -> std::result::Result<(), Refused> {
    while !data.is_empty() {
        match sys::write(fd, data) {
            Ok(count) => data = &data[count..],
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            Err(error) => return Err(refused(b"the archive", &error)),
        }
    }
    Ok(())
}

/// `path` as an absolute one: a relative path begins at the root.
pub fn absolute(path: &str) -> PathBuf {
    Path::new("/").join(path)
}

fn stat(path: &str, follow_links: bool) -> PathReport {
    let path = absolute(path);
    let found = if follow_links { fs::metadata(&path) } else { fs::symlink_metadata(&path) };
    let metadata = match found {
        Ok(metadata) => metadata,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return PathReport::default(),
        Err(error) => return PathReport { error: Some(error.to_string()), ..PathReport::default() },
    };
    let is_symlink = metadata.is_symlink();
    let target = if is_symlink { fs::read_link(&path).ok() } else { None };
    PathReport {
        exists: true,
        is_dir: metadata.is_dir(),
        is_file: metadata.is_file(),
        is_symlink,
        link_target: target.map(|target| String::from_utf8_lossy(target.as_os_str().as_bytes()).into_owned()),
        mode: metadata.mode() & 0o7777,
        size_bytes: metadata.size(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime_ns: metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec()),
        error: None,
    }
}
