//! A library for `LD_PRELOAD`: before the program's own first instruction, open a userfaultfd(2) that can note
//! writes (Linux 6.7), and leave it open.
//!
//! A userfaultfd is bound to the memory of the process that opens it, so nobody can pass one in. All else is
//! done from outside by who borrows the descriptor (`ramet.linux.writewatch`). Where the kernel cannot, the
//! program runs without. No libc and no allocator: this runs in a process that is not ours.

#![no_std]

use core::arch::asm;
use core::panic::PanicInfo;

const SYS_CLOSE: usize = 3;
const SYS_IOCTL: usize = 16;
const SYS_USERFAULTFD: usize = 323;

const O_NONBLOCK: usize = 0o4000;
const O_CLOEXEC: usize = 0o2_000_000;

// include/uapi/linux/userfaultfd.h
const UFFD_USER_MODE_ONLY: usize = 1;
const UFFDIO_API: usize = 0xC018_AA3F;
const UFFD_API: u64 = 0xAA;
const UFFD_FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[used]
#[link_section = ".init_array"]
static AT_START: extern "C" fn() = open;

extern "C" fn open() {
    // SAFETY: opens a descriptor; a failure is a negative number.
    let fd = unsafe { syscall(SYS_USERFAULTFD, UFFD_USER_MODE_ONLY | O_CLOEXEC | O_NONBLOCK, 0, 0) };
    if fd < 0 {
        return;
    }
    let mut asked = UffdioApi {
        api: UFFD_API,
        features: UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_ASYNC,
        ioctls: 0,
    };
    let place: *mut UffdioApi = &mut asked;
    // SAFETY: the kernel reads and writes `asked`, which outlives the call.
    let refused = unsafe { syscall(SYS_IOCTL, fd as usize, UFFDIO_API, place as usize) };
    if refused < 0 {
        // SAFETY: the descriptor is ours and nobody else knows it.
        unsafe { syscall(SYS_CLOSE, fd as usize, 0, 0) };
    }
}

/// Makes a system call of up to three arguments.
///
/// # Safety
/// As of the call itself.
unsafe fn syscall(number: usize, first: usize, second: usize, third: usize) -> isize {
    let result: isize;
    asm!(
        "syscall",
        inlateout("rax") number as isize => result,
        in("rdi") first,
        in("rsi") second,
        in("rdx") third,
        lateout("rcx") _,
        lateout("r11") _,
        options(nostack),
    );
    result
}

#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    loop {}
}
