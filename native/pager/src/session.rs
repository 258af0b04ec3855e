//! One session, from its socket to its VMM's end. The control thread owns it; faults are the workers' part.

use std::io::{ErrorKind, Result};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::{json, Value};

use crate::base::Base;
use crate::counters::Counters;
use crate::handshake::{self, Handshake};
use crate::limits::{HANDSHAKE_BYTES_MAX, HANDSHAKE_PIECES_MAX, HANDSHAKE_TIMEOUT};
use crate::memory::{Memory, Overlays};
use crate::pages::WorkingSet;
use crate::served::{Served, Start};
use crate::sys::{self, Peer};
use crate::uffd::{self, Uffd};

enum Phase {
    /// Nobody connected yet.
    Waiting(UnixListener),
    Linked(Link),
}

struct Link {
    /// Kept for as long as the session: in its end the VMM may see the session's.
    connection: UnixStream,
    peer: Peer,
    stage: Stage,
}

enum Stage {
    /// The VMM is telling where its memory is.
    Greeting(Greeting),
    /// Its faults are served.
    Serving(Arc<Served>),
}

struct Greeting {
    text: Vec<u8>,
    fds: Vec<OwnedFd>,
    piece_count: usize,
    deadline: Instant,
}

/// What `Session::advance` did.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing, or not enough yet: wait for the same descriptor.
    None,
    /// There is another descriptor to wait for.
    Connected,
    /// As `Connected`; and faults are to be served from now on.
    Serving,
    /// The VMM is gone.
    VmmExited,
}

/// What a session is opened with.
pub struct Plan {
    pub base: Arc<Base>,
    pub size_bytes: u64,
    pub overlays: Overlays,
    pub start: Start,
}

pub struct Session {
    base: Arc<Base>,
    size_bytes: u64,
    /// What its memory begins with; taken when it does.
    beginning: Option<(Overlays, Start)>,
    is_recorder: bool,
    socket: PathBuf,
    phase: Phase,
}

impl Session {
    /// Opens a session whose VMM is to connect to `socket`.
    pub fn open(plan: Plan, socket: PathBuf) -> Result<Self> {
        remove_socket(&socket)?;
        let listener = UnixListener::bind(&socket)?;
        listener.set_nonblocking(true)?;
        let Plan { base, size_bytes, overlays, start } = plan;
        let is_recorder = matches!(start, Start::Recording);
        let beginning = Some((overlays, start));
        Ok(Self { base, size_bytes, beginning, is_recorder, socket, phase: Phase::Waiting(listener) })
    }

    pub fn base(&self) -> &Arc<Base> {
        &self.base
    }

    /// Whether it records a working set, or will when its VMM is there.
    pub fn is_recorder(&self) -> bool {
        self.is_recorder
    }

    /// Its guest is ready: ends the recording and returns what it touched until now. None: nothing is recorded.
    pub fn take_recorded(&mut self) -> Option<WorkingSet> {
        let served = self.served()?;
        let recorded = served.take_recorded();
        self.is_recorder = false;
        recorded
    }

    /// What to wait for: when it is readable, `advance`.
    pub fn fd(&self) -> RawFd {
        match &self.phase {
            Phase::Waiting(listener) => listener.as_raw_fd(),
            Phase::Linked(Link { connection, stage: Stage::Greeting(_), .. }) => connection.as_raw_fd(),
            Phase::Linked(Link { peer, stage: Stage::Serving(_), .. }) => peer.pidfd.as_raw_fd(),
        }
    }

    /// When the VMM must have introduced itself.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Linked(Link { stage: Stage::Greeting(greeting), .. }) => Some(greeting.deadline),
            _ => None,
        }
    }

    pub fn served(&self) -> Option<&Arc<Served>> {
        match &self.phase {
            Phase::Linked(Link { stage: Stage::Serving(served), .. }) => Some(served),
            _ => None,
        }
    }

    /// Does what the descriptor being readable calls for. An error is the session's end.
    pub fn advance(&mut self) -> std::result::Result<Step, String> {
        match &mut self.phase {
            Phase::Waiting(listener) => match listener.accept() {
                Ok((connection, _)) => {
                    self.phase = Phase::Linked(Link::new(connection)?);
                    // One VMM a session: whoever comes second finds nothing.
                    remove_socket(&self.socket).map_err(|error| format!("removing its socket: {error}"))?;
                    Ok(Step::Connected)
                }
                Err(error) if is_transient(&error) => Ok(Step::None),
                Err(error) => Err(format!("accepting the VMM: {error}")),
            },
            Phase::Linked(link) => link.advance(&self.base, self.size_bytes, &mut self.beginning),
        }
    }

    /// Ends a VMM whose memory depends on this session: its next fault would put it to sleep for ever.
    /// Returns its pid, if there was one to end.
    pub fn end_vmm(&self) -> Result<Option<i32>> {
        let Phase::Linked(Link { peer, stage, .. }) = &self.phase else { return Ok(None) };
        let depends = match stage {
            Stage::Serving(_) => true,
            Stage::Greeting(greeting) => greeting.fds.iter().any(uffd::is_userfaultfd),
        };
        if !depends {
            return Ok(None);
        }
        peer.kill()?;
        Ok(Some(peer.pid))
    }

    /// For `stats`.
    pub fn describe(&self, id: &str) -> Value {
        let (phase, pid) = match &self.phase {
            Phase::Waiting(_) => ("waiting", None),
            Phase::Linked(Link { stage: Stage::Greeting(_), peer, .. }) => ("greeting", Some(peer.pid)),
            Phase::Linked(Link { stage: Stage::Serving(_), peer, .. }) => ("serving", Some(peer.pid)),
        };
        let unserved = Counters::default();
        let mut fields = self.served().map_or(&unserved, |served| &served.counters).describe();
        fields["id"] = json!(id);
        fields["phase"] = json!(phase);
        fields["vmm_pid"] = json!(pid);
        fields["size"] = json!(self.size_bytes);
        fields["recording"] = json!(self.is_recorder);
        fields
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Phase::Waiting(_) = self.phase {
            // If it cannot be removed, the next session of that name will say so.
            let _ = remove_socket(&self.socket);
        }
    }
}

impl Link {
    fn new(connection: UnixStream) -> std::result::Result<Self, String> {
        let peer = sys::peer_of(connection.as_raw_fd()).map_err(|error| format!("who connected: {error}"))?;
        let stage = Stage::Greeting(Greeting {
            text: Vec::new(),
            fds: Vec::new(),
            piece_count: 0,
            deadline: Instant::now() + HANDSHAKE_TIMEOUT,
        });
        Ok(Self { connection, peer, stage })
    }

    fn advance(
        &mut self,
        base: &Arc<Base>,
        session_bytes: u64,
        beginning: &mut Option<(Overlays, Start)>,
    ) -> std::result::Result<Step, String> {
        let Stage::Greeting(greeting) = &mut self.stage else { return Ok(Step::VmmExited) };
        let text = match greeting.receive(&self.connection)? {
            Some(text) => handshake::parse(text, session_bytes)?,
            None => return Ok(Step::None),
        };
        let Handshake::Whole(mappings) = text else { return Ok(Step::None) };
        if greeting.fds.len() != 1 {
            return Err(format!("{} descriptors came with the handshake, not one", greeting.fds.len()));
        }
        // A copy, so that the greeting still tells on whom the VMM depends if this fails.
        let fd = greeting.fds[0].try_clone().map_err(|error| format!("its descriptor: {error}"))?;
        let uffd = Uffd::new(fd).map_err(|error| format!("its descriptor: {error}"))?;
        let (overlays, start) = beginning.take().unwrap_or_else(|| unreachable!("a handshake is whole once"));
        let served = Served::new(uffd, Memory::new(mappings, overlays), Arc::clone(base), start)
            .map_err(|error| format!("serving it: {error}"))?;
        self.stage = Stage::Serving(Arc::new(served));
        Ok(Step::Serving)
    }
}

impl Greeting {
    /// All text so far, if a new piece of it is there.
    fn receive(&mut self, connection: &UnixStream) -> std::result::Result<Option<&[u8]>, String> {
        let mut piece = [0; 4096];
        let count = match sys::receive(connection.as_raw_fd(), &mut piece, &mut self.fds) {
            Ok(0) => return Err("the VMM hung up before its handshake was whole".to_owned()),
            Ok(count) => count,
            Err(error) if is_transient(&error) => return Ok(None),
            Err(error) => return Err(format!("receiving the handshake: {error}")),
        };
        self.text.extend_from_slice(&piece[..count]);
        self.piece_count += 1;
        if self.fds.len() > 1 {
            return Err("more than one descriptor came with the handshake".to_owned());
        }
        if self.text.len() > HANDSHAKE_BYTES_MAX || self.piece_count > HANDSHAKE_PIECES_MAX {
            return Err("the handshake is too long".to_owned());
        }
        Ok(Some(&self.text))
    }
}

fn is_transient(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn remove_socket(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
