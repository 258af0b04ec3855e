//! What a VMM says when it connects: mappings that lie within the session and do not overlap, or a refusal.
#![cfg_attr(fuzzing, no_main)]

mod entry;
#[path = "../../pager/src/handshake.rs"]
#[allow(dead_code)]
mod handshake;
#[path = "../../pager/src/limits.rs"]
#[allow(dead_code)]
mod limits;

use entry::fuzz_target;
use handshake::{parse, Handshake};

const SESSION_BYTES: u64 = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let told = parse(data, SESSION_BYTES);
    if let Ok(Handshake::Whole(mappings)) = told {
        assert!(!mappings.is_empty());
        let mut end = 0;
        for mapping in mappings {
            assert!(mapping.start >= end, "mappings overlap");
            end = mapping.start + mapping.size_bytes;
            assert!(end <= limits::ADDRESS_MAX);
            assert!(mapping.size_bytes > 0 && mapping.offset + mapping.size_bytes <= SESSION_BYTES);
        }
    }
});
