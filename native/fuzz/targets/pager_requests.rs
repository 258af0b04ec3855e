//! A line on the pager's control socket: a request within the limits, or a refusal.
#![cfg_attr(fuzzing, no_main)]

mod entry;
#[path = "../../pager/src/limits.rs"]
#[allow(dead_code)]
mod limits;
#[path = "../../pager/src/protocol.rs"]
#[allow(dead_code)]
mod protocol;

use entry::fuzz_target;
use protocol::{parse, Request};

fuzz_target!(|data: &[u8]| {
    match parse(data) {
        Ok(Request::OpenSession { id, base, size }) => {
            assert!(!id.is_empty() && id.len() <= limits::SESSION_ID_BYTES_MAX && !id.contains(['/', '.']));
            assert!(base.starts_with('/'));
            assert!(size > 0 && size <= limits::SESSION_BYTES_MAX && size % limits::PAGE_BYTES == 0);
        }
        Ok(_) => {}
        Err(refusal) => assert!(!refusal.code.is_empty() && !refusal.message.is_empty()),
    }
});
