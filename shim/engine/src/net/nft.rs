//! The bridge's nftables table: masquerade for what leaves the subnet, and the ports of the host that lead to pods.
//!
//! The table `inet coracle-<bridge>` is ours alone and is made once, by one transaction of `nft -f -`; no rule of it ever
//! changes. What changes are the elements of two maps, added and removed straight over netlink (0.1 ms; running `nft`
//! takes 3 ms), all elements of a pod in one transaction:
//!
//! ```text
//! map any  { proto . port : pod ip . pod port }                hostPort at every local address, loopback included
//! map addr { host ip . proto . port : pod ip . pod port }      hostPort with a hostIP
//! ```
//!
//! Who reaches a hostPort how:
//! - from outside: `prerouting` rewrites the destination; the pod sees the client's address.
//! - from the host, to any of its addresses: `output` rewrites it. From 127.0.0.1 the packet would carry a loopback source
//!   over the bridge, which needs `route_localnet` there and a masquerade to the bridge's address.
//! - from a pod, another or the same (hairpin): `prerouting`, and masquerade, since the answer would otherwise go straight
//!   from pod to pod over the bridge and never be rewritten back.
//!
//! `route_localnet` alone would let pods send to services that the host binds to 127.0.0.1 only (CVE-2020-8558); the
//! chain `guard` drops that before anything else sees it.
//!
//! An `accept` in one table does not undo a `drop` in another, so nothing here can open a host's own FORWARD chain: see
//! `forward`.

use std::io::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;

use super::nl::{Attrs, Message, NLM_F_CREATE, NLM_F_DUMP, Refusal, Reply, Socket};
use super::{Error, NetConfig};
use crate::types::PortMapping;

/// Changes with the rules below, so that a table made by an older version is made anew.
pub(super) const RULES_VERSION: u32 = 1;

const SUBSYSTEM: u16 = 10 << 8;
const GETTABLE: u16 = SUBSYSTEM | 1;
const NEWSETELEM: u16 = SUBSYSTEM | 12;
const GETSETELEM: u16 = SUBSYSTEM | 13;
const DELSETELEM: u16 = SUBSYSTEM | 14;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const FAMILY_INET: u8 = 1;
/// `nfgenmsg { family u8, version u8, resource id u16 BE }`; in a batch's ends the id names the subsystem.
const NFGEN: usize = 4;
const HEAD: [u8; NFGEN] = [FAMILY_INET, 0, 0, 0];
const BATCH_HEAD: [u8; NFGEN] = [0, 0, 0, 10];

const TABLE_NAME: u16 = 1;
const TABLE_HANDLE: u16 = 4;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEM: u16 = 1;
const ELEM_KEY: u16 = 1;
const ELEM_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const JUMP: i32 = -3;

/// The table's name for a bridge.
pub(super) fn table(bridge: &str) -> String {
    format!("coracle-{bridge}")
}

/// The whole table as `nft` reads it: what was there under its name is replaced in the same transaction.
fn rules(config: &NetConfig) -> String {
    let NetConfig { bridge, subnet, .. } = config;
    let table = table(bridge);
    let leave = if config.masquerade {
        format!("ip saddr {subnet} ip daddr != {{ {subnet}, 224.0.0.0/4, 255.255.255.255 }} masquerade")
    } else {
        String::new()
    };
    format!(
        r#"
add table inet {table}
delete table inet {table}
table inet {table} {{
  comment "pods of coracle on {bridge}"
  map any {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map addr {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  chain hostports {{
    dnat ip to ip daddr . meta l4proto . th dport map @addr
    fib daddr type local dnat ip to meta l4proto . th dport map @any
  }}
  chain prerouting {{ type nat hook prerouting priority dstnat; policy accept; jump hostports; }}
  chain output {{ type nat hook output priority -100; policy accept; jump hostports; }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{bridge}" ct status dnat ip saddr {{ 127.0.0.0/8, {subnet} }} masquerade
    {leave}
  }}
  chain guard {{ type filter hook prerouting priority raw; policy accept; iifname "{bridge}" ip daddr 127.0.0.0/8 drop; }}
}}
"#
    )
}

/// The number that the kernel gave a table when it was made; `None` when there is no such table.
pub(super) fn handle(socket: &mut Socket, table: &str) -> Result<Option<u64>, Refusal> {
    match socket.request(Message::new(GETTABLE, 0, &HEAD).text(TABLE_NAME, table)) {
        Ok(replies) => {
            let handle = replies.first().and_then(|reply| reply.attrs(NFGEN).get(TABLE_HANDLE));
            Ok(handle.and_then(|bytes| <[u8; 8]>::try_from(bytes).ok()).map(u64::from_be_bytes))
        }
        Err(e) if e.errno == Errno::ENOENT => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether a table exists.
pub(super) fn exists(socket: &mut Socket, table: &str) -> Result<bool, Refusal> {
    Ok(handle(socket, table)?.is_some())
}

/// Makes the bridge's table, without elements.
pub(super) fn create(config: &NetConfig) -> Result<(), Error> {
    run(&table(&config.bridge), &rules(config))
}

/// Removes a table; that it is not there is no error.
pub(super) fn remove(table: &str) -> Result<(), Error> {
    run(table, &format!("add table inet {table}\ndelete table inet {table}\n"))
}

/// Whether there is an `nft` to run.
pub(super) fn is_installed() -> bool {
    super::ADMIN_PATH.split(':').any(|dir| Path::new(dir).join("nft").exists())
}

/// Runs one transaction of `nft` on a table.
pub(super) fn run(table: &str, script: &str) -> Result<(), Error> {
    transact(script).map_err(|words| Error::Nft { table: table.to_owned(), words })
}

fn transact(script: &str) -> Result<(), String> {
    let spawned = Command::new("nft")
        .args(["-f", "-"])
        .env("PATH", super::ADMIN_PATH)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => "the program nft was not found (install the package nftables)".to_owned(),
        _ => format!("run nft: {e}"),
    })?;
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    // An nft that ended early says why on its stderr, which tells more than our broken pipe.
    let _ = stdin.write_all(script.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().map_err(|e| format!("wait for nft: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(words.lines().find(|line| !line.is_empty()).unwrap_or("nft failed and did not say why").to_owned())
}

/// One element: which map it is in, its key and what it leads to, each part padded to a register's four bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Element {
    map: &'static str,
    key: Vec<u8>,
    data: Data,
}

/// What an element leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Data {
    /// Nothing: it is a set's.
    Nothing,
    Value(Vec<u8>),
    /// A chain.
    Jump(String),
}

impl Element {
    /// The element of a port that leads to the pod at `ip`.
    pub(super) fn new(port: &PortMapping, ip: Ipv4Addr) -> Element {
        let mut key = Vec::with_capacity(12);
        let map = match port.address() {
            Some(address) => {
                key.extend_from_slice(&address.octets());
                "addr"
            }
            None => "any",
        };
        key.extend_from_slice(&[port.protocol.number(), 0, 0, 0]);
        key.extend_from_slice(&port_register(port.host_port));
        let data = [ip.octets(), port_register(port.container_port)].concat();
        Element { map, key, data: Data::Value(data) }
    }

    /// The element of a map of verdicts that sends `key` to a chain.
    pub(super) fn jump(map: &'static str, key: &[u8], chain: &str) -> Element {
        Element { map, key: key.to_vec(), data: Data::Jump(chain.to_owned()) }
    }

    /// The element of a set of interface names.
    pub(super) fn link(set: &'static str, name: &str) -> Element {
        let mut key = name.as_bytes().to_vec();
        key.resize(super::INTERFACE_NAME_MAX + 1, 0);
        Element { map: set, key, data: Data::Nothing }
    }

    /// The pod's address it leads to.
    pub(super) fn target(&self) -> Option<Ipv4Addr> {
        let Data::Value(data) = &self.data else { return None };
        data.get(..4).and_then(|b| <[u8; 4]>::try_from(b).ok()).map(Ipv4Addr::from)
    }

    fn request(&self, table: &str, kind: u16) -> Message {
        let flags = if kind == NEWSETELEM { NLM_F_CREATE } else { 0 };
        let data = |m: Message| match &self.data {
            Data::Value(data) if kind == NEWSETELEM => m.nest(ELEM_DATA, &[], |m| m.attr(DATA_VALUE, data)),
            Data::Jump(chain) if kind == NEWSETELEM => m.nest(ELEM_DATA, &[], |m| {
                m.nest(DATA_VERDICT, &[], |m| m.attr(VERDICT_CODE, &JUMP.to_be_bytes()).text(VERDICT_CHAIN, chain))
            }),
            _ => m,
        };
        Message::new(kind, flags, &HEAD).text(LIST_TABLE, table).text(LIST_SET, self.map).nest(
            LIST_ELEMENTS,
            &[],
            |m| m.nest(LIST_ELEM, &[], |m| data(m.nest(ELEM_KEY, &[], |m| m.attr(DATA_VALUE, &self.key)))),
        )
    }
}

fn port_register(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// Adds elements in one transaction. One that is there already with the same target is no error; with another it is.
pub(super) fn add(socket: &mut Socket, table: &str, elements: &[Element]) -> Result<(), Refusal> {
    batch(socket, table, elements, NEWSETELEM)
}

/// Removes those of `elements` that are there, leading where they say.
pub(super) fn remove_elements(socket: &mut Socket, table: &str, elements: &[Element]) -> Result<(), Refusal> {
    if elements.is_empty() {
        return Ok(());
    }
    let present = list(socket, table)?;
    let ours: Vec<Element> = elements.iter().filter(|e| present.contains(e)).cloned().collect();
    batch(socket, table, &ours, DELSETELEM)
}

/// Removes elements whose keys nobody else can have; those that are not there are passed over.
pub(super) fn remove_own(socket: &mut Socket, table: &str, elements: &[Element]) -> Result<(), Refusal> {
    for element in elements {
        match batch(socket, table, std::slice::from_ref(element), DELSETELEM) {
            Err(e) if e.errno != Errno::ENOENT => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn batch(socket: &mut Socket, table: &str, elements: &[Element], kind: u16) -> Result<(), Refusal> {
    if elements.is_empty() {
        return Ok(());
    }
    let mut messages = vec![Message::unanswered(BATCH_BEGIN, &BATCH_HEAD)];
    messages.extend(elements.iter().map(|e| e.request(table, kind)));
    messages.push(Message::unanswered(BATCH_END, &BATCH_HEAD));
    socket.transact(messages)
}

/// All elements of both maps of ports; none when there is no table.
pub(super) fn list(socket: &mut Socket, table: &str) -> Result<Vec<Element>, Refusal> {
    let mut found = Vec::new();
    for map in ["any", "addr"] {
        let dump = Message::new(GETSETELEM, NLM_F_DUMP, &HEAD).text(LIST_TABLE, table).text(LIST_SET, map);
        match socket.request(dump) {
            Ok(replies) => found.extend(replies.iter().flat_map(|reply| elements_of(reply, map))),
            Err(e) if e.errno == Errno::ENOENT => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

fn elements_of(reply: &Reply, map: &'static str) -> Vec<Element> {
    let value =
        |element: Attrs, kind| element.get(kind).and_then(|data| Attrs::of(data).get(DATA_VALUE)).map(<[u8]>::to_vec);
    let Some(list) = reply.attrs(NFGEN).get(LIST_ELEMENTS) else { return Vec::new() };
    Attrs::of(list)
        .map(|(_, element)| Attrs::of(element))
        .filter_map(|element| {
            let (key, data) = (value(element, ELEM_KEY)?, Data::Value(value(element, ELEM_DATA)?));
            Some(Element { map, key, data })
        })
        .collect()
}
