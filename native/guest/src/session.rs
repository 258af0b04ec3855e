//! What the host may ask, and what it is answered.
//!
//! A HELLO begins everything anew: requests of the session before are forgotten with it, whether their host
//! hung up or was left behind in the VM that this one was forked from.

use std::io::Result;

use serde::de::DeserializeOwned;

use crate::agent::{internal, Agent};
use crate::exec::{append_ok, append_refusal, Exec};
use crate::files::Task;
use crate::frames::{self, Event};
use crate::identity::ENTROPY_BYTES_MIN;
use crate::messages::{
    to_json, ExecRequest, Frozen, Health, Hello, HelloAck, Identified, Identity, Nothing, Operation,
    ReadRequest, Refused, ResizeRequest, ShutdownRequest, SignalRequest, Streams, WorkloadReport,
    WriteRequest, VERSION,
};
use crate::network;
use crate::sys::{self, Ending, NANOS_PER_SECOND};

const EXECS_MAX: usize = 256;
/// What acts on the inside of the guest for somebody else; the rest is about the guest as a whole.
const ENTERING: [&str; 4] = ["exec", "stat", "read_archive", "write_archive"];
/// A frozen guest is wanted at once, but under emulation every process has to be scheduled to stand still.
const FREEZE_TIMEOUT_S: u64 = 10;
/// What a terminal is taken for where neither the image nor the request says.
const TERM_DEFAULT: &str = "xterm";
const SHUTDOWN_TIMEOUT_S: f64 = 5.0;
/// Longer times than this (30 years) are no time-out at all.
const TIMEOUT_S_MAX: f64 = 1e9;

/// Whether the workload's cgroup stands still.
#[derive(Default)]
pub struct Freeze {
    frozen: bool,
    until_ns: Option<u64>,
    streams: Vec<u16>,
}

impl Freeze {
    pub fn is_under_way(&self) -> bool {
        self.until_ns.is_some()
    }

    pub fn deadline_ns(&self) -> Option<u64> {
        self.until_ns
    }
}

impl Agent {
    /// Takes bytes from the host and does what they ask.
    pub fn take_in(&mut self, mut input: &[u8]) -> Result<()> {
        // The receiver is lent out so that a frame's payload need not be copied.
        let mut receiver = std::mem::replace(&mut self.receiver, frames::Receiver::of_host_frames());
        let mut result = Ok(());
        while let Some(event) = receiver.next(&mut input) {
            let believed = match event {
                Event::Reset => {
                    self.greeted = false;
                    true
                }
                Event::Error => false,
                Event::Frame { kind, stream, payload } => match self.frame(kind, stream, payload) {
                    Ok(believed) => believed,
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                },
            };
            if !believed {
                self.greeted = false;
                receiver.distrust();
            }
        }
        self.receiver = receiver;
        result
    }

    /// Handles one frame. False: a protocol error.
    fn frame(&mut self, kind: u8, stream: u16, payload: &[u8]) -> Result<bool> {
        if kind == frames::HELLO {
            return Ok(self.hello(stream, payload));
        }
        if kind == frames::REQUEST {
            self.request(stream, payload);
            return Ok(true);
        }
        // A stream that has ended is no error: the host may not know it yet.
        let found = self.execs.iter_mut().find(|exec| exec.stream() == Some(stream));
        let Some(exec) = found else {
            return Ok(true);
        };
        let out = &mut self.unsent.bytes;
        match kind {
            frames::STDIN => exec.feed(payload, out),
            frames::STDIN_EOF => {
                exec.end_stdin();
                Ok(payload.is_empty())
            }
            frames::CREDIT => Ok(match payload {
                [a, b, c, d] => exec.add_credit(u32::from_be_bytes([*a, *b, *c, *d])),
                _ => false,
            }),
            frames::SIGNAL => Ok(match serde_json::from_slice::<SignalRequest>(payload) {
                Ok(SignalRequest { signal }) => {
                    exec.signal(signal);
                    true
                }
                Err(_) => false,
            }),
            _ => Ok(false),
        }
    }

    fn hello(&mut self, stream: u16, payload: &[u8]) -> bool {
        let Ok(hello) = serde_json::from_slice::<Hello>(payload) else {
            return false;
        };
        if stream != 0 {
            return false;
        }
        self.unsent.clear();
        self.freeze.streams.clear();
        for (_, stream) in &mut self.syncs {
            *stream = None;
        }
        for exec in &mut self.execs {
            if exec.stream().is_some() && hello.streams == Streams::Kill {
                exec.signal(libc::SIGKILL);
            }
            exec.orphan();
        }
        let ack = HelloAck {
            version: VERSION,
            nonce: &hello.nonce,
            agent: env!("CARGO_PKG_VERSION"),
            workload: self.report(),
        };
        frames::append_hello(&mut self.unsent.bytes, frames::HELLO_ACK, to_json(&ack).as_bytes());
        self.greeted = hello.version == VERSION;
        self.greeted
    }

    fn report(&self) -> WorkloadReport {
        self.workload.report(self.freeze.frozen)
    }

    fn request(&mut self, stream: u16, payload: &[u8]) {
        let outcome = self.perform(stream, payload);
        if let Err(refused) = outcome {
            append_refusal(&mut self.unsent.bytes, stream, &refused);
        }
    }

    /// Answers a request, or sees to it that it is answered later.
    fn perform(&mut self, stream: u16, payload: &[u8]) -> std::result::Result<(), Refused> {
        if stream == 0 {
            return Err(Refused::new("bad_request", "stream 0 is not for requests"));
        }
        if self.uses_stream(stream) {
            return Err(Refused::new("stream_in_use", format!("stream {stream} has not ended")));
        }
        let Operation { op } = parse(payload)?;
        if self.manner.skip_agent && ENTERING.contains(&op.as_str()) {
            return Err(Refused::new("agent_skipped", format!("nobody enters this guest, so no {op}")));
        }
        match op.as_str() {
            "health" => {
                let uptime_s = sys::uptime_ns() as f64 / NANOS_PER_SECOND as f64;
                self.answer(stream, Health { workload: self.report(), uptime_s });
                Ok(())
            }
            "exec" => self.exec(stream, parse(payload)?),
            "resize" => self.resize(stream, &parse(payload)?),
            "stat" => {
                let ReadRequest { path, follow_links } = parse(payload)?;
                self.files(stream, Task::Stat { path, follow_links })
            }
            "read_archive" => {
                let ReadRequest { path, follow_links } = parse(payload)?;
                self.files(stream, Task::ReadArchive { path, follow_links })
            }
            "write_archive" => {
                let WriteRequest { path, keep_owner } = parse(payload)?;
                let owner = if keep_owner { None } else { Some(self.manner.owner()?) };
                self.files(stream, Task::WriteArchive { path, owner })
            }
            "sync" => self.start_sync(stream).map_err(|error| internal(&error)),
            "freeze" => self.freeze(stream),
            "thaw" => {
                self.thaw()?;
                self.answer(stream, Nothing {});
                Ok(())
            }
            "identify" => self.identify(stream, &parse(payload)?),
            "shutdown" => self.shutdown(stream, &parse(payload)?),
            _ => Err(Refused::new("unknown_op", format!("no operation {op}"))),
        }
    }

    fn uses_stream(&self, stream: u16) -> bool {
        self.execs.iter().any(|exec| exec.stream() == Some(stream))
            || self.syncs.iter().any(|(_, asked)| *asked == Some(stream))
            || self.freeze.streams.contains(&stream)
    }

    fn answer(&mut self, stream: u16, answer: impl serde::Serialize) {
        append_ok(&mut self.unsent.bytes, stream, answer);
    }

    fn exec(&mut self, stream: u16, mut request: ExecRequest) -> std::result::Result<(), Refused> {
        self.check_room()?;
        if request.tty.is_some() && !self.manner.env.contains_key("TERM") {
            request.env.entry("TERM".to_owned()).or_insert_with(|| TERM_DEFAULT.to_owned());
        }
        let cwd = request.cwd.as_deref().filter(|cwd| !cwd.is_empty());
        let user = request.user.as_deref().filter(|user| !user.is_empty());
        let command = self.manner.command(&request.argv, request.env, cwd, user)?;
        let deadline_ns = deadline_ns(request.timeout_s.unwrap_or(0.0))?;
        let procs = Some(self.cgroup.procs());
        let exec = Exec::start(stream, command, request.stdin, request.tty, deadline_ns, procs);
        self.execs.push(exec.map_err(|error| internal(&error))?);
        Ok(())
    }

    fn files(&mut self, stream: u16, task: Task) -> std::result::Result<(), Refused> {
        self.check_room()?;
        let exec = Exec::start_files(stream, &task, Some(self.cgroup.procs()));
        self.execs.push(exec.map_err(|error| internal(&error))?);
        Ok(())
    }

    fn check_room(&self) -> std::result::Result<(), Refused> {
        if self.execs.len() >= EXECS_MAX {
            return Err(Refused::new("internal", format!("there are {EXECS_MAX} execs already")));
        }
        Ok(())
    }

    fn resize(&mut self, stream: u16, request: &ResizeRequest) -> std::result::Result<(), Refused> {
        let exec = self.execs.iter().find(|exec| exec.stream() == Some(request.exec));
        let exec = exec.ok_or_else(|| Refused::new("no_such_stream", "that exec has ended"))?;
        exec.resize(request.size)?;
        self.answer(stream, Nothing {});
        Ok(())
    }

    pub fn answer_sync(&mut self, stream: Option<u16>, ending: Ending) {
        let Some(stream) = stream else {
            return;
        };
        if ending.code == Some(0) {
            self.answer(stream, Nothing {});
        } else {
            let refused = Refused::new("internal", "the sync was killed");
            append_refusal(&mut self.unsent.bytes, stream, &refused);
        }
    }

    fn freeze(&mut self, stream: u16) -> std::result::Result<(), Refused> {
        let failed = |error: std::io::Error| Refused::new("freeze_failed", error.to_string());
        self.freeze.streams.push(stream);
        if !self.freeze.frozen && !self.freeze.is_under_way() {
            let until_ns = sys::monotonic_ns() + FREEZE_TIMEOUT_S * NANOS_PER_SECOND;
            let asked = self.cgroup.freeze().and_then(|()| self.cgroup.is_frozen());
            match asked {
                Ok(true) => {}
                Ok(false) => {
                    self.freeze.until_ns = Some(until_ns);
                    return Ok(());
                }
                Err(error) => {
                    self.freeze.streams.clear();
                    return Err(failed(error));
                }
            }
        }
        if !self.freeze.is_under_way() {
            self.freeze_reached();
        }
        Ok(())
    }

    /// Every process stands still: says so to all who asked.
    pub fn freeze_reached(&mut self) {
        self.freeze.frozen = true;
        self.freeze.until_ns = None;
        for stream in std::mem::take(&mut self.freeze.streams) {
            self.answer(stream, Frozen { frozen: true });
        }
    }

    /// Lets everything run again and refuses those who still wait for a freeze.
    pub fn give_up_freeze(&mut self, reason: &str) {
        let thawed = self.cgroup.thaw();
        self.freeze.frozen = false;
        self.freeze.until_ns = None;
        let reason = match thawed {
            Ok(()) => reason.to_owned(),
            Err(error) => format!("{reason}; thawing: {error}"),
        };
        let refused = Refused::new("freeze_failed", reason);
        for stream in std::mem::take(&mut self.freeze.streams) {
            append_refusal(&mut self.unsent.bytes, stream, &refused);
        }
    }

    fn thaw(&mut self) -> std::result::Result<(), Refused> {
        if self.freeze.is_under_way() {
            self.give_up_freeze("thawed before everything stood still");
            return Ok(());
        }
        self.cgroup.thaw().map_err(|error| internal(&error))?;
        self.freeze.frozen = false;
        Ok(())
    }

    fn identify(&mut self, stream: u16, identity: &Identity) -> std::result::Result<(), Refused> {
        if identity.entropy.len() < 2 * ENTROPY_BYTES_MIN {
            let message = format!("entropy has less than {ENTROPY_BYTES_MIN} bytes");
            return Err(Refused::new("bad_request", message));
        }
        let ran_before_identity = !self.freeze.frozen;
        for exec in self.execs.iter().filter(|exec| exec.stream().is_none()) {
            exec.signal(libc::SIGKILL);
        }
        let failed = |failure: String| Refused::new("identify_failed", failure);
        self.seats.take_over(identity).map_err(|failure| failed(failure.to_string()))?;
        self.manner.hostname.clone_from(&identity.hostname);
        let now = network::current().map_err(|error| failed(format!("network: {error}")))?;
        let hostname = sys::hostname().map_err(|error| failed(format!("hostname: {error}")))?;
        self.thaw().map_err(|refused| failed(format!("thaw: {}", refused.message)))?;
        let identified = Identified {
            mac: now.map(|now| network::format_mac(now.mac)),
            ip: now.and_then(|now| now.ip),
            hostname,
            ran_before_identity,
        };
        self.answer(stream, identified);
        Ok(())
    }

    fn shutdown(&mut self, stream: u16, request: &ShutdownRequest) -> std::result::Result<(), Refused> {
        let timeout_s = request.timeout_s.unwrap_or(SHUTDOWN_TIMEOUT_S);
        // A time of 0 is "at once" here, and not "never".
        self.kill_at_ns = deadline_ns(timeout_s)?.or_else(|| Some(sys::monotonic_ns()));
        self.thaw()?;
        self.signal_workload(libc::SIGTERM);
        self.answer(stream, Nothing {});
        Ok(())
    }
}

fn parse<T: DeserializeOwned>(payload: &[u8]) -> std::result::Result<T, Refused> {
    serde_json::from_slice(payload).map_err(|error| Refused::new("bad_request", error.to_string()))
}

/// When a time-out that begins now is over; None for 0.
fn deadline_ns(timeout_s: f64) -> std::result::Result<Option<u64>, Refused> {
    if timeout_s.is_nan() || timeout_s < 0.0 {
        return Err(Refused::new("bad_request", "timeout_s is negative"));
    }
    let length_ns = (timeout_s.min(TIMEOUT_S_MAX) * NANOS_PER_SECOND as f64) as u64;
    Ok((length_ns > 0).then(|| sys::monotonic_ns() + length_ns))
}
