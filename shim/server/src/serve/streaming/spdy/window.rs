//! Windows: how much may be sent on each stream and on the whole connection, and which streams there are.
//!
//! SPDY/3.1 wants every peer to keep to windows. The library of Kubernetes' own clients has none: it neither grants nor
//! honours any, and whoever waits for its grants waits for ever. So a peer is held to speak of windows from the moment
//! it does so (SETTINGS with a window size, or WINDOW_UPDATE), and until then sending is bounded by the connection
//! alone. What is sent is counted from the start, so a late beginner gets no more than is its due.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::frame::Fault;

/// The window of a stream and of the connection, as the specification has it at the start.
pub(super) const INITIAL: u32 = 64 << 10;
/// Streams of one connection at once. A forwarded connection takes two.
pub(super) const MAX_STREAMS: usize = 1024;
/// A window never grows beyond this.
const MAX_WINDOW: i64 = 0x7fff_ffff;

/// The two directions of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Inbound,
    Outbound,
}

struct Stream {
    window: i64,
    inbound: bool,
    outbound: bool,
}

struct State {
    engaged: bool,
    initial: i64,
    connection: i64,
    streams: HashMap<u32, Stream>,
}

/// The windows of one connection.
pub(super) struct Windows {
    state: Mutex<State>,
    changed: Notify,
}

impl Windows {
    pub(super) fn new() -> Windows {
        let initial = i64::from(INITIAL);
        let state = State { engaged: false, initial, connection: initial, streams: HashMap::new() };
        Windows { state: Mutex::new(state), changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new stream; false if there are too many.
    pub(super) fn open(&self, stream: u32, inbound: bool) -> bool {
        let mut state = self.state();
        if state.streams.len() >= MAX_STREAMS {
            return false;
        }
        let window = state.initial;
        state.streams.insert(stream, Stream { window, inbound, outbound: true });
        true
    }

    /// One direction has ended; a stream without any is forgotten.
    pub(super) fn finish(&self, stream: u32, side: Side) {
        let mut state = self.state();
        let Some(known) = state.streams.get_mut(&stream) else { return };
        match side {
            Side::Inbound => known.inbound = false,
            Side::Outbound => known.outbound = false,
        }
        if !known.inbound && !known.outbound {
            state.streams.remove(&stream);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// The stream is gone; who sends on it hears so.
    pub(super) fn reset(&self, stream: u32) {
        self.state().streams.remove(&stream);
        self.changed.notify_waiters();
    }

    /// Whether the stream is there at all.
    pub(super) fn knows(&self, stream: u32) -> bool {
        self.state().streams.contains_key(&stream)
    }

    /// Waits for room on a stream and takes at most `want` bytes of it.
    pub(super) async fn take(&self, stream: u32, want: usize) -> io::Result<usize> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(taken) = self.try_take(stream, want)? {
                return Ok(taken);
            }
            changed.await;
        }
    }

    fn try_take(&self, stream: u32, want: usize) -> io::Result<Option<usize>> {
        let mut guard = self.state();
        let state = &mut *guard;
        let known = state.streams.get_mut(&stream).filter(|known| known.outbound);
        let known = known.ok_or(io::ErrorKind::BrokenPipe)?;
        let wanted = i64::try_from(want).unwrap_or(MAX_WINDOW);
        let taken = match state.engaged {
            false => wanted,
            true => wanted.min(known.window).min(state.connection),
        };
        if taken <= 0 {
            return Ok(None);
        }
        known.window -= taken;
        state.connection -= taken;
        Ok(usize::try_from(taken).ok())
    }

    /// The peer grants more. Stream 0 is the connection.
    pub(super) fn grant(&self, stream: u32, delta: u32) -> Result<(), Fault> {
        let mut guard = self.state();
        let state = &mut *guard;
        state.engaged = true;
        let window = match stream {
            0 => Some(&mut state.connection),
            _ => state.streams.get_mut(&stream).map(|known| &mut known.window),
        };
        if let Some(window) = window {
            *window += i64::from(delta);
            if *window > MAX_WINDOW {
                return Err(Fault::new(format!("the window of stream {stream} is granted beyond its limit")));
            }
        }
        drop(guard);
        self.changed.notify_waiters();
        Ok(())
    }

    /// The peer tells the window of each stream; those that are open change by the difference.
    pub(super) fn set_initial(&self, initial: u32) {
        let mut guard = self.state();
        let state = &mut *guard;
        let difference = i64::from(initial) - state.initial;
        state.engaged = true;
        state.initial = i64::from(initial);
        state.streams.values_mut().for_each(|known| known.window += difference);
        drop(guard);
        self.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_never_speaks_of_windows_is_not_waited_for() {
        let windows = Windows::new();
        windows.open(1, true);
        assert_eq!(windows.try_take(1, 10 << 20).unwrap(), Some(10 << 20));
    }

    #[test]
    fn a_peer_that_grants_is_kept_to_its_grants() {
        let windows = Windows::new();
        windows.open(1, true);
        windows.open(3, true);
        windows.set_initial(10);
        assert_eq!(windows.try_take(1, 100).unwrap(), Some(10));
        assert_eq!(windows.try_take(1, 100).unwrap(), None);
        windows.grant(1, 5).unwrap();
        assert_eq!(windows.try_take(1, 100).unwrap(), Some(5));
        // The connection's own window holds all streams together.
        windows.grant(3, 1 << 20).unwrap();
        assert_eq!(windows.try_take(3, 1 << 20).unwrap(), Some(INITIAL as usize - 15));
        assert_eq!(windows.try_take(3, 1).unwrap(), None);
        windows.grant(0, 1).unwrap();
        assert_eq!(windows.try_take(3, 2).unwrap(), Some(1));
        assert!(windows.grant(0, 0x7fff_ffff).is_ok());
        assert!(windows.grant(0, 0x7fff_ffff).is_err());
    }

    #[test]
    fn a_window_that_is_made_smaller_may_be_owed() {
        let windows = Windows::new();
        windows.open(1, true);
        windows.try_take(1, 100).unwrap();
        windows.set_initial(50);
        assert_eq!(windows.try_take(1, 1).unwrap(), None);
        windows.grant(1, 51).unwrap();
        assert_eq!(windows.try_take(1, 9).unwrap(), Some(1));
    }

    #[test]
    fn a_stream_is_forgotten_when_both_its_sides_ended_and_there_are_only_so_many() {
        let windows = Windows::new();
        (0..MAX_STREAMS).for_each(|stream| assert!(windows.open(stream as u32, true)));
        assert!(!windows.open(9999, true));
        windows.finish(7, Side::Inbound);
        assert!(windows.knows(7));
        windows.finish(7, Side::Outbound);
        assert!(!windows.knows(7) && windows.try_take(7, 1).is_err());
        assert!(windows.open(9999, true));
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_a_grant_and_by_a_reset() {
        let windows = Windows::new();
        windows.open(1, true);
        windows.set_initial(0);
        let granted = async { windows.grant(1, 3).unwrap() };
        assert_eq!(tokio::join!(windows.take(1, 9), granted).0.unwrap(), 3);
        let reset = async { windows.reset(1) };
        assert!(tokio::join!(windows.take(1, 9), reset).0.is_err());
    }
}
