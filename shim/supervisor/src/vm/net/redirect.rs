//! Two filters that make one wire of two network devices (see tc(8), tc-u32(8), tc-mirred(8)).
//!
//! ```text
//! tc qdisc add dev A ingress
//! tc filter add dev A parent ffff: protocol all prio 49000 u32 match u32 0 0 action mirred egress redirect dev B
//! ```

use crate::failure::{Fail, Failure};
use crate::netlink::{Link, Socket};
use coracle_proto::netlink::{Message, NLM_F_CREATE, NLM_F_EXCL};
use coracle_proto::ttrpc::Code;
use nix::libc;

/// Ours among the filters of a device: other numbers are other people's, and smaller ones see the frame first.
const PRIORITY: u16 = 49_000;
/// Where a device's ingress filters hang, be its qdisc `ingress` or `clsact`.
const AT_INGRESS: u32 = 0xffff_fff2;
/// The handle of both kinds of qdisc, and the parent they are made with.
const INGRESS_HANDLE: u32 = 0xffff_0000;
const INGRESS_PARENT: u32 = 0xffff_fff1;
/// `struct tcmsg`.
const TCMSG: usize = 20;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TC_U32_TERMINAL: u8 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TC_ACT_STOLEN: u32 = 4;
const TCA_EGRESS_REDIR: u32 = 1;

/// What comes in at one goes out at the other.
pub(super) fn tie(socket: &mut Socket, link: &Link, tap: &Link) -> Result<(), Failure> {
    let sized = socket.change(tap.index, (0, 0), |message| message.attr(libc::IFLA_MTU, &link.mtu.to_ne_bytes()));
    sized.map_err(|e| Code::Unknown.failure(format!("give {} the MTU {}: {e}", tap.name, link.mtu)))?;
    for (from, to) in [(link, tap), (tap, link)] {
        let failed = |what: &str, error| Code::Unknown.failure(format!("{what} {}: {error}", from.name));
        let qdisc = Message::new(libc::RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &{
            tcmsg(from.index, INGRESS_HANDLE, INGRESS_PARENT, 0)
        });
        socket
            .ensure(qdisc.text(TCA_KIND, "ingress"), libc::EEXIST)
            .map_err(|e| failed("add an ingress qdisc (module sch_ingress?) to", e))?;
        // What a repetition finds may lead to a tap that is gone.
        let old = tcmsg(from.index, 0, AT_INGRESS, filter_info());
        socket
            .ensure(Message::new(libc::RTM_DELTFILTER, 0, &old), libc::ENOENT)
            .map_err(|e| failed("remove the old filter of", e))?;
        socket
            .request(filter(from, to))
            .map_err(|e| failed("add a filter (modules cls_u32, act_mirred?) that redirects from", e))?;
    }
    Ok(())
}

fn tcmsg(link: u32, handle: u32, parent: u32, info: u32) -> [u8; TCMSG] {
    let mut head = [0; TCMSG];
    for (at, field) in [(4, link), (8, handle), (12, parent), (16, info)] {
        head[at..at + 4].copy_from_slice(&field.to_ne_bytes());
    }
    head
}

/// A filter's priority, and the protocol that it looks at, which is all.
fn filter_info() -> u32 {
    u32::from(PRIORITY) << 16 | u32::from((libc::ETH_P_ALL as u16).to_be())
}

fn filter(from: &Link, to: &Link) -> Message {
    // tc_u32_sel with one tc_u32_key whose mask is zero.
    let mut selector = [0; 32];
    selector[0] = TC_U32_TERMINAL;
    selector[2] = 1;
    // tc_mirred: index, capabilities, what becomes of the frame here, two counts; then what is done and where to.
    let redirect = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to.index].map(u32::to_ne_bytes).concat();
    let action =
        |m: Message| m.text(TCA_ACT_KIND, "mirred").nest(TCA_ACT_OPTIONS, &[], |m| m.attr(TCA_MIRRED_PARMS, &redirect));
    let head = tcmsg(from.index, 0, AT_INGRESS, filter_info());
    Message::new(libc::RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, &head).text(TCA_KIND, "u32").nest(
        TCA_OPTIONS,
        &[],
        |m| m.attr(TCA_U32_SEL, &selector).nest(TCA_U32_ACT, &[], |m| m.nest(1, &[], action)),
    )
}
