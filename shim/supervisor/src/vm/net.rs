//! The network of a pod in a virtual machine, on the machine's side.
//!
//! ```text
//! the node | the pod's network namespace                           | the guest
//!          |        ingress: redirect          ingress: redirect   |
//!  vethX --|-- eth0 ------------------> coracle-tap ---- QEMU -----|--- eth0: the same MAC, addresses, routes, MTU
//!          |      ^------------------------------/                 |
//! ```
//! The plugins set up `eth0` as for any pod, and it stays as they left it. What comes in at `eth0` goes out at the tap
//! and the other way round, by a filter at each one's ingress that matches everything (`u32`: not every kernel has
//! `matchall`) and redirects. A redirected frame never reaches the namespace's own protocols, so the addresses of `eth0`
//! there answer nobody: no ARP, no neighbour solicitation, no reset of a connection that is the guest's. Neither has the
//! namespace processes that would speak from them. The guest is told the same MAC and addresses, so the node and other
//! pods see what they would see without a machine.
//!
//! The tap carries the virtio header: checksums that are yet to be made, and segments that are yet to be cut, pass from
//! the guest to the veth and back as they are. It goes with its last descriptor, which is QEMU's.
//!
//! What has no place in the guest is refused by name: more than one interface, a device that is no Ethernet or does no
//! ARP, routes of tables other than the main one or of kinds that are not a way to somewhere.

mod read;
mod redirect;
#[cfg(test)]
mod tests;

use crate::failure::{Fail, Failure};
use crate::netlink::{Link, Socket};
use crate::sys;
use coracle_proto::coracle::{GuestInterface, GuestNeighbour, GuestRoute};
use coracle_proto::netlink::Refusal;
use coracle_proto::ttrpc::Code;
use nix::sched::{CloneFlags, setns};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;

/// The tap's name in the pod's namespace.
const TAP: &str = "coracle-tap";
const TUN: &str = "/dev/net/tun";

/// The pod's network as the guest is to have it.
pub type Network = (Vec<GuestInterface>, Vec<GuestRoute>, Vec<GuestNeighbour>);

/// Makes the tap in a network namespace (`None`: the caller's own), up, with nothing that would come in: QEMU is given
/// it as an open descriptor, and the guest has the NIC from its boot on.
pub fn open_tap(netns: Option<&File>) -> io::Result<OwnedFd> {
    within(netns, || {
        let said = |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
        let tun = OpenOptions::new().read(true).write(true).open(TUN);
        let tun: OwnedFd = tun.map_err(|e| said(&format!("open {TUN} (is the module tun there?)"), e))?.into();
        sys::make_tap(&tun, TAP).map_err(|e| said(&format!("make the tap {TAP}"), e))?;
        // Else the namespace's own IPv6 would speak to the guest.
        let setting = format!("/proc/sys/net/ipv6/conf/{TAP}/disable_ipv6");
        match fs::write(&setting, "1") {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(said(&format!("write {setting}"), e)),
            _ => {}
        }
        let mut socket = Socket::open().map_err(|e| said("open a netlink socket", e.into()))?;
        let up = find(&mut socket, TAP).and_then(|link| match link {
            Some(link) => socket.set_up(link.index, true),
            None => Err(Refusal { errno: nix::libc::ENODEV, words: None }),
        });
        up.map_err(|e| io::Error::other(format!("set up the tap {TAP}: {e}")))?;
        Ok(tun)
    })
    .and_then(|made| made)
}

/// The plugins are done with a network namespace (`None`: the caller's own): ties its interface to the tap, and tells
/// what the guest is to have. It can be repeated.
pub fn connect(netns: Option<&File>) -> Result<Network, Failure> {
    let failed = |error: io::Error| Code::Unknown.failure(format!("enter the pod's network namespace: {error}"));
    within(netns, || {
        let socket = Socket::open();
        let mut socket = socket.map_err(|e| Code::Unknown.failure(format!("open a netlink socket: {e}")))?;
        let Some(link) = read::interface(&mut socket)? else { return Ok(Network::default()) };
        let network = read::network(&mut socket, &link)?;
        let tap = find(&mut socket, TAP).map_err(|e| Code::Unknown.failure(format!("look for {TAP}: {e}")))?;
        let missing = || Code::FailedPrecondition.failure(format!("{TAP} is gone: the virtual machine has ended"));
        redirect::tie(&mut socket, &link, &tap.ok_or_else(missing)?)?;
        Ok(network)
    })
    .map_err(failed)?
}

fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>, Refusal> {
    Ok(socket.links()?.into_iter().find(|link| link.name == name))
}

/// Does something in a network namespace and comes back.
fn within<T>(netns: Option<&File>, act: impl FnOnce() -> T) -> io::Result<T> {
    let Some(netns) = netns else { return Ok(act()) };
    let own = File::open("/proc/thread-self/ns/net")?;
    setns(netns, CloneFlags::CLONE_NEWNET)?;
    let done = act();
    setns(own, CloneFlags::CLONE_NEWNET)?;
    Ok(done)
}
