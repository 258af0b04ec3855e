//! The control thread: the API, the sessions' sockets, and who of the VMMs still lives.

use std::collections::{HashMap, VecDeque};
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::base::{Base, Identity};
use crate::client::{Client, Gone};
use crate::limits::{CONTROL_CONNECTIONS_MAX, RECENT_ENDS_MAX, SOCKET_PATH_BYTES_MAX};
use crate::log;
use crate::pool::Pool;
use crate::protocol::{self, Refusal, Request};
use crate::served::End;
use crate::session::{Session, Step};
use crate::sys::{self, Epoll, READABLE, WRITABLE};

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

#[derive(Default)]
struct Totals {
    opened: u64,
    closed: u64,
    exited: u64,
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
    bases: HashMap<Identity, Weak<Base>>,
    client_count: usize,
    draining: bool,
    totals: Totals,
    recent_ends: VecDeque<Value>,
}

impl Server {
    /// Takes SIGTERM, SIGINT and SIGHUP over: start no thread before.
    pub fn new(
        folder: PathBuf,
        control: UnixListener,
        worker_count: usize,
        session_count_max: usize,
    ) -> Result<Self> {
        control.set_nonblocking(true)?;
        let signals = sys::receive_signals(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP])?;
        let mut server = Self {
            folder,
            epoll: Epoll::new()?,
            watched: HashMap::new(),
            token_last: 0,
            control,
            signals,
            pool: Pool::start(worker_count)?,
            sessions: HashMap::new(),
            session_count_max,
            bases: HashMap::new(),
            client_count: 0,
            draining: false,
            totals: Totals::default(),
            recent_ends: VecDeque::new(),
        };
        server.watch(server.control.as_raw_fd(), Watched::Control)?;
        server.watch(server.signals.as_raw_fd(), Watched::Signals)?;
        server.watch(server.pool.wakeup.fd(), Watched::Workers)?;
        Ok(server)
    }

    /// Serves until it has been drained.
    pub fn run(mut self) -> Result<()> {
        while !(self.draining && self.sessions.is_empty()) {
            for token in self.epoll.wait(READY_MAX, self.time_left())? {
                self.see(token)?;
            }
            self.end_late_greetings();
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
                for (token, end) in self.pool.take_ended() {
                    if let Some(Watched::Session(id)) = self.watched.get(&token) {
                        let id = id.clone();
                        self.end(&id, &end);
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
            let result = protocol::parse(&line).and_then(|request| self.perform(request));
            client.send(&protocol::answer(result))?;
        }
        Ok(())
    }

    fn perform(&mut self, request: Request) -> std::result::Result<Value, Refusal> {
        match request {
            Request::Health {} => Ok(json!({
                "version": env!("CARGO_PKG_VERSION"),
                "pid": std::process::id(),
                "draining": self.draining,
                "sessions": self.sessions.len(),
            })),
            Request::Stats {} => Ok(self.statistics()),
            Request::OpenSession { id, base, size } => self.open(id, &base, size),
            Request::CloseSession { id } => {
                if !self.sessions.contains_key(&id) {
                    return Err(Refusal::new("no_such_session", format!("there is no session {id}")));
                }
                Ok(json!({ "vmm_ended": self.end(&id, &End::Closed) }))
            }
            Request::Drain {} => {
                self.drain();
                Ok(json!({ "sessions": self.sessions.len() }))
            }
        }
    }

    fn statistics(&self) -> Value {
        let sessions: Vec<Value> =
            self.sessions.iter().map(|(id, (_, session))| session.describe(id)).collect();
        json!({
            "opened": self.totals.opened,
            "closed": self.totals.closed,
            "exited": self.totals.exited,
            "failed": self.totals.failed,
            "sessions": sessions,
            "recent_ends": self.recent_ends,
        })
    }

    fn drain(&mut self) {
        if !self.draining {
            self.draining = true;
            log::event("draining", &json!({ "sessions": self.sessions.len() }));
        }
    }

    // ---- sessions

    fn open(&mut self, id: String, path: &str, size_bytes: u64) -> std::result::Result<Value, Refusal> {
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
        let base =
            self.base(path).map_err(|error| Refusal::new("base_unusable", format!("{path}: {error}")))?;
        let failed = |error: Error| Refusal::new("internal_error", error.to_string());
        let session = Session::open(base, size_bytes, socket.clone()).map_err(failed)?;
        let token = self.watch(session.fd(), Watched::Session(id.clone())).map_err(failed)?;
        self.totals.opened += 1;
        log::event("session_opened", &json!({ "session": id, "base": path, "size": size_bytes }));
        self.sessions.insert(id, (token, session));
        Ok(json!({ "socket": socket.to_string_lossy() }))
    }

    /// The base at `path`, mapped once for all sessions that use it.
    fn base(&mut self, path: &str) -> Result<Arc<Base>> {
        self.bases.retain(|_, base| base.strong_count() > 0);
        let fresh = Base::open(path)?;
        if let Some(known) = self.bases.get(&fresh.identity()).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let fresh = Arc::new(fresh);
        self.bases.insert(fresh.identity(), Arc::downgrade(&fresh));
        Ok(fresh)
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
            End::Failed(reason) => (&mut self.totals.failed, Some(reason)),
        };
        *how += 1;
        let name = match end {
            End::Closed => "closed",
            End::VmmExited => "vmm_exited",
            End::Failed(_) => "failed",
        };
        // One that exited by itself needs no end, and one whose memory is gone is about to exit.
        let killed = if matches!(end, End::VmmExited) { Ok(None) } else { session.end_vmm() };
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
        matches!(killed, Ok(Some(_)))
    }

    fn time_left(&self) -> Option<Duration> {
        let first = self.sessions.values().filter_map(|(_, session)| session.deadline()).min()?;
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
