//! A pod as `kubectl describe pod` tells of it.

mod sheet;
mod volume;

use std::io;

use self::sheet::Sheet;
use super::events::Event;
use super::keep::Kept;
use super::qos;
use super::view::{ContainerView, Last, PodView};
use crate::cmd::events::{COMPONENT, age, colour};
use crate::kube::container::{Container, Port};
use crate::kube::env::{EnvFrom, EnvSource, EnvValue, EnvVar, FieldPath};
use crate::kube::lifecycle::{HttpGet, Probe, ProbeAction};
use crate::kube::mount::Mount;
use crate::kube::quantity::{Quantities, Quantity};
use crate::out::{self, Cell, Table};
use crate::time;

/// What is described.
pub struct Subject<'s> {
    /// The pod as it is seen.
    pub view: &'s PodView,
    /// What was asked for; None if another client made the sandbox.
    pub kept: Option<&'s Kept>,
    /// This machine.
    pub node: &'s str,
    /// The annotations.
    pub annotations: &'s [(String, String)],
    /// What happened to it.
    pub events: &'s [Event],
}

/// The whole text.
pub fn text(subject: &Subject<'_>) -> String {
    let mut sheet = Sheet::default();
    let s = &mut sheet;
    head(s, subject);
    let pairs = pairs(subject);
    for (init, title) in [(true, "Init Containers"), (false, "Containers")] {
        if pairs.iter().any(|(view, _)| view.init == init) {
            s.part(0, title);
            for (view, asked) in pairs.iter().filter(|(view, _)| view.init == init) {
                container(s, view, *asked);
            }
        }
    }
    s.part(0, "Conditions");
    s.put(1, "Type", "Status");
    for condition in &subject.view.conditions {
        s.put(1, condition.kind, truth(condition.status));
    }
    if let Some(kept) = subject.kept {
        match kept.pod.volumes.as_slice() {
            [] => s.put(0, "Volumes", "<none>"),
            volumes => {
                s.part(0, "Volumes");
                volumes.iter().for_each(|one| volume::put(s, one));
            }
        }
        s.put(0, "QoS Class", format!("{:?}", qos::class(&kept.pod)));
    }
    let events = events(subject.events);
    format!("{}{events}", sheet.render())
}

fn head(s: &mut Sheet, subject: &Subject<'_>) {
    let view = subject.view;
    s.put(0, "Name", &view.name);
    s.put(0, "Namespace", &view.namespace);
    if let Some(account) = subject.kept.and_then(|kept| kept.pod.service_account.as_ref()) {
        s.put(0, "Service Account", account);
    }
    if let Some(class) = subject.kept.and_then(|kept| kept.pod.runtime_class.as_ref()) {
        s.put(0, "Runtime Class Name", class);
    }
    s.put(0, "Node", subject.node);
    s.put(0, "Start Time", time::rfc1123(view.created));
    s.list(0, "Labels", view.labels.iter().map(|(key, value)| format!("{key}={value}")));
    s.list(0, "Annotations", subject.annotations.iter().map(|(key, value)| format!("{key}: {}", out::plain(value))));
    s.put(0, "Status", format!("{:?}", view.phase));
    if view.status != format!("{:?}", view.phase) {
        s.put(0, "Reason", &view.status);
    }
    if let Some(message) = &view.message {
        s.put(0, "Message", out::plain(message));
    }
    s.put(0, "Sandbox", &view.id);
    s.put(0, "UID", &view.uid);
    s.put(0, "IP", view.ips.first().cloned().unwrap_or_default());
    match view.ips.as_slice() {
        [] => s.put(0, "IPs", "<none>"),
        ips => {
            s.part(0, "IPs");
            ips.iter().for_each(|ip| s.put(1, "IP", ip));
        }
    }
}

/// Each container as it is seen, with what was asked for.
fn pairs<'s>(subject: &Subject<'s>) -> Vec<(&'s ContainerView, Option<&'s Container>)> {
    let asked = |name: &str| subject.kept.and_then(|kept| kept.pod.all_containers().find(|asked| asked.name == name));
    subject.view.containers.iter().map(|view| (view, asked(&view.name))).collect()
}

fn container(s: &mut Sheet, view: &ContainerView, asked: Option<&Container>) {
    s.part(1, &view.name);
    s.put(2, "Container ID", view.id.as_ref().map(|id| format!("coracle://{id}")).unwrap_or_default());
    s.put(2, "Image", &view.image);
    s.put(2, "Image ID", view.image_id.clone().unwrap_or_default());
    if let Some(asked) = asked {
        ports(s, &asked.ports);
        for (key, words) in [("Command", &asked.command), ("Args", &asked.args)] {
            if let Some(words) = words {
                s.part(2, key);
                words.iter().flat_map(|word| word.lines()).for_each(|line| s.line(3, out::plain(line)));
            }
        }
    }
    state(s, view);
    if let Some(last) = &view.last {
        last_state(s, last);
    }
    s.put(2, "Ready", truth(view.ready));
    s.put(2, "Restart Count", view.restarts.to_string());
    let Some(asked) = asked else { return };
    quantities(s, "Limits", &asked.resources.limits);
    quantities(s, "Requests", &asked.resources.requests);
    for (key, probe) in [("Liveness", &asked.liveness), ("Readiness", &asked.readiness), ("Startup", &asked.startup)] {
        if let Some(probe) = probe {
            s.put(2, key, probe_text(probe));
        }
    }
    environment(s, asked);
    match asked.mounts.as_slice() {
        [] => s.put(2, "Mounts", "<none>"),
        mounts => {
            s.part(2, "Mounts");
            mounts.iter().for_each(|mount| s.line(3, mount_text(mount)));
        }
    }
}

fn ports(s: &mut Sheet, ports: &[Port]) {
    let key = |one: &'static str, more: &'static str| if ports.len() > 1 { more } else { one };
    let join = |texts: Vec<String>| if texts.is_empty() { "<none>".to_owned() } else { texts.join(", ") };
    let inside = ports.iter().map(|port| match &port.name {
        Some(name) => format!("{}/{} ({name})", port.container_port, port.protocol),
        None => format!("{}/{}", port.container_port, port.protocol),
    });
    let outside = ports.iter().map(|port| format!("{}/{}", port.host_port.unwrap_or(0), port.protocol));
    s.put(2, key("Port", "Ports"), join(inside.collect()));
    s.put(2, key("Host Port", "Host Ports"), join(outside.collect()));
}

fn stamp(text: Option<&str>) -> String {
    text.and_then(time::parse).map_or_else(|| "<unknown>".into(), time::rfc1123)
}

fn state(s: &mut Sheet, view: &ContainerView) {
    let word = match view.state {
        "running" => "Running",
        "terminated" => "Terminated",
        _ => "Waiting",
    };
    s.put(2, "State", word);
    if let Some(reason) = view.reason.as_ref().filter(|_| view.state != "running") {
        s.put(3, "Reason", reason);
    }
    if let Some(message) = view.message.as_ref().filter(|message| !message.is_empty() && view.state != "running") {
        s.put(3, "Message", out::plain(message));
    }
    match view.state {
        "running" => s.put(3, "Started", stamp(view.started_at.as_deref())),
        "terminated" => {
            s.put(3, "Exit Code", view.exit_code.unwrap_or_default().to_string());
            s.put(3, "Started", stamp(view.started_at.as_deref()));
            s.put(3, "Finished", stamp(view.finished_at.as_deref()));
        }
        _ => {}
    }
}

fn last_state(s: &mut Sheet, last: &Last) {
    s.put(2, "Last State", "Terminated");
    s.put(3, "Reason", &last.reason);
    if !last.message.is_empty() {
        s.put(3, "Message", out::plain(&last.message));
    }
    s.put(3, "Exit Code", last.exit_code.to_string());
    s.put(3, "Started", stamp(last.started_at.as_deref()));
    s.put(3, "Finished", stamp(last.finished_at.as_deref()));
}

fn quantities(s: &mut Sheet, key: &str, amounts: &Quantities) {
    if !amounts.is_empty() {
        s.part(2, key);
        amounts.iter().for_each(|(name, amount)| s.put(3, name, quantity(*amount)));
    }
}

/// With the largest unit that makes it a whole number, as people write it.
fn quantity(amount: Quantity) -> String {
    const UNITS: [(i64, &str); 6] =
        [(1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki"), (1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
    let value = amount.value();
    let unit = UNITS.iter().find(|(unit, _)| value > 0 && value % unit == 0);
    match unit.filter(|_| amount.milli() % 1000 == 0) {
        Some((unit, suffix)) => format!("{}{suffix}", value / unit),
        None => amount.to_string(),
    }
}

fn probe_text(probe: &Probe) -> String {
    let what = match &probe.action {
        ProbeAction::Exec(command) => format!("exec [{}]", out::plain(&command.join(" "))),
        ProbeAction::HttpGet(HttpGet { host, path, port, https, .. }) => {
            let scheme = if *https { "https" } else { "http" };
            format!("http-get {scheme}://{}:{port}{path}", host.as_deref().unwrap_or_default())
        }
        ProbeAction::TcpSocket { host, port } => format!("tcp-socket {}:{port}", host.as_deref().unwrap_or_default()),
        ProbeAction::Grpc { port, service } => format!("grpc <pod>:{port} {service}").trim_end().to_owned(),
    };
    format!(
        "{what} delay={}s timeout={}s period={}s #success={} #failure={}",
        probe.initial_delay, probe.timeout, probe.period, probe.success, probe.failure
    )
}

fn environment(s: &mut Sheet, asked: &Container) {
    if !asked.env_from.is_empty() {
        s.part(2, "Environment Variables from");
        asked.env_from.iter().for_each(|from| s.line(3, env_from_text(from)));
    }
    match asked.env.as_slice() {
        [] => s.put(2, "Environment", "<none>"),
        variables => {
            s.part(2, "Environment");
            variables.iter().for_each(|variable| s.put(3, &variable.name, env_text(variable)));
        }
    }
}

fn env_from_text(from: &EnvFrom) -> String {
    let (name, kind) = match &from.source {
        EnvSource::ConfigMap(name) => (name, "ConfigMap"),
        EnvSource::Secret(name) => (name, "Secret"),
    };
    let prefix = match from.prefix.as_str() {
        "" => String::new(),
        prefix => format!(" with prefix '{prefix}'"),
    };
    format!("{name}  {kind}{prefix}  Optional: {}", from.optional)
}

fn env_text(variable: &EnvVar) -> String {
    match &variable.value {
        EnvValue::Literal(text) => out::plain(text),
        EnvValue::ConfigMap { name, key, optional } => {
            format!("<set to the key '{key}' of config map '{name}'>  Optional: {optional}")
        }
        EnvValue::Secret { name, key, optional } => {
            format!("<set to the key '{key}' in secret '{name}'>  Optional: {optional}")
        }
        EnvValue::Field { path } => format!("(v1:{})", field_path(path)),
        EnvValue::Resource(field) => match &field.container {
            Some(container) => format!("({} of {container})", field.resource),
            None => format!("({})", field.resource),
        },
    }
}

fn field_path(path: &FieldPath) -> String {
    match path {
        FieldPath::Name => "metadata.name".into(),
        FieldPath::Namespace => "metadata.namespace".into(),
        FieldPath::Uid => "metadata.uid".into(),
        FieldPath::Labels => "metadata.labels".into(),
        FieldPath::Annotations => "metadata.annotations".into(),
        FieldPath::Label(key) => format!("metadata.labels['{key}']"),
        FieldPath::Annotation(key) => format!("metadata.annotations['{key}']"),
        FieldPath::NodeName => "spec.nodeName".into(),
        FieldPath::ServiceAccountName => "spec.serviceAccountName".into(),
        FieldPath::HostIp => "status.hostIP".into(),
        FieldPath::HostIps => "status.hostIPs".into(),
        FieldPath::PodIp => "status.podIP".into(),
        FieldPath::PodIps => "status.podIPs".into(),
    }
}

fn mount_text(mount: &Mount) -> String {
    let mut flags = vec![if mount.read_only { "ro".to_owned() } else { "rw".to_owned() }];
    flags.extend(mount.sub_path.iter().chain(&mount.sub_path_expr).map(|path| format!("path={path:?}")));
    format!("{} from {} ({})", mount.path, mount.volume, flags.join(","))
}

fn truth(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

fn events(events: &[Event]) -> String {
    if events.is_empty() {
        return "Events:  <none>\n".into();
    }
    let mut table = Table::new(["Type", "Reason", "Age", "From", "Message"]);
    table.row(["----", "------", "----", "----", "-------"].map(Cell::from));
    for event in events {
        table.row([
            Cell::coloured(event.kind.as_str(), colour(event.kind)),
            event.reason.clone().into(),
            age(event).into(),
            COMPONENT.into(),
            out::plain(&event.message).into(),
        ]);
    }
    format!("Events:\n{}", table.render_below("  ", out::colours(&io::stdout())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::lifecycle::PortRef;

    #[test]
    fn probes_read_as_kubectls() {
        let probe =
            |action| Probe { action, initial_delay: 5, timeout: 1, period: 10, success: 1, failure: 3, grace: None };
        let times = "delay=5s timeout=1s period=10s #success=1 #failure=3";
        let exec = ProbeAction::Exec(vec!["cat".into(), "/tmp/healthy".into()]);
        assert_eq!(probe_text(&probe(exec)), format!("exec [cat /tmp/healthy] {times}"));
        let port = PortRef::Name("web".into());
        let get = HttpGet { host: None, path: "/ok".into(), port, https: false, headers: Vec::new() };
        assert_eq!(probe_text(&probe(ProbeAction::HttpGet(get))), format!("http-get http://:web/ok {times}"));
        let tcp = ProbeAction::TcpSocket { host: None, port: PortRef::Number(80) };
        assert_eq!(probe_text(&probe(tcp)), format!("tcp-socket :80 {times}"));
    }

    #[test]
    fn amounts_have_the_unit_that_people_write() {
        for text in ["64Mi", "1Gi", "250m", "2", "5M", "100k", "3Ki", "0", "1500m"] {
            assert_eq!(quantity(Quantity::parse(text).unwrap()), text);
        }
    }

    #[test]
    fn variables_tell_where_their_values_come_from_and_no_secret() {
        let text = |value| env_text(&EnvVar { name: "A".into(), value });
        let secret = EnvValue::Secret { name: "s".into(), key: "k".into(), optional: false };
        assert_eq!(text(secret), "<set to the key 'k' in secret 's'>  Optional: false");
        let config = EnvValue::ConfigMap { name: "c".into(), key: "k".into(), optional: true };
        assert_eq!(text(config), "<set to the key 'k' of config map 'c'>  Optional: true");
        assert_eq!(text(EnvValue::Field { path: FieldPath::PodIp }), "(v1:status.podIP)");
        assert_eq!(text(EnvValue::Literal("a\u{1b}[2Jb".into())), "a [2Jb");
    }
}
