//! The engine's netlink sockets: blocking, one request at a time. The messages are [`coracle_proto::netlink`]'s.
//!
//! A socket stays in the network namespace it was opened in, whoever uses it later.

use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};

use coracle_proto::netlink::{self, Exchange};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use nix::{setsockopt_impl, sockopt_impl};

pub(super) use coracle_proto::netlink::{Attrs, Message, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, Reply, number, string};

/// The kernel sends dumps in pieces of at most 32 KiB.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// Netlink answers at once; only a wedged kernel lock takes longer than this.
const ANSWER_DEADLINE_SECONDS: i64 = 20;

sockopt_impl!(ExtendedAck, SetOnly, libc::SOL_NETLINK, NETLINK_EXT_ACK, bool);
sockopt_impl!(CappedAck, SetOnly, libc::SOL_NETLINK, NETLINK_CAP_ACK, bool);
const NETLINK_EXT_ACK: libc::c_int = 11;
const NETLINK_CAP_ACK: libc::c_int = 10;

/// Why a request failed: the errno, and the kernel's own words when it gave some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) errno: Errno,
    words: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.words {
            Some(words) => write!(f, "{}: {words}", self.errno),
            None => write!(f, "{}", self.errno),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<netlink::Refusal> for Refusal {
    fn from(refusal: netlink::Refusal) -> Refusal {
        Refusal { errno: Errno::from_raw(refusal.errno), words: refusal.words }
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Refusal {
        Refusal { errno, words: None }
    }
}

/// A blocking netlink socket.
pub(super) struct Socket {
    fd: OwnedFd,
    seq: u32,
}

impl Socket {
    /// A socket of routing netlink in the calling thread's network namespace.
    pub(super) fn route() -> Result<Socket, Refusal> {
        Socket::open(SockProtocol::NetlinkRoute)
    }

    /// A socket of netfilter netlink (nf_tables, conntrack) in the calling thread's network namespace.
    pub(super) fn netfilter() -> Result<Socket, Refusal> {
        Socket::open(SockProtocol::NetlinkNetFilter)
    }

    fn open(protocol: SockProtocol) -> Result<Socket, Refusal> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        // The kernel's words with an error, without a copy of the request: kernels before 4.12 lack them, and then the
        // plain errno has to do.
        let _ = setsockopt(&fd, ExtendedAck, &true);
        let _ = setsockopt(&fd, CappedAck, &true);
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_DEADLINE_SECONDS, 0))?;
        Ok(Socket { fd, seq: 0 })
    }

    /// Sends one request and returns the objects of its answer, once the kernel has acknowledged it.
    pub(super) fn request(&mut self, message: Message) -> Result<Vec<Reply>, Refusal> {
        let mut replies = Vec::new();
        self.each(message, |reply| replies.push(reply))?;
        Ok(replies)
    }

    /// As [`Socket::request`], for dumps too long to keep.
    pub(super) fn each(&mut self, message: Message, take: impl FnMut(Reply)) -> Result<(), Refusal> {
        self.exchange(vec![message], take)
    }

    /// Sends requests that belong together in one datagram and waits for the end of each. The first error is the result.
    pub(super) fn transact(&mut self, messages: Vec<Message>) -> Result<(), Refusal> {
        self.exchange(messages, drop)
    }

    fn exchange(&mut self, messages: Vec<Message>, mut take: impl FnMut(Reply)) -> Result<(), Refusal> {
        let mut exchange = Exchange::new(&mut self.seq, messages);
        sendto(self.fd.as_raw_fd(), exchange.datagram(), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut buffer = vec![0; RECEIVE_BUFFER];
        while exchange.is_open() {
            let have = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            exchange.receive(&buffer[..have], &mut take);
        }
        exchange.finish().map_err(Refusal::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers_and_says_why_it_refuses() {
        let mut socket = Socket::route().unwrap();
        // ifinfomsg of 16 zero bytes and a dump: every link of this namespace.
        assert!(!socket.request(Message::new(18, NLM_F_DUMP, &[0; 16])).unwrap().is_empty());
        let refused = socket.request(Message::new(18, 0, &[0; 16]).text(3, "no-such-if")).err().unwrap();
        assert_eq!(refused.errno, Errno::ENODEV, "{refused}");
    }
}
