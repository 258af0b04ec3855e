//! A VMM without a guest, for `./run bench pager` and `./run soak pager`: it hands its memory to the pager as
//! Firecracker does, and touches it as fast as it can.
//!
//!     vmm touch read|write SIZE PAGES uffd SOCKET     touches the pages that the file PAGES lists, in its order
//!     vmm touch read|write SIZE PAGES file PATH       the same with a private mapping of a file
//!     vmm work SIZE SEED THREADS SOCKET MODEL OVERLAYS
//!         reads, writes and gives back pages at random until it is told to stop, then looks at every page; MODEL
//!         is a file that holds what the memory should, OVERLAYS holds "OFFSET PATH" lines
//!
//! It says `ready`, begins when it gets a line on standard input, and ends with it. What it found is one line of
//! JSON: for `touch` the time from before its memory was made until the last page was touched.

use std::fs::File;
use std::io::{Error, IoSlice, Result};
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Mutex;
use std::time::Instant;

use serde_json::{json, Value};

const PAGE_BYTES: usize = 4096;

// linux/userfaultfd.h
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_EVENT_REMOVE: u64 = 1 << 3;
const UFFD_FEATURE_EVENT_UNMAP: u64 = 1 << 6;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let told = match arguments[..] {
        ["touch", kind, size, pages, "uffd", socket] => {
            touch(kind == "write", number(size), pages, || Memory::served(number(size), socket))?
        }
        ["touch", kind, size, pages, "file", path] => {
            touch(kind == "write", number(size), pages, || Memory::of_file(number(size), path))?
        }
        ["work", size, seed, threads, socket, model, overlays] => {
            wait_told();
            let memory = Memory::served(number(size), socket)?;
            work(&memory, number(seed) as u64, number(threads), &Model::read(model, overlays)?)
        }
        _ => panic!("the arguments are at the top of the source"),
    };
    println!("{told}");
    wait_told();
    Ok(())
}

fn number(text: &str) -> usize {
    text.parse().expect("a number")
}

/// Waits for a line, or for the end, of standard input.
fn wait_told() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("standard input can be read");
}

// ---- memory

/// Memory of our own that nobody unmaps; the process is short.
struct Memory {
    address: *mut u8,
    size_bytes: usize,
}

// SAFETY: it is there as long as the process, and every access is of bytes.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(size_bytes: usize, flags: libc::c_int, fd: RawFd) -> Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address the kernel chooses.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), size_bytes, protection, flags, fd, 0) };
        if address == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        Ok(Self { address: address.cast(), size_bytes })
    }

    fn of_file(size_bytes: usize, path: &str) -> Result<Self> {
        Self::new(size_bytes, libc::MAP_PRIVATE, File::open(path)?.as_raw_fd())
    }

    /// Memory that is served by the pager behind a session's socket. Connection and userfaultfd stay open, as
    /// Firecracker's do.
    fn served(size_bytes: usize, socket: &str) -> Result<Self> {
        let memory = Self::new(size_bytes, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
        // SAFETY: no pointers.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: the kernel just gave it to us.
        let uffd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        control(&uffd, UFFDIO_API, &mut [UFFD_API, UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP, 0])?;
        let start = memory.address as u64;
        control(&uffd, UFFDIO_REGISTER, &mut [start, size_bytes as u64, UFFDIO_REGISTER_MODE_MISSING, 0])?;
        let mapping = json!({
            "base_host_virt_addr": start, "size": size_bytes, "offset": 0,
            "page_size": PAGE_BYTES, "page_size_kib": PAGE_BYTES,
        });
        let connection = UnixStream::connect(socket)?;
        send(&connection, json!([mapping]).to_string().as_bytes(), uffd.as_raw_fd())?;
        std::mem::forget((connection, uffd));
        Ok(memory)
    }

    fn read(&self, page: usize) -> [u8; PAGE_BYTES] {
        let mut content = [0; PAGE_BYTES];
        // SAFETY: the page is within the mapping.
        unsafe { std::ptr::copy(self.at(page), content.as_mut_ptr(), PAGE_BYTES) };
        content
    }

    fn write(&self, page: usize, content: &[u8; PAGE_BYTES]) {
        // SAFETY: as above.
        unsafe { std::ptr::copy(content.as_ptr(), self.at(page), PAGE_BYTES) };
    }

    /// Gives a page back to the kernel.
    fn remove(&self, page: usize) -> Result<()> {
        // SAFETY: a page of ours, which nobody holds a reference to.
        let result = unsafe { libc::madvise(self.at(page).cast(), PAGE_BYTES, libc::MADV_DONTNEED) };
        if result < 0 {
            return Err(Error::last_os_error());
        }
        Ok(())
    }

    fn touch(&self, page: usize, write: bool) -> u8 {
        // SAFETY: the page is within the mapping.
        unsafe {
            if write {
                self.at(page).write_volatile(1);
            }
            self.at(page).read_volatile()
        }
    }

    fn at(&self, page: usize) -> *mut u8 {
        assert!((page + 1) * PAGE_BYTES <= self.size_bytes);
        // SAFETY: within the mapping, as was just seen.
        unsafe { self.address.add(page * PAGE_BYTES) }
    }
}

fn control<const N: usize>(fd: &OwnedFd, request: libc::c_ulong, words: &mut [u64; N]) -> Result<()> {
    // SAFETY: both requests take a struct of N words, which outlives the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), request, words.as_mut_ptr()) } < 0 {
        return Err(Error::last_os_error());
    }
    Ok(())
}

/// Sends a text with a descriptor beside it.
fn send(connection: &UnixStream, text: &[u8], fd: RawFd) -> Result<()> {
    let piece = IoSlice::new(text);
    let mut control = [0u64; 4]; // u64 for the alignment of cmsghdr
                                 // SAFETY: all zeroes is a valid msghdr; the buffers outlive the call, and `control` has room for one descriptor.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = (&piece as *const IoSlice).cast_mut().cast();
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as usize;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as usize;
        libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd);
        if libc::sendmsg(connection.as_raw_fd(), &message, 0) < 0 {
            return Err(Error::last_os_error());
        }
    }
    Ok(())
}

// ---- touch

fn touch(write: bool, size_bytes: usize, list: &str, make: impl Fn() -> Result<Memory>) -> Result<Value> {
    let pages: Vec<usize> = std::fs::read(list)?
        .chunks_exact(4)
        .map(|n| u32::from_le_bytes([n[0], n[1], n[2], n[3]]) as usize)
        .collect();
    assert!(pages.iter().all(|page| (page + 1) * PAGE_BYTES <= size_bytes));
    println!("ready");
    wait_told();
    let began = Instant::now();
    let memory = make()?;
    let sum = pages.iter().fold(0u64, |sum, page| sum + u64::from(memory.touch(*page, write)));
    Ok(json!({ "took_ns": began.elapsed().as_nanos() as u64, "pages": pages.len(), "sum": sum }))
}

// ---- work

/// What the memory holds if nobody changed it.
struct Model {
    file: File,
    overlays: Vec<(usize, [u8; PAGE_BYTES])>,
}

impl Model {
    fn read(path: &str, overlays: &str) -> Result<Self> {
        let text = std::fs::read_to_string(overlays)?;
        let pages = text.lines().map(|line| {
            let (offset, path) = line.split_once(' ').expect("an offset and a path");
            let content = std::fs::read(path)?.try_into().expect("a page");
            Ok((number(offset) / PAGE_BYTES, content))
        });
        Ok(Self { file: File::open(path)?, overlays: pages.collect::<Result<_>>()? })
    }

    fn page(&self, page: usize) -> [u8; PAGE_BYTES] {
        if let Some((_, content)) = self.overlays.iter().find(|(at, _)| *at == page) {
            return *content;
        }
        let mut content = [0; PAGE_BYTES];
        self.file
            .read_exact_at(&mut content, (page * PAGE_BYTES) as u64)
            .expect("the model is as long as the memory");
        content
    }
}

/// What a page should hold.
#[derive(Clone, Copy, PartialEq)]
enum Content {
    Base,
    Zeroes,
    Written(u64),
}

fn pattern(number: u64) -> [u8; PAGE_BYTES] {
    let mut content = [0; PAGE_BYTES];
    for (index, word) in content.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index as u64).to_le_bytes());
    }
    content
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

/// Several threads, each with every so-manieth page, so that they meet in every window and on no page.
fn work(memory: &Memory, seed: u64, thread_count: usize, model: &Model) -> Value {
    let (stop, operations, wrong) = (AtomicBool::new(false), AtomicU64::new(0), Mutex::new(Vec::new()));
    println!("ready");
    std::thread::scope(|scope| {
        for index in 0..thread_count {
            let (stop, operations, wrong) = (&stop, &operations, &wrong);
            scope.spawn(move || {
                let found = work_alone(memory, seed, (index, thread_count), model, stop, operations);
                wrong.lock().expect("nobody panics").extend(found);
            });
        }
        wait_told();
        stop.store(true, Ordering::Relaxed);
    });
    json!({ "operations": operations.into_inner(), "wrong_pages": wrong.into_inner().expect("nobody panics") })
}

fn work_alone(
    memory: &Memory,
    seed: u64,
    (index, thread_count): (usize, usize),
    model: &Model,
    stop: &AtomicBool,
    operations: &AtomicU64,
) -> Vec<usize> {
    let page_count = memory.size_bytes / PAGE_BYTES;
    let own: Vec<usize> = (index..page_count).step_by(thread_count).collect();
    let mut contents = vec![Content::Base; own.len()];
    let mut random = Random((seed << 8 | index as u64) + 1);
    let mut wrong = Vec::new();
    let is_right = |at: usize, content: Content| {
        let expected = match content {
            Content::Base => model.page(own[at]),
            Content::Zeroes => [0; PAGE_BYTES],
            Content::Written(number) => pattern(number),
        };
        memory.read(own[at]) == expected
    };
    let mut number = seed << 32 | (index as u64) << 24;
    while !stop.load(Ordering::Relaxed) && wrong.is_empty() {
        // Now and then many pages in a row are given back: then nothing can be filled for a while.
        let (kind, count) = match random.below(64) {
            0 => (2, 64),
            1..=4 => (2, 1),
            5..=15 => (1, 1),
            _ => (0, 1),
        };
        let first = random.below(own.len());
        for at in first..(first + count).min(own.len()) {
            match kind {
                0 if !is_right(at, contents[at]) => wrong.push(own[at]),
                0 => {}
                1 => {
                    number += 1;
                    memory.write(own[at], &pattern(number));
                    contents[at] = Content::Written(number);
                }
                _ => {
                    memory.remove(own[at]).expect("a page can be given back");
                    contents[at] = Content::Zeroes;
                }
            }
            operations.fetch_add(1, Ordering::Relaxed);
        }
        std::thread::yield_now();
    }
    wrong.extend((0..own.len()).filter(|at| !is_right(*at, contents[*at])).map(|at| own[at]));
    wrong
}
