//! PID 1's one loop: it sleeps in one poll over everything that can happen, and wakes for nothing else.

use std::io::{Error, Result};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::cgroup::Cgroup;
use crate::console;
use crate::disks::OldRoot;
use crate::exec::{Exec, Pipe};
use crate::frames::{self, Receiver};
use crate::identity::Seats;
use crate::messages::{self, WorkloadExit, WorkloadExited};
use crate::oom;
use crate::output::Output;
use crate::port::Port;
use crate::poweroff;
use crate::session::Freeze;
use crate::sys::{self, Ending, NANOS_PER_MILLI};
use crate::workload::{Manner, Workload};

/// With more than this unsent, no process's output is read.
const UNSENT_BYTES_HIGH: usize = 128 * 1024;
/// With more than this unsent, no request is read either: the host is not listening.
const UNSENT_BYTES_MAX: usize = 1024 * 1024;
const READ_BYTES: usize = 64 * 1024;
/// Execs that ended and whose descendants still hold their pipes.
const LEFTOVERS_MAX: usize = 64;
/// How long the last words may take to be sent.
const FAREWELL_TIMEOUT_MS: i32 = 1_000;

/// The signals this process waits for, as descriptors.
pub struct Signals {
    pub children: OwnedFd,
    pub io: OwnedFd,
}

/// Bytes on their way to the host.
#[derive(Default)]
pub struct Unsent {
    pub bytes: Vec<u8>,
    sent: usize,
}

impl Unsent {
    fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.sent = 0;
    }

    fn flush(&mut self, port: &mut Port) -> Result<()> {
        while self.len() > 0 {
            match port.write(&self.bytes[self.sent..])? {
                0 => return Ok(()),
                count => self.sent += count,
            }
        }
        self.clear();
        Ok(())
    }
}

pub struct Agent {
    pub port: Port,
    pub receiver: Receiver,
    pub unsent: Unsent,
    /// True from an accepted HELLO on: there is somebody to talk to.
    pub greeted: bool,
    pub execs: Vec<Exec>,
    /// Children that write file systems out, and the stream that asked.
    pub syncs: Vec<(libc::pid_t, Option<u16>)>,
    pub freeze: Freeze,
    pub workload: Workload,
    pub manner: Manner,
    pub cgroup: Cgroup,
    pub seats: Seats,
    /// When a workload that was asked to end gets SIGKILL.
    pub kill_at_ns: Option<u64>,
    pub signals: Signals,
    pub output: Option<Output>,
    pub old_root: OldRoot,
}

#[derive(Clone, Copy)]
enum Source {
    Children,
    Io,
    Door,
    Port,
    Frozen,
    Output,
    Exec(usize, Pipe),
}

impl Agent {
    /// Serves the host until the workload has ended, and powers off.
    pub fn run(mut self) -> ! {
        let mut fds = Vec::new();
        let mut sources = Vec::new();
        let mut buffer = vec![0; READ_BYTES];
        while self.workload.ending.is_none() {
            if let Err(error) = self.turn(&mut fds, &mut sources, &mut buffer) {
                poweroff::fail(&format!("the agent's loop: {error}"));
            }
        }
        self.finish()
    }

    fn turn(
        &mut self,
        fds: &mut Vec<libc::pollfd>,
        sources: &mut Vec<Source>,
        buffer: &mut [u8],
    ) -> Result<()> {
        let pending = self.settle()?;
        fds.clear();
        sources.clear();
        self.watch(|source, fd, events| {
            fds.push(libc::pollfd { fd, events, revents: 0 });
            sources.push(source);
        });
        let timeout_ms = if pending { Some(0) } else { self.timeout_ms() };
        sys::poll(fds, timeout_ms)?;
        for (one, source) in fds.iter().zip(sources.iter()) {
            if one.revents != 0 {
                self.ready(*source, one.revents, buffer)?;
            }
        }
        self.meet_deadlines();
        Ok(())
    }

    /// Concludes what has ended and sends what can be sent. True if there is more to conclude at once.
    fn settle(&mut self) -> Result<bool> {
        for exec in &mut self.execs {
            exec.conclude(&mut self.unsent.bytes, UNSENT_BYTES_HIGH)?;
        }
        self.execs.retain(|exec| !exec.is_done());
        let leftovers = self.execs.iter().filter(|exec| exec.is_leftover()).count();
        if leftovers > LEFTOVERS_MAX {
            if let Some(oldest) = self.execs.iter().position(Exec::is_leftover) {
                self.execs.remove(oldest);
            }
        }
        if self.port.is_connected() {
            self.unsent.flush(&mut self.port)?;
            if !self.port.is_connected() {
                self.host_hung_up()?;
            }
        }
        Ok(self.unsent.len() == 0 && self.execs.iter().any(Exec::waits_for_room))
    }

    fn watch(&self, mut watch: impl FnMut(Source, RawFd, libc::c_short)) {
        watch(Source::Children, self.signals.children.as_raw_fd(), libc::POLLIN);
        let output_waits = self.output.as_ref().is_some_and(Output::waits_for_sigio);
        let is_away = !self.port.is_connected();
        if (is_away && self.port.door().is_none()) || output_waits {
            watch(Source::Io, self.signals.io.as_raw_fd(), libc::POLLIN);
        }
        if let Some(door) = self.port.door().filter(|_| is_away) {
            watch(Source::Door, door, libc::POLLIN);
        }
        if !is_away {
            let listens = if self.unsent.len() < UNSENT_BYTES_MAX { libc::POLLIN } else { 0 };
            let sends = if self.unsent.len() > 0 { libc::POLLOUT } else { 0 };
            watch(Source::Port, self.port.fd(), listens | sends);
        }
        if self.freeze.is_under_way() {
            watch(Source::Frozen, self.cgroup.events(), libc::POLLPRI);
        }
        if let Some((fd, events)) = self.output.as_ref().and_then(Output::interest) {
            watch(Source::Output, fd, events);
        }
        let room = self.unsent.len() < UNSENT_BYTES_HIGH;
        for (index, exec) in self.execs.iter().enumerate() {
            exec.watch(room, |pipe, fd, events| watch(Source::Exec(index, pipe), fd, events));
        }
    }

    fn ready(&mut self, source: Source, revents: libc::c_short, buffer: &mut [u8]) -> Result<()> {
        match source {
            Source::Children => self.reap(),
            Source::Io => self.expect_hosts(),
            Source::Door => self.port.admit()?,
            Source::Port => self.port_is_ready(revents, buffer)?,
            Source::Frozen => self.freeze_changed()?,
            Source::Output => self.pump_output()?,
            Source::Exec(index, pipe) => {
                // Requests handled in this turn add execs behind, so the index is still that of this one.
                if let Some(exec) = self.execs.get_mut(index) {
                    exec.ready(pipe, &mut self.unsent.bytes)?;
                }
            }
        }
        Ok(())
    }

    fn port_is_ready(&mut self, revents: libc::c_short, buffer: &mut [u8]) -> Result<()> {
        let is_told = revents & (libc::POLLIN | libc::POLLERR) != 0;
        let count = if is_told { self.port.read(buffer)? } else { 0 };
        self.take_in(&buffer[..count])?;
        if count == 0 && (revents & libc::POLLHUP != 0 || !self.port.is_connected()) {
            self.host_hung_up()?;
        }
        Ok(())
    }

    /// Drains SIGIO before it asks the driver: a change that comes after the question leaves a new one behind.
    fn host_hung_up(&mut self) -> Result<()> {
        sys::drain_signals(&self.signals.io);
        self.port.refresh()?;
        if !self.port.is_connected() {
            self.greeted = false;
            self.unsent.clear();
            self.receiver.distrust();
        }
        Ok(())
    }

    fn expect_hosts(&mut self) {
        sys::drain_signals(&self.signals.io);
        self.port.expect_host();
        if let Some(output) = &mut self.output {
            output.expect_host();
        }
    }

    /// Without its output the workload can still run: a port that fails is given up.
    fn pump_output(&mut self) -> Result<()> {
        match self.output.as_mut().map(Output::pump) {
            Some(Err(error)) => {
                console::print(&format!("warning the workload's output: {error}"));
                self.output = None;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn reap(&mut self) {
        sys::drain_signals(&self.signals.children);
        while let Some((pid, ending)) = sys::reap() {
            if self.workload.pid == Some(pid) {
                self.workload.ended(ending);
                if ending.signal == Some(libc::SIGKILL) && oom::has_killed(pid) {
                    self.workload.message = oom::MESSAGE.to_owned();
                }
            } else if let Some(index) = self.syncs.iter().position(|(sync, _)| *sync == pid) {
                let (_, stream) = self.syncs.swap_remove(index);
                self.answer_sync(stream, ending);
            } else if let Some(exec) = self.execs.iter_mut().find(|exec| exec.is_process(pid)) {
                exec.ended(ending);
            }
        }
    }

    fn next_deadline_ns(&self) -> Option<u64> {
        let execs = self.execs.iter().filter_map(Exec::deadline_ns);
        execs.chain(self.kill_at_ns).chain(self.freeze.deadline_ns()).min()
    }

    fn timeout_ms(&self) -> Option<i32> {
        let left_ns = self.next_deadline_ns()?.saturating_sub(sys::monotonic_ns());
        Some(i32::try_from(left_ns.div_ceil(NANOS_PER_MILLI)).unwrap_or(i32::MAX))
    }

    fn meet_deadlines(&mut self) {
        if self.next_deadline_ns().is_none() {
            return;
        }
        let now_ns = sys::monotonic_ns();
        let due = |deadline_ns: Option<u64>| deadline_ns.is_some_and(|at_ns| at_ns <= now_ns);
        for exec in self.execs.iter_mut().filter(|exec| due(exec.deadline_ns())) {
            exec.time_out();
        }
        if due(self.kill_at_ns) {
            self.kill_at_ns = None;
            self.signal_workload(libc::SIGKILL);
        }
        if due(self.freeze.deadline_ns()) {
            self.give_up_freeze("not every process stood still in time");
        }
    }

    pub fn signal_workload(&self, signal: libc::c_int) {
        if let Some(pid) = self.workload.pid {
            // SAFETY: no pointers; a child that was not reaped, so its number is its own.
            unsafe { libc::kill(pid, signal) };
        }
    }

    /// The workload has ended: takes everything down in order, tells the host, and powers off.
    fn finish(mut self) -> ! {
        if let Err(error) = poweroff::kill_everything(&self.signals.children) {
            console::print(&format!("warning {error}"));
        }
        if let Some(output) = self.output.take() {
            output.finish();
        }
        poweroff::close_disks(&self.old_root);
        let Ending { code, signal } = self.workload.ending.unwrap_or(Ending { code: None, signal: None });
        let message = self.workload.message.clone();
        let exit = WorkloadExit { code, signal, message: &message };
        let line = messages::to_json(&exit);
        if self.greeted {
            let event = messages::to_json(&WorkloadExited { event: "workload_exited", exit });
            frames::append_frame(&mut self.unsent.bytes, frames::EVENT, 0, event.as_bytes());
            self.send_farewell();
        }
        console::print(&format!("exit {line}"));
        poweroff::power_off()
    }

    /// Sends what is unsent, for a bounded time; the console holds the record if it cannot be sent.
    fn send_farewell(&mut self) {
        let until_ns = sys::monotonic_ns() + FAREWELL_TIMEOUT_MS as u64 * NANOS_PER_MILLI;
        while self.unsent.flush(&mut self.port).is_ok() && self.unsent.len() > 0 {
            let (fd, events) = (self.port.fd(), libc::POLLOUT);
            let mut one = [libc::pollfd { fd, events, revents: 0 }];
            let polled = sys::poll(&mut one, Some(FAREWELL_TIMEOUT_MS));
            let hung_up = one[0].revents & libc::POLLHUP != 0 || !self.port.is_connected();
            if polled.is_err() || hung_up || sys::monotonic_ns() >= until_ns {
                return;
            }
        }
    }

    fn freeze_changed(&mut self) -> Result<()> {
        if self.cgroup.is_frozen()? {
            self.freeze_reached();
        }
        Ok(())
    }

    /// Forks a child that writes the file systems out, so that this loop goes on meanwhile.
    pub fn start_sync(&mut self, stream: u16) -> Result<()> {
        // SAFETY: this process has one thread; the child makes two calls and is gone.
        let pid = unsafe {
            let pid = sys::check(libc::fork())?;
            if pid == 0 {
                libc::sync();
                libc::_exit(0);
            }
            pid
        };
        self.syncs.push((pid, Some(stream)));
        Ok(())
    }
}

/// An error of PID 1's own making or the kernel's, told to the host as `internal`.
pub fn internal(error: &Error) -> messages::Refused {
    messages::Refused::new("internal", error.to_string())
}
