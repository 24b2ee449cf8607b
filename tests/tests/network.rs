//! The pod network by the front door: pods reach each other, the machine and the world, and are reached by hostPort.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use coracle_tests::machine::{Machine, Netns, sh, until};

const PATIENCE: Duration = Duration::from_secs(3);
const UPLINK: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A server for each connection: it says who it is and ends.
fn server(name: &str, port: u16) -> String {
    format!("while :; do echo {name} | nc -l -p {port}; done")
}

/// YAML of container ports.
fn ports(list: &str) -> String {
    format!("    ports: [{list}]")
}

/// Connects until somebody listens, and returns what is said.
fn ask(to: Ipv4Addr, port: u16) -> String {
    let mut text = String::new();
    until(&format!("an answer of {to}:{port}"), || match try_ask(to, port) {
        Ok(said) => {
            text = said;
            !text.is_empty()
        }
        Err(_) => false,
    });
    text.trim().to_owned()
}

fn try_ask(to: Ipv4Addr, port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((to, port)), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn pods_reach_each_other_the_machine_and_the_world() {
    let machine = Machine::new();
    let outside = machine.outside();
    machine.ok(&["run", "-d", &machine.script_pod("one", &server("one", 80), "")]);
    machine.ok(&["run", "-d", &machine.script_pod("two", "sleep 1000", "")]);
    let (one, two) = (machine.ip("one"), machine.ip("two"));
    assert_ne!(one, two);
    assert_eq!(machine.run(|| ask(one, 80)), "one");

    let from_two = |line: &str| machine.ok(&["exec", "two", "--", "sh", "-c", line]);
    assert_eq!(from_two(&format!("nc {one} 80")), "one\n");
    assert!(from_two("ip -4 addr show lo").contains("127.0.0.1"));
    let shown = from_two("ip addr show eth0; ip route");
    assert!(shown.contains(&two.to_string()) && shown.contains("default via 10.88.0.1"), "{shown}");

    let said = outside.run(|| {
        let listener = std::net::TcpListener::bind("0.0.0.0:7000").unwrap();
        std::thread::scope(|scope| {
            let peer = scope.spawn(move || listener.accept().unwrap().1.ip().to_string());
            machine.coracle(&["exec", "two", "--", "nc", "192.0.2.2", "7000", "-w", "1"]);
            peer.join().unwrap()
        })
    });
    assert_eq!(said, UPLINK.to_string(), "what leaves carries the machine's address");
    assert_eq!(machine.sh("cat /proc/sys/net/ipv4/ip_forward"), "1\n");
}

#[test]
fn hosts_hostname_and_resolver_are_those_of_the_pod() {
    let machine = Machine::new();
    let spec = "  hostAliases: [{ip: 10.9.8.7, hostnames: [foo, bar]}]\n  dnsPolicy: None\n  dnsConfig: \
                {nameservers: [192.0.2.53], searches: [example.test], options: [{name: ndots, value: '2'}]}";
    machine.ok(&["run", "-d", &machine.script_pod("web", "sleep 1000", spec)]);
    let cat = |file: &str| machine.ok(&["exec", "web", "--", "cat", file]);
    assert_eq!(cat("/etc/hostname"), "web\n");
    assert_eq!(machine.ok(&["exec", "web", "--", "hostname"]), "web\n");
    let hosts = cat("/etc/hosts");
    assert!(
        hosts.contains(&format!("{}\tweb\n", machine.ip("web"))) && hosts.contains("10.9.8.7\tfoo\tbar\n"),
        "{hosts}"
    );
    assert_eq!(cat("/etc/resolv.conf"), "search example.test\nnameserver 192.0.2.53\noptions ndots:2\n");
}

#[test]
fn a_host_port_leads_to_the_pod_from_everywhere_and_ends_with_it() {
    let machine = Machine::new();
    let outside = machine.outside();
    let list = ports("{containerPort: 80, hostPort: 8080}");
    machine.ok(&["run", "-d", &machine.script_pod("web", &server("web", 80), &list)]);
    machine.ok(&["run", "-d", &machine.script_pod("other", "sleep 1000", "")]);
    assert_eq!(outside.run(|| ask(UPLINK, 8080)), "web");
    assert_eq!(machine.run(|| ask(UPLINK, 8080)), "web");
    assert_eq!(machine.run(|| ask(Ipv4Addr::LOCALHOST, 8080)), "web");
    for pod in ["other", "web"] {
        assert_eq!(machine.ok(&["exec", pod, "--", "nc", "10.88.0.1", "8080"]), "web\n", "from {pod}");
    }
    machine.ok(&["stop", "web"]);
    machine.run(|| try_ask(UPLINK, 8080)).expect_err("nobody is there");
    assert!(!machine.sh("nft list ruleset").contains("8080"));
}

#[test]
fn a_host_port_can_be_udp_and_limited_to_an_address() {
    let machine = Machine::new();
    let outside = machine.outside();
    let list = ports(
        "{containerPort: 53, hostPort: 5353, protocol: UDP}, {containerPort: 80, hostPort: 8081, hostIP: 127.0.0.1}",
    );
    machine.ok(&["run", "-d", &machine.script_pod("web", &server("web", 80), &list)]);
    assert_eq!(machine.run(|| ask(Ipv4Addr::LOCALHOST, 8081)), "web");
    outside.run(|| try_ask(UPLINK, 8081)).expect_err("only the machine itself gets there");
    // Debian's busybox has no server of UDP; one of our own in the pod's network does as well.
    let id = machine.view("web")["id"].as_str().unwrap().to_owned();
    let pod = Netns::of(machine.supervisor(&id).unwrap());
    let echo = pod.run(|| UdpSocket::bind("0.0.0.0:53").unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((len, from)) = echo.recv_from(&mut buffer) {
            let _ = echo.send_to(&buffer[..len], from);
        }
    });
    outside.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((UPLINK, 5353)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        until("an echo over UDP", || {
            let mut buffer = [0; 16];
            socket.send(b"hello").is_ok() && socket.recv(&mut buffer).is_ok_and(|len| &buffer[..len] == b"hello")
        });
    });
}

#[test]
fn a_taken_port_is_an_error_that_names_who_has_it_and_leaves_nothing() {
    let machine = Machine::new();
    let list = ports("{containerPort: 80, hostPort: 8080}");
    machine.ok(&["run", "-d", &machine.script_pod("first", "sleep 1000", &list)]);
    let first = machine.view("first")["id"].as_str().unwrap().to_owned();
    let before = machine.traces();
    let error = machine.fails(&["run", "-d", &machine.script_pod("second", "sleep 1000", &list)]);
    assert!(error.contains("hostPort 0.0.0.0:8080/tcp is taken") && error.contains(&first), "{error}");

    let _listener = machine.run(|| std::net::TcpListener::bind("127.0.0.1:8090").unwrap());
    let list = ports("{containerPort: 80, hostPort: 8090}");
    let error = machine.fails(&["run", "-d", &machine.script_pod("third", "sleep 1000", &list)]);
    assert!(error.contains("hostPort 0.0.0.0:8090/tcp is taken by process"), "{error}");
    machine.assert_traces(&before, |_| false);
}

#[test]
fn a_pod_on_the_host_network_has_the_machines_links_and_ports() {
    let machine = Machine::new();
    let outside = machine.outside();
    let pod = machine.script_pod("node", &server("node", 8088), "  hostNetwork: true");
    machine.ok(&["run", "-d", &pod]);
    assert_eq!(outside.run(|| ask(UPLINK, 8088)), "node");
    let inside = machine.ok(&["exec", "node", "--", "ip", "link"]);
    assert!(inside.contains("up0"), "{inside}");
    assert_eq!(machine.ok(&["exec", "node", "--", "hostname"]), sh("hostname"));
    let links = machine.sh("ip -o link");
    assert!(!links.contains("coracle0"), "no bridge is made for it: {links}");
}

#[test]
fn a_subnet_in_use_is_refused_by_the_name_of_its_route() {
    let machine = Machine::new();
    let _outside = machine.outside();
    machine.sh("ip route add 10.88.7.0/24 via 192.0.2.2");
    machine.ok(&["doctor"]); // makes the folders of the state
    let before = machine.traces();
    let error = machine.fails(&["run", "-d", &machine.script_pod("web", "sleep 1000", "")]);
    assert!(error.contains("10.88.0.0/16") && error.contains("10.88.7.0/24 by up0"), "{error}");
    machine.assert_traces(&before, |_| false);
}
