//! What pods reach, and who reaches them: the same by plugins and natively.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::JoinHandle;
use std::time::Duration;

use coracle_engine::Protocol;
use coracle_tests::machine::{Netns, sh};

use crate::common::{Host, Pod, Wish, attach, port};

const UPLINK: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const PATIENCE: Duration = Duration::from_secs(5);

fn conf(snat: &str, ranges: &str) -> String {
    format!(
        r#"{{"cniVersion": "1.0.0", "name": "testnet", "plugins": [
            {{"type": "bridge", "bridge": "cni9", "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam":
                {{"type": "host-local", "dataDir": "DATA", "ranges": [{ranges}], "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
            {{"type": "portmap", "capabilities": {{"portMappings": true}}{snat}}}]}}"#
    )
}

const RANGE: &str = r#"[{"subnet": "10.77.0.0/24"}]"#;

/// A host with an uplink to an outside machine that knows no route to the pods.
fn connected(native: bool, conf: &str) -> (Host, Netns) {
    let host = Host::real().with(|settings| settings.native = native);
    let outside = Netns::new();
    host.sh(&format!("ip link add up0 type veth peer name eth0 netns {}", outside.path()));
    host.sh("ip addr add 192.0.2.1/24 dev up0; ip addr add 2001:db8::1/64 dev up0 nodad; ip link set up0 up");
    outside.run(|| {
        sh("ip addr add 192.0.2.2/24 dev eth0; ip addr add 2001:db8::2/64 dev eth0 nodad; ip link set eth0 up")
    });
    host.sh("ip route add default via 192.0.2.2; ip -6 route add default via 2001:db8::2");
    host.conf("10-test.conflist", conf);
    (host, outside)
}

/// A server that answers each connection with the address it came from.
fn serve(place: &Netns, port: u16, count: usize) -> JoinHandle<()> {
    let listener = place.run(|| TcpListener::bind(("::", port)).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().take(count) {
            let mut stream = stream.unwrap();
            let from = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = write!(stream, "{from}");
        }
    })
}

fn ask(to: impl Into<IpAddr>, port: u16) -> Result<IpAddr, String> {
    let to = SocketAddr::new(to.into(), port);
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|e| e.to_string())?;
    text.parse().map_err(|_| format!("{text:?}"))
}

#[test]
fn pods_reach_each_other_the_host_and_the_world_and_host_ports_lead_to_them() {
    for native in [false, true] {
        let (host, outside) = connected(native, &conf("", RANGE));
        let (network, web, other) = (host.network(), Pod::new(), Pod::new());
        let wish = Wish {
            ports: vec![port("", 8080, 80, Protocol::Tcp), port("127.0.0.1", 8081, 80, Protocol::Tcp)],
            ..Wish::default()
        };
        let ip = host.attach(&network, &web, &wish).unwrap().ips[0].ip;
        let peer = host.attach(&network, &other, &Wish::default()).unwrap().ips[0].ip;
        let servers = [serve(&web.netns, 80, 7), serve(&outside, 7003, 1), serve(&host.netns, 7004, 1)];
        let web_asks = |to: Ipv4Addr, port| web.netns.run(|| ask(to, port));
        assert_eq!(other.netns.run(|| ask(ip, 80)), Ok(peer), "native: {native}");
        assert_eq!(web_asks(OUTSIDE, 7003), Ok(UPLINK.into()), "masqueraded; native: {native}");
        assert_eq!(web_asks(GATEWAY, 7004), Ok(ip), "native: {native}");
        assert_eq!(outside.run(|| ask(UPLINK, 8080)), Ok(OUTSIDE.into()), "native: {native}");
        assert_eq!(host.run(|| ask(UPLINK, 8080)), Ok(UPLINK.into()), "native: {native}");
        assert_eq!(host.run(|| ask(Ipv4Addr::LOCALHOST, 8080)), Ok(GATEWAY.into()), "native: {native}");
        assert_eq!(host.run(|| ask(Ipv4Addr::LOCALHOST, 8081)), Ok(GATEWAY.into()), "native: {native}");
        assert_eq!(other.netns.run(|| ask(GATEWAY, 8080)), Ok(GATEWAY.into()), "native: {native}");
        assert_eq!(web_asks(UPLINK, 8080), Ok(GATEWAY.into()), "hairpin; native: {native}");
        servers.into_iter().for_each(|server| server.join().unwrap());
        assert!(outside.run(|| ask(UPLINK, 8081)).is_err(), "native: {native}");
        host.detach(&network, &web).unwrap();
        assert!(host.run(|| ask(UPLINK, 8080)).unwrap_err().contains("refused"), "native: {native}");
        host.detach(&network, &other).unwrap();
    }
}

#[test]
fn both_families_leave_with_the_hosts_addresses() {
    let dual = r#"[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]"#;
    for native in [false, true] {
        let text = conf("", dual).replace(r#"{"dst": "0.0.0.0/0"}"#, r#"{"dst": "0.0.0.0/0"}, {"dst": "::/0"}"#);
        let (host, outside) = connected(native, &text);
        let (network, pod) = (host.network(), Pod::new());
        let attached = host.attach(&network, &pod, &Wish::default()).unwrap();
        assert_eq!(attached.ips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.77.0.2/24", "fd77::2/64"]);
        let server = serve(&outside, 7003, 2);
        let v6 = |text: &str| IpAddr::V6(text.parse().unwrap());
        assert_eq!(pod.netns.run(|| ask(OUTSIDE, 7003)), Ok(UPLINK.into()), "native: {native}");
        assert_eq!(pod.netns.run(|| ask(v6("2001:db8::2"), 7003)), Ok(v6("2001:db8::1")), "native: {native}");
        server.join().unwrap();
        host.detach(&network, &pod).unwrap();
    }
}

#[test]
fn without_snat_a_near_client_keeps_its_address() {
    for native in [false, true] {
        let (host, outside) = connected(native, &conf(r#", "snat": false"#, RANGE));
        let (network, web) = (host.network(), Pod::new());
        let wish = Wish { ports: vec![port("", 8080, 80, Protocol::Tcp)], ..Wish::default() };
        host.attach(&network, &web, &wish).unwrap();
        let server = serve(&web.netns, 80, 1);
        assert_eq!(outside.run(|| ask(UPLINK, 8080)), Ok(OUTSIDE.into()), "native: {native}");
        assert_eq!(host.sh("cat /proc/sys/net/ipv4/conf/cni9/route_localnet"), "0\n", "native: {native}");
        server.join().unwrap();
        host.detach(&network, &web).unwrap();
    }
}

/// Sends the first packet of an SCTP association, made by hand: the kernel may have no sockets for it.
const SCTP_CLIENT: &str = r#"
import socket, struct, sys
def crc(data):
    c = 0xffffffff
    for byte in data:
        c ^= byte
        for _ in range(8):
            c = (c >> 1) ^ (0x82f63b78 if c & 1 else 0)
    return c ^ 0xffffffff
init = struct.pack('!BBHIIHHI', 1, 0, 20, 7, 65535, 1, 1, 1)
def packet(checksum):
    return struct.pack('!HHI', 4000, int(sys.argv[2]), 0) + struct.pack('<I', checksum) + init
socket.socket(socket.AF_INET, socket.SOCK_RAW, 132).sendto(packet(crc(packet(0))), (sys.argv[1], 0))
"#;
const SCTP_SERVER: &str = r#"
import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 132)
s.settimeout(10)
print('ready', flush=True)
p = s.recv(2048)
h = (p[0] & 15) * 4
print(socket.inet_ntoa(p[12:16]), *struct.unpack('!HH', p[h:h + 4]), p[h + 12], flush=True)
"#;

#[test]
fn sctp_ports_lead_to_the_pod() {
    use std::io::BufRead;
    use std::process::{Command, Stdio};
    for local in [true, false] {
        let (host, outside) = connected(true, &conf("", RANGE));
        let (network, pod) = (host.network(), Pod::new());
        let wish = Wish { ports: vec![port("", 5000, 38412, Protocol::Sctp)], local, ..Wish::default() };
        host.attach(&network, &pod, &wish).unwrap();
        let mut command = Command::new("python3");
        command.args(["-c", SCTP_SERVER]).stdout(Stdio::piped());
        let mut server = pod.netns.run(|| command.spawn()).expect("start python3");
        let mut said = std::io::BufReader::new(server.stdout.take().unwrap()).lines();
        assert_eq!(said.next().unwrap().unwrap(), "ready");
        outside.run(|| Command::new("python3").args(["-c", SCTP_CLIENT, "192.0.2.1", "5000"]).status()).unwrap();
        assert_eq!(said.next().expect("the packet comes").unwrap(), "192.0.2.2 4000 38412 1", "local: {local}");
        assert!(server.wait().unwrap().success());
        host.detach(&network, &pod).unwrap();
    }
}

#[test]
fn who_binds_a_host_port_later_is_told_by_doctor_and_what_networks_share_goes_at_the_end() {
    let (host, _outside) = connected(true, &conf("", RANGE));
    let (network, web) = (host.network(), Pod::new());
    let wish = Wish { ports: vec![port("", 8080, 80, Protocol::Tcp)], ..Wish::default() };
    host.attach(&network, &web, &wish).unwrap();
    let troubles = || host.run(|| network.troubles()).unwrap();
    assert!(troubles().is_empty());
    let listener = host.run(|| TcpListener::bind("0.0.0.0:8080").unwrap());
    let told = troubles().join("; ");
    assert!(told.contains("hostPort 0.0.0.0:8080/tcp leads to sandbox") && told.contains("process"), "{told}");
    drop(listener);
    host.run(|| network.remove()).unwrap();
    assert!(host.sh("nft list tables").contains("coracle-cni"), "it is in use");
    host.detach(&network, &web).unwrap();
    host.run(|| network.remove()).unwrap();
    assert_eq!(host.sh("nft list tables"), "");
    assert!(host.sh("ip link").contains("cni9"), "the bridge is the administrator's");
}

#[test]
fn udp_clients_that_keep_their_port_reach_the_pod_that_is_there_now() {
    let (host, outside) = connected(true, &conf("", RANGE));
    let network = host.network();
    let wish = Wish { ports: vec![port("", 5353, 53, Protocol::Udp)], ..Wish::default() };
    let client = outside.run(|| UdpSocket::bind((OUTSIDE, 4000)).unwrap());
    client.connect((UPLINK, 5353)).unwrap();
    host.attach(&network, &Pod::new(), &Wish::default()).unwrap();
    let _ = client.send(b"x");
    for pod in [Pod::new(), Pod::new()] {
        host.attach(&network, &pod, &wish).unwrap();
        let server = pod.netns.run(|| UdpSocket::bind("0.0.0.0:53").unwrap());
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        // A refusal that an earlier packet met is told by the first send.
        let _ = client.send(b"x").or_else(|_| client.send(b"x"));
        assert_eq!(server.recv_from(&mut [0; 8]).unwrap().1.port(), 4000);
        host.detach(&network, &pod).unwrap();
    }
}

#[test]
fn a_flushed_ruleset_and_a_removed_bridge_come_back_with_the_next_pod() {
    let (host, outside) = connected(true, &conf("", RANGE));
    let (network, web) = (host.network(), Pod::new());
    let wish = Wish { ports: vec![port("", 8080, 80, Protocol::Tcp)], ..Wish::default() };
    host.attach(&network, &web, &wish).unwrap();
    let servers = [serve(&web.netns, 80, 2), serve(&outside, 7003, 1)];
    host.sh("nft flush ruleset");
    host.attach(&network, &Pod::new(), &Wish::default()).unwrap();
    assert_eq!(outside.run(|| ask(UPLINK, 8080)), Ok(OUTSIDE.into()));
    host.sh("ip link del cni9");
    host.attach(&network, &Pod::new(), &Wish::default()).unwrap();
    assert_eq!(outside.run(|| ask(UPLINK, 8080)), Ok(OUTSIDE.into()));
    assert_eq!(web.netns.run(|| ask(OUTSIDE, 7003)), Ok(UPLINK.into()));
    servers.into_iter().for_each(|server| server.join().unwrap());
    // Another process finds the rules and leaves what is in them.
    host.attach(&host.network(), &Pod::new(), &Wish::default()).unwrap();
    assert!(host.sh("nft list map inet coracle-cni any").contains("8080"));
}

#[test]
fn many_pods_at_once_have_their_own_addresses_and_leave_nothing() {
    let (host, _outside) = connected(true, &conf("", RANGE));
    let network = host.network();
    let pods: Vec<(Pod, Wish)> = (0..12)
        .map(|at| (Pod::new(), Wish { ports: vec![port("", 9000 + at, 80, Protocol::Tcp)], ..Wish::default() }))
        .collect();
    let at_once = |work: &(dyn Fn(&Pod, &Wish) -> String + Sync)| -> Vec<String> {
        host.run(|| {
            std::thread::scope(|scope| {
                let workers: Vec<_> = pods.iter().map(|(pod, wish)| scope.spawn(move || work(pod, wish))).collect();
                workers.into_iter().map(|worker| worker.join().unwrap()).collect()
            })
        })
    };
    let mut ips = at_once(&|pod, wish| attach(&network, pod, wish).unwrap().ips[0].to_string());
    ips.sort();
    ips.dedup();
    assert_eq!(ips.len(), 12);
    at_once(&|pod, _| network.detach(&pod.id).map(|()| String::new()).unwrap());
    assert!(host.is_clean());
    let rules = host.sh("nft list ruleset");
    assert!(!rules.contains("10.77.0.") || !rules.contains("elements = { 10.77"), "{rules}");
    assert!(!rules.contains(" . 90"), "{rules}");
}
