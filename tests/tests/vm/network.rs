//! The network of a pod in a virtual machine is that of any other pod: everyone reaches it by the same ways, and it them.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use coracle_tests::machine::{IMAGE, Machine, Netns, sh, until};

use crate::common::Vms;

const PATIENCE: Duration = Duration::from_secs(10);
const MIB: usize = 1 << 20;
/// What is downloaded: more than every buffer on the way.
const LARGE: usize = 48 * MIB;

/// Serves /www: `name`, and `large` of so many MiB.
fn server(name: &str) -> String {
    format!(
        "mkdir /www && echo {name} > /www/name && dd if=/dev/zero of=/www/large bs=1M count={} && exec httpd -f -p 80 -h /www",
        LARGE / MIB
    )
}

/// The document of a Pod that is in no virtual machine.
fn plain(name: &str, script: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
         - {{name: main, image: {IMAGE}, imagePullPolicy: Never, command: [sh, -c, '{script}']}}\n"
    )
}

/// What is at a path, asked of a server until there is one.
fn get(ip: impl Into<IpAddr>, port: u16, path: &str) -> String {
    let to = SocketAddr::new(ip.into(), port);
    let mut body = Vec::new();
    until(&format!("an answer of {to}"), || match try_get(to, path) {
        Ok(said) => {
            body = said;
            true
        }
        Err(_) => false,
    });
    String::from_utf8(body).unwrap().trim().to_owned()
}

fn try_get(to: SocketAddr, path: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /{path} HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or(ErrorKind::UnexpectedEof)?;
    Ok(answer.split_off(head + 4))
}

/// Sends to a UDP port where nobody listens: the refusal comes back.
fn refused_datagram(to: SocketAddr) {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(to).unwrap();
    socket.send(b"anybody?").unwrap();
    assert_eq!(socket.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

/// Datagrams that the guest has taken in for ports where nobody listens.
fn unheard(vms: &Vms, pod: &str) -> u64 {
    let text = vms.inside(pod, "grep ^Udp: /proc/net/snmp | tail -1");
    text.split_whitespace().nth(2).unwrap().parse().unwrap()
}

/// An HTTP server on the outside for one request: how much came is told by its client.
fn serve_large(outside: &Netns) -> thread::JoinHandle<()> {
    let listener = outside.run(|| TcpListener::bind("0.0.0.0:7000").unwrap());
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {LARGE}\r\n\r\n").unwrap();
        for _ in 0..LARGE / MIB {
            stream.write_all(&[7; MIB]).unwrap();
        }
    })
}

#[test]
fn everyone_reaches_a_pod_in_a_virtual_machine_and_it_them() {
    let vms = Vms::with("");
    let outside = vms.outside();
    // The bridge and its table come with the first pod and stay.
    vms.ok(&["run", "-d", &Machine::script_pod(&vms, "plain", &server("plain"), "")]);
    assert_eq!(vms.run(|| get(vms.ip("plain"), 80, "name")), "plain");
    let before = vms.traces();

    let ports = "    ports: [{containerPort: 80, hostPort: 8080}, {containerPort: 53, hostPort: 8053, protocol: UDP}]";
    vms.ok(&["run", "-d", &vms.script_pod("web", &server("web"), ports)]);
    let (web, plain) = (vms.ip("web"), vms.ip("plain"));

    // The guest's interface is the pod's.
    let shown = vms.inside("web", "ip addr; ip route; cat /sys/class/net/eth0/mtu /sys/class/net/eth0/address");
    for words in [&format!("inet {web}/16"), "default via 10.88.0.1 dev eth0", "127.0.0.1/8", "\n1500\n0a:58:0a:58:"] {
        assert!(shown.contains(words), "{words}: {shown}");
    }

    assert_eq!(vms.run(|| get(web, 80, "name")), "web");
    assert_eq!(outside.run(|| get([192, 0, 2, 1], 8080, "name")), "web");
    assert_eq!(vms.run(|| get([127, 0, 0, 1], 8080, "name")), "web");
    assert_eq!(vms.inside("plain", &format!("wget -qO- http://{web}/name")), "web\n");
    assert_eq!(vms.inside("web", &format!("wget -qO- http://{plain}/name")), "plain\n");
    assert_eq!(vms.inside("web", "wget -qO- http://192.0.2.1:8080/name"), "web\n", "its own hostPort");

    let count = unheard(&vms, "web");
    vms.run(|| refused_datagram((web, 53).into()));
    outside.run(|| refused_datagram(([192, 0, 2, 1], 8053).into()));
    assert_eq!(unheard(&vms, "web"), count + 2);

    assert_eq!(vms.run(|| try_get((web, 80).into(), "large")).unwrap().len(), LARGE);
    let peer = serve_large(&outside);
    assert_eq!(vms.inside("web", "wget -qO- http://192.0.2.2:7000/large | wc -c"), format!("{LARGE}\n"));
    peer.join().unwrap();

    vms.ok(&["rm", "-f", "web"]);
    // What was found out about KVM is kept.
    vms.assert_traces(&before, |trace| trace.contains("/state/vm"));
    assert!(outside.run(|| try_get(([192, 0, 2, 1], 8080).into(), "name")).is_err());
}

#[test]
fn names_services_and_the_probes_of_a_pod_in_a_virtual_machine() {
    let vms = Vms::with("");
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{port: 81, \
                   targetPort: 80}]}\n---\n";
    let probes = "    readinessProbe: {httpGet: {path: /name, port: 80}, periodSeconds: 1}\n    \
                  livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 1, failureThreshold: 60}";
    let path = vms.path("all.yaml");
    let client = plain("client", "sleep 1000");
    fs::write(&path, [service, &vms.document("web", &server("web"), probes), &client].concat()).unwrap();
    vms.ok(&["run", "-d", &path.display().to_string()]);

    let ask = |pod: &str, at: &str| {
        let line = format!("printf 'GET /name HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {at} | tail -1");
        let mut said = String::new();
        until(&format!("an answer of {at} to {pod}"), || {
            said = vms.say(&["exec", pod, "--", "sh", "-c", &line]).out;
            !said.is_empty()
        });
        said
    };
    // Only a pod that is ready is behind a service.
    assert_eq!(ask("client", "web 81"), "web\n");
    assert_eq!(ask("web", "web.default.svc.cluster.local 81"), "web\n", "itself");
    let address = vms.inside("web", "echo $WEB_SERVICE_HOST").trim().to_owned();
    assert!(!address.is_empty());
    let refused = vms.say(&["exec", "web", "--", "nc", "-w", "5", &address, "82"]);
    assert!(refused.err.contains("refused"), "{}", refused.err);

    vms.inside("web", "rm /www/name");
    until("the pod that is not ready any more is no longer asked", || {
        !vms.say(&["exec", "client", "--", "nc", "-w", "3", &address, "81"]).status.success()
    });
}

/// Two families and a MTU of its own, by the plugins' configuration.
const DUAL: &str = r#"{"cniVersion": "1.0.0", "name": "testnet", "plugins": [
    {"type": "bridge", "bridge": "cni9", "isGateway": true, "ipMasq": true, "hairpinMode": true, "mtu": 1400,
     "ipam": {"type": "host-local", "dataDir": "DATA",
              "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd00:77::/64"}]],
              "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;

#[test]
fn both_families_of_a_plugins_network_and_its_mtu() {
    let place = tempfile::Builder::new().prefix("coracle-vm-net.").tempdir().unwrap();
    let conf = place.path().join("conf");
    fs::create_dir(&conf).unwrap();
    fs::write(conf.join("10-test.conflist"), DUAL.replace("DATA", &place.path().join("data").display().to_string()))
        .unwrap();
    let vms = Vms::with(&format!(
        "[network]\ncni_for_local_pods = true\ncni_conf_dir = {conf:?}\ncni_bin_dirs = [\"/usr/lib/cni\"]"
    ));
    let outside = vms.outside();
    vms.sh("ip addr add fd00:99::1/64 dev up0 nodad");
    outside.run(|| sh("ip addr add fd00:99::2/64 dev eth0 nodad; ip route add default via 192.0.2.1"));
    vms.ok(&["run", "-d", &vms.script_pod("web", &server("web"), "    ports: [{containerPort: 80, hostPort: 8080}]")]);

    let v6: std::net::Ipv6Addr = vms.view("web")["ips"][1].as_str().unwrap().parse().unwrap();
    let shown = vms.inside("web", "ip addr show eth0; ip -6 route");
    for words in ["mtu 1400", &format!("inet6 {v6}/64 scope global"), "default via fd00:77::1 dev eth0"] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    assert!(!shown.contains("tentative"), "{shown}");
    assert_eq!(vms.run(|| get(v6, 80, "name")), "web");
    assert_eq!(outside.run(|| get([192, 0, 2, 1], 8080, "name")), "web");
    assert_eq!(vms.run(|| try_get((v6, 80).into(), "large")).unwrap().len(), LARGE);
    vms.inside("web", "ping6 -c 1 -W 5 fd00:99::2");
    vms.run(|| refused_datagram((v6, 53).into()));
    vms.sh(&format!("ping -c 1 -W 5 -M do -s 1352 {v6}"));
    vms.ok(&["rm", "-f", "web"]);
}
