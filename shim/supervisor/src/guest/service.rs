//! The service coracle.v1.Guest: what only the init of a virtual machine does. Each method runs in a worker.

use super::{mounts, net, sys, volumes};
use crate::connection::Call;
use crate::failure::{Fail, Failure};
use crate::service::{Outcome, decode};
use crate::supervisor::{Job, Supervisor};
use crate::worker::Body;
use coracle_proto::Message;
use coracle_proto::coracle::{
    GuestFetchRequest, GuestFetchResponse, GuestMountRequest, GuestMountResponse, GuestPutRequest, GuestPutResponse,
    GuestSetUpRequest, GuestSetUpResponse, GuestUnmountRequest, GuestUnmountResponse,
};
use coracle_proto::ttrpc::Code;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use std::fs::{self, File};
use std::io;
use std::path::Path;

const NANOS: i64 = 1_000_000_000;

impl Supervisor {
    /// Guest.SetUp
    pub(crate) fn guest_set_up(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: GuestSetUpRequest = decode(payload)?;
        self.guest_work(call, Box::new(move || set_up(&request).map(|answer| answer.encode_to_vec())))
    }

    /// Guest.Mount
    pub(crate) fn guest_mount(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: GuestMountRequest = decode(payload)?;
        let bundle = self.sandbox.bundle.clone();
        self.guest_work(
            call,
            Box::new(move || {
                let path = text(mounts::attach(&bundle, &request.serial, &request.filesystem)?.as_path());
                Ok(GuestMountResponse { path }.encode_to_vec())
            }),
        )
    }

    /// Guest.Unmount
    pub(crate) fn guest_unmount(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: GuestUnmountRequest = decode(payload)?;
        let bundle = self.sandbox.bundle.clone();
        self.guest_work(
            call,
            Box::new(move || {
                mounts::detach(&bundle, &request.serial)?;
                Ok(GuestUnmountResponse {}.encode_to_vec())
            }),
        )
    }

    /// Guest.Put
    pub(crate) fn guest_put(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: GuestPutRequest = decode(payload)?;
        let bundle = self.sandbox.bundle.clone();
        self.guest_work(
            call,
            Box::new(move || {
                let path = text(volumes::put(&bundle, &request)?.as_path());
                Ok(GuestPutResponse { path }.encode_to_vec())
            }),
        )
    }

    /// Guest.Fetch
    pub(crate) fn guest_fetch(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: GuestFetchRequest = decode(payload)?;
        let bundle = self.sandbox.bundle.clone();
        self.guest_work(
            call,
            Box::new(move || {
                let content = volumes::fetch(&bundle, &request)?;
                Ok(GuestFetchResponse { content }.encode_to_vec())
            }),
        )
    }

    /// Has a worker do it, if this is a guest's init: on any other machine it would be that machine's clock.
    fn guest_work(&mut self, call: Call, body: Body<'_>) -> Outcome {
        if self.guest.is_none() {
            return Err(Code::Unimplemented.failure("this supervisor is not the init of a virtual machine".into()));
        }
        self.work(Job::Answer { call }, &[], body)?;
        Ok(None)
    }
}

/// The bundle's path is ours, and what is added to it is checked to be plain.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn set_up(request: &GuestSetUpRequest) -> Result<GuestSetUpResponse, Failure> {
    let failed = |what: &str, error: io::Error| Code::Unknown.failure(format!("set up the machine: {what}: {error}"));
    if request.unix_nanos > 0 {
        let time = TimeSpec::new(request.unix_nanos / NANOS, request.unix_nanos % NANOS);
        clock_settime(ClockId::CLOCK_REALTIME, time).map_err(|error| failed("set the clock", error.into()))?;
    }
    if request.seed.len() > sys::MAX_SEED {
        let text = format!("set up the machine: a seed of {} bytes, at most {}", request.seed.len(), sys::MAX_SEED);
        return Err(Code::InvalidArgument.failure(text));
    }
    if !request.seed.is_empty() {
        let seeded = File::open("/dev/urandom").and_then(|generator| sys::seed(&generator, &request.seed));
        seeded.map_err(|error| failed("seed the random number generator", error))?;
    }
    net::apply(request)?;
    let memory_bytes = memory().map_err(|error| failed("read /proc/meminfo", error))?;
    Ok(GuestSetUpResponse { version: env!("CARGO_PKG_VERSION").to_owned(), memory_bytes })
}

fn memory() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    total(&text).ok_or_else(|| io::Error::other("it has no MemTotal"))
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_what_its_kernel_counts() {
        assert_eq!(total("MemFree: 1 kB\nMemTotal:         231912 kB\n"), None.or(Some(231_912 * 1024)));
        assert_eq!(total("MemFree: 1 kB\n"), None);
        assert!(memory().unwrap() > 1 << 20);
    }
}
