//! Forgetting UDP flows that were tracked before a port led to a pod, or lead to a pod that is gone.
//!
//! Address translation is decided by a flow's first packet. A UDP client that keeps sending from one port (a DNS
//! forwarder, a syslog sender) keeps its flow alive, and would never reach a pod started later, nor another one after the
//! first ended. TCP needs none of it: a new connection is a new flow.
//!
//! Flows are listed by a filter in the kernel (5.8; older ones list all, so each is checked here too) and deleted one by
//! one, by the tuple the kernel told. A flow that ends meanwhile is no error.

use std::net::{Ipv4Addr, SocketAddrV4};

use nix::errno::Errno;

use super::nl::{Attrs, Message, NLM_F_DUMP, Refusal, Socket};
use crate::types::{PortMapping, Protocol};

const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
/// `nfgenmsg` of IPv4.
const NFGEN: usize = 4;
const HEAD: [u8; NFGEN] = [libc::AF_INET as u8, 0, 0, 0];

const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const FILTER: u16 = 25;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_SRC: u16 = 1;
const IP_DST: u16 = 2;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
const FILTER_ORIG_FLAGS: u16 = 1;
const FILTER_REPLY_FLAGS: u16 = 2;
const BY_IP_SRC: u32 = 1;
const BY_PROTO: u32 = 1 << 3;
const BY_DST_PORT: u32 = 1 << 5;

const UDP: u8 = 17;

/// Forgets flows to the UDP ports among `ports` that end at the host itself, so that their next packet goes to the pod.
/// `local` are the host's own addresses: what passes through to the same port of another machine is left alone.
pub(super) fn forget_host_flows(socket: &mut Socket, ports: &[PortMapping], local: &[Ipv4Addr]) -> Result<(), Refusal> {
    for port in ports.iter().filter(|port| port.protocol == Protocol::Udp) {
        let dump = Message::new(GET, NLM_F_DUMP, &HEAD)
            .nest(TUPLE_ORIG, &[], |m| {
                m.nest(TUPLE_PROTO, &[], |m| {
                    m.attr(PROTO_NUM, &[UDP]).attr(PROTO_DST_PORT, &port.host_port.to_be_bytes())
                })
            })
            .nest(FILTER, &[], |m| m.attr(FILTER_ORIG_FLAGS, &(BY_PROTO | BY_DST_PORT).to_ne_bytes()));
        forget(socket, dump, |flow| {
            flow.proto == UDP
                && flow.to_port == port.host_port
                && flow.to == flow.answered_by
                && (local.contains(&flow.to) || flow.to.is_loopback())
                && port.address().is_none_or(|ip| ip == flow.to)
        })?;
    }
    Ok(())
}

/// Forgets UDP flows that were led to the pod at `ip`.
pub(super) fn forget_pod_flows(socket: &mut Socket, ip: Ipv4Addr) -> Result<(), Refusal> {
    let dump = Message::new(GET, NLM_F_DUMP, &HEAD)
        .nest(TUPLE_REPLY, &[], |m| {
            m.nest(TUPLE_IP, &[], |m| m.attr(IP_SRC, &ip.octets()))
                .nest(TUPLE_PROTO, &[], |m| m.attr(PROTO_NUM, &[UDP]))
        })
        .nest(FILTER, &[], |m| m.attr(FILTER_REPLY_FLAGS, &(BY_IP_SRC | BY_PROTO).to_ne_bytes()));
    forget(socket, dump, |flow| flow.proto == UDP && flow.answered_by == ip && flow.to != ip)
}

/// Forgets UDP flows to `port` of the addresses that `to` says, unless one of `live` answers them.
pub(super) fn forget_stale(
    socket: &mut Socket,
    port: u16,
    to: &dyn Fn(Ipv4Addr) -> bool,
    live: &[SocketAddrV4],
) -> Result<(), Refusal> {
    let dump = Message::new(GET, NLM_F_DUMP, &HEAD)
        .nest(TUPLE_ORIG, &[], |m| {
            m.nest(TUPLE_PROTO, &[], |m| m.attr(PROTO_NUM, &[UDP]).attr(PROTO_DST_PORT, &port.to_be_bytes()))
        })
        .nest(FILTER, &[], |m| m.attr(FILTER_ORIG_FLAGS, &(BY_PROTO | BY_DST_PORT).to_ne_bytes()));
    forget(socket, dump, |flow| {
        let answered = SocketAddrV4::new(flow.answered_by, flow.answered_from);
        flow.proto == UDP && flow.to_port == port && to(flow.to) && !live.contains(&answered)
    })
}

/// What is asked of a flow.
struct Flow {
    proto: u8,
    to: Ipv4Addr,
    to_port: u16,
    answered_by: Ipv4Addr,
    answered_from: u16,
}

fn forget(socket: &mut Socket, dump: Message, unwanted: impl Fn(&Flow) -> bool) -> Result<(), Refusal> {
    let mut deletions = Vec::new();
    socket.each(dump, |reply| {
        let attrs = reply.attrs(NFGEN);
        if let (Some(flow), Some(tuple)) = (flow_of(attrs), attrs.get(TUPLE_ORIG))
            && unwanted(&flow)
        {
            let delete = Message::new(DELETE, 0, &HEAD).nest(TUPLE_ORIG, tuple, |m| m);
            deletions.push(match attrs.get(ID) {
                Some(id) => delete.attr(ID, id),
                None => delete,
            });
        }
    })?;
    for delete in deletions {
        match socket.request(delete) {
            Err(e) if e.errno != Errno::ENOENT => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn flow_of(attrs: Attrs) -> Option<Flow> {
    let inner = |tuple, part| attrs.get(tuple).and_then(|t| Attrs::of(t).get(part)).map(Attrs::of);
    let ip = |attrs: Attrs, kind| <[u8; 4]>::try_from(attrs.get(kind)?).ok().map(Ipv4Addr::from);
    let proto = inner(TUPLE_ORIG, TUPLE_PROTO)?;
    let port = |attrs: Attrs, kind| <[u8; 2]>::try_from(attrs.get(kind)?).ok().map(u16::from_be_bytes);
    Some(Flow {
        proto: *proto.get(PROTO_NUM)?.first()?,
        to: ip(inner(TUPLE_ORIG, TUPLE_IP)?, IP_DST)?,
        to_port: port(proto, PROTO_DST_PORT)?,
        answered_by: ip(inner(TUPLE_REPLY, TUPLE_IP)?, IP_SRC)?,
        answered_from: port(inner(TUPLE_REPLY, TUPLE_PROTO)?, PROTO_SRC_PORT)?,
    })
}
