//! The system calls of a guest's init that need `unsafe`: nothing here decides anything.
#![allow(unsafe_code)]

use nix::libc;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `_IOW('R', 3, int[2])`: mixes bytes into the kernel's pool and counts them as random.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
/// `_IO('R', 7)`: lets the generator begin anew from the pool.
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
/// Bytes of entropy that one call takes.
pub const MAX_SEED: usize = 512;

/// What RNDADDENTROPY reads: `struct rand_pool_info`.
#[repr(C)]
struct Pool {
    entropy_bits: libc::c_int,
    size: libc::c_int,
    bytes: [u8; MAX_SEED],
}

/// Loads a kernel module from its file, without parameters.
pub fn load_module(file: &File) -> io::Result<()> {
    // SAFETY: the parameters are a NUL-terminated string, and the kernel only reads them.
    match unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Mixes the seed, at most [`MAX_SEED`] bytes, into the random number generator, and has it begin anew.
pub fn seed(generator: &File, seed: &[u8]) -> io::Result<()> {
    let size = seed.len().min(MAX_SEED);
    let mut pool = Pool { entropy_bits: size as i32 * 8, size: size as i32, bytes: [0; MAX_SEED] };
    pool.bytes[..size].copy_from_slice(&seed[..size]);
    // SAFETY: the kernel reads the two numbers and, of the bytes behind them, as many as the second says; they are there.
    if unsafe { libc::ioctl(generator.as_raw_fd(), RNDADDENTROPY as _, &raw const pool) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this request has no argument.
    match unsafe { libc::ioctl(generator.as_raw_fd(), RNDRESEEDCRNG as _) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Turns the machine off; where it cannot be, it is restarted, which ends a monitor that was told not to.
pub fn power_off() {
    // SAFETY: these have no memory preconditions; what is not written yet is in memory alone anyway.
    unsafe {
        libc::reboot(libc::LINUX_REBOOT_CMD_POWER_OFF);
        libc::reboot(libc::LINUX_REBOOT_CMD_RESTART);
    }
}
