//! A pod's /etc/hosts, /etc/hostname and /etc/resolv.conf, with the content and by the rules of kubelet. Pure functions:
//! who calls them reads and writes the files.
//!
//! Which resolv.conf a pod starts from: the host's /etc/resolv.conf, unless that names nothing but systemd-resolved's stub
//! on 127.0.0.53; then /run/systemd/resolve/resolv.conf, where resolved writes the servers behind it. A pod with its own
//! network cannot reach a name server on the host's loopback; such lines are dropped with a note. No public resolver is
//! ever put in their place: whom a machine asks for names is its owner's choice.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use crate::types::{DnsConfig, HostAlias};

/// The host's resolv.conf.
pub const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved names the servers behind its stub.
pub const RESOLVED_RESOLV_CONF: &str = "/run/systemd/resolve/resolv.conf";

/// glibc and musl use no more name servers than this; kubelet cuts here as well.
pub const MAX_NAMESERVERS: usize = 3;
/// Kubernetes' limits of search domains: how many, and how long together.
pub const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;

const HOSTS_HEAD: &str = "# Kubernetes-managed hosts file.\n";
const HOST_NETWORK_HOSTS_HEAD: &str = "# Kubernetes-managed hosts file (host network).\n";

/// /etc/hosts of a pod with its own network.
pub fn hosts(hostname: &str, domain: &str, ips: &[IpAddr], aliases: &[HostAlias]) -> String {
    let mut text = String::from(HOSTS_HEAD);
    text.push_str("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    text.push_str("fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n");
    for ip in ips {
        let _ = match domain {
            "" => writeln!(text, "{ip}\t{hostname}"),
            _ => writeln!(text, "{ip}\t{hostname}.{domain}\t{hostname}"),
        };
    }
    add_aliases(&mut text, aliases);
    text
}

/// /etc/hosts of a pod in the host's network: the host's own, and the pod's aliases.
pub fn hosts_on_host_network(host: &str, aliases: &[HostAlias]) -> String {
    let mut text = format!("{HOST_NETWORK_HOSTS_HEAD}{host}");
    add_aliases(&mut text, aliases);
    text
}

fn add_aliases(text: &mut String, aliases: &[HostAlias]) {
    if aliases.is_empty() {
        return;
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str("\n# Entries added by HostAliases.\n");
    for HostAlias { ip, hostnames } in aliases {
        let _ = writeln!(text, "{ip}\t{}", hostnames.join("\t"));
    }
}

/// /etc/hostname.
pub fn hostname(name: &str) -> String {
    format!("{name}\n")
}

impl DnsConfig {
    /// Reads a resolv.conf as libc does: keywords at the start of a line, the last `search` or `domain` wins, options add
    /// up, everything else is passed over.
    pub fn parse(text: &str) -> DnsConfig {
        let mut resolv = DnsConfig::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => resolv.servers.extend(words.next().map(str::to_owned)),
                Some("search") => resolv.searches = words.map(str::to_owned).collect(),
                Some("domain") => resolv.searches = words.take(1).map(str::to_owned).collect(),
                Some("options") => resolv.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        // "." as the only domain means: search nothing.
        resolv.searches.retain(|domain| domain != ".");
        resolv
    }

    /// Adds what a Pod's `dnsConfig` asks for, as kubelet does: servers and domains go behind those that are there,
    /// without repetition; an option replaces the one of the same name.
    pub fn add(&mut self, more: &DnsConfig) {
        let add = |to: &mut Vec<String>, from: &[String]| {
            for item in from {
                if !to.contains(item) {
                    to.push(item.clone());
                }
            }
        };
        add(&mut self.servers, &more.servers);
        add(&mut self.searches, &more.searches);
        let name = |option: &String| option.split(':').next().unwrap_or_default().to_owned();
        let replaced: BTreeMap<String, &String> = more.options.iter().map(|o| (name(o), o)).collect();
        self.options.retain(|option| !replaced.contains_key(&name(option)));
        for option in &more.options {
            if replaced.get(&name(option)).is_some_and(|last| *last == option) && !self.options.contains(option) {
                self.options.push(option.clone());
            }
        }
    }

    /// Drops name servers a pod with its own network cannot reach; returns notes about them for the user.
    pub fn drop_loopback(&mut self) -> Vec<String> {
        let mut notes = Vec::new();
        self.servers.retain(|server| {
            let local = is_loopback(server);
            if local {
                notes.push(format!(
                    "name server {server} of the host is on its loopback, out of a pod's reach: left out"
                ));
            }
            !local
        });
        if !notes.is_empty() && self.servers.is_empty() {
            notes.push("no name server is left for the pod: set one in the Pod's dnsConfig.nameservers".to_owned());
        }
        notes
    }

    /// Cuts to what libc and Kubernetes allow; returns notes about what was cut.
    pub fn cut(&mut self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.servers.len() > MAX_NAMESERVERS {
            let kept = self.servers[..MAX_NAMESERVERS].join(" ");
            notes.push(format!("of {} name servers only {kept} are used", self.servers.len()));
            self.servers.truncate(MAX_NAMESERVERS);
        }
        let before = self.searches.len();
        self.searches.truncate(MAX_SEARCHES);
        while self.searches.join(" ").len() > MAX_SEARCH_CHARS {
            self.searches.pop();
        }
        if self.searches.len() < before {
            notes.push(format!("of {before} search domains only the first {} are used", self.searches.len()));
        }
        notes
    }

    /// The text of a resolv.conf.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            let _ = writeln!(text, "search {}", self.searches.join(" "));
        }
        for server in &self.servers {
            let _ = writeln!(text, "nameserver {server}");
        }
        if !self.options.is_empty() {
            let _ = writeln!(text, "options {}", self.options.join(" "));
        }
        text
    }
}

/// Chooses between the host's resolv.conf and systemd-resolved's: the second when the first names the stub and nothing else.
pub fn host_source<'a>(etc: &'a str, resolved: Option<&'a str>) -> &'a str {
    const STUB: &str = "127.0.0.53";
    let only_stub = {
        let servers = DnsConfig::parse(etc).servers;
        !servers.is_empty() && servers.iter().all(|server| server == STUB)
    };
    resolved.filter(|_| only_stub).unwrap_or(etc)
}

fn is_loopback(server: &str) -> bool {
    let address = server.split('%').next().unwrap_or_default();
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => ip.is_loopback(),
        Ok(IpAddr::V6(ip)) => ip.is_loopback() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback()),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(items: &[&str]) -> Vec<String> {
        items.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn hosts_are_written_as_kubelet_writes_them() {
        let alias = HostAlias { ip: "10.1.2.3".parse().unwrap(), hostnames: words(&["foo", "bar"]) };
        let ips = ["10.88.0.5".parse().unwrap()];
        let head = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                    fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n";
        assert_eq!(hosts("web", "", &ips, &[]), format!("{head}10.88.0.5\tweb\n"));
        assert_eq!(
            hosts("web", "ns.svc", &ips, std::slice::from_ref(&alias)),
            format!("{head}10.88.0.5\tweb.ns.svc\tweb\n\n# Entries added by HostAliases.\n10.1.2.3\tfoo\tbar\n")
        );
        assert_eq!(
            hosts_on_host_network("127.0.0.1 localhost", &[alias]),
            "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n\n# Entries added by HostAliases.\n\
             10.1.2.3\tfoo\tbar\n"
        );
        assert_eq!(hostname("web"), "web\n");
    }

    #[test]
    fn resolv_conf_is_read_as_libc_reads_it() {
        let text = "# made by hand\ndomain old.example\nsearch a.example b.example ; tail\nnameserver 10.0.0.1\n\
                    nameserver fe80::1%eth0 # link\noptions ndots:2 edns0\noptions rotate\nsortlist 1.2.3.4\n";
        let resolv = DnsConfig::parse(text);
        assert_eq!(resolv.servers, ["10.0.0.1", "fe80::1%eth0"]);
        assert_eq!(resolv.searches, ["a.example", "b.example"]);
        assert_eq!(resolv.options, ["ndots:2", "edns0", "rotate"]);
        assert_eq!(DnsConfig::parse(&resolv.text()), resolv);
        assert_eq!(DnsConfig::parse("search .\n").text(), "");
    }

    #[test]
    fn the_stub_of_resolved_is_replaced_by_what_is_behind_it() {
        let stub = "nameserver 127.0.0.53\noptions edns0\nsearch lan\n";
        let real = "nameserver 192.0.2.53\nsearch lan\n";
        assert_eq!(host_source(stub, Some(real)), real);
        assert_eq!(host_source(stub, None), stub);
        let both = "nameserver 127.0.0.53\nnameserver 9.9.9.9\n";
        assert_eq!(host_source(both, Some(real)), both);
        assert_eq!(host_source("", Some(real)), "");
    }

    #[test]
    fn loopback_servers_are_left_out_with_a_note() {
        let mut resolv =
            DnsConfig { servers: words(&["127.0.0.1", "10.0.0.1", "::1", "fe80::1%eth0"]), ..DnsConfig::default() };
        assert_eq!(resolv.drop_loopback().len(), 2);
        assert_eq!(resolv.servers, ["10.0.0.1", "fe80::1%eth0"]);
        let mut none = DnsConfig { servers: words(&["127.0.0.1"]), ..DnsConfig::default() };
        assert!(none.drop_loopback().last().unwrap().contains("dnsConfig"));
        assert!(DnsConfig::default().drop_loopback().is_empty());
    }

    #[test]
    fn dns_config_adds_without_repetition_and_replaces_options_by_name() {
        let mut resolv = DnsConfig::parse("nameserver 1.1.1.1\nsearch a\noptions ndots:1 edns0\n");
        resolv.add(&DnsConfig {
            servers: words(&["1.1.1.1", "2.2.2.2"]),
            searches: words(&["a", "b"]),
            options: words(&["ndots:5", "use-vc"]),
        });
        assert_eq!(resolv.text(), "search a b\nnameserver 1.1.1.1\nnameserver 2.2.2.2\noptions edns0 ndots:5 use-vc\n");
    }

    #[test]
    fn limits_cut_with_a_note() {
        let mut resolv = DnsConfig {
            servers: words(&["1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"]),
            searches: (0..40).map(|i| format!("{}.example", "x".repeat(60 + i % 2))).collect(),
            options: Vec::new(),
        };
        assert_eq!(resolv.cut().len(), 2);
        assert_eq!(resolv.servers.len(), MAX_NAMESERVERS);
        assert!(resolv.searches.join(" ").len() <= MAX_SEARCH_CHARS);
        assert!(resolv.cut().is_empty());
    }
}
