//! What systemd is told: readiness, reloads, the end, and signs of life (`sd_notify(3)`).
//!
//! The watchdog's sign is sent only after the event loop has run a task and the engine has looked at its records on a thread
//! of its own; a server that hangs in either is silent, and systemd restarts it. The pods survive that.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use anyhow::{Context, Result};
use coracle_engine::{Engine, SandboxFilter};

/// Where systemd listens; silent where nobody does.
pub struct Notify {
    socket: Option<(UnixDatagram, SocketAddr)>,
}

impl Notify {
    /// The socket that `NOTIFY_SOCKET` names.
    pub fn from_env() -> Result<Notify> {
        match std::env::var("NOTIFY_SOCKET").ok().filter(|name| !name.is_empty()) {
            Some(name) => Notify::to(&name).with_context(|| format!("NOTIFY_SOCKET={name}")),
            None => Ok(Notify { socket: None }),
        }
    }

    fn to(name: &str) -> std::io::Result<Notify> {
        let address = match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        Ok(Notify { socket: Some((UnixDatagram::unbound()?, address)) })
    }

    /// Sends some assignments. A service manager that does not listen is its own problem.
    fn send(&self, state: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(error) = socket.send_to_addr(state.as_bytes(), address)
        {
            tracing::warn!("tell the service manager {state:?}: {error}");
        }
    }

    /// The socket is served.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// The settings are being read anew; [`ready`](Self::ready) ends it.
    pub fn reloading(&self) {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(Duration::from);
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.unwrap_or_default().as_micros()));
    }

    /// The server is on its way out.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=finishing the calls that run");
    }

    fn alive(&self) {
        self.send("WATCHDOG=1");
    }
}

/// How often systemd wants a sign of life of this process, if it does.
fn watchdog_interval() -> Option<Duration> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    if number("WATCHDOG_PID").is_some_and(|pid| pid != u64::from(std::process::id())) {
        return None;
    }
    number("WATCHDOG_USEC").filter(|micros| *micros > 0).map(Duration::from_micros)
}

/// Sends signs of life for as long as there are any. Ends at once where none is wanted.
pub async fn watch(notify: std::sync::Arc<Notify>, engine: Engine) {
    let Some(interval) = watchdog_interval() else { return };
    let mut ticks = tokio::time::interval(interval / 2);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let engine = engine.clone();
        // An id that no sandbox has: all folders are looked through, and no record is read.
        let filter = SandboxFilter { id: "watchdog".into(), ..Default::default() };
        match tokio::task::spawn_blocking(move || engine.list_sandboxes(&filter).map(|_| ())).await {
            Ok(Ok(())) => notify.alive(),
            Ok(Err(error)) => tracing::error!("no sign of life, since the records cannot be read: {error}"),
            Err(error) => tracing::error!("no sign of life: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_arrives_as_one_datagram() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let notify = Notify::to(path.to_str().unwrap()).unwrap();
        let received = || {
            let mut buffer = [0; 256];
            let n = socket.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..n]).into_owned()
        };
        notify.ready("well");
        assert_eq!(received(), "READY=1\nSTATUS=well");
        notify.reloading();
        assert!(received().starts_with("RELOADING=1\nMONOTONIC_USEC="));
        notify.alive();
        assert_eq!(received(), "WATCHDOG=1");
    }

    #[test]
    fn without_a_service_manager_nothing_is_told() {
        Notify { socket: None }.stopping();
    }
}
