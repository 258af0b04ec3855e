//! The guest's frames: however bytes are cut, they mean the same, and a frame encodes to what it was.
//!
//! The first byte decides how the rest is cut.
#![cfg_attr(fuzzing, no_main)]

mod entry;
#[path = "../../guest/src/frames.rs"]
#[allow(dead_code)]
mod frames;

use entry::fuzz_target;
use frames::{
    append_frame, append_hello, append_raw, Event, Receiver, HELLO, MAGIC, PAYLOAD_BYTES_MAX, STDIN,
};

#[derive(Debug, PartialEq)]
enum Seen {
    Reset,
    Error,
    Frame(u8, u16, Vec<u8>),
}

fn receive<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<Seen> {
    let mut receiver = Receiver::of_host_frames();
    let mut seen = Vec::new();
    for mut piece in pieces {
        while let Some(event) = receiver.next(&mut piece) {
            seen.push(match event {
                Event::Reset => Seen::Reset,
                Event::Error => Seen::Error,
                Event::Frame { kind, stream, payload } => Seen::Frame(kind, stream, payload.to_vec()),
            });
        }
    }
    seen
}

fuzz_target!(|data: &[u8]| {
    let Some((&seed, stream)) = data.split_first() else { return };
    let whole = receive([stream].into_iter());
    let cut = receive(stream.chunks(usize::from(seed) + 1));
    assert_eq!(whole, cut, "cut, the bytes mean something else");
    for event in whole {
        let Seen::Frame(kind, number, payload) = event else { continue };
        assert!(payload.len() <= PAYLOAD_BYTES_MAX);
        assert!(!payload.windows(MAGIC.len()).any(|window| window == MAGIC));
        let mut wire = Vec::new();
        append_hello(&mut wire, HELLO, if kind == HELLO { &payload } else { b"" });
        if kind != HELLO {
            append_frame(&mut wire, kind, number, &payload);
        }
        let again = receive([&wire[..]].into_iter());
        // A hello is always of stream 0 when we send it.
        let number = if kind == HELLO { 0 } else { number };
        assert_eq!(again.last(), Some(&Seen::Frame(kind, number, payload)));
    }
    // Raw data may hold anything, and arrives as it was.
    let mut wire = Vec::new();
    append_hello(&mut wire, HELLO, b"");
    append_raw(&mut wire, STDIN, 1, stream);
    let mut arrived = Vec::new();
    for event in receive(wire.chunks(usize::from(seed) + 1)).into_iter().skip(2) {
        let Seen::Frame(STDIN, 1, payload) = event else { panic!("{event:?}") };
        arrived.extend(payload);
    }
    assert!(arrived == stream, "raw data arrives changed");
});
