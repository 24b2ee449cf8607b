//! The words between the two halves: one SOCK_SEQPACKET pair, one letter (and a text) a message.
//!
//! ```text
//! parent            init
//!   |--- Go --------->|   the user namespace's maps are written
//!   |<-- Hooks -------|   mounts are made: run the runtime's hooks
//!   |--- Go --------->|
//!   |<-- Ready -------|   all is set up (create), or about to be executed (exec)
//!   |--- Go --------->|   the record is on disk; from here on the init outlives the parent (an exec waits for it only if
//!                         the parent has something to do to it first)
//! ```
//! An intermediate process says `Born(pid)` on a pair of its own. `Failed(words)` may come instead of anything; a closed socket means that the other side died.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use crate::error::{Error, Result};

/// The longest message; longer words are cut.
const MAX_MESSAGE: usize = 4096;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Born(i32),
    Go,
    Hooks,
    Ready,
    Failed(String),
}

/// One end.
pub(crate) struct Channel(pub OwnedFd);

impl Channel {
    pub fn pair() -> io::Result<(Channel, Channel)> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Channel(a), Channel(b)))
    }

    pub fn send(&self, message: &Message) -> io::Result<()> {
        let bytes = match message {
            Message::Born(pid) => format!("B{pid}").into_bytes(),
            Message::Go => b"G".to_vec(),
            Message::Hooks => b"H".to_vec(),
            Message::Ready => b"R".to_vec(),
            Message::Failed(words) => format!("F{words}").into_bytes(),
        };
        let bytes = &bytes[..bytes.len().min(MAX_MESSAGE)];
        loop {
            match send(self.0.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
                Err(Errno::EINTR) => {}
                result => return result.map(drop).map_err(io::Error::from),
            }
        }
    }

    /// Why nothing comes of it: the last message. By write(2), which most filters leave to a container, where send(2) is a
    /// matter of sockets. Who is not heard any more may die of it.
    pub fn send_last(&self, words: &str) {
        let bytes = [b"F", words.as_bytes()].concat();
        let bytes = &bytes[..bytes.len().min(MAX_MESSAGE)];
        let _ = crate::sys::retry(|| nix::unistd::write(&self.0, bytes));
    }

    /// The next message; `None` when the other end is closed.
    pub fn receive(&self) -> io::Result<Option<Message>> {
        let mut buffer = [0u8; MAX_MESSAGE];
        let n = loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                // A peer that died with unread messages is told of once; what it said before is still there.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                result => break result?,
            }
        };
        let Some((kind, rest)) = buffer[..n].split_first() else { return Ok(None) };
        let text = || String::from_utf8_lossy(rest).into_owned();
        Ok(Some(match kind {
            b'B' => Message::Born(text().parse().map_err(io::Error::other)?),
            b'G' => Message::Go,
            b'H' => Message::Hooks,
            b'R' => Message::Ready,
            _ => Message::Failed(text()),
        }))
    }

    /// Waits until the other end is closed. What it has said is there to be received.
    pub fn wait_closed(&self) -> io::Result<()> {
        // No event is asked for: POLLHUP comes unasked, and a message wakes nobody.
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        crate::sys::retry(|| poll(&mut fds, PollTimeout::NONE)).map(drop).map_err(io::Error::from)
    }

    /// The parent's: why the init has ended, if it said so, rather than an error that may come of that end.
    pub fn rather_said(&self, error: Error) -> Error {
        let mut buffer = [0u8; MAX_MESSAGE];
        match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(n) if buffer.first() == Some(&b'F') => {
                Error::Init(String::from_utf8_lossy(buffer.get(1..n).unwrap_or_default()).into_owned())
            }
            _ => error,
        }
    }

    /// The parent's: a message, or why the init gave none.
    pub fn expect(&self) -> Result<Message> {
        match self.receive() {
            Ok(Some(Message::Failed(words))) => Err(Error::Init(words)),
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(Error::Init(
                "the container's process died while it was set up (killed, or out of memory: see the kernel's log)"
                    .into(),
            )),
            Err(cause) => Err(Error::Os { what: "hear from the container's process".into(), cause }),
        }
    }

    /// The parent's: Go, or why the init is not there to hear it.
    pub fn go(&self) -> Result<()> {
        match self.send(&Message::Go) {
            Ok(()) => Ok(()),
            Err(cause) => {
                if matches!(cause.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) {
                    // It is gone: its last words are still there to be read. One that lives would be waited for.
                    self.expect()?;
                }
                Err(Error::Os { what: "answer the container's process".into(), cause })
            }
        }
    }

    /// The init's: waits for Go; an error when the parent is gone.
    pub fn wait_go(&self) -> Result<()> {
        match self.receive() {
            Ok(Some(Message::Go)) => Ok(()),
            Ok(_) => Err(Error::Init("the runtime died while it created the container".into())),
            Err(cause) => Err(Error::Os { what: "hear from the runtime".into(), cause }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_of_a_peer_that_did_not_listen_are_heard() {
        let (a, b) = Channel::pair().unwrap();
        a.send(&Message::Go).unwrap();
        b.send(&Message::Failed("no".into())).unwrap();
        drop(b);
        assert_eq!(a.receive().unwrap(), Some(Message::Failed("no".into())));
        assert_eq!(a.receive().unwrap(), None);
    }

    #[test]
    fn messages_arrive_as_sent() {
        let (a, b) = Channel::pair().unwrap();
        for message in [Message::Born(42), Message::Go, Message::Hooks, Message::Ready, Message::Failed("no".into())] {
            a.send(&message).unwrap();
            assert_eq!(b.receive().unwrap(), Some(message));
        }
        drop(a);
        assert_eq!(b.receive().unwrap(), None);
    }

    #[test]
    fn who_failed_before_go_is_heard_nevertheless() {
        let (a, b) = Channel::pair().unwrap();
        b.send(&Message::Failed("its reason".into())).unwrap();
        drop(b);
        assert!(a.go().unwrap_err().to_string().contains("its reason"));
    }

    #[test]
    fn words_that_wait_explain_a_later_error() {
        let (a, b) = Channel::pair().unwrap();
        let error = || Error::invalid("later");
        assert_eq!(a.rather_said(error()).to_string(), "later");
        b.send(&Message::Failed("first".into())).unwrap();
        assert_eq!(a.rather_said(error()).to_string(), "first");
    }

    #[test]
    fn long_words_are_cut_not_lost() {
        let (a, b) = Channel::pair().unwrap();
        a.send(&Message::Failed("x".repeat(10_000))).unwrap();
        a.send_last(&"x".repeat(10_000));
        for _ in 0..2 {
            assert!(matches!(b.receive().unwrap(), Some(Message::Failed(w)) if w.len() == MAX_MESSAGE - 1));
        }
    }
}
