//! The control thread: the API, the sessions' sockets, and who of the VMMs still lives.

use std::collections::{HashMap, VecDeque};
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::base::Base;
use crate::bases::Bases;
use crate::client::{Client, Gone};
use crate::limits::{CONTROL_CONNECTIONS_MAX, RECENT_ENDS_MAX, SOCKET_PATH_BYTES_MAX};
use crate::log;
use crate::overlays;
use crate::pool::{Notice, Pool};
use crate::protocol::{self, OpenSession, Refusal, Request, WorkingSetUse};
use crate::served::{End, Start};
use crate::session::{Plan, Session, Step};
use crate::sys::{self, Epoll, READABLE, WRITABLE};
use crate::working_sets::WorkingSets;

/// Descriptors looked at after one wait.
const READY_MAX: usize = 64;

/// What a token of the epoll stands for. Tokens are never used twice, so a late event finds nothing.
enum Watched {
    Control,
    Signals,
    Workers,
    Client(Client),
    Session(String),
}

/// What a request gets.
enum Reply {
    Now(Value),
    /// An answer when the completion of this session has come to its end.
    Later(String),
}

type Outcome = std::result::Result<Value, Refusal>;

/// How much there may be of everything that depends on the host.
pub struct Room {
    pub worker_count: usize,
    pub session_count_max: usize,
    pub cache_bytes_max: usize,
}

#[derive(Default)]
struct Totals {
    opened: u64,
    closed: u64,
    exited: u64,
    completed: u64,
    failed: u64,
}

pub struct Server {
    folder: PathBuf,
    epoll: Epoll,
    watched: HashMap<u64, Watched>,
    token_last: u64,
    control: UnixListener,
    signals: OwnedFd,
    pool: Arc<Pool>,
    /// By id, with the token by which it is watched now and, once it is served, the pool knows it.
    sessions: HashMap<String, (u64, Session)>,
    session_count_max: usize,
    bases: Bases,
    working_sets: WorkingSets,
    client_count: usize,
    draining: bool,
    totals: Totals,
    recent_ends: VecDeque<Value>,
    /// What has become of sessions that somebody may want to have completed.
    outcomes: Vec<(String, Outcome)>,
}

impl Server {
    /// Takes SIGTERM, SIGINT and SIGHUP over: start no thread before.
    pub fn new(folder: PathBuf, control: UnixListener, room: &Room) -> Result<Self> {
        control.set_nonblocking(true)?;
        let signals = sys::receive_signals(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP])?;
        let mut server = Self {
            folder,
            epoll: Epoll::new()?,
            watched: HashMap::new(),
            token_last: 0,
            control,
            signals,
            pool: Pool::start(room.worker_count)?,
            sessions: HashMap::new(),
            session_count_max: room.session_count_max,
            bases: Bases::new(room.cache_bytes_max),
            working_sets: WorkingSets::default(),
            client_count: 0,
            draining: false,
            totals: Totals::default(),
            recent_ends: VecDeque::new(),
            outcomes: Vec::new(),
        };
        server.watch(server.control.as_raw_fd(), Watched::Control)?;
        server.watch(server.signals.as_raw_fd(), Watched::Signals)?;
        server.watch(server.pool.wakeup.fd(), Watched::Workers)?;
        Ok(server)
    }

    /// Serves until it has been drained.
    pub fn run(mut self) -> Result<()> {
        while !(self.draining && self.sessions.is_empty()) {
            let mut tokens = self.epoll.wait(READY_MAX, self.time_left())?;
            // Who has hung up makes room for who comes.
            tokens.sort_by_key(|token| matches!(self.watched.get(token), Some(Watched::Control)));
            for token in tokens {
                self.see(token)?;
                self.answer_all()?;
            }
            self.end_late_greetings();
            self.answer_all()?;
            self.bases.sweep(Instant::now());
        }
        log::event("drained", &json!({}));
        Ok(())
    }

    fn watch(&mut self, fd: RawFd, what: Watched) -> Result<u64> {
        self.token_last += 1;
        self.epoll.add(fd, READABLE, self.token_last)?;
        self.watched.insert(self.token_last, what);
        Ok(self.token_last)
    }

    fn see(&mut self, token: u64) -> Result<()> {
        match self.watched.get(&token) {
            Some(Watched::Control) => self.accept_client(),
            Some(Watched::Signals) => {
                while let Some(number) = sys::next_signal(&self.signals) {
                    // Guests depend on us: only what asks us to go is heard, and we go when they have gone.
                    if number == libc::SIGTERM {
                        self.drain();
                    }
                }
                Ok(())
            }
            Some(Watched::Workers) => {
                for (token, notice) in self.pool.take_notices() {
                    if let Some(Watched::Session(id)) = self.watched.get(&token) {
                        let id = id.clone();
                        self.hear(&id, notice);
                    }
                }
                Ok(())
            }
            Some(Watched::Client(_)) => self.advance_client(token),
            Some(Watched::Session(id)) => {
                let id = id.clone();
                self.advance_session(&id);
                Ok(())
            }
            None => Ok(()),
        }
    }

    // ---- control connections

    fn accept_client(&mut self) -> Result<()> {
        let connection = match self.control.accept() {
            Ok((connection, _)) => connection,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(())
            }
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => return Ok(()),
            Err(error) => return Err(error),
        };
        if self.client_count >= CONTROL_CONNECTIONS_MAX {
            return Ok(()); // It sees its connection closed.
        }
        let client = Client::new(connection)?;
        self.watch(client.fd(), Watched::Client(client))?;
        self.client_count += 1;
        Ok(())
    }

    fn advance_client(&mut self, token: u64) -> Result<()> {
        // Out of the table for the while: answering needs the rest of the server.
        let Some(Watched::Client(mut client)) = self.watched.remove(&token) else { return Ok(()) };
        if self.converse(&mut client).is_err() {
            self.client_count -= 1;
            return Ok(());
        }
        let events = if client.is_behind() { WRITABLE } else { READABLE };
        self.epoll.modify(client.fd(), events, token)?;
        self.watched.insert(token, Watched::Client(client));
        Ok(())
    }

    fn converse(&mut self, client: &mut Client) -> std::result::Result<(), Gone> {
        client.advance()?;
        while let Some(line) = client.next_line()? {
            match protocol::parse(&line).and_then(|request| self.perform(request)) {
                Ok(Reply::Now(value)) => client.send(&protocol::answer(Ok(value)))?,
                Ok(Reply::Later(id)) => client.waits_for = Some(id),
                Err(refusal) => client.send(&protocol::answer(Err(refusal)))?,
            }
        }
        Ok(())
    }

    fn answer_all(&mut self) -> Result<()> {
        for (id, outcome) in std::mem::take(&mut self.outcomes) {
            self.answer_waiting(&id, &outcome)?;
        }
        Ok(())
    }

    /// Answers all who wait for a session's completion.
    fn answer_waiting(&mut self, id: &str, outcome: &Outcome) -> Result<()> {
        let waits = |client: &Client| client.waits_for.as_deref() == Some(id);
        let waiting: Vec<u64> = self
            .watched
            .iter()
            .filter(|(_, what)| matches!(what, Watched::Client(client) if waits(client)))
            .map(|(token, _)| *token)
            .collect();
        for token in waiting {
            let Some(Watched::Client(client)) = self.watched.get_mut(&token) else { continue };
            client.waits_for = None;
            // If it is gone, advancing it tells so.
            let _ = client.send(&protocol::answer(outcome.clone()));
            self.advance_client(token)?;
        }
        Ok(())
    }

    fn perform(&mut self, request: Request) -> std::result::Result<Reply, Refusal> {
        let value = match request {
            Request::Health {} => json!({
                "version": env!("CARGO_PKG_VERSION"),
                "pid": std::process::id(),
                "draining": self.draining,
                "sessions": self.sessions.len(),
            }),
            Request::Stats {} => self.statistics(),
            Request::OpenSession(asked) => self.open(asked)?,
            Request::ReadySession { id } => self.ready(&id)?,
            Request::CompleteSession { id } => {
                self.complete(&id)?;
                return Ok(Reply::Later(id));
            }
            Request::CloseSession { id } => {
                self.session(&id)?;
                json!({ "vmm_ended": self.end(&id, &End::Closed) })
            }
            Request::Drain {} => {
                self.drain();
                json!({ "sessions": self.sessions.len() })
            }
        };
        Ok(Reply::Now(value))
    }

    fn session(&mut self, id: &str) -> std::result::Result<&mut (u64, Session), Refusal> {
        let refusal = || Refusal::new("no_such_session", format!("there is no session {id}"));
        self.sessions.get_mut(id).ok_or_else(refusal)
    }

    fn statistics(&self) -> Value {
        let sessions: Vec<Value> =
            self.sessions.iter().map(|(id, (_, session))| session.describe(id)).collect();
        json!({
            "opened": self.totals.opened,
            "closed": self.totals.closed,
            "exited": self.totals.exited,
            "completed": self.totals.completed,
            "failed": self.totals.failed,
            "sessions": sessions,
            "recent_ends": self.recent_ends,
            "bases": self.bases.len(),
            "cache": self.bases.cache().describe(),
            "working_sets": { "count": self.working_sets.len(), "bytes": self.working_sets.size_bytes() },
        })
    }

    fn drain(&mut self) {
        if !self.draining {
            self.draining = true;
            log::event("draining", &json!({ "sessions": self.sessions.len() }));
        }
    }

    // ---- sessions

    fn open(&mut self, asked: OpenSession) -> std::result::Result<Value, Refusal> {
        let id = asked.id;
        if self.draining {
            return Err(Refusal::new("draining", "this pager takes no new sessions"));
        }
        if self.sessions.contains_key(&id) {
            return Err(Refusal::new("session_exists", format!("there is a session {id} already")));
        }
        if self.sessions.len() >= self.session_count_max {
            let message = format!("{} sessions are open, which is the limit", self.sessions.len());
            return Err(Refusal::new("sessions_exhausted", message));
        }
        let socket = self.folder.join(format!("{id}.session"));
        if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(Refusal::new("bad_request", format!("{} is too long a path", socket.display())));
        }
        let overlays =
            overlays::read(&asked.overlays).map_err(|reason| Refusal::new("overlay_unusable", reason))?;
        let base = self
            .bases
            .open(&asked.base, asked.format)
            .map_err(|error| Refusal::new("base_unusable", format!("{}: {error}", asked.base)))?;
        let start = self.start(asked.working_set, &base);
        let working_set = match &start {
            Start::Plain => "off",
            Start::Recording => "recording",
            Start::Replaying(_) => "replaying",
        };
        let failed = |error: Error| Refusal::new("internal_error", error.to_string());
        let plan = Plan { base, size_bytes: asked.size, overlays, start };
        let session = Session::open(plan, socket.clone()).map_err(failed)?;
        let token = self.watch(session.fd(), Watched::Session(id.clone())).map_err(failed)?;
        self.totals.opened += 1;
        let facts = json!({
            "session": id, "base": asked.base, "size": asked.size, "working_set": working_set,
            "overlays": asked.overlays.len(),
        });
        log::event("session_opened", &facts);
        self.sessions.insert(id, (token, session));
        Ok(json!({ "socket": socket.to_string_lossy(), "working_set": working_set }))
    }

    fn start(&mut self, wanted: WorkingSetUse, base: &Base) -> Start {
        let is_recorded = || {
            self.sessions
                .values()
                .any(|(_, other)| other.is_recorder() && other.base().identity() == base.identity())
        };
        match wanted {
            WorkingSetUse::Off => Start::Plain,
            WorkingSetUse::Record => Start::Recording,
            WorkingSetUse::Auto => match self.working_sets.get(&base.identity()) {
                Some(set) => Start::Replaying(set),
                None if is_recorded() => Start::Plain,
                None => Start::Recording,
            },
        }
    }

    /// A session's guest is ready: what it touched until now is its base's working set.
    fn ready(&mut self, id: &str) -> std::result::Result<Value, Refusal> {
        let (_, session) = self.session(id)?;
        if session.served().is_none() {
            return Err(Refusal::new("not_serving", "its VMM has not handed its memory over"));
        }
        let identity = session.base().identity();
        let Some(set) = session.take_recorded() else { return Ok(json!({ "recorded_pages": 0 })) };
        let page_count = set.page_count;
        log::event("working_set_recorded", &json!({ "session": id, "pages": page_count }));
        if page_count > 0 {
            self.working_sets.insert(identity, set);
        }
        Ok(json!({ "recorded_pages": page_count }))
    }

    /// Has a session's memory be filled and given over to the kernel.
    fn complete(&mut self, id: &str) -> std::result::Result<(), Refusal> {
        let (token, session) = self.session(id)?;
        let token = *token;
        let Some(served) = session.served().cloned() else {
            return Err(Refusal::new("not_serving", "its VMM has not handed its memory over"));
        };
        served.complete();
        self.pool.give_turn(token, &served).map_err(|error| Refusal::new("internal_error", error.to_string()))
    }

    fn hear(&mut self, id: &str, notice: Notice) {
        match notice {
            Notice::Ended(end) => drop(self.end(id, &end)),
            Notice::GaveUp { is_completion, reason } => {
                let name = if is_completion { "completion_failed" } else { "replay_failed" };
                log::event(name, &json!({ "session": id, "reason": reason }));
                if is_completion {
                    self.outcomes.push((id.to_owned(), Err(Refusal::new("completion_failed", reason))));
                }
            }
        }
    }

    fn advance_session(&mut self, id: &str) {
        let Some((_, session)) = self.sessions.get_mut(id) else { return };
        let fd = session.fd();
        match session.advance() {
            Ok(Step::None) => {}
            Ok(Step::VmmExited) => drop(self.end(id, &End::VmmExited)),
            Ok(step @ (Step::Connected | Step::Serving)) => {
                if step == Step::Serving {
                    // The connection stays open, but what more comes on it is nobody's concern.
                    let _ = self.epoll.remove(fd);
                }
                if let Err(error) = self.follow(id) {
                    self.end(id, &End::Failed(format!("waiting for it: {error}")));
                }
            }
            Err(reason) => drop(self.end(id, &End::Failed(reason))),
        }
    }

    /// Watches what a session is to be watched by since its last step.
    fn follow(&mut self, id: &str) -> Result<()> {
        let Some((token, session)) = self.sessions.get(id) else { return Ok(()) };
        let (before, fd, served) = (*token, session.fd(), session.served().cloned());
        self.watched.remove(&before);
        let token = self.watch(fd, Watched::Session(id.to_owned()))?;
        if let Some((known, _)) = self.sessions.get_mut(id) {
            *known = token;
        }
        served.map_or(Ok(()), |served| self.pool.add(token, &served))
    }

    /// Ends a session, and the VMM that depends on it. Returns whether there was such a VMM.
    fn end(&mut self, id: &str, end: &End) -> bool {
        let Some((token, session)) = self.sessions.remove(id) else { return false };
        self.watched.remove(&token);
        self.pool.remove(token);
        let (how, reason) = match end {
            End::Closed => (&mut self.totals.closed, None),
            End::VmmExited => (&mut self.totals.exited, None),
            End::Completed => (&mut self.totals.completed, None),
            End::Failed(reason) => (&mut self.totals.failed, Some(reason)),
        };
        *how += 1;
        let name = match end {
            End::Closed => "closed",
            End::VmmExited => "vmm_exited",
            End::Completed => "completed",
            End::Failed(_) => "failed",
        };
        // One that exited by itself needs no end, and one whose memory is all there needs us no more.
        let depends = matches!(end, End::Closed | End::Failed(_));
        let killed = if depends { session.end_vmm() } else { Ok(None) };
        let mut fields = session.describe(id);
        fields["how"] = json!(name);
        fields["reason"] = json!(reason);
        if let Err(error) = &killed {
            fields["kill_error"] = json!(error.to_string());
        }
        log::event("session_ended", &fields);
        if self.recent_ends.len() == RECENT_ENDS_MAX {
            self.recent_ends.pop_front();
        }
        self.recent_ends.push_back(json!({ "id": id, "how": name, "reason": reason }));
        let outcome = match end {
            End::Completed => Ok(json!({})),
            _ => Err(Refusal::new("no_such_session", format!("session {id} has ended: {name}"))),
        };
        self.outcomes.push((id.to_owned(), outcome));
        matches!(killed, Ok(Some(_)))
    }

    fn time_left(&self) -> Option<Duration> {
        let greetings = self.sessions.values().filter_map(|(_, session)| session.deadline());
        let first = greetings.chain(self.bases.next_sweep()).min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    fn end_late_greetings(&mut self) {
        let now = Instant::now();
        let is_late = |session: &Session| session.deadline().is_some_and(|deadline| deadline <= now);
        let late: Vec<String> = self
            .sessions
            .iter()
            .filter(|(_, (_, session))| is_late(session))
            .map(|(id, _)| id.clone())
            .collect();
        for id in late {
            self.end(&id, &End::Failed("the VMM did not finish its handshake in time".to_owned()));
        }
    }
}
