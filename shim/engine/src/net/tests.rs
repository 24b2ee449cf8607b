//! The pod network on the real kernel. Each test has a host of its own: a thread in a fresh network namespace, with an
//! uplink to an "outside" machine in another. All of it ends with the test's threads and descriptors.

mod service;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};

use super::embedded::{Embedded, interface_name};
use super::*;
use crate::types::Protocol;

const UPLINK: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const PATIENCE: Duration = Duration::from_secs(3);

/// A network namespace that lives as long as this.
struct Netns(File);

impl Netns {
    fn new() -> Netns {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root is needed: unshare(CLONE_NEWNET)");
            Netns(File::open("/proc/thread-self/ns/net").unwrap())
        });
        made.join().unwrap()
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }
}

struct Host {
    state: tempfile::TempDir,
    outside: Netns,
}

impl Host {
    fn network(&self) -> Embedded {
        Embedded::open(self.state.path(), config(), Arc::default()).unwrap()
    }
}

fn config() -> NetConfig {
    NetConfig { bridge: "cortest0".into(), subnet: "10.99.0.0/24".parse().unwrap(), ..NetConfig::default() }
}

/// Runs `test` on a host of its own, whose uplink leads to an outside machine that knows no route to the pods.
fn on_a_host(test: impl FnOnce(&Host) + Send) {
    let host = Netns::new();
    let outside = Netns::new();
    host.run(|| {
        ip("link set lo up");
        // A new namespace takes this from the machine, where somebody may have switched it on.
        sh("echo 0 > /proc/sys/net/ipv4/ip_forward");
        sh(&format!(
            "ip link add up0 type veth peer name eth0 netns /proc/{}/fd/{}",
            std::process::id(),
            outside.0.as_raw_fd()
        ));
        ip(&format!("addr add {UPLINK}/24 dev up0"));
        ip("link set up0 up");
        outside.run(|| {
            ip("link set lo up");
            ip(&format!("addr add {OUTSIDE}/24 dev eth0"));
            ip("link set eth0 up");
        });
        ip(&format!("route add default via {OUTSIDE}"));
        test(&Host { state: tempfile::tempdir().unwrap(), outside });
    });
}

fn ip(args: &str) {
    sh(&format!("ip {args}"));
}

fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {words}");
    String::from_utf8(output.stdout).unwrap()
}

fn tcp(host_ip: &str, host_port: u16, container_port: u16) -> PortMapping {
    let host_ip = (!host_ip.is_empty()).then(|| host_ip.parse().unwrap());
    PortMapping { host_ip, host_port, container_port, protocol: Protocol::Tcp }
}

fn address(attachment: &Attachment) -> Ipv4Addr {
    let IpAddr::V4(ip) = attachment.ips[0].ip else { panic!("an IPv4 address") };
    ip
}

/// Starts a server that answers each connection with the address it came from, `count` times.
fn serve(place: &Netns, port: u16, count: usize) -> std::thread::JoinHandle<()> {
    let listener = place.run(|| TcpListener::bind(("0.0.0.0", port)).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().take(count) {
            let mut stream = stream.unwrap();
            let _ = write!(stream, "{}", stream.peer_addr().unwrap().ip());
        }
    })
}

/// Connects and returns what the server says, or the error.
fn ask(to: (Ipv4Addr, u16)) -> Result<String, String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from(to), PATIENCE).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|e| e.to_string())?;
    Ok(text)
}

fn links() -> Vec<String> {
    sh("ip -o link").lines().map(|l| l.split(": ").nth(1).unwrap().split('@').next().unwrap().to_owned()).collect()
}

#[test]
fn a_pod_has_loopback_an_address_and_a_way_to_host_pods_and_world() {
    on_a_host(|host| {
        let network = host.network();
        let (a, b) = (Netns::new(), Netns::new());
        let first = network.attach("aaaaaaaa11", &a.path(), &[], &[]).unwrap();
        let second = network.attach("bbbbbbbb22", &b.path(), &[], &[]).unwrap();
        assert_eq!(first.ips[0].to_string(), "10.99.0.2/24");
        assert_eq!(first.mac, "0a:58:0a:63:00:02");
        assert_eq!(first.gateway, Some(network.gateway().into()));
        let notes = first.notes.join("; ");
        assert!(notes.contains("made bridge cortest0 with 10.99.0.1/24") && notes.contains("ip_forward"), "{notes}");
        assert!(second.notes.is_empty(), "{:?}", second.notes);
        let shown = a.run(|| sh("ip addr; ip route; cat /proc/sys/net/ipv6/conf/eth0/accept_ra"));
        assert!(shown.contains("0a:58:0a:63:00:02") && shown.contains("default via 10.99.0.1"), "{shown}");
        assert!(shown.ends_with("0\n"), "{shown}");
        assert_eq!(sh("cat /proc/sys/net/ipv6/conf/cortest0/accept_ra"), "0\n");

        let local = Netns(File::open("/proc/thread-self/ns/net").unwrap());
        let servers = [serve(&local, 7001, 1), serve(&b, 7002, 1), serve(&host.outside, 7003, 1), serve(&a, 7004, 1)];
        a.run(|| {
            assert_eq!(ask((network.gateway(), 7001)).unwrap(), "10.99.0.2");
            assert_eq!(ask((address(&second), 7002)).unwrap(), "10.99.0.2");
            assert_eq!(ask((OUTSIDE, 7003)).unwrap(), UPLINK.to_string(), "masqueraded");
            assert_eq!(ask((Ipv4Addr::LOCALHOST, 7004)).unwrap(), "127.0.0.1");
        });
        servers.into_iter().for_each(|s| s.join().unwrap());
    });
}

#[test]
fn a_host_port_is_reached_from_outside_host_loopback_other_pods_and_the_pod_itself() {
    on_a_host(|host| {
        let network = host.network();
        let (web, other) = (Netns::new(), Netns::new());
        network.attach("web", &web.path(), &[tcp("", 8080, 80)], &[]).unwrap();
        network.attach("other", &other.path(), &[], &[]).unwrap();
        let server = serve(&web, 80, 6);
        assert_eq!(host.outside.run(|| ask((UPLINK, 8080))).unwrap(), OUTSIDE.to_string(), "the client's own address");
        assert_eq!(ask((UPLINK, 8080)).unwrap(), UPLINK.to_string());
        assert_eq!(ask((Ipv4Addr::LOCALHOST, 8080)).unwrap(), network.gateway().to_string());
        assert_eq!(other.run(|| ask((UPLINK, 8080))).unwrap(), network.gateway().to_string());
        assert_eq!(web.run(|| ask((UPLINK, 8080))).unwrap(), network.gateway().to_string(), "hairpin");
        assert_eq!(web.run(|| ask((network.gateway(), 8080))).unwrap(), network.gateway().to_string());
        server.join().unwrap();
        network.detach("web").unwrap();
        assert!(ask((UPLINK, 8080)).unwrap_err().contains("refused"));
    });
}

#[test]
fn a_host_ip_limits_where_a_port_is_reached() {
    on_a_host(|host| {
        let network = host.network();
        let web = Netns::new();
        let ports = [tcp("127.0.0.1", 8081, 80), tcp(&UPLINK.to_string(), 8082, 80)];
        network.attach("web", &web.path(), &ports, &[]).unwrap();
        let server = serve(&web, 80, 2);
        assert!(host.outside.run(|| ask((UPLINK, 8081))).is_err());
        assert!(ask((Ipv4Addr::LOCALHOST, 8082)).is_err());
        ask((Ipv4Addr::LOCALHOST, 8081)).unwrap();
        host.outside.run(|| ask((UPLINK, 8082))).unwrap();
        server.join().unwrap();
    });
}

#[test]
fn udp_ports_lead_to_the_pod_and_back() {
    on_a_host(|host| {
        let network = host.network();
        let dns = Netns::new();
        let port = PortMapping { protocol: Protocol::Udp, ..tcp("", 5353, 53) };
        let sctp = PortMapping { protocol: Protocol::Sctp, ..tcp("", 5353, 53) };
        network.attach("dns", &dns.path(), &[port, sctp], &[]).unwrap();
        let server = dns.run(|| UdpSocket::bind("0.0.0.0:53").unwrap());
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let echo = std::thread::spawn(move || {
            for _ in 0..2 {
                let mut buffer = [0; 64];
                let (len, from) = server.recv_from(&mut buffer).unwrap();
                server.send_to(&buffer[..len], from).unwrap();
            }
        });
        let ask = |to: Ipv4Addr| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect((to, 5353)).unwrap();
            socket.send(b"hello").unwrap();
            let mut buffer = [0; 64];
            let len = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], b"hello");
        };
        host.outside.run(|| ask(UPLINK));
        ask(Ipv4Addr::LOCALHOST);
        echo.join().unwrap();
    });
}

#[test]
fn a_taken_port_is_refused_by_its_owners_name_and_nothing_is_left() {
    on_a_host(|host| {
        let network = host.network();
        let (a, b) = (Netns::new(), Netns::new());
        network.attach("aaaaaaaa", &a.path(), &[tcp("", 8080, 80)], &[]).unwrap();
        let before = links();
        let error = network.attach("bbbbbbbb", &b.path(), &[tcp("127.0.0.1", 8080, 80)], &[]).unwrap_err().to_string();
        assert!(error.contains("127.0.0.1:8080/tcp") && error.contains("pod sandbox aaaaaaaa"), "{error}");
        let listener = TcpListener::bind("127.0.0.1:8090").unwrap();
        let error = network.attach("bbbbbbbb", &b.path(), &[tcp("", 8090, 80)], &[]).unwrap_err().to_string();
        assert!(error.contains(&format!("process {} (", std::process::id())), "{error}");
        drop(listener);
        assert_eq!(links(), before);
        network.attach("bbbbbbbb", &b.path(), &[tcp("", 8090, 80)], &[]).unwrap();
    });
}

#[test]
fn detach_is_idempotent_and_works_when_the_namespace_is_gone() {
    on_a_host(|host| {
        let network = host.network();
        let pod = Netns::new();
        network.detach("never-attached").unwrap();
        network.attach("aaaaaaaa", &pod.path(), &[tcp("", 8080, 80)], &[]).unwrap();
        drop(pod);
        network.detach("aaaaaaaa").unwrap();
        network.detach("aaaaaaaa").unwrap();
        let deadline = Instant::now() + PATIENCE;
        while links().contains(&"coraaaaaaaa".to_owned()) {
            assert!(Instant::now() < deadline, "the kernel removes the link of a namespace that ended");
        }
        assert!(network.orphans(|_| false).unwrap().is_empty());
        assert!(!sh("nft list ruleset").contains("8080"));
        assert!(network.remove().unwrap());
        assert_eq!(links(), ["lo", "up0"]);
        assert_eq!(sh("nft list ruleset"), "");
        assert!(!network.remove().unwrap());
        network.attach("bbbbbbbb", &Netns::new().path(), &[], &[]).unwrap();
    });
}

#[test]
fn attaching_again_starts_over() {
    on_a_host(|host| {
        let network = host.network();
        let (old, new) = (Netns::new(), Netns::new());
        let first = network.attach("aaaaaaaa", &old.path(), &[tcp("", 8080, 80)], &[]).unwrap();
        let second = network.attach("aaaaaaaa", &new.path(), &[tcp("", 8081, 80)], &[]).unwrap();
        assert_ne!(first.ips, second.ips);
        assert!(!old.run(links).contains(&"eth0".to_owned()));
        let rules = sh("nft list ruleset");
        assert!(!rules.contains("8080") && rules.contains("8081"), "{rules}");
    });
}

#[test]
fn a_failed_attachment_is_undone() {
    on_a_host(|host| {
        let network = host.network();
        let pod = Netns::new();
        pod.run(|| ip("link add eth0 type bridge"));
        let error = network.attach("aaaaaaaa", &pod.path(), &[tcp("", 8080, 80)], &[]).unwrap_err().to_string();
        assert!(error.starts_with("make veth coraaaaaaaa on bridge cortest0: EEXIST"), "{error}");
        assert_eq!(links(), ["lo", "up0", "cortest0"]);
        assert!(network.orphans(|_| false).unwrap().is_empty());
        assert!(!sh("nft list ruleset").contains("8080"));
    });
}

#[test]
fn namespaces_that_are_none_or_the_hosts_own_are_refused() {
    on_a_host(|host| {
        let network = host.network();
        let own = network.attach("a", "/proc/thread-self/ns/net".as_ref(), &[], &[]).unwrap_err().to_string();
        assert!(own.contains("the host's own"), "{own}");
        let none = network.attach("a", "/proc/1/ns/nothing".as_ref(), &[], &[]).unwrap_err().to_string();
        assert!(none.contains("/proc/1/ns/nothing"), "{none}");
        let file = network.attach("a", "/etc/passwd".as_ref(), &[], &[]).unwrap_err().to_string();
        assert!(file.contains("EINVAL"), "{file}");
        assert!(network.orphans(|_| false).unwrap().is_empty());
    });
}

#[test]
fn a_subnet_that_a_route_claims_is_refused_by_the_routes_name() {
    on_a_host(|host| {
        ip(&format!("route add 10.99.0.128/25 via {OUTSIDE}"));
        let pod = Netns::new();
        let error = host.network().attach("a", &pod.path(), &[], &[]).unwrap_err().to_string();
        assert!(error.contains("10.99.0.0/24") && error.contains("10.99.0.128/25 by up0"), "{error}");
        assert_eq!(links(), ["lo", "up0"], "no bridge is left");
        ip("route del 10.99.0.128/25");
        ip(&format!("route add 0.0.0.0/1 via {OUTSIDE}"));
        host.network().attach("a", &pod.path(), &[], &[]).unwrap();
    });
}

#[test]
fn what_is_no_bridge_of_ours_is_not_used() {
    on_a_host(|host| {
        let pod = Netns::new();
        ip("link add cortest0 type ifb");
        let error = host.network().attach("a", &pod.path(), &[], &[]).unwrap_err().to_string();
        assert!(error.contains("cortest0 exists and is no bridge but ifb"), "{error}");
        ip("link del cortest0");
        ip("link add cortest0 type bridge");
        ip("addr add 10.50.0.1/24 dev cortest0");
        let error = host.network().attach("a", &pod.path(), &[], &[]).unwrap_err().to_string();
        assert!(error.contains("10.50.0.1/24"), "{error}");
        assert!(links().contains(&"cortest0".to_owned()));
    });
}

#[test]
fn a_flushed_ruleset_and_a_removed_bridge_come_back_with_the_next_pod() {
    on_a_host(|host| {
        let network = host.network();
        let (web, second, third) = (Netns::new(), Netns::new(), Netns::new());
        network.attach("web", &web.path(), &[tcp("", 8080, 80)], &[]).unwrap();
        let server = serve(&web, 80, 2);
        assert!(network.troubles().unwrap().is_empty());
        sh("nft flush ruleset");
        assert!(network.troubles().unwrap()[0].contains("inet coracle-cortest0 is gone"));
        network.attach("second", &second.path(), &[], &[]).unwrap();
        host.outside.run(|| ask((UPLINK, 8080))).unwrap();
        ip("link del cortest0");
        assert!(network.troubles().unwrap()[0].contains("bridge cortest0 is gone"));
        network.attach("third", &third.path(), &[], &[]).unwrap();
        host.outside.run(|| ask((UPLINK, 8080))).unwrap();
        server.join().unwrap();
    });
}

#[test]
fn orphans_are_named_and_cleared_and_the_living_and_foreign_are_left_alone() {
    on_a_host(|host| {
        let network = host.network();
        let (live, dead) = (Netns::new(), Netns::new());
        network.attach("11111111", &live.path(), &[tcp("", 8080, 80)], &[]).unwrap();
        network.attach("deadbeef", &dead.path(), &[tcp("", 8081, 80), tcp("127.0.0.1", 8082, 80)], &[]).unwrap();
        ip("link add cor01234567 type veth peer name x0");
        ip("link set cor01234567 master cortest0");
        ip("link add foreign0 type veth peer name x1");
        ip("link set foreign0 master cortest0");
        sh("nft add element inet coracle-cortest0 any '{ tcp . 9999 : 10.99.0.77 . 80 }'");

        let found = network.orphans(|id| id == "11111111").unwrap();
        let names: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            [
                "address 10.99.0.3 is held by sandbox deadbeef, which is not alive",
                "interface cor01234567 belongs to no sandbox",
                "1 hostPort(s) lead to 10.99.0.77, which no sandbox holds",
            ]
        );
        network.clear(&found).unwrap();
        network.clear(&found).unwrap();
        assert!(network.orphans(|id| id == "11111111").unwrap().is_empty());
        let left = links();
        assert!(left.contains(&"cor11111111".to_owned()) && left.contains(&"foreign0".to_owned()), "{left:?}");
        assert!(!left.contains(&"cordeadbeef".to_owned()) && !left.contains(&"cor01234567".to_owned()), "{left:?}");
        let rules = sh("nft list ruleset");
        assert!(rules.contains("8080") && !rules.contains("8081") && !rules.contains("8082"), "{rules}");
        assert!(!host.network().remove().unwrap(), "it is in use");
        assert!(links().contains(&"cortest0".to_owned()));
    });
}

#[test]
fn many_pods_at_once_get_their_own_addresses() {
    on_a_host(|host| {
        let pods: Vec<Netns> = (0..12).map(|_| Netns::new()).collect();
        let mut ips: Vec<_> = std::thread::scope(|scope| {
            let attach = |(i, pod): (usize, &Netns)| {
                let (network, path) = (host.network(), pod.path());
                let port = tcp("", 9000 + i as u16, 80);
                scope
                    .spawn(move || network.attach(&format!("pod-{i}"), &path, &[port], &[]).unwrap().ips[0].to_string())
            };
            let workers: Vec<_> = pods.iter().enumerate().map(attach).collect();
            workers.into_iter().map(|w| w.join().unwrap()).collect()
        });
        ips.sort();
        ips.dedup();
        assert_eq!(ips.len(), 12);
        assert!(host.network().orphans(|_| true).unwrap().is_empty());
    });
}

#[test]
fn names_and_addresses_of_links_follow_id_and_ip() {
    assert_eq!(interface_name("0123abcd99"), "cor0123abcd");
    assert_eq!(interface_name("web").len(), 11);
    assert_ne!(interface_name("web"), interface_name("wec"));
    assert!(check_id("../x").is_err() && check_id("").is_err() && check_id("a@b").is_err());
    let bad = |bridge: &str| {
        Embedded::open("/nonexistent".as_ref(), NetConfig { bridge: bridge.into(), ..config() }, Arc::default())
    };
    for name in ["", "a b", "a/b", "sixteen-letters!", "-x", ".."] {
        assert!(matches!(bad(name), Err(Error::Invalid(_))), "{name}");
    }
}

#[test]
fn udp_clients_that_keep_their_port_reach_the_pod_that_is_there_now() {
    on_a_host(|host| {
        let network = host.network();
        let port = PortMapping { protocol: Protocol::Udp, ..tcp("", 5353, 53) };
        let client = host.outside.run(|| UdpSocket::bind((OUTSIDE, 4000)).unwrap());
        client.connect((UPLINK, 5353)).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let heard_by = |pod: &Netns, network: &Embedded, id: &str| {
            network.attach(id, &pod.path(), std::slice::from_ref(&port), &[]).unwrap();
            let server = pod.run(|| UdpSocket::bind("0.0.0.0:53").unwrap());
            server.set_read_timeout(Some(PATIENCE)).unwrap();
            // A refusal that an earlier packet met is told by the first send.
            let _ = client.send(b"x").or_else(|_| client.send(b"x"));
            let mut buffer = [0; 8];
            server.recv_from(&mut buffer).map(|(_, from)| from).expect("the packet reaches the pod")
        };
        // Something tracks the flow before any pod has the port: the table with its nat hooks, made by another pod.
        let (other, first, second) = (Netns::new(), Netns::new(), Netns::new());
        network.attach("other", &other.path(), &[], &[]).unwrap();
        let _ = client.send(b"x");
        assert_eq!(heard_by(&first, &network, "first").port(), 4000);
        network.detach("first").unwrap();
        assert_eq!(heard_by(&second, &network, "second").port(), 4000);
    });
}

#[test]
fn pods_get_through_a_host_whose_iptables_drop_what_they_forward() {
    for iptables in ["iptables", "iptables-legacy"] {
        on_a_host(|host| {
            sh(&format!("{iptables} -P FORWARD DROP"));
            let network = host.network();
            let web = Netns::new();
            let notes = network.attach("web", &web.path(), &[tcp("", 8080, 80)], &[]).unwrap().notes.join("; ");
            assert!(notes.contains(&format!("added to {iptables} FORWARD")), "{notes}");
            let servers = [serve(&web, 80, 1), serve(&host.outside, 7003, 1)];
            host.outside.run(|| ask((UPLINK, 8080))).unwrap();
            web.run(|| ask((OUTSIDE, 7003))).unwrap();
            servers.into_iter().for_each(|s| s.join().unwrap());
            let again = network.attach("second", &Netns::new().path(), &[], &[]).unwrap();
            assert!(again.notes.is_empty(), "{:?}", again.notes);
            assert_eq!(sh(&format!("{iptables} -S FORWARD")).lines().count(), 3);
            network.clear(&network.orphans(|_| false).unwrap()).unwrap();
            assert!(network.remove().unwrap());
            assert_eq!(sh(&format!("{iptables} -S FORWARD")), "-P FORWARD DROP\n");
        });
    }
}

#[test]
fn a_policy_that_changes_later_is_noticed_by_the_next_pod() {
    on_a_host(|host| {
        let network = host.network();
        let (web, next) = (Netns::new(), Netns::new());
        network.attach("web", &web.path(), &[], &[]).unwrap();
        sh("iptables -P FORWARD DROP");
        network.attach("next", &next.path(), &[], &[]).unwrap();
        let server = serve(&host.outside, 7003, 1);
        web.run(|| ask((OUTSIDE, 7003))).unwrap();
        server.join().unwrap();
    });
}

#[test]
fn an_admins_own_chain_that_drops_is_named_and_not_touched() {
    on_a_host(|host| {
        sh(
            "nft 'add table inet mine; add chain inet mine through { type filter hook forward priority 0; policy drop; }'",
        );
        let before = sh("nft list table inet mine");
        let notes = host.network().attach("web", &Netns::new().path(), &[], &[]).unwrap().notes.join("; ");
        assert!(notes.contains("nftables chain inet mine through drops"), "{notes}");
        assert!(host.network().troubles().unwrap()[0].contains("inet mine through"));
        assert_eq!(sh("nft list table inet mine"), before);
    });
}

#[test]
fn a_pod_cannot_reach_what_the_host_binds_to_its_loopback_only() {
    on_a_host(|host| {
        let network = host.network();
        let pod = Netns::new();
        network.attach("web", &pod.path(), &[tcp("", 8080, 80)], &[]).unwrap();
        assert_eq!(sh("cat /proc/sys/net/ipv4/conf/cortest0/route_localnet"), "1\n");
        let _private = TcpListener::bind("127.0.0.1:7777").unwrap();
        pod.run(|| {
            ip("addr del 127.0.0.1/8 dev lo");
            sh("echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet");
            ip("route add 127.0.0.1 via 10.99.0.1 src 10.99.0.2");
        });
        let connect = || {
            let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 7777));
            TcpStream::connect_timeout(&to, Duration::from_millis(500)).map(drop)
        };
        pod.run(connect).unwrap_err();
        // The same without the guard shows that it is the guard.
        sh("nft flush chain inet coracle-cortest0 guard");
        pod.run(connect).unwrap();
    });
}
