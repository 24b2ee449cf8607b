//! Services on the real kernel: who reaches what, what is refused, and what is left afterwards.

use std::net::SocketAddrV4;

use super::*;

const CLUSTER: Ipv4Addr = Ipv4Addr::new(10, 97, 0, 5);

fn port(backends: &[(Ipv4Addr, u16)]) -> ServicePort {
    ServicePort {
        name: "default/web:http".into(),
        addresses: vec![CLUSTER],
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
        sticky: false,
        backends: backends.iter().map(|(ip, port)| SocketAddrV4::new(*ip, *port)).collect(),
    }
}

fn set(network: &Embedded, ports: Vec<ServicePort>) -> bool {
    network.set_services(Some(&Services { subnet: "10.97.0.0/16".parse().unwrap(), ports })).unwrap()
}

/// A server that answers each connection with its name, until the test ends.
fn names(place: &Netns, port: u16, name: &'static str) {
    let listener = place.run(|| TcpListener::bind(("0.0.0.0", port)).unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = write!(stream, "{name} {}", stream.peer_addr().unwrap().ip());
        }
    });
}

#[test]
fn pods_take_turns_and_each_is_reached_from_machine_pods_itself_and_outside() {
    on_a_host(|host| {
        let network = host.network();
        let (one, two) = (Netns::new(), Netns::new());
        let first = address(&network.attach("one", &one.path(), &[], &[]).unwrap());
        let second = address(&network.attach("two", &two.path(), &[], &[]).unwrap());
        names(&one, 8080, "one");
        names(&two, 8081, "two");
        let both = ServicePort { node_port: Some(30080), ..port(&[(first, 8080), (second, 8081)]) };
        assert!(set(&network, vec![both.clone()]));
        assert!(!set(&network, vec![both]), "nothing to do");

        let from = |place: Option<&Netns>, to| {
            let mut said: Vec<String> = (0..2)
                .map(|_| match place {
                    Some(place) => place.run(|| ask(to)).unwrap(),
                    None => ask(to).unwrap(),
                })
                .collect();
            said.sort();
            said
        };
        let gateway = network.gateway();
        let turns = |client: Ipv4Addr| [format!("one {client}"), format!("two {client}")];
        // Each asker takes an even number of turns, so both pods answer each, a pod itself included.
        assert_eq!(from(None, (CLUSTER, 80)), turns(gateway));
        assert_eq!(from(Some(&one), (CLUSTER, 80)), turns(gateway));
        assert_eq!(from(Some(&two), (CLUSTER, 80)), turns(gateway));
        assert_eq!(from(Some(&host.outside), (UPLINK, 30080)), turns(OUTSIDE), "the client's own address");
        assert_eq!(from(None, (Ipv4Addr::LOCALHOST, 30080)), turns(gateway));
        assert_eq!(from(Some(&one), (gateway, 30080)), turns(gateway));
        // Without a default route, too.
        ip("route del default");
        assert_eq!(from(None, (CLUSTER, 80)), turns(gateway));
    });
}

#[test]
fn what_nobody_answers_is_refused_and_does_not_leave_the_machine() {
    on_a_host(|host| {
        let network = host.network();
        let pod = Netns::new();
        let ip = address(&network.attach("one", &pod.path(), &[], &[]).unwrap());
        set(&network, vec![port(&[]), ServicePort { port: 81, ..port(&[(ip, 8080)]) }]);
        for to in [(CLUSTER, 80), (CLUSTER, 82), (Ipv4Addr::new(10, 97, 0, 99), 80)] {
            assert!(ask(to).unwrap_err().contains("refused"), "{to:?} from the machine");
            assert!(pod.run(|| ask(to)).unwrap_err().contains("refused"), "{to:?} from a pod");
        }
        let udp = pod.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        udp.set_read_timeout(Some(PATIENCE)).unwrap();
        udp.connect((CLUSTER, 80)).unwrap();
        udp.send(b"x").unwrap();
        assert_eq!(udp.recv(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_client_of_a_sticky_service_stays_with_its_pod() {
    on_a_host(|host| {
        let network = host.network();
        let (one, two) = (Netns::new(), Netns::new());
        let first = address(&network.attach("one", &one.path(), &[], &[]).unwrap());
        let second = address(&network.attach("two", &two.path(), &[], &[]).unwrap());
        names(&one, 80, "one");
        names(&two, 80, "two");
        set(&network, vec![ServicePort { sticky: true, ..port(&[(first, 80), (second, 80)]) }]);
        let said: Vec<String> = (0..6).map(|_| one.run(|| ask((CLUSTER, 80))).unwrap()).collect();
        assert!(said.iter().all(|text| *text == said[0]), "{said:?}");
    });
}

#[test]
fn a_udp_flow_goes_to_another_pod_when_its_own_leaves() {
    on_a_host(|host| {
        let network = host.network();
        let (one, two, client) = (Netns::new(), Netns::new(), Netns::new());
        let first = address(&network.attach("one", &one.path(), &[], &[]).unwrap());
        let second = address(&network.attach("two", &two.path(), &[], &[]).unwrap());
        network.attach("client", &client.path(), &[], &[]).unwrap();
        for (place, name) in [(&one, "one"), (&two, "two")] {
            let socket = place.run(|| UdpSocket::bind("0.0.0.0:53").unwrap());
            std::thread::spawn(move || {
                while let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
                    let _ = socket.send_to(name.as_bytes(), from);
                }
            });
        }
        let udp = |ip| ServicePort { protocol: Protocol::Udp, port: 53, ..port(&[(ip, 53)]) };
        let socket = client.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect((CLUSTER, 53)).unwrap();
        let ask = || {
            socket.send(b"?").unwrap();
            let mut buffer = [0; 64];
            let len = socket.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..len].to_vec()).unwrap()
        };
        set(&network, vec![udp(first)]);
        assert_eq!(ask(), "one");
        set(&network, vec![udp(second)]);
        assert_eq!(ask(), "two", "from the same port of the client");
    });
}

#[test]
fn everything_is_taken_back_with_the_last_service_and_comes_back_when_it_was_flushed() {
    on_a_host(|host| {
        let network = host.network();
        let pod = Netns::new();
        let address = address(&network.attach("one", &pod.path(), &[], &[]).unwrap());
        let (rules, routes) = (sh("nft list ruleset"), sh("ip route"));
        set(&network, vec![port(&[(address, 80)])]);
        assert!(sh("ip route").contains("10.97.0.0/16 dev cortest0"), "{}", sh("ip route"));
        sh("nft delete table inet coracle-cortest0-services");
        assert!(network.troubles().unwrap().iter().any(|line| line.contains("cortest0-services is gone")));
        assert!(set(&network, vec![port(&[(address, 80)])]));
        assert!(network.troubles().unwrap().is_empty());
        assert!(set(&network, Vec::new()));
        assert!(!network.set_services(None).unwrap());
        assert_eq!((sh("nft list ruleset"), sh("ip route")), (rules, routes));

        set(&network, vec![port(&[(address, 80)])]);
        network.detach("one").unwrap();
        assert!(network.remove().unwrap());
        assert_eq!(sh("nft list ruleset"), "");
    });
}

#[test]
fn what_a_crash_left_is_told_and_cleared() {
    on_a_host(|host| {
        let network = host.network();
        let (one, two) = (Netns::new(), Netns::new());
        let first = address(&network.attach("one", &one.path(), &[], &[]).unwrap());
        let second = address(&network.attach("two", &two.path(), &[], &[]).unwrap());
        set(&network, vec![port(&[(first, 80), (second, 80)])]);
        network.detach("two").unwrap();
        ip(&format!("link del {}", interface_name("two")));
        let found = network.orphans(|_| true).unwrap();
        assert_eq!(found, [Orphan::Backend { ip: second }]);
        network.clear(&found).unwrap();
        assert!(network.orphans(|_| true).unwrap().is_empty());
        let rules = sh("nft list ruleset");
        assert!(!rules.contains(&second.to_string()) && rules.contains(&first.to_string()), "{rules}");

        std::fs::remove_file(host.state.path().join("net/cortest0/services")).unwrap();
        let found = network.orphans(|_| true).unwrap();
        assert!(matches!(found.as_slice(), [Orphan::Services { .. }]), "{found:?}");
        network.clear(&found).unwrap();
        assert!(!sh("nft list ruleset").contains("services"));
    });
}

#[test]
fn a_subnet_that_is_somebody_elses_is_refused_by_its_route() {
    on_a_host(|host| {
        let network = host.network();
        network.attach("one", &Netns::new().path(), &[], &[]).unwrap();
        ip(&format!("route add 10.97.8.0/24 via {OUTSIDE}"));
        let services = Services { subnet: "10.97.0.0/16".parse().unwrap(), ports: vec![port(&[])] };
        let error = network.set_services(Some(&services)).unwrap_err().to_string();
        assert!(error.contains("10.97.0.0/16") && error.contains("10.97.8.0/24 by up0"), "{error}");
        assert!(!sh("nft list ruleset").contains("services"));
    });
}
