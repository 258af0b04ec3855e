use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::*;
use crate::frames::{Event, Receiver, CREDIT, EXIT, RESPONSE, STDERR, STDOUT};
use crate::users::Credentials;

/// `waitpid(-1)` takes everybody's children, so only one test may have any at a time.
static CHILDREN: Mutex<()> = Mutex::new(());
const STREAM: u16 = 7;
const UNSENT_BYTES_HIGH: usize = usize::MAX;

/// An exec and what it told its host so far.
struct Run {
    exec: Exec,
    out: Vec<u8>,
    seen: Vec<(u8, Vec<u8>)>,
    _alone: MutexGuard<'static, ()>,
}

impl Run {
    fn start(argv: &[&str], wants_stdin: bool) -> Self {
        let alone = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
        let argv: Vec<String> = argv.iter().map(|one| (*one).to_owned()).collect();
        let who = Credentials { uid: 0, gid: 0, groups: Vec::new(), home: "/".into() };
        let command = Command::new(&argv, &BTreeMap::new(), "/", who).unwrap();
        let exec = Exec::start(STREAM, command, wants_stdin, None, None, None).unwrap();
        Self { exec, out: Vec::new(), seen: Vec::new(), _alone: alone }
    }

    /// Lets the exec go on until nothing more can happen without the host, or it is over.
    fn settle(&mut self) {
        loop {
            while let Some((pid, ending)) = sys::reap() {
                // The child of a refused exec may be of the test before.
                if self.exec.is_process(pid) {
                    self.exec.ended(ending);
                }
            }
            self.exec.conclude(&mut self.out, UNSENT_BYTES_HIGH).unwrap();
            if self.exec.stream().is_none() {
                break;
            }
            let mut fds = Vec::new();
            let mut pipes = Vec::new();
            self.exec.watch(true, |pipe, fd, events| {
                fds.push(libc::pollfd { fd, events, revents: 0 });
                pipes.push(pipe);
            });
            // Without a pipe left, the process is about to end.
            let awaits_credit = self.exec.outputs.iter().any(Option::is_some);
            if fds.is_empty() && awaits_credit {
                break;
            }
            sys::poll(&mut fds, Some(1)).unwrap();
            for (one, pipe) in fds.iter().zip(pipes) {
                if one.revents != 0 {
                    self.exec.ready(pipe, &mut self.out).unwrap();
                }
            }
        }
        self.collect();
    }

    fn collect(&mut self) {
        let mut receiver = Receiver::of_guest_frames();
        let mut wire = Vec::new();
        frames::append_hello(&mut wire, frames::HELLO_ACK, b"");
        wire.append(&mut self.out);
        let mut input = &wire[..];
        while let Some(event) = receiver.next(&mut input) {
            match event {
                Event::Frame { kind: frames::HELLO_ACK, .. } | Event::Reset => {}
                Event::Frame { kind, payload, .. } => self.seen.push((kind, payload.to_vec())),
                Event::Error => panic!("a protocol error in our own frames"),
            }
        }
    }

    fn all(&self, kind: u8) -> Vec<u8> {
        self.seen.iter().filter(|(found, _)| *found == kind).flat_map(|(_, data)| data.clone()).collect()
    }

    fn json(&self, kind: u8) -> serde_json::Value {
        serde_json::from_slice(&self.all(kind)).unwrap()
    }
}

/// Users and groups can be set by root alone, as PID 1 is.
fn is_root() -> bool {
    // SAFETY: no arguments.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("skipped: not root");
    }
    root
}

#[test]
fn an_exec_reads_to_the_end_of_its_stdin_and_keeps_stderr_apart() {
    if !is_root() {
        return;
    }
    let mut run = Run::start(&["sh", "-c", "cat; echo oops >&2; exit 7"], true);
    assert!(run.exec.feed(b"hello", &mut run.out).unwrap());
    run.exec.end_stdin();
    run.settle();
    assert_eq!(run.seen[0].0, RESPONSE);
    assert_eq!(run.all(STDOUT), b"hello");
    assert_eq!(run.all(STDERR), b"oops\n");
    assert_eq!(run.json(EXIT), serde_json::json!({"code": 7, "signal": null, "timed_out": false}));
    assert_eq!(run.seen.last().unwrap().0, EXIT);
}

#[test]
fn what_cannot_be_started_is_refused_with_the_reason() {
    if !is_root() {
        return;
    }
    for (command, code) in [("no-such-command", "command_not_found"), ("/etc", "not_executable")] {
        let mut run = Run::start(&[command], false);
        run.settle();
        assert_eq!(run.json(RESPONSE)["error"]["code"], code);
        assert!(run.all(EXIT).is_empty());
    }
}

#[test]
fn output_stops_at_its_credit_and_goes_on_with_more() {
    if !is_root() {
        return;
    }
    let script = "head -c 300000 /dev/zero";
    let mut run = Run::start(&["sh", "-c", script], false);
    run.settle();
    assert_eq!(run.all(STDOUT).len(), CREDIT_BYTES);
    assert!(run.all(EXIT).is_empty());
    assert!(run.exec.add_credit(100_000));
    run.settle();
    assert_eq!(run.all(STDOUT).len(), 300_000);
    assert_eq!(run.json(EXIT)["code"], 0);
}

#[test]
fn credit_beyond_what_was_taken_and_stdin_beyond_credit_are_refused() {
    if !is_root() {
        return;
    }
    let mut run = Run::start(&["sleep", "1000"], true);
    assert!(!run.exec.add_credit(1));
    assert!(!run.exec.feed(&vec![0; CREDIT_BYTES + 1], &mut run.out).unwrap());
    assert!(run.exec.feed(&vec![0; CREDIT_BYTES], &mut run.out).unwrap());
    run.exec.signal(libc::SIGKILL);
    while run.exec.stream().is_some() {
        run.settle();
    }
    assert_eq!(run.json(EXIT)["signal"], libc::SIGKILL);
}

#[test]
fn stdin_that_nobody_reads_is_consumed_and_its_credit_given_back() {
    if !is_root() {
        return;
    }
    let mut run = Run::start(&["sh", "-c", "exec 0<&-; echo closed; sleep 1000"], true);
    while run.all(STDOUT).is_empty() {
        run.exec.ready(Pipe::Status, &mut run.out).unwrap();
        run.exec.ready(Pipe::Stdout, &mut run.out).unwrap();
        run.collect();
    }
    let mut fed = 0;
    for _ in 0..3 {
        assert!(run.exec.feed(&vec![1; 65_536], &mut run.out).unwrap());
        fed += 65_536;
    }
    run.collect();
    let given: u32 = run
        .seen
        .iter()
        .filter(|(kind, _)| *kind == CREDIT)
        .map(|(_, data)| u32::from_be_bytes(data[..].try_into().unwrap()))
        .sum();
    assert_eq!(given, fed);
    run.exec.signal(libc::SIGKILL);
    while run.exec.stream().is_some() {
        run.settle();
    }
}

#[test]
fn a_daemon_left_behind_does_not_hold_up_the_exit_and_keeps_its_pipe() {
    if !is_root() {
        return;
    }
    let mut run = Run::start(&["sh", "-c", "sleep 1000 & echo $!"], false);
    while run.exec.stream().is_some() {
        run.settle();
    }
    assert_eq!(run.json(EXIT)["code"], 0);
    assert!(run.exec.is_leftover() && !run.exec.is_done());
    let pid: i32 = String::from_utf8(run.all(STDOUT)).unwrap().trim().parse().unwrap();
    // SAFETY: no pointers; the process this test started.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    while !run.exec.is_done() {
        run.exec.ready(Pipe::Stdout, &mut run.out).unwrap();
        run.exec.ready(Pipe::Stderr, &mut run.out).unwrap();
    }
    assert!(run.out.is_empty());
}
