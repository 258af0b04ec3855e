//! The page server of restored guests.
//!
//! A guest whose memory is served from here runs only as long as this process does. So it outlives the daemon
//! that started it, never restarts, and ends by itself when it has been drained; `docs/pager.md` is the
//! contract.

mod base;
mod bases;
mod cache;
mod client;
mod counters;
mod handshake;
mod job;
mod limits;
mod log;
mod memory;
mod overlays;
mod packed;
mod packed_base;
mod pages;
mod pool;
mod protocol;
mod raw_base;
mod served;
mod server;
mod session;
mod sys;
mod uffd;
mod working_sets;

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use limits::{
    CACHE_BYTES_DEFAULT, DESCRIPTORS_PER_SESSION, DESCRIPTORS_RESERVED, SESSIONS_MAX, WORKERS_MAX,
    WORKERS_MIN,
};

const USAGE: &str = "usage: ramet-pager --version | --folder PATH --control-fd NUMBER [--cache-bytes NUMBER]

Serves the page faults of restored guests. NUMBER is a listening unix socket, the control API;
sockets of sessions are made in the folder PATH. At most so many bytes of packed memory are kept unpacked.";

use server::{Room, Server};

struct Options {
    folder: PathBuf,
    control_fd: RawFd,
    cache_bytes_max: usize,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == ["--version"] {
        println!("ramet-pager {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    let Some(options) = parse(&arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match serve(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => log::die(&error.to_string()),
    }
}

fn parse(arguments: &[String]) -> Option<Options> {
    let (mut folder, mut control_fd, mut cache_bytes_max) = (None, None, None);
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { return None };
        let is_new = match name.as_str() {
            "--folder" => folder.replace(PathBuf::from(value)).is_none(),
            "--control-fd" => control_fd.replace(value.parse().ok().filter(|fd| *fd > 2)?).is_none(),
            "--cache-bytes" => cache_bytes_max.replace(value.parse().ok()?).is_none(),
            _ => false,
        };
        if !is_new {
            return None;
        }
    }
    let cache_bytes_max = cache_bytes_max.unwrap_or(CACHE_BYTES_DEFAULT);
    Some(Options { folder: folder?, control_fd: control_fd?, cache_bytes_max })
}

fn serve(options: Options) -> std::io::Result<()> {
    sys::restrict_umask();
    // SAFETY: whoever started us passed it for this and nothing here has used it; if it is no open
    // descriptor, its first use is an error.
    let control = unsafe { OwnedFd::from_raw_fd(options.control_fd) };
    let free = sys::raise_descriptor_limit()?.saturating_sub(DESCRIPTORS_RESERVED);
    let cores = std::thread::available_parallelism().map_or(WORKERS_MIN, usize::from);
    let room = Room {
        worker_count: cores.clamp(WORKERS_MIN, WORKERS_MAX),
        session_count_max: SESSIONS_MAX.min((free / DESCRIPTORS_PER_SESSION) as usize),
        cache_bytes_max: options.cache_bytes_max,
    };
    let server = Server::new(options.folder, UnixListener::from(control), &room)?;
    let limits = json!({
        "workers": room.worker_count,
        "sessions_max": room.session_count_max,
        "cache_bytes_max": room.cache_bytes_max,
    });
    log::event("started", &limits);
    server.run()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Option<Options> {
        parse(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_come_together() {
        let taken = options("--folder /a --control-fd 7").expect("taken");
        assert_eq!((taken.folder.to_str(), taken.control_fd), (Some("/a"), 7));
        assert_eq!(taken.cache_bytes_max, CACHE_BYTES_DEFAULT);
        let taken = options("--cache-bytes 4096 --control-fd 7 --folder /a").expect("taken");
        assert_eq!(taken.cache_bytes_max, 4096);
        for text in [
            "",
            "serve",
            "--folder /a",
            "--folder /a --control-fd x",
            "--folder /a --control-fd 1",
            "--folder /a --control-fd 7 --cache-bytes -1",
            "--folder /a --control-fd 7 --folder /b",
            "--folder /a --control-fd 7 --more 1",
        ] {
            assert!(options(text).is_none(), "{text}");
        }
    }
}
