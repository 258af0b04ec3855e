//! The frame layer of `docs/guest-protocol.md`, without input or output.
//!
//! A [`Receiver`] is fed whatever bytes came and reports resets, frames and errors; it believes nothing before
//! a `MAGIC`, and finds a `MAGIC` inside anything. So a forked child, which inherits its parent's half-finished
//! conversation, needs no notice that its host is another one.

pub const MAGIC: [u8; 16] =
    [0xf5, 0x9d, 0xc2, 0xe8, 0xb1, 0xfa, 0x8f, 0xd6, 0xa4, 0xff, 0x93, 0xcb, 0xe0, 0xbd, 0xf1, 0x87];
pub const PAYLOAD_BYTES_MAX: usize = 65_536;
const HEADER_BYTES: usize = 8;

pub const HELLO: u8 = 1;
pub const HELLO_ACK: u8 = 2;
pub const REQUEST: u8 = 3;
pub const RESPONSE: u8 = 4;
pub const STDIN: u8 = 5;
pub const STDIN_EOF: u8 = 6;
pub const STDOUT: u8 = 7;
pub const STDERR: u8 = 8;
pub const CREDIT: u8 = 9;
pub const EXIT: u8 = 10;
pub const EVENT: u8 = 11;
pub const SIGNAL: u8 = 12;

/// What a receiver found in its input.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// `MAGIC`: everything before it is void.
    Reset,
    Frame {
        kind: u8,
        stream: u16,
        payload: &'a [u8],
    },
    /// A protocol error; nothing more is reported until the next `MAGIC`.
    Error,
}

enum State {
    /// Nothing is believed until the next `MAGIC`.
    Searching,
    /// A bad header that may turn out to be the beginning of a `MAGIC`.
    Doubtful,
    Header,
    Payload,
}

/// Turns bytes of one direction into events.
pub struct Receiver {
    state: State,
    hello: u8,
    /// Bit n is set if type n may come in this direction.
    known: u16,
    /// True directly behind a `MAGIC`.
    hello_due: bool,
    matched: usize,
    header: [u8; HEADER_BYTES],
    header_len: usize,
    payload: Vec<u8>,
    payload_len: usize,
}

impl Receiver {
    /// The guest's receiver.
    pub fn of_host_frames() -> Self {
        Self::new(HELLO, &[HELLO, REQUEST, STDIN, STDIN_EOF, CREDIT, SIGNAL])
    }

    /// The host's receiver; only the tests need it here.
    #[cfg(test)]
    pub fn of_guest_frames() -> Self {
        Self::new(HELLO_ACK, &[HELLO_ACK, RESPONSE, STDOUT, STDERR, CREDIT, EXIT, EVENT])
    }

    fn new(hello: u8, known: &[u8]) -> Self {
        Self {
            state: State::Searching,
            hello,
            known: known.iter().fold(0, |bits, kind| bits | 1 << kind),
            hello_due: false,
            matched: 0,
            header: [0; HEADER_BYTES],
            header_len: 0,
            payload: Vec::new(),
            payload_len: 0,
        }
    }

    /// Stops believing the stream until the next `MAGIC`. A `MAGIC` of which a part has been seen still counts:
    /// the frame that was refused may have been completed by it.
    pub fn distrust(&mut self) {
        self.state = State::Searching;
    }

    /// Takes bytes off the front of `input` until there is something to report; None when `input` is used up.
    pub fn next<'a>(&'a mut self, input: &mut &[u8]) -> Option<Event<'a>> {
        loop {
            if self.matched == 0 {
                self.take_in_bulk(input);
                if self.is_payload_complete() {
                    return Some(self.frame());
                }
            }
            let (&byte, rest) = input.split_first()?;
            *input = rest;
            if self.matches_magic(byte) {
                return Some(Event::Reset);
            }
            match self.state {
                State::Searching => {}
                State::Doubtful => {
                    if self.matched <= 1 {
                        self.state = State::Searching;
                        return Some(Event::Error);
                    }
                }
                State::Header => {
                    self.header[self.header_len] = byte;
                    self.header_len += 1;
                    if self.header_len == HEADER_BYTES && !self.accepts_header() {
                        if self.matched == 0 {
                            self.state = State::Searching;
                            return Some(Event::Error);
                        }
                        self.state = State::Doubtful;
                    }
                }
                State::Payload => self.payload.push(byte),
            }
            if self.is_payload_complete() {
                return Some(self.frame());
            }
        }
    }

    /// Takes the bytes that can neither begin a `MAGIC` nor belong to a header.
    fn take_in_bulk(&mut self, input: &mut &[u8]) {
        let wanted = match self.state {
            State::Searching => input.len(),
            State::Payload => input.len().min(self.payload_len - self.payload.len()),
            State::Header | State::Doubtful => return,
        };
        let plain = find_byte(&input[..wanted], MAGIC[0]).unwrap_or(wanted);
        if matches!(self.state, State::Payload) {
            self.payload.extend_from_slice(&input[..plain]);
        }
        *input = &input[plain..];
    }

    /// The bytes of `MAGIC` are all different, so a broken match can only begin again at its first byte.
    fn matches_magic(&mut self, byte: u8) -> bool {
        if byte == MAGIC[self.matched] {
            self.matched += 1;
        } else {
            self.matched = usize::from(byte == MAGIC[0]);
        }
        if self.matched < MAGIC.len() {
            return false;
        }
        self.matched = 0;
        self.state = State::Header;
        self.header_len = 0;
        self.hello_due = true;
        true
    }

    fn accepts_header(&mut self) -> bool {
        let [first, kind, _, _, high, middle, low, last] = self.header;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        let known = kind < 16 && self.known & (1 << kind) != 0;
        let hello = kind == self.hello;
        if first != 0 || last != 0 || !known || hello != self.hello_due || length > PAYLOAD_BYTES_MAX {
            return false;
        }
        self.hello_due = false;
        self.payload.clear();
        self.payload_len = length;
        self.state = State::Payload;
        true
    }

    fn is_payload_complete(&self) -> bool {
        matches!(self.state, State::Payload) && self.payload.len() == self.payload_len
    }

    fn frame(&mut self) -> Event<'_> {
        self.state = State::Header;
        self.header_len = 0;
        Event::Frame {
            kind: self.header[1],
            stream: u16::from_be_bytes([self.header[2], self.header[3]]),
            payload: &self.payload,
        }
    }
}

/// Appends one frame. The payload is at most `PAYLOAD_BYTES_MAX` bytes and holds no `MAGIC`.
pub fn append_frame(out: &mut Vec<u8>, kind: u8, stream: u16, payload: &[u8]) {
    debug_assert!(payload.len() <= PAYLOAD_BYTES_MAX);
    let [_, high, middle, low] = (payload.len() as u32).to_be_bytes();
    let [stream_high, stream_low] = stream.to_be_bytes();
    out.extend_from_slice(&[0, kind, stream_high, stream_low, high, middle, low, 0]);
    out.extend_from_slice(payload);
}

/// Appends a hello, which is the one frame with `MAGIC` before it.
pub fn append_hello(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    out.extend_from_slice(&MAGIC);
    append_frame(out, kind, 0, payload);
}

/// Appends raw data as one frame or several, cut so that no `MAGIC` stands on the wire.
pub fn append_raw(out: &mut Vec<u8>, kind: u8, stream: u16, mut data: &[u8]) {
    while !data.is_empty() {
        let uncut = find_magic(data).map_or(data.len(), |index| index + 1);
        let (piece, rest) = data.split_at(uncut.min(PAYLOAD_BYTES_MAX));
        append_frame(out, kind, stream, piece);
        data = rest;
    }
}

fn find_magic(data: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(index) = find_byte(&data[from..], MAGIC[0]) {
        if data[from + index..].starts_with(&MAGIC) {
            return Some(from + index);
        }
        from += index + 1;
    }
    None
}

fn find_byte(data: &[u8], byte: u8) -> Option<usize> {
    // SAFETY: memchr reads `data.len()` bytes of a live slice, and what it returns points into it.
    let found = unsafe { libc::memchr(data.as_ptr().cast(), i32::from(byte), data.len()) };
    (!found.is_null()).then(|| found as usize - data.as_ptr() as usize)
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
