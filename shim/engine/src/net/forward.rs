//! A host that drops what it forwards, and how pods get through.
//!
//! Every base chain at the kernel's forward hook has a say: an `accept` of one does not undo the `drop` of another. So a
//! host whose own chain has the policy drop cuts pods off, whatever our table says. Who does that:
//!
//! - Docker sets `iptables -P FORWARD DROP` when it switches `ip_forward` on, as do ufw and many admins. The chain FORWARD
//!   of iptables' filter table is the place everyone shares, and two rules of ours go to its top, as those of docker,
//!   kube-proxy and the CNI firewall plugin do: what comes from the bridge, and answers and hostPorts to it. This holds
//!   for both of iptables' kinds, nft and legacy, each by its own program. Rules that others put before ours later still
//!   come first.
//! - A chain of nftables' own with the policy drop belongs to the one who wrote it; it is not touched. The attachment's
//!   notes give the lines it needs. (firewalld drops by a last rule, not by policy, which cannot be seen from here: there
//!   the bridge belongs into the zone `trusted`.)
//!
//! Which chains drop is asked for at every attachment (one dump, some 50 us), so that a docker started later is noticed
//! by the next pod. Only a legacy chain whose policy changes later is not noticed: telling takes a program's run.

use std::fmt::Write;
use std::fs;
use std::process::{Command, Stdio};

use super::Error;
use super::nl::{Attrs, Message, NLM_F_DUMP, Refusal, Socket, string};

const GETCHAIN: u16 = 10 << 8 | 4;
const NFGEN: usize = 4;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const HOOK_NUM: u16 = 1;
const HOOK_FORWARD: u32 = 2;
const POLICY_DROP: u32 = 0;
const FAMILY_INET: u8 = 1;
const FAMILY_IPV4: u8 = 2;

const COMMENT: &str = "coracle pods";
/// iptables waits this many seconds for its own lock.
const IPTABLES_LOCK_SECONDS: &str = "10";

/// A base chain at the forward hook with the policy drop.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chain {
    family: u8,
    table: String,
    name: String,
}

impl Chain {
    fn of_iptables(&self) -> bool {
        self.family == FAMILY_IPV4 && self.table == "filter" && self.name == "FORWARD"
    }
}

/// The chains that drop what the host forwards for IPv4.
pub(super) fn dropping(socket: &mut Socket) -> Result<Vec<Chain>, Refusal> {
    let number = |payload: &[u8]| <[u8; 4]>::try_from(payload).map(u32::from_be_bytes).ok();
    let mut chains = Vec::new();
    socket.each(Message::new(GETCHAIN, NLM_F_DUMP, &[0; NFGEN]), |reply| {
        let [family, ..] = reply.head::<NFGEN>();
        let attrs = reply.attrs(NFGEN);
        let hook = attrs.get(CHAIN_HOOK).and_then(|hook| Attrs::of(hook).get(HOOK_NUM)).and_then(number);
        let policy = attrs.get(CHAIN_POLICY).and_then(number);
        let sees_ipv4 = [FAMILY_INET, FAMILY_IPV4].contains(&family);
        if sees_ipv4 && hook == Some(HOOK_FORWARD) && policy == Some(POLICY_DROP) {
            let text = |kind| attrs.get(kind).map(string).unwrap_or_default();
            chains.push(Chain { family, table: text(CHAIN_TABLE), name: text(CHAIN_NAME) });
        }
    })?;
    Ok(chains)
}

/// The chains as one word, to see a change.
pub(super) fn fingerprint(chains: &[Chain]) -> String {
    chains.iter().fold(String::new(), |mut text, chain| {
        let _ = write!(text, "{}/{}/{},", chain.family, chain.table, chain.name);
        text
    })
}

/// Opens what drops for `bridge` where that is ours to do, and notes what was done or is left to the admin.
pub(super) fn open(bridge: &str, chains: &[Chain], notes: &mut Vec<String>) -> Result<(), Error> {
    for chain in chains {
        if chain.of_iptables() {
            insert("iptables", bridge, notes)?;
        } else {
            notes.push(left_to_admin(chain, bridge));
        }
    }
    if legacy_filter()
        && iptables("iptables-legacy", &["-S", "FORWARD"]).is_ok_and(|rules| rules.contains("-P FORWARD DROP"))
    {
        insert("iptables-legacy", bridge, notes)?;
    }
    Ok(())
}

/// What an admin's own chains keep pods from, and what lets them through.
pub(super) fn closed(bridge: &str, chains: &[Chain]) -> Vec<String> {
    chains.iter().filter(|chain| !chain.of_iptables()).map(|chain| left_to_admin(chain, bridge)).collect()
}

fn left_to_admin(chain: &Chain, bridge: &str) -> String {
    let family = if chain.family == FAMILY_INET { "inet" } else { "ip" };
    format!(
        "nftables chain {family} {} {} drops forwarded packets: pods reach only each other and this host until it accepts \
         `iifname \"{bridge}\"` and `oifname \"{bridge}\" ct state established,related` (and `ct status dnat` for \
         hostPorts)",
        chain.table, chain.name
    )
}

/// Whether the legacy kind of iptables has a filter table; asking its program would make one.
fn legacy_filter() -> bool {
    fs::read_to_string("/proc/thread-self/net/ip_tables_names")
        .is_ok_and(|names| names.lines().any(|name| name == "filter"))
}

/// Our two rules, without the command that acts on them.
fn rules(bridge: &str) -> [Vec<&str>; 2] {
    let tag = ["-m", "comment", "--comment", COMMENT, "-j", "ACCEPT"];
    [
        ["-i", bridge].into_iter().chain(tag).collect(),
        ["-o", bridge, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED,DNAT"].into_iter().chain(tag).collect(),
    ]
}

fn insert(program: &str, bridge: &str, notes: &mut Vec<String>) -> Result<(), Error> {
    for rule in rules(bridge) {
        if iptables(program, &[&["-C", "FORWARD"], rule.as_slice()].concat()).is_err() {
            let done = iptables(program, &[&["-I", "FORWARD"], rule.as_slice()].concat());
            done.map_err(|why| Error::Invalid(format!("open {program}'s FORWARD chain for {bridge}: {why}")))?;
            notes.push(format!("added to {program} FORWARD, which drops by policy: {}", rule.join(" ")));
        }
    }
    Ok(())
}

/// Takes our rules back from iptables' chains; nothing is said when there are none.
pub(super) fn close(bridge: &str, chains: &[Chain]) {
    let mut programs = Vec::new();
    if chains.iter().any(Chain::of_iptables) {
        programs.push("iptables");
    }
    if legacy_filter() {
        programs.push("iptables-legacy");
    }
    for program in programs {
        for rule in rules(bridge) {
            // A rule that is not there is what was wanted.
            let _ = iptables(program, &[&["-D", "FORWARD"], rule.as_slice()].concat());
        }
    }
}

fn iptables(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(["-w", IPTABLES_LOCK_SECONDS])
        .args(args)
        .env("PATH", super::ADMIN_PATH)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("run {program}: {e}"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(words.lines().next().unwrap_or("it failed and did not say why").to_owned()),
    }
}
