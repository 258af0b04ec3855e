use super::*;
use serde_json::Value;

#[derive(Debug, Clone, PartialEq)]
enum Seen {
    Reset,
    Frame(u8, u16, Vec<u8>),
    Error,
}

fn feed(receiver: &mut Receiver, mut input: &[u8], seen: &mut Vec<Seen>) {
    while let Some(event) = receiver.next(&mut input) {
        seen.push(match event {
            Event::Reset => Seen::Reset,
            Event::Error => Seen::Error,
            Event::Frame { kind, stream, payload } => Seen::Frame(kind, stream, payload.to_vec()),
        });
    }
}

fn frame(kind: u8, stream: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    append_frame(&mut out, kind, stream, payload);
    out
}

fn hello() -> Vec<u8> {
    let mut out = Vec::new();
    append_hello(&mut out, HELLO, b"{}");
    out
}

fn vectors() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/wire/vectors.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for token in value.as_str().unwrap().split(' ').filter(|t| !t.is_empty()) {
        let (hex, count) = token.split_once('*').unwrap_or((token, "1"));
        let once: Vec<u8> =
            (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
        out.extend(once.repeat(count.parse().unwrap()));
    }
    out
}

fn expected(value: &Value) -> Seen {
    match value.as_str() {
        Some("reset") => Seen::Reset,
        Some("error") => Seen::Error,
        _ => Seen::Frame(
            value["type"].as_u64().unwrap() as u8,
            value["stream"].as_u64().unwrap() as u16,
            bytes(&value["payload"]),
        ),
    }
}

/// A generator of the xorshift family: the same numbers on every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

#[test]
fn the_shared_vectors_decode_as_chunks_as_a_whole_and_byte_by_byte() {
    for case in vectors()["decode"].as_array().unwrap() {
        let chunks: Vec<Vec<u8>> = case["chunks"].as_array().unwrap().iter().map(bytes).collect();
        let events: Vec<Seen> = case["events"].as_array().unwrap().iter().map(expected).collect();
        let whole = vec![chunks.concat()];
        let single: Vec<Vec<u8>> = whole[0].iter().map(|byte| vec![*byte]).collect();
        for feeding in [chunks, whole, single] {
            let mut receiver = match case["direction"].as_str().unwrap() {
                "host_to_guest" => Receiver::of_host_frames(),
                _ => Receiver::of_guest_frames(),
            };
            let mut seen = Vec::new();
            for chunk in &feeding {
                feed(&mut receiver, chunk, &mut seen);
            }
            assert_eq!(seen, events, "{}", case["name"]);
        }
    }
}

#[test]
fn the_shared_vectors_encode() {
    for case in vectors()["encode"].as_array().unwrap() {
        let mut wire = Vec::new();
        for sent in case["frames"].as_array().unwrap() {
            let Seen::Frame(kind, stream, payload) = expected(sent) else { panic!("not a frame: {sent}") };
            match kind {
                HELLO | HELLO_ACK => append_hello(&mut wire, kind, &payload),
                STDIN | STDOUT | STDERR => append_raw(&mut wire, kind, stream, &payload),
                _ => append_frame(&mut wire, kind, stream, &payload),
            }
        }
        assert!(wire == bytes(&case["wire"]), "{}", case["name"]);
    }
}

#[test]
fn a_hello_is_found_behind_a_half_finished_frame_of_every_length() {
    let mut payload = vec![7; 60];
    payload.extend(&MAGIC[..15]);
    let unfinished = frame(STDIN, 3, &payload);
    for length in 0..unfinished.len() {
        let mut receiver = Receiver::of_host_frames();
        let mut seen = Vec::new();
        feed(&mut receiver, &hello(), &mut seen);
        seen.clear();
        feed(&mut receiver, &unfinished[..length], &mut seen);
        feed(&mut receiver, &hello(), &mut seen);
        feed(&mut receiver, &frame(REQUEST, 1, b"{}"), &mut seen);
        let tail = seen.split_off(seen.len() - 3);
        let wanted =
            [Seen::Reset, Seen::Frame(HELLO, 0, b"{}".to_vec()), Seen::Frame(REQUEST, 1, b"{}".to_vec())];
        assert_eq!(tail, wanted, "cut after {length} bytes");
        // What the first bytes of MAGIC complete is the only thing that may stand before it.
        let completed = length + MAGIC.len() > unfinished.len();
        assert_eq!(seen.len(), usize::from(completed), "cut after {length} bytes: {seen:?}");
    }
}

#[test]
fn a_refused_frame_that_magic_completed_does_not_hide_the_hello() {
    let mut receiver = Receiver::of_host_frames();
    let unfinished = frame(STDIN, 3, &[7; 20]);
    let mut wire = hello();
    wire.extend(&unfinished[..unfinished.len() - 5]);
    wire.extend(hello());
    let mut input = &wire[..];
    let mut resets = 0;
    loop {
        match receiver.next(&mut input) {
            None => break,
            Some(Event::Reset) => resets += 1,
            Some(Event::Frame { kind: STDIN, .. }) => receiver.distrust(),
            Some(_) => {}
        }
    }
    assert_eq!(resets, 2);
}

#[test]
fn random_data_full_of_magic_arrives_whole_and_resets_nothing() {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for _ in 0..300 {
        let mut data = Vec::new();
        for _ in 0..numbers.below(40) {
            match numbers.below(3) {
                0 => data.extend(&MAGIC),
                1 => data.extend(&MAGIC[..numbers.below(16)]),
                _ => data.push(numbers.below(256) as u8),
            }
        }
        let mut wire = hello();
        append_raw(&mut wire, STDIN, 9, &data);
        let mut receiver = Receiver::of_host_frames();
        let mut seen = Vec::new();
        let mut rest = &wire[..];
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(1 + numbers.below(rest.len()));
            feed(&mut receiver, chunk, &mut seen);
            rest = after;
        }
        let mut arrived: Vec<u8> = Vec::new();
        for event in &seen[2..] {
            let Seen::Frame(STDIN, 9, payload) = event else { panic!("not a frame of data: {event:?}") };
            arrived.extend(payload);
        }
        assert_eq!(arrived, data);
    }
}

#[test]
fn random_bytes_never_hide_a_later_hello() {
    let mut numbers = Numbers(42);
    for _ in 0..500 {
        let mut wire = hello();
        for _ in 0..numbers.below(200) {
            match numbers.below(4) {
                0 => wire.push(0),
                1 => wire.extend(&MAGIC[..numbers.below(16)]),
                2 => wire.extend(&frame(STDIN, 1, &[5; 30])[..numbers.below(38)]),
                _ => wire.push(numbers.below(256) as u8),
            }
        }
        wire.extend(hello());
        wire.extend(frame(REQUEST, 5, b"{}"));
        let (mut whole, mut single) = (Vec::new(), Vec::new());
        feed(&mut Receiver::of_host_frames(), &wire, &mut whole);
        let mut receiver = Receiver::of_host_frames();
        for byte in &wire {
            feed(&mut receiver, &[*byte], &mut single);
        }
        assert_eq!(whole, single);
        assert_eq!(whole.last(), Some(&Seen::Frame(REQUEST, 5, b"{}".to_vec())));
    }
}
