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
use protocol::{parse, OpenSession, Request};

fuzz_target!(|data: &[u8]| {
    match parse(data) {
        Ok(Request::OpenSession(OpenSession { id, base, size, overlays, .. })) => {
            assert!(!id.is_empty() && id.len() <= limits::SESSION_ID_BYTES_MAX && !id.contains(['/', '.']));
            assert!(base.starts_with('/'));
            assert!(size > 0 && size <= limits::SESSION_BYTES_MAX && size % limits::PAGE_BYTES == 0);
            assert!(overlays.len() <= limits::OVERLAY_PAGES_MAX);
            let is_page = |offset: u64| offset % limits::PAGE_BYTES == 0 && offset < size;
            assert!(overlays.iter().all(|page| is_page(page.offset) && page.path.starts_with('/')));
        }
        Ok(_) => {}
        Err(refusal) => assert!(!refusal.code.is_empty() && !refusal.message.is_empty()),
    }
});
