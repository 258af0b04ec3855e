//! The page server of restored guests.
//!
//! A guest whose memory is served from here runs only as long as this process does. So it outlives the daemon
//! that started it, never restarts, and ends by itself when it has been drained; `docs/pager.md` is the
//! contract.

mod base;
mod client;
mod handshake;
mod limits;
mod log;
mod memory;
mod pool;
mod protocol;
mod served;
mod server;
mod session;
mod sys;
mod uffd;

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use limits::{DESCRIPTORS_PER_SESSION, DESCRIPTORS_RESERVED, SESSIONS_MAX, WORKERS_MAX, WORKERS_MIN};

const USAGE: &str = "usage: ramet-pager --version | --folder PATH --control-fd NUMBER

Serves the page faults of restored guests. NUMBER is a listening unix socket, the control API;
sockets of sessions are made in the folder PATH.";

struct Options {
    folder: PathBuf,
    control_fd: RawFd,
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
    match arguments {
        [folder_name, folder, fd_name, fd] if folder_name == "--folder" && fd_name == "--control-fd" => {
            let control_fd = fd.parse().ok().filter(|fd| *fd > 2)?;
            Some(Options { folder: PathBuf::from(folder), control_fd })
        }
        _ => None,
    }
}

fn serve(options: Options) -> std::io::Result<()> {
    sys::restrict_umask();
    // SAFETY: whoever started us passed it for this and nothing here has used it; if it is no open
    // descriptor, its first use is an error.
    let control = unsafe { OwnedFd::from_raw_fd(options.control_fd) };
    let free = sys::raise_descriptor_limit()?.saturating_sub(DESCRIPTORS_RESERVED);
    let session_count_max = SESSIONS_MAX.min((free / DESCRIPTORS_PER_SESSION) as usize);
    let cores = std::thread::available_parallelism().map_or(WORKERS_MIN, usize::from);
    let worker_count = cores.clamp(WORKERS_MIN, WORKERS_MAX);
    let server =
        server::Server::new(options.folder, UnixListener::from(control), worker_count, session_count_max)?;
    let limits = json!({ "workers": worker_count, "sessions_max": session_count_max });
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
        for text in ["", "--folder /a", "--folder /a --control-fd x", "--folder /a --control-fd 1", "serve"] {
            assert!(options(text).is_none(), "{text}");
        }
    }
}
