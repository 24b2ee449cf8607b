//! Services for local pods, by the front door: addresses and names lead to pods that are ready, and nothing is left when
//! they have gone. Each test has a machine of its own, so rules, bridges and addresses meet nobody else's.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use coracle_tests::machine::{IMAGE, Machine, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PATIENCE: Duration = Duration::from_secs(3);

/// A server for each connection: it says who it is and ends.
fn server(name: &str, port: u16) -> String {
    format!("while :; do echo {name} | nc -l -p {port}; done")
}

/// A pod with labels that runs a shell script, and `more` below `spec:`.
fn pod(name: &str, label: &str, script: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {label}}}}}\nspec:\n  \
         terminationGracePeriodSeconds: 0\n  containers:\n  - name: main\n    image: {IMAGE}\n    imagePullPolicy: \
         Never\n    command: ['sh', '-c', '{script}']\n    ports: [{{name: http, containerPort: 8080}}]\n{more}\n---\n"
    )
}

fn service(name: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n")
}

/// Writes documents into one file.
fn file(machine: &Machine, name: &str, documents: &[String]) -> String {
    let path = machine.path(name);
    fs::write(&path, documents.concat()).unwrap();
    path.display().to_string()
}

fn sh(machine: &Machine, pod: &str, line: &str) -> String {
    let said = machine.coracle(&["exec", pod, "--", "sh", "-c", line]);
    format!("{}{}", said.out, said.err)
}

/// Asks from a pod until somebody answers.
fn ask(machine: &Machine, from: &str, to: &str) -> String {
    let mut text = String::new();
    until(&format!("an answer of {to} to {from}"), || {
        text = machine.coracle(&["exec", from, "--", "sh", "-c", &format!("nc -w 2 {to} </dev/null")]).out;
        !text.is_empty()
    });
    text.trim().to_owned()
}

fn connect(to: Ipv4Addr, port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((to, port)), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

/// The value of a variable of the pod.
fn variable(machine: &Machine, pod: &str, name: &str) -> String {
    sh(machine, pod, &format!("echo ${name}")).trim().to_owned()
}

fn dns_pid(machine: &Machine) -> Option<Pid> {
    let lines = machine.processes();
    lines.into_iter().find(|(_, line)| line.contains(" dns ") && line.contains("--stay")).map(|(pid, _)| pid)
}

const WEB: &str = "selector: {app: web}, ports: [{name: main, port: 80, targetPort: http}]";

#[test]
fn a_service_is_reached_by_name_by_variables_by_its_own_pod_and_by_the_machine() {
    let machine = Machine::new();
    let documents =
        [service("web", WEB), pod("web", "web", &server("web", 8080), ""), pod("client", "c", "sleep 1000", "")];
    let file = file(&machine, "all.yaml", &documents);
    machine.ok(&["run", "-d", &file]);
    let ip: Ipv4Addr = variable(&machine, "client", "WEB_SERVICE_HOST").parse().expect("the Service has an address");
    assert_eq!(ip.octets()[..2], [10, 96], "of the default subnet");
    assert_eq!(variable(&machine, "client", "WEB_PORT"), format!("tcp://{ip}:80"));
    for name in ["web", "web.default", "web.default.svc", "web.default.svc.cluster.local"] {
        assert_eq!(ask(&machine, "client", &format!("{name} 80")), "web", "{name}");
    }
    assert_eq!(ask(&machine, "client", "$WEB_SERVICE_HOST $WEB_SERVICE_PORT_MAIN"), "web");
    assert_eq!(ask(&machine, "web", "web.default 80"), "web", "a pod reaches itself");
    until("the machine reaches it", || machine.run(|| connect(ip, 80)).is_ok_and(|said| said == "web"));
    let resolv = sh(&machine, "client", "cat /etc/resolv.conf");
    assert!(resolv.contains("nameserver 10.96.0.10\n") && resolv.contains("options ndots:5\n"), "{resolv}");
    assert!(resolv.starts_with("search default.svc.cluster.local svc.cluster.local cluster.local"), "{resolv}");

    machine.ok(&["down", &file]);
    let rules = machine.sh("nft list ruleset");
    assert!(!rules.contains("services") && !rules.contains("10.96."), "{rules}");
    assert!(!machine.sh("ip route").contains("10.96."));
}

#[test]
fn a_service_without_a_pod_refuses_and_has_one_again_when_a_pod_comes() {
    let machine = Machine::new();
    let all = [service("web", WEB), pod("client", "c", "sleep 1000", "")];
    machine.ok(&["run", "-d", &file(&machine, "all.yaml", &all)]);
    let ip: Ipv4Addr = variable(&machine, "client", "WEB_SERVICE_HOST").parse().unwrap();
    let refused = || machine.run(|| connect(ip, 80)).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused);
    assert!(refused());
    machine.ok(&["run", "-d", &file(&machine, "web.yaml", &[pod("web", "web", &server("web", 8080), "")])]);
    assert_eq!(ask(&machine, "client", "web 80"), "web");
    machine.ok(&["stop", "web"]);
    assert!(refused(), "nobody is behind it any more");
    machine.ok(&["rm", "-f", "web", "client"]);
    assert!(!machine.sh("nft list ruleset").contains("services"), "no pod, no rules");
    assert_eq!(machine.coracle(&["doctor"]).out, "all is well\n");
}

#[test]
fn pods_behind_a_service_take_turns_and_a_node_port_leads_there_too() {
    let machine = Machine::new();
    let spec = "type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]";
    let documents = [
        service("web", spec),
        pod("one", "web", &server("one", 8080), ""),
        pod("two", "web", &server("two", 8080), ""),
    ];
    machine.ok(&["run", "-d", &file(&machine, "all.yaml", &documents)]);
    for to in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(10, 88, 0, 1)] {
        let mut seen = std::collections::BTreeSet::new();
        until("both pods answer", || {
            seen.extend(machine.run(|| connect(to, 30080)));
            seen.contains("one") && seen.contains("two")
        });
    }
}

#[test]
fn a_headless_service_stands_for_its_pods_by_their_hostnames_too() {
    let machine = Machine::new();
    let documents = [
        service("db", "clusterIP: None, selector: {app: db}, ports: [{port: 8080}]"),
        pod("db-0", "db", &server("db-0", 8080), "  hostname: first\n  subdomain: db"),
        pod("db-1", "db", &server("db-1", 8080), "  subdomain: db\n  setHostnameAsFQDN: true"),
    ];
    machine.ok(&["run", "-d", &file(&machine, "all.yaml", &documents)]);
    assert_eq!(ask(&machine, "db-1", "first.db 8080"), "db-0");
    assert_eq!(ask(&machine, "db-0", "db-1.db.default.svc.cluster.local 8080"), "db-1");
    let hosts = sh(&machine, "db-0", "cat /etc/hosts");
    assert!(hosts.contains("\tfirst.db.default.svc.cluster.local\tfirst\n"), "{hosts}");
    assert_eq!(sh(&machine, "db-1", "hostname"), "db-1.db.default.svc.cluster.local\n");
    let hosts = sh(&machine, "db-1", "cat /etc/hosts");
    assert!(hosts.contains("\tdb-1.db.default.svc.cluster.local\tdb-1\n"), "{hosts}");
    assert_eq!(variable(&machine, "db-0", "DB_SERVICE_HOST"), "", "it has no address");
}

#[test]
fn the_dns_server_that_was_killed_is_told_of_and_comes_back() {
    let machine = Machine::new();
    let documents =
        [service("web", WEB), pod("web", "web", &server("web", 8080), ""), pod("client", "c", "sleep 1000", "")];
    machine.ok(&["run", "-d", &file(&machine, "all.yaml", &documents)]);
    assert_eq!(ask(&machine, "client", "web 80"), "web");
    let pid = dns_pid(&machine).expect("a DNS server runs");
    kill(pid, Signal::SIGKILL).unwrap();
    until("doctor tells of it", || machine.coracle(&["doctor"]).out.contains("DNS server"));
    machine.ok(&["gc"]);
    assert_eq!(ask(&machine, "client", "web 80"), "web");
    assert_ne!(dns_pid(&machine), Some(pid));
}

#[test]
fn two_state_folders_have_their_own_services_side_by_side() {
    let machine = Machine::new();
    let settings = machine.path("second.toml");
    fs::write(
        &settings,
        "[network]\nbridge = 'second0'\nsubnet = '10.77.0.0/24'\nservice_subnet = '10.78.0.0/24'\ncluster_domain = 'other.test'\n",
    )
    .unwrap();
    let state = machine.path("second").display().to_string();
    let second = ["--config", settings.to_str().unwrap(), "--state", state.as_str()];
    let other = |args: &[&str]| {
        let mut command = machine.command(&Vec::<String>::new());
        // The later flag is refused by the parser, so the places are given anew.
        command = std::process::Command::new(command.get_program());
        command
            .arg("--root")
            .arg(machine.path("root"))
            .arg("--log-dir")
            .arg(machine.path("logs2"))
            .args(second)
            .args(args);
        let output = machine.run(|| command.output()).unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let documents = |who: &str| [service("web", WEB), pod("web", "web", &server(who, 8080), "")];
    machine.ok(&["run", "-d", &file(&machine, "first.yaml", &documents("first"))]);
    other(&["run", "-d", &file(&machine, "second.yaml", &documents("second"))]);
    assert_eq!(ask(&machine, "web", "web.default 80"), "first");
    until("the second answers", || {
        other(&["exec", "web", "--", "sh", "-c", "nc -w 2 web.default.svc.other.test 80 </dev/null || true"])
            == "second\n"
    });
    other(&["rm", "-f", "web"]);
    assert_eq!(ask(&machine, "web", "web.default 80"), "first", "the other's end is none of ours");
    other(&["gc", "--all"]);
    assert!(!machine.sh("nft list ruleset").contains("second0"));
}

#[test]
fn what_a_service_cannot_be_is_refused_by_its_field_and_nothing_is_kept() {
    let machine = Machine::new();
    let wrong = [service("web", "clusterIP: 10.43.0.1, ports: [{port: 80}]")];
    let error = machine.fails(&["run", "-d", &file(&machine, "all.yaml", &wrong)]);
    assert!(error.contains("Service web: spec.clusterIP: 10.43.0.1 is not in 10.96.0.0/16"), "{error}");
    assert!(!machine.sh("nft list ruleset").contains("services"));
}

#[test]
fn a_port_of_this_machine_leads_into_a_pod_for_as_long_as_it_is_asked() {
    let machine = Machine::new();
    machine.ok(&["run", "-d", &file(&machine, "web.yaml", &[pod("web", "web", &server("web", 8080), "")])]);
    let mut forward = machine.start(&["port-forward", "pod/web", "7070:8080"]);
    until("the port leads there", || {
        machine.run(|| connect(Ipv4Addr::LOCALHOST, 7070)).is_ok_and(|said| said == "web")
    });
    machine.ok(&["rm", "-f", "web"]);
    assert_eq!(forward.wait().unwrap().code(), Some(1), "the pod is gone");
    let error = machine.fails(&["port-forward", "web", "7070:8080"]);
    assert!(error.contains("no pod web"), "{error}");
}
