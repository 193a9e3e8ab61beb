//! The program that holds a task's network namespace open: it waits for SIGTERM or SIGINT, and reaps
//! what is left to it as process 1. No library and no allocation: a few KiB, linked statically.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

#[cfg(target_arch = "x86_64")]
mod number {
    pub const RT_SIGPROCMASK: usize = 14;
    pub const WAIT4: usize = 61;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const RT_SIGPROCMASK: usize = 135;
    pub const WAIT4: usize = 260;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const EXIT_GROUP: usize = 94;
}

const SIG_BLOCK: usize = 0;
const SIGINT: isize = 2;
const SIGTERM: isize = 15;
const WNOHANG: usize = 1;
/// All signals, one bit each.
static EVERY_SIGNAL: u64 = u64::MAX;

#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "and rsp, -16", "call {}", "ud2", sym hold);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, xzr", "bl {}", "brk #1", sym hold);

/// # Safety
/// The arguments are what the kernel expects of that system call.
#[cfg(target_arch = "x86_64")]
unsafe fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // SAFETY: the kernel clobbers rcx and r11 and nothing else.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            out("rcx") _, out("r11") _, options(nostack));
    }
    result
}

/// # Safety
/// The arguments are what the kernel expects of that system call.
#[cfg(target_arch = "aarch64")]
unsafe fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // SAFETY: the kernel clobbers x0 and nothing else.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a => result, in("x1") b, in("x2") c, in("x3") d,
            options(nostack));
    }
    result
}

extern "C" fn hold() -> ! {
    let every = &raw const EVERY_SIGNAL as usize;
    // Blocked signals wait to be asked for, also those that process 1 would never get.
    // SAFETY: a set of eight bytes, and no old set wanted.
    unsafe { syscall(number::RT_SIGPROCMASK, SIG_BLOCK, every, 0, 8) };
    loop {
        // SAFETY: a set of eight bytes, no information wanted, no time limit.
        match unsafe { syscall(number::RT_SIGTIMEDWAIT, every, 0, 0, 8) } {
            SIGINT | SIGTERM => loop {
                // SAFETY: ends the process.
                unsafe { syscall(number::EXIT_GROUP, 0, 0, 0, 0) };
            },
            // SAFETY: any child, no status wanted, without waiting.
            _ => while unsafe { syscall(number::WAIT4, usize::MAX, 0, WNOHANG, 0) } > 0 {},
        }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
