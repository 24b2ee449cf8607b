//! Both halves of a guest's network without a virtual machine: three network namespaces, of the node, the pod and the
//! guest, and in place of QEMU and its NIC a thread that carries frames between two taps.

use super::*;
use crate::guest::net::apply_to;
use coracle_proto::coracle::GuestSetUpRequest;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

/// Nothing here takes as long.
const PATIENCE: Duration = Duration::from_secs(20);
const GUEST_TAP: &str = "virtio0";

/// A network namespace, which goes with its descriptor.
struct Netns(File);

impl Netns {
    fn new() -> Netns {
        let make = || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        Netns(std::thread::spawn(make).join().unwrap())
    }

    fn run<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(|| within(Some(&self.0), act).unwrap()).join().unwrap())
    }

    fn sh(&self, script: &str) -> String {
        let done = self.run(|| Command::new("sh").args(["-ec", script]).output().unwrap());
        assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    }

    /// As `ip` takes it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    fn read(&self) -> Result<Network, Failure> {
        self.run(|| {
            let mut socket = Socket::open().unwrap();
            let link = read::interface(&mut socket)?.expect("an interface");
            let mut network = read::network(&mut socket, &link)?;
            network.0[0].addresses.sort();
            network.1.sort_by_key(|route| format!("{route:?}"));
            Ok(network)
        })
    }
}

/// A node and a pod with a veth pair, as a plugin leaves them.
fn attached(more: &str) -> (Netns, Netns) {
    let (node, pod) = (Netns::new(), Netns::new());
    let peer = pod.path();
    node.sh(&format!(
        "ip link set lo up; ip link add veth0 type veth peer name eth0 netns {peer}; ip link set veth0 up mtu 1400
         ip addr add 10.77.0.1/24 dev veth0; ip addr add fd00:77::1/64 dev veth0 nodad"
    ));
    pod.sh(&format!(
        "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad; ip link set lo up
         ip link set eth0 address 0a:58:0a:4d:00:05 mtu 1400 up
         ip addr add 10.77.0.5/24 dev eth0; ip addr add fd00:77::5/64 dev eth0
         ip route add default via 10.77.0.1; ip route add default via fd00:77::1\n{more}"
    ));
    (node, pod)
}

/// A guest on the pod's tap; its NIC and the frames' carrier.
fn guest(pod: &Netns) -> Netns {
    let guest = Netns::new();
    let tap = open_tap(Some(&pod.0)).unwrap();
    let nic = guest.run(|| {
        let tun = OpenOptions::new().read(true).write(true).open(TUN).unwrap().into();
        sys::make_tap(&tun, GUEST_TAP).unwrap();
        tun
    });
    let (tap, nic) = (File::from(tap), File::from(nic));
    let carry = |mut from: File, mut to: File| {
        let mut frame = vec![0; 70_000];
        // Until the test's process ends. A tap that is down takes nothing.
        while let Ok(have) = from.read(&mut frame) {
            let _ = to.write(&frame[..have]);
        }
    };
    let (tap2, nic2) = (tap.try_clone().unwrap(), nic.try_clone().unwrap());
    std::thread::spawn(move || carry(tap, nic));
    std::thread::spawn(move || carry(nic2, tap2));
    guest
}

fn set_up(guest: &Netns, network: Network) -> Result<(), Failure> {
    let (interfaces, routes, neighbours) = network;
    let request = GuestSetUpRequest { interfaces, routes, neighbours, ..Default::default() };
    guest.run(|| apply_to(&request, |link| link.name != "lo"))
}

/// One says a line and the other says it again, twice the longest packet and over TCP.
fn talk(from: &Netns, to: &Netns, address: &str) {
    let listener = to.run(|| TcpListener::bind(address).unwrap());
    let address = listener.local_addr().unwrap();
    let said = vec![7; 3000];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut heard = vec![0; said.len()];
            stream.read_exact(&mut heard).unwrap();
            stream.write_all(&heard).unwrap();
        });
        let mut stream = from.run(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&said).unwrap();
        let mut heard = vec![0; said.len()];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(heard, said);
    });
}

fn datagram(from: &Netns, own: &str, to: &Netns, address: &str) {
    let server = to.run(|| UdpSocket::bind(address).unwrap());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let client = from.run(|| UdpSocket::bind(own).unwrap());
    client.send_to(&[9; 2000], server.local_addr().unwrap()).unwrap();
    let mut heard = [0; 4000];
    assert_eq!(server.recv_from(&mut heard).unwrap().0, 2000);
}

#[test]
fn a_guest_has_what_the_plugins_made_and_everyone_reaches_it() {
    let (node, pod) = attached(
        "ip route add 192.0.2.0/24 via 10.77.0.1 metric 50 mtu 1300 src 10.77.0.5
         ip route add 198.51.100.0/24 dev eth0 scope link
         ip route add 203.0.113.0/24 via 169.254.1.1 dev eth0 onlink
         ip neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent
         ip neigh add fd00:77::9 lladdr ee:ee:ee:ee:ee:ef dev eth0 nud permanent",
    );
    let made = pod.read().unwrap();
    let guest = guest(&pod);
    set_up(&guest, connect(Some(&pod.0)).unwrap()).unwrap();
    assert_eq!(guest.read().unwrap(), made, "{}", guest.sh("ip addr; ip route; ip -6 route; ip neigh"));
    assert_eq!((made.0[0].mtu, made.0[0].addresses.len(), made.2.len()), (1400, 3, 2), "{made:?}");

    talk(&node, &guest, "10.77.0.5:80");
    talk(&guest, &node, "10.77.0.1:80");
    talk(&node, &guest, "[fd00:77::5]:80");
    talk(&guest, &node, "[fd00:77::1]:80");
    datagram(&node, "10.77.0.1:0", &guest, "10.77.0.5:53");
    datagram(&guest, "[fd00:77::5]:0", &node, "[fd00:77::1]:53");
    // The namespace's own end has the address and hears nothing, whoever listens there.
    let listener = pod.run(|| TcpListener::bind("10.77.0.5:81").unwrap());
    listener.set_nonblocking(true).unwrap();
    let refused = node.run(|| TcpStream::connect_timeout(&"10.77.0.5:81".parse().unwrap(), PATIENCE));
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    let seen = node.sh("ip neigh show 10.77.0.5; ip neigh show fd00:77::5");
    assert_eq!(seen.matches("0a:58:0a:4d:00:05").count(), 2, "{seen}");
    assert_eq!(pod.sh("cat /sys/class/net/lo/flags; ip -s neigh show dev coracle-tap | wc -l"), "0x9\n0\n");
}

#[test]
fn setting_up_again_leaves_nothing_of_the_network_before() {
    let (node, pod) = attached("");
    let guest = guest(&pod);
    set_up(&guest, connect(Some(&pod.0)).unwrap()).unwrap();
    talk(&node, &guest, "10.77.0.5:80");
    node.sh("ip addr flush dev veth0; ip addr add 10.88.0.1/24 dev veth0; ip addr add 169.254.1.1/32 dev veth0");
    pod.sh("ip -6 route del default; ip addr flush dev eth0 scope global; ip link set eth0 mtu 1300 address 0a:58:0a:58:00:07
         ip addr add 10.88.0.7/32 dev eth0; ip route add 169.254.1.1 dev eth0 scope link
         ip route add default via 169.254.1.1");
    set_up(&guest, connect(Some(&pod.0)).unwrap()).unwrap();
    assert_eq!(guest.read().unwrap(), pod.read().unwrap(), "{}", guest.sh("ip addr; ip route; ip -6 route; ip neigh"));
    assert!(!guest.sh("ip addr; ip route").contains("10.77."));
    node.sh("ip route add 10.88.0.7/32 dev veth0");
    talk(&node, &guest, "10.88.0.7:80");
    assert_eq!(pod.sh("tc filter show dev eth0 ingress | grep -c mirred"), "1\n");
}

#[test]
fn a_network_without_ipv6_has_none_in_the_guest() {
    let (node, pod) = attached("echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6");
    let guest = guest(&pod);
    set_up(&guest, connect(Some(&pod.0)).unwrap()).unwrap();
    assert_eq!(guest.sh("ip -6 addr show dev eth0; ip -6 route show dev eth0"), "");
    talk(&node, &guest, "10.77.0.5:80");
}

#[test]
fn long_packets_pass() {
    let (node, pod) = attached("ip link set eth0 mtu 9000");
    node.sh("ip link set veth0 mtu 9000");
    let guest = guest(&pod);
    set_up(&guest, connect(Some(&pod.0)).unwrap()).unwrap();
    node.sh("ping -c 1 -W 20 -M do -s 8900 10.77.0.5");
    talk(&guest, &node, "10.77.0.1:80");
}

#[test]
fn a_pod_without_a_network_has_a_guest_without_one() {
    let pod = Netns::new();
    pod.sh("ip link set lo up");
    let guest = guest(&pod);
    let network = connect(Some(&pod.0)).unwrap();
    assert_eq!(network, Network::default());
    set_up(&guest, network).unwrap();
    talk(&guest, &guest, "127.0.0.1:80");
}

#[test]
fn what_has_no_place_in_a_guest_is_refused_by_name() {
    for (more, words) in [
        ("ip link add net1 type veth peer name net2; ip addr add 10.9.0.1/24 dev net1", "it has eth0 and net1"),
        ("ip link set eth0 arp off", "eth0 is no Ethernet device that does ARP"),
        ("ip route add 192.0.2.0/24 via 10.77.0.1 table 7", "192.0.2.0/24 is in table 7"),
        ("ip route add blackhole 192.0.2.0/24", "192.0.2.0/24 is more than a way"),
        ("ip link set eth0 down", "eth0 has addresses and is down"),
    ] {
        let (_node, pod) = attached(more);
        let failure = connect(Some(&pod.0)).unwrap_err();
        assert_eq!(failure.code, Code::FailedPrecondition);
        assert!(failure.message.contains(words), "{more}: {}", failure.message);
    }
    let (_node, pod) = attached("");
    let failure = connect(Some(&pod.0)).unwrap_err();
    assert!(failure.message.contains("coracle-tap is gone"), "{}", failure.message);
}
