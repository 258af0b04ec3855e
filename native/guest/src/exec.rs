//! One exec: its process, its pipes, and the credit of both directions.
//!
//! An exec is over for the host when its process has ended and what that process wrote has been read. What its
//! own children write later is read and dropped, so that a daemon started by an exec does not die of SIGPIPE.
//! On a terminal it is otherwise: that hangs up when its process ends, as everywhere.

use std::io::Result;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::files::Task;
use crate::frames;
use crate::messages::{self, Exit, Refused, Started, TerminalSize};
use crate::port::is_transient;
use crate::pty;
use crate::spawn::{Child, Command};
use crate::sys::{self, Ending};

/// What each direction of an exec may have under way.
pub const CREDIT_BYTES: usize = 262_144;
/// Stdin credit is given back in portions of this, not byte by byte.
const CREDIT_PORTION_BYTES: usize = 65_536;
const READ_BYTES: usize = 32 * 1024;
/// The pipe between PID 1 and a process that copies files: with the usual 64 KiB they wake each other for less.
const COPY_PIPE_BYTES: libc::c_int = 256 * 1024;

struct Stdin {
    pipe: OwnedFd,
    pending: Vec<u8>,
    ends: bool,
    /// On a terminal, the end of input is a character; twice, if the line before it has not ended.
    is_terminal: bool,
    ends_within_line: bool,
}

impl Stdin {
    fn new(pipe: OwnedFd, is_terminal: bool) -> Self {
        Self { pipe, pending: Vec::new(), ends: false, is_terminal, ends_within_line: false }
    }

    fn end(&mut self) {
        self.ends = true;
        if !self.is_terminal {
            return;
        }
        if let Some((character, by_line)) = pty::end_of_input(self.pipe.as_raw_fd()) {
            let count = if by_line && self.ends_within_line { 2 } else { 1 };
            self.pending.extend(std::iter::repeat(character).take(count));
        }
    }
}

/// What an exec's process is.
enum Program {
    Command(Command),
    Files,
}

pub struct Exec {
    /// None: nobody listens any more.
    stream: Option<u16>,
    program: Program,
    pid: libc::pid_t,
    /// Readable when the exec itself has succeeded or failed; None when that is known.
    status: Option<OwnedFd>,
    stdin: Option<Stdin>,
    stdin_credit: usize,
    stdin_consumed: usize,
    /// stdout, stderr
    outputs: [Option<OwnedFd>; 2],
    output_credit: usize,
    ending: Option<Ending>,
    deadline_ns: Option<u64>,
    timed_out: bool,
    /// None: it runs on pipes.
    terminal: Option<OwnedFd>,
}

/// Which descriptor of an exec is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pipe {
    Status,
    Stdin,
    Stdout,
    Stderr,
}

impl Exec {
    pub fn start(
        stream: u16,
        mut command: Command,
        wants_stdin: bool,
        tty: Option<TerminalSize>,
        deadline_ns: Option<u64>,
        procs: Option<RawFd>,
    ) -> Result<Self> {
        if let Some(size) = tty {
            let (master, end) = pty::open(command.uid(), size)?;
            command.on_terminal = true;
            let Child { pid, status } = command.spawn([end.as_raw_fd(); 3], procs)?;
            let stdin = if wants_stdin { Some(Stdin::new(master.try_clone()?, true)) } else { None };
            let outputs = [Some(master.try_clone()?), None];
            let mut exec =
                Self::running(stream, Program::Command(command), Child { pid, status }, stdin, outputs);
            exec.deadline_ns = deadline_ns;
            exec.terminal = Some(master);
            return Ok(exec);
        }
        let (stdout, stdout_end) = output_pipe(command.uid())?;
        let (stderr, stderr_end) = output_pipe(command.uid())?;
        let (stdin_end, stdin) = if wants_stdin {
            let (end, pipe) = sys::pipe()?;
            sys::change_owner(&end, command.uid())?;
            sys::set_nonblocking(&pipe)?;
            (end, Some(Stdin::new(pipe, false)))
        } else {
            (sys::open("/dev/null", libc::O_RDONLY)?, None)
        };
        let stdio = [&stdin_end, &stdout_end, &stderr_end].map(|fd| fd.as_raw_fd());
        let child = command.spawn(stdio, procs)?;
        let outputs = [Some(stdout), Some(stderr)];
        let mut exec = Self::running(stream, Program::Command(command), child, stdin, outputs);
        exec.deadline_ns = deadline_ns;
        Ok(exec)
    }

    /// Starts an operation on files, which has an exec's pipes.
    pub fn start_files(stream: u16, task: &Task, procs: Option<RawFd>) -> Result<Self> {
        let (stdout, stdout_end) = output_pipe(0)?;
        let (stderr, stderr_end) = output_pipe(0)?;
        sys::set_pipe_size(&stdout, COPY_PIPE_BYTES);
        let (stdin_end, stdin) = if task.reads_stdin() {
            let (end, pipe) = sys::pipe()?;
            sys::set_nonblocking(&pipe)?;
            sys::set_pipe_size(&pipe, COPY_PIPE_BYTES);
            (end, Some(Stdin::new(pipe, false)))
        } else {
            (sys::open("/dev/null", libc::O_RDONLY)?, None)
        };
        let stdio = [&stdin_end, &stdout_end, &stderr_end].map(|fd| fd.as_raw_fd());
        let child = task.spawn(stdio, procs)?;
        Ok(Self::running(stream, Program::Files, child, stdin, [Some(stdout), Some(stderr)]))
    }

    fn running(
        stream: u16,
        program: Program,
        child: Child,
        stdin: Option<Stdin>,
        outputs: [Option<OwnedFd>; 2],
    ) -> Self {
        Self {
            stream: Some(stream),
            program,
            pid: child.pid,
            status: Some(child.status),
            stdin,
            stdin_credit: CREDIT_BYTES,
            stdin_consumed: 0,
            outputs,
            output_credit: CREDIT_BYTES,
            ending: None,
            deadline_ns: None,
            timed_out: false,
            terminal: None,
        }
    }

    pub fn stream(&self) -> Option<u16> {
        self.stream
    }

    pub fn is_process(&self, pid: libc::pid_t) -> bool {
        self.pid == pid && self.ending.is_none()
    }

    pub fn deadline_ns(&self) -> Option<u64> {
        self.deadline_ns.filter(|_| self.ending.is_none())
    }

    /// Signals the process group. Harmless when the process has been reaped.
    ///
    /// On a terminal SIGKILL goes to the whole session. What copies files is asked to end, so that it can
    /// remove the file it was writing.
    pub fn signal(&self, signal: libc::c_int) {
        if self.ending.is_some() {
            return;
        }
        match self.program {
            Program::Files if signal == libc::SIGKILL => sys::signal_group(self.pid, libc::SIGTERM),
            _ => {
                if self.terminal.is_some() && signal == libc::SIGKILL {
                    pty::kill_session(self.pid);
                }
                sys::signal_group(self.pid, signal);
            }
        }
    }

    /// Changes the size of its terminal.
    ///
    /// Errors: `bad_request` if it has none.
    pub fn resize(&self, size: TerminalSize) -> std::result::Result<(), Refused> {
        let terminal = self.terminal.as_ref();
        let terminal = terminal.ok_or_else(|| Refused::new("bad_request", "that exec has no terminal"))?;
        pty::resize(terminal, size).map_err(|error| Refused::new("internal", error.to_string()))
    }

    pub fn time_out(&mut self) {
        self.timed_out = true;
        self.deadline_ns = None;
        self.signal(libc::SIGKILL);
    }

    pub fn ended(&mut self, ending: Ending) {
        self.ending = Some(ending);
    }

    /// From now on nobody listens: output is dropped and stdin closed.
    pub fn orphan(&mut self) {
        self.stream = None;
        self.stdin = None;
    }

    /// True when there is nothing left to wait for.
    pub fn is_done(&self) -> bool {
        self.is_leftover() && self.outputs.iter().all(Option::is_none)
    }

    /// True if the process is gone for everybody, and only its descendants hold its pipes.
    pub fn is_leftover(&self) -> bool {
        self.stream.is_none() && self.ending.is_some() && self.status.is_none()
    }

    /// True if `conclude` stopped because there was too much unsent.
    pub fn waits_for_room(&self) -> bool {
        self.ending.is_some() && self.stream.is_some() && self.status.is_none() && self.output_credit > 0
    }

    /// Calls `watch` with each descriptor to poll. `room`: the host's queue has room for output.
    pub fn watch(&self, room: bool, mut watch: impl FnMut(Pipe, RawFd, libc::c_short)) {
        if let Some(status) = &self.status {
            watch(Pipe::Status, status.as_raw_fd(), libc::POLLIN);
            return;
        }
        if let Some(stdin) = &self.stdin {
            if !stdin.pending.is_empty() {
                watch(Pipe::Stdin, stdin.pipe.as_raw_fd(), libc::POLLOUT);
            }
        }
        if self.stream.is_some() && (!room || self.output_credit == 0) {
            return;
        }
        for (pipe, output) in [Pipe::Stdout, Pipe::Stderr].into_iter().zip(&self.outputs) {
            if let Some(fd) = output {
                watch(pipe, fd.as_raw_fd(), libc::POLLIN);
            }
        }
    }

    /// Does what can be done now on one descriptor.
    pub fn ready(&mut self, pipe: Pipe, out: &mut Vec<u8>) -> Result<()> {
        match pipe {
            Pipe::Status => self.answer_start(out),
            Pipe::Stdin => self.write_stdin(out)?,
            Pipe::Stdout => drop(self.read_output(0, out)?),
            Pipe::Stderr => drop(self.read_output(1, out)?),
        }
        Ok(())
    }

    fn answer_start(&mut self, out: &mut Vec<u8>) {
        let Some(status) = self.status.take() else {
            return;
        };
        let outcome = match &self.program {
            Program::Command(command) => command.outcome(&status),
            Program::Files => Task::outcome(&status),
        };
        let Some(stream) = self.stream else {
            return;
        };
        match outcome {
            Ok(()) => append_ok(out, stream, Started { pid: self.pid, tty: self.terminal.is_some() }),
            Err(refused) => {
                append_refusal(out, stream, &refused);
                self.orphan();
            }
        }
    }

    /// Takes STDIN from the host. Returns false if it was more than its credit.
    pub fn feed(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        if data.len() > self.stdin_credit {
            return Ok(false);
        }
        self.stdin_credit -= data.len();
        match &mut self.stdin {
            Some(stdin) if !stdin.ends => {
                stdin.pending.extend_from_slice(data);
                stdin.ends_within_line = data.last() != Some(&b'\n');
                self.write_stdin(out)?;
            }
            // Nobody reads it: it is consumed at once.
            _ => self.consumed(data.len(), out),
        }
        Ok(true)
    }

    pub fn end_stdin(&mut self) {
        if let Some(stdin) = &mut self.stdin {
            if !stdin.ends {
                stdin.end();
            }
            if stdin.pending.is_empty() {
                self.stdin = None;
            }
        }
    }

    fn write_stdin(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let Some(stdin) = &mut self.stdin else {
            return Ok(());
        };
        let consumed = match sys::write(stdin.pipe.as_raw_fd(), &stdin.pending) {
            Ok(count) => {
                stdin.pending.drain(..count);
                if stdin.ends && stdin.pending.is_empty() {
                    self.stdin = None;
                }
                count
            }
            Err(error) if is_transient(&error) => 0,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::EIO)) => {
                let lost = stdin.pending.len();
                self.stdin = None;
                lost
            }
            Err(error) => return Err(error),
        };
        self.consumed(consumed, out);
        Ok(())
    }

    fn consumed(&mut self, count: usize, out: &mut Vec<u8>) {
        self.stdin_consumed += count;
        let Some(stream) = self.stream else {
            return;
        };
        if self.stdin_consumed >= CREDIT_PORTION_BYTES {
            let credit = (self.stdin_consumed as u32).to_be_bytes();
            frames::append_frame(out, frames::CREDIT, stream, &credit);
            self.stdin_credit += self.stdin_consumed;
            self.stdin_consumed = 0;
        }
    }

    /// Returns false if the host gave more than it ever took.
    pub fn add_credit(&mut self, count: u32) -> bool {
        self.output_credit += count as usize;
        self.output_credit <= CREDIT_BYTES
    }

    /// Reads once. Returns false if there is nothing more to read now.
    fn read_output(&mut self, index: usize, out: &mut Vec<u8>) -> Result<bool> {
        let Some(fd) = &self.outputs[index] else {
            return Ok(false);
        };
        let limit = match self.stream {
            Some(_) => READ_BYTES.min(self.output_credit),
            None => READ_BYTES,
        };
        if limit == 0 {
            return Ok(true);
        }
        let mut buffer = [0; READ_BYTES];
        match sys::read(fd.as_raw_fd(), &mut buffer[..limit]) {
            Ok(0) => self.outputs[index] = None,
            Ok(count) => {
                if let Some(stream) = self.stream {
                    self.output_credit -= count;
                    let kind = [frames::STDOUT, frames::STDERR][index];
                    frames::append_raw(out, kind, stream, &buffer[..count]);
                }
                return Ok(true);
            }
            Err(error) if is_transient(&error) => {}
            // Nobody has the terminal open any more.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => self.outputs[index] = None,
            Err(error) => return Err(error),
        }
        Ok(false)
    }

    /// Once the process has ended: sends what it wrote, as far as credit and room in `out` go, and then EXIT.
    pub fn conclude(&mut self, out: &mut Vec<u8>, unsent_bytes_high: usize) -> Result<()> {
        let (Some(ending), Some(stream), None) = (self.ending, self.stream, &self.status) else {
            return Ok(());
        };
        for index in 0..self.outputs.len() {
            loop {
                if out.len() >= unsent_bytes_high {
                    return Ok(());
                }
                if self.output_credit == 0 && self.has_output(index)? {
                    return Ok(());
                }
                if self.output_credit == 0 || !self.read_output(index, out)? {
                    break;
                }
            }
        }
        let Ending { code, signal } = ending;
        let exit = Exit { code, signal, timed_out: self.timed_out };
        let exit = messages::to_json(&exit);
        frames::append_frame(out, frames::EXIT, stream, exit.as_bytes());
        self.orphan();
        if self.terminal.take().is_some() {
            self.outputs = [None, None];
        }
        Ok(())
    }

    fn has_output(&self, index: usize) -> Result<bool> {
        match &self.outputs[index] {
            Some(fd) => Ok(sys::poll_now(fd.as_raw_fd(), libc::POLLIN)? & libc::POLLIN != 0),
            None => Ok(false),
        }
    }
}

fn output_pipe(uid: u32) -> Result<(OwnedFd, OwnedFd)> {
    let (pipe, end) = sys::pipe()?;
    sys::set_nonblocking(&pipe)?;
    sys::change_owner(&end, uid)?;
    Ok((pipe, end))
}

pub fn append_ok(out: &mut Vec<u8>, stream: u16, answer: impl serde::Serialize) {
    let text = messages::to_json(&messages::Answer { ok: answer });
    frames::append_frame(out, frames::RESPONSE, stream, text.as_bytes());
}

pub fn append_refusal(out: &mut Vec<u8>, stream: u16, refused: &Refused) {
    let Refused { code, message } = refused;
    let text = messages::to_json(&messages::Refusal { error: messages::ErrorBody { code, message } });
    frames::append_frame(out, frames::RESPONSE, stream, text.as_bytes());
}

#[cfg(test)]
#[path = "exec_tests.rs"]
mod tests;
