//! Starts a process in the workload's cgroup.
//!
//! The child reports on a close-on-exec pipe: end of file is success, eight bytes are a failure. While the
//! cgroup is frozen the child stands still before its exec, so nobody may wait for that pipe; it is polled.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr;

use crate::messages::Refused;
use crate::pty;
use crate::sys;
use crate::users::Credentials;

pub const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const FAILURE_BYTES: usize = 8;

/// Where in its preparations a child failed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Prepare,
    ChangeDir,
    Exec,
}

/// A process to be.
pub struct Command {
    name: String,
    cwd: String,
    paths: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    cwd_c: CString,
    credentials: Credentials,
    /// Its stdio is a terminal, which becomes that of its session.
    pub on_terminal: bool,
}

pub struct Child {
    pub pid: libc::pid_t,
    /// Becomes readable when the exec has succeeded or failed.
    pub status: OwnedFd,
}

impl Command {
    /// Errors: `bad_request` for an empty argv or a zero byte in any text.
    pub fn new(
        argv: &[String],
        env: &BTreeMap<String, String>,
        cwd: &str,
        credentials: Credentials,
    ) -> std::result::Result<Self, Refused> {
        let name = argv.first().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| Refused::new("bad_request", "argv is empty"))?.clone();
        let text = |text: &str| {
            sys::c_string(text).map_err(|_| Refused::new("bad_request", "a text holds a zero byte"))
        };
        let path = env.get("PATH").map_or(PATH_DEFAULT, String::as_str);
        let paths = if name.contains('/') {
            vec![text(&name)?]
        } else {
            let within = |folder: &str| if folder.is_empty() { "." } else { folder }.to_owned();
            path.split(':')
                .map(|folder| text(&format!("{}/{name}", within(folder))))
                .collect::<std::result::Result<_, _>>()?
        };
        let cwd = if cwd.is_empty() { "/" } else { cwd };
        Ok(Self {
            paths,
            argv: argv.iter().map(|one| text(one)).collect::<std::result::Result<_, _>>()?,
            env: env
                .iter()
                .map(|(key, value)| text(&format!("{key}={value}")))
                .collect::<std::result::Result<_, _>>()?,
            cwd_c: text(cwd)?,
            cwd: cwd.to_owned(),
            name,
            credentials,
            on_terminal: false,
        })
    }

    pub fn uid(&self) -> u32 {
        self.credentials.uid
    }

    /// Forks; the child joins the cgroup of `procs` by itself, takes `stdio` as its 0, 1 and 2, and execs.
    pub fn spawn(&self, stdio: [RawFd; 3], procs: Option<RawFd>) -> Result<Child> {
        let (status, report) = sys::pipe()?;
        let argv = pointers(&self.argv);
        let env = pointers(&self.env);
        // SAFETY: this process has one thread, so the child may do everything the parent may.
        let pid = sys::check(unsafe { libc::fork() })?;
        if pid == 0 {
            let (stage, error) = self.become_it(stdio, procs, &argv, &env);
            let mut failure = [0; FAILURE_BYTES];
            failure[..4].copy_from_slice(&(stage as u32).to_ne_bytes());
            let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
            failure[4..].copy_from_slice(&errno.to_ne_bytes());
            // The parent sees a failure even if this write does: the pipe ends without an exec, and code 127.
            let _ = sys::write(report.as_raw_fd(), &failure);
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(127) };
        }
        Ok(Child { pid, status })
    }

    /// In the child. Returns only when it fails.
    fn become_it(
        &self,
        stdio: [RawFd; 3],
        procs: Option<RawFd>,
        argv: &[*const libc::c_char],
        env: &[*const libc::c_char],
    ) -> (Stage, Error) {
        if let Err(error) = self.prepare(stdio, procs) {
            return (Stage::Prepare, error);
        }
        // SAFETY: all pointers are to C strings and null-ended arrays owned by `self` and the caller.
        unsafe {
            if libc::chdir(self.cwd_c.as_ptr()) < 0 {
                return (Stage::ChangeDir, Error::last_os_error());
            }
            let mut verdict = Error::from_raw_os_error(libc::ENOENT);
            for path in &self.paths {
                libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr());
                let error = Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::ENOENT | libc::ENOTDIR) => {}
                    Some(libc::EACCES) => verdict = error,
                    _ => return (Stage::Exec, error),
                }
            }
            (Stage::Exec, verdict)
        }
    }

    fn prepare(&self, stdio: [RawFd; 3], procs: Option<RawFd>) -> Result<()> {
        if let Some(procs) = procs {
            sys::write(procs, b"0")?;
        }
        let who = &self.credentials;
        // SAFETY: integers, a live signal set and a live array of groups.
        unsafe {
            sys::check(libc::setsid())?;
            for (target, fd) in stdio.into_iter().enumerate() {
                sys::check(libc::dup2(fd, target as RawFd))?;
            }
            if self.on_terminal {
                pty::take_control()?;
            }
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            sys::check(libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut()))?;
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            libc::umask(0o022);
            sys::check(libc::setgroups(who.groups.len(), who.groups.as_ptr()))?;
            sys::check(libc::setresgid(who.gid, who.gid, who.gid))?;
            sys::check(libc::setresuid(who.uid, who.uid, who.uid))?;
        }
        Ok(())
    }

    /// What the status pipe said: success, or the refusal the host is told.
    pub fn outcome(&self, status: &OwnedFd) -> std::result::Result<(), Refused> {
        let mut failure = [0; FAILURE_BYTES];
        match sys::read(status.as_raw_fd(), &mut failure) {
            Ok(0) => Ok(()),
            Ok(FAILURE_BYTES) => {
                let stage = u32::from_ne_bytes([failure[0], failure[1], failure[2], failure[3]]);
                let errno = i32::from_ne_bytes([failure[4], failure[5], failure[6], failure[7]]);
                Err(self.refusal(stage, errno))
            }
            Ok(_) => Err(Refused::new("internal", "the child's report was cut")),
            Err(error) => Err(Refused::new("internal", format!("the child's report: {error}"))),
        }
    }

    fn refusal(&self, stage: u32, errno: i32) -> Refused {
        let error = Error::from_raw_os_error(errno);
        if stage == Stage::ChangeDir as u32 {
            return Refused::new("no_such_directory", format!("{}: {error}", self.cwd));
        }
        if stage == Stage::Prepare as u32 {
            return Refused::new("internal", format!("starting {}: {error}", self.name));
        }
        let code = match errno {
            libc::ENOENT | libc::ENOTDIR => "command_not_found",
            _ => "not_executable",
        };
        Refused::new(code, format!("{}: {error}", self.name))
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|one| one.as_ptr()).chain([ptr::null()]).collect()
}
