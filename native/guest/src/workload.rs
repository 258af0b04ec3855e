//! The image's own process, and what execs take over from it.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::messages::{BootConfig, Refused, WorkloadReport, WorkloadState};
use crate::spawn::{Child, Command, PATH_DEFAULT};
use crate::sys::{self, Ending};
use crate::users;

pub const EXIT_NOT_EXECUTABLE: i32 = 126;
pub const EXIT_NOT_FOUND: i32 = 127;

/// How the workload is run; execs begin with the same.
pub struct Manner {
    pub env: BTreeMap<String, String>,
    pub cwd: String,
    pub user: String,
    pub hostname: String,
    /// Commands and files of others are refused.
    pub skip_agent: bool,
}

impl Manner {
    pub fn of(config: &BootConfig) -> Self {
        Self {
            env: config.env.clone(),
            cwd: config.cwd.clone(),
            user: config.user.clone(),
            hostname: config.identity.hostname.clone(),
            skip_agent: config.skip_agent,
        }
    }

    /// Whose the files are that are given to the workload.
    ///
    /// Errors: `no_such_user`.
    pub fn owner(&self) -> Result<(u32, u32), Refused> {
        users::look_up(&self.user).map(|found| (found.uid, found.gid))
    }

    /// A process of this manner, with the parts that are given in place of ours.
    ///
    /// Errors: `no_such_user`, `bad_request`.
    pub fn command(
        &self,
        argv: &[String],
        env: BTreeMap<String, String>,
        cwd: Option<&str>,
        user: Option<&str>,
    ) -> Result<Command, Refused> {
        let credentials = users::look_up(user.unwrap_or(&self.user))?;
        let mut whole = self.env.clone();
        whole.extend(env);
        let mut default = |key: &str, value: &str| {
            whole.entry(key.to_owned()).or_insert_with(|| value.to_owned());
        };
        default("PATH", PATH_DEFAULT);
        default("HOME", &credentials.home);
        default("HOSTNAME", &self.hostname);
        Command::new(argv, &whole, cwd.unwrap_or(&self.cwd), credentials)
    }
}

/// The workload's process.
pub struct Workload {
    pub state: WorkloadState,
    pub pid: Option<libc::pid_t>,
    pub ending: Option<Ending>,
    pub message: String,
}

impl Workload {
    pub fn starting() -> Self {
        let message = String::new();
        Self { state: WorkloadState::Starting, pid: None, ending: None, message }
    }

    pub fn report(&self, is_frozen: bool) -> WorkloadReport {
        let state = match self.state {
            WorkloadState::Running if is_frozen => WorkloadState::Frozen,
            state => state,
        };
        WorkloadReport {
            state,
            pid: self.pid,
            code: self.ending.and_then(|ending| ending.code),
            signal: self.ending.and_then(|ending| ending.signal),
            message: self.message.clone(),
        }
    }

    /// Starts the process and waits for its exec. The folder it starts in is made where there is none.
    ///
    /// Errors: a reason for which the guest cannot go on. A command that does not exist is none: the workload
    /// has then ended already, with code 127.
    pub fn start(
        &mut self,
        command: &Command,
        cwd: &str,
        output: &OwnedFd,
        procs: RawFd,
    ) -> Result<(), String> {
        if !cwd.is_empty() {
            fs::create_dir_all(cwd).map_err(|error| format!("{cwd}: {error}"))?;
        }
        let null = sys::open("/dev/null", libc::O_RDONLY).map_err(|error| format!("/dev/null: {error}"))?;
        let stdio = [null.as_raw_fd(), output.as_raw_fd(), output.as_raw_fd()];
        let Child { pid, status } =
            command.spawn(stdio, Some(procs)).map_err(|error| format!("fork: {error}"))?;
        let outcome = command.outcome(&status);
        let code = match &outcome {
            Ok(()) => {
                self.state = WorkloadState::Running;
                self.pid = Some(pid);
                return Ok(());
            }
            Err(refused) if refused.code == "command_not_found" => EXIT_NOT_FOUND,
            Err(refused) if refused.code == "not_executable" => EXIT_NOT_EXECUTABLE,
            Err(refused) => return Err(refused.message.clone()),
        };
        self.ended(Ending { code: Some(code), signal: None });
        self.message = outcome.err().map(|refused| refused.message).unwrap_or_default();
        Ok(())
    }

    pub fn ended(&mut self, ending: Ending) {
        self.state = WorkloadState::Exited;
        self.pid = None;
        self.ending = Some(ending);
    }
}
