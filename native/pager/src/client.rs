//! One connection to the control API.
//!
//! A client that does not read its answers gets no further requests served, so what waits for it stays one
//! answer long.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use crate::limits::REQUEST_LINE_BYTES_MAX;

pub struct Client {
    connection: UnixStream,
    received: Vec<u8>,
    to_send: Vec<u8>,
    /// The session whose completion is to be answered before anything else.
    pub waits_for: Option<String>,
}

/// The connection is of no more use.
pub struct Gone;

impl Client {
    pub fn new(connection: UnixStream) -> std::io::Result<Self> {
        connection.set_nonblocking(true)?;
        Ok(Self { connection, received: Vec::new(), to_send: Vec::new(), waits_for: None })
    }

    pub fn fd(&self) -> RawFd {
        self.connection.as_raw_fd()
    }

    /// True: wait until it can be written to. False: wait for its requests.
    pub fn is_behind(&self) -> bool {
        !self.to_send.is_empty()
    }

    /// Sends and receives what is possible now.
    pub fn advance(&mut self) -> Result<(), Gone> {
        self.flush()?;
        if self.is_behind() {
            return Ok(());
        }
        let mut piece = [0; 4096];
        match self.connection.read(&mut piece) {
            Ok(0) => Err(Gone),
            Ok(count) => {
                self.received.extend_from_slice(&piece[..count]);
                if self.waits_for.is_some() && self.received.len() > REQUEST_LINE_BYTES_MAX {
                    return Err(Gone); // It asks on and on without having been answered.
                }
                Ok(())
            }
            Err(error) if is_transient(&error) => Ok(()),
            Err(_) => Err(Gone),
        }
    }

    /// The next whole request, without its newline; none while an answer waits to be made or sent.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, Gone> {
        if self.is_behind() || self.waits_for.is_some() {
            return Ok(None);
        }
        match self.received.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                let mut line: Vec<u8> = self.received.drain(..=end).collect();
                line.pop();
                Ok(Some(line))
            }
            None if self.received.len() > REQUEST_LINE_BYTES_MAX => Err(Gone),
            None => Ok(None),
        }
    }

    pub fn send(&mut self, answer: &[u8]) -> Result<(), Gone> {
        self.to_send.extend_from_slice(answer);
        self.flush()
    }

    fn flush(&mut self) -> Result<(), Gone> {
        while self.is_behind() {
            match self.connection.write(&self.to_send) {
                Ok(count) => drop(self.to_send.drain(..count)),
                Err(error) if is_transient(&error) => break,
                Err(_) => return Err(Gone),
            }
        }
        Ok(())
    }
}

fn is_transient(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
