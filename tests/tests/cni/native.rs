//! What the engine does itself is what the plugins do.

use std::collections::BTreeSet;
use std::fs;

use coracle_engine::Protocol;
use serde_json::{Value, json};

use crate::common::{Host, Pod, Wish, port};

const PORTMAP: &str = r#", {"type": "portmap", "capabilities": {"portMappings": true}}"#;

/// A network of `bridge` with more settings, `host-local` and maybe `portmap`.
fn conf(version: &str, more: &str, ipam: &str, portmap: &str) -> String {
    format!(
        r#"{{"cniVersion": "{version}", "name": "testnet", "plugins": [
            {{"type": "bridge", "bridge": "cni9", {more} "ipam": {{"type": "host-local", "dataDir": "DATA", {ipam}}}}}{portmap}]}}"#
    )
}

const COMMON: &str = r#""isGateway": true, "ipMasq": true, "hairpinMode": true,"#;
const RANGE: &str = r#""ranges": [[{"subnet": "10.77.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]"#;

/// What a pod and its host look like after an attachment, without what is made by chance.
fn seen(native: bool, conf: &str) -> Value {
    let host = Host::real().with(|settings| settings.native = native);
    host.conf("10-test.conflist", conf);
    let (network, pod) = (host.network(), Pod::new());
    let attached = host.attach(&network, &pod, &Wish::default()).unwrap();
    let record = host.record(&pod).unwrap();
    let how = if native { "native" } else { "exec" };
    let mut result = record["how"][how]["result"].clone();
    assert!(result.is_object(), "{record}");
    for link in result["interfaces"].as_array_mut().unwrap() {
        assert_eq!(link["mac"].as_str().unwrap().len(), 17, "{link}");
        link["mac"] = "a mac".into();
        if link["name"].as_str().unwrap().starts_with("veth") {
            link["name"] = "veth".into();
        }
        if link.get("sandbox").is_some() {
            link["sandbox"] = "the sandbox".into();
        }
    }
    let address = |link: &Value| {
        let all = link["addr_info"].as_array().unwrap().iter().filter(|a| a["scope"] != "link");
        all.map(|a| json!([a["local"], a["prefixlen"], a["broadcast"], a["scope"]])).collect::<Vec<_>>()
    };
    let up = |link: &Value| link["flags"].as_array().unwrap().contains(&json!("UP"));
    let inside = pod.json("ip -j addr show eth0")[0].clone();
    let lo = pod.json("ip -j addr show lo")[0].clone();
    let bridge: Value = serde_json::from_str(&host.sh("ip -j -d addr show cni9")).unwrap();
    let bridge = bridge[0].clone();
    let end: Value = serde_json::from_str(&host.sh("ip -j -d link show master cni9")).unwrap();
    let end = end[0].clone();
    // Time and the kernel's own choices are left out of the routes.
    let routes = |mut list: Value| {
        list.as_array_mut()
            .unwrap()
            .retain(|r| !r["dst"].as_str().unwrap().starts_with("fe80") && r["type"] != "multicast");
        list
    };
    let seen = json!({
        "result": result,
        "ips": attached.ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "gateway": attached.gateway.map(|ip| ip.to_string()),
        "dns": attached.dns.map(|dns| json!([dns.servers, dns.searches, dns.options])),
        "eth0": [address(&inside), up(&inside), inside["mtu"], inside["link_type"]],
        "lo": [address(&lo), up(&lo)],
        "routes": routes(pod.json("ip -j route")),
        "routes6": routes(pod.json("ip -j -6 route")),
        "arp_notify": pod.sh("cat /proc/sys/net/ipv4/conf/eth0/arp_notify"),
        "bridge": [address(&bridge), up(&bridge), bridge["mtu"], bridge["promiscuity"], bridge["flags"].as_array().unwrap().contains(&json!("PROMISC"))],
        "end": [end["mtu"], end["linkinfo"]["info_slave_data"]["hairpin"], up(&end)],
        "forwarding": host.sh("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding"),
        "accept_ra": host.sh("cat /proc/sys/net/ipv6/conf/cni9/accept_ra"),
        "leases": leases(&host),
    });
    host.detach(&network, &pod).unwrap();
    assert!(
        leases(&host).iter().all(|(name, _)| name.starts_with("last_reserved_ip") || name == "lock"),
        "{:?}",
        leases(&host)
    );
    assert!(host.is_clean());
    seen
}

/// host-local's files and what is in them, the owner's id as a word.
fn leases(host: &Host) -> Vec<(String, String)> {
    let entries = fs::read_dir(host.path("data").join("testnet")).unwrap().flatten();
    let owner = |text: String| text.split_once("\r\n").map_or(text.clone(), |(_, ifname)| format!("id {ifname}"));
    let mut all: Vec<_> =
        entries.map(|e| (e.file_name().into_string().unwrap(), owner(fs::read_to_string(e.path()).unwrap()))).collect();
    all.sort();
    all
}

#[test]
fn natively_made_attachments_are_those_of_the_plugins_field_by_field() {
    let dual = r#""ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]"#;
    let narrow = r#""subnet": "10.77.0.0/24", "rangeStart": "10.77.0.50", "rangeEnd": "10.77.0.60", "gateway": "10.77.0.254",
        "routes": [{"dst": "192.0.2.0/24", "gw": "10.77.0.7"}, {"dst": "0.0.0.0/0"}]"#;
    let dns = r#""isGateway": true, "dns": {"nameservers": ["10.77.0.1"], "domain": "a.test", "search": ["b.test"], "options": ["ndots:2"]},"#;
    for (version, more, ipam, portmap) in [
        ("1.0.0", COMMON, RANGE, PORTMAP),
        ("0.4.0", COMMON, RANGE, PORTMAP),
        ("0.3.1", r#""isDefaultGateway": true, "mtu": 1400,"#, r#""subnet": "10.77.0.0/24""#, ""),
        ("1.0.0", "", r#""subnet": "10.77.0.0/30""#, ""),
        ("1.0.0", r#""promiscMode": true, "ipMasq": true,"#, narrow, ""),
        ("1.0.0", dns, RANGE, PORTMAP),
        ("1.0.0", COMMON, dual, ""),
        ("0.3.0", r#""isDefaultGateway": true,"#, r#""subnet": "fd77::/64""#, ""),
    ] {
        let conf = conf(version, more, ipam, portmap);
        let (plugins, ours) = (seen(false, &conf), seen(true, &conf));
        for (key, value) in plugins.as_object().unwrap() {
            assert_eq!(&ours[key], value, "{key} of {conf}");
        }
    }
}

#[test]
fn plugins_and_we_take_addresses_from_one_pool() {
    let ours = Host::real();
    ours.conf("10-test.conflist", &conf("1.0.0", COMMON, r#""subnet": "10.77.0.0/28""#, PORTMAP));
    let network = ours.network();
    let plugins = Host::real().with(|settings| settings.native = false);
    // The other engine has its own state, and the same host and addresses.
    let text = fs::read_to_string(ours.path("conf/10-test.conflist")).unwrap();
    plugins.conf("10-test.conflist", &text);
    let other = plugins.network();
    let pods: Vec<Pod> = (0..12).map(|_| Pod::new()).collect();
    let mut given = BTreeSet::new();
    for (at, pod) in pods.iter().enumerate() {
        let engine = if at % 2 == 0 { &network } else { &other };
        let attached = ours.attach(engine, pod, &Wish::default());
        assert!(given.insert(attached.unwrap().ips[0].to_string()), "{given:?}");
    }
    // All are held: neither has one more, and both say so.
    let (extra, last) = (Pod::new(), Pod::new());
    ours.attach(&network, &extra, &Wish::default()).unwrap();
    let full = ours.attach(&network, &last, &Wish::default()).unwrap_err().to_string();
    assert!(full.contains("10.77.0.0/28 has no free address: 13 are held"), "{full}");
    let full = ours.attach(&other, &last, &Wish::default()).unwrap_err().to_string();
    assert!(full.contains("no IP addresses available"), "{full}");
    for (at, pod) in pods.iter().enumerate() {
        ours.run(|| if at % 2 == 0 { network.detach(&pod.id) } else { other.detach(&pod.id) }).unwrap();
    }
    ours.detach(&network, &extra).unwrap();
    assert_eq!(leases(&ours).iter().filter(|(name, _)| name.starts_with("10.")).count(), 0);
    assert!(ours.is_clean() && plugins.is_clean());
}

#[test]
fn no_program_is_run_for_a_native_attachment() {
    let host = Host::new();
    host.conf("10-test.conflist", &conf("1.0.0", r#""isGateway": true,"#, RANGE, PORTMAP));
    let (network, pod) = (host.network(), Pod::new());
    assert!(host.run(|| network.status()).ready);
    host.attach(&network, &pod, &Wish::default()).unwrap();
    assert!(host.record(&pod).unwrap()["how"].get("native").is_some());
    host.run(|| network.check(&pod.id, pod.netns.path().as_ref())).unwrap();
    host.detach(&network, &pod).unwrap();
    // What the plan does not know, and what is switched off, is the plugins' work: here they are missing.
    let mapped = Wish { ports: vec![port("::1", 80, 80, Protocol::Tcp)], ..Wish::default() };
    let error = host.attach(&network, &pod, &mapped).unwrap_err().to_string();
    assert!(error.contains("plugin bridge: ADD: no program of this name"), "{error}");
    let host = host.with(|settings| settings.native = false);
    let error = host.attach(&host.network(), &pod, &Wish::default()).unwrap_err().to_string();
    assert!(error.contains("plugin bridge: ADD: no program of this name"), "{error}");
    assert!(!host.run(|| host.network().status()).ready);
}

#[test]
fn a_pod_of_plugins_is_undone_by_plugins_after_a_change_and_the_other_way_round() {
    let host = Host::real().with(|settings| settings.native = false);
    host.conf("10-test.conflist", &conf("1.0.0", COMMON, RANGE, PORTMAP));
    let (a, b) = (Pod::new(), Pod::new());
    let by_plugins = host.network();
    let wish = |port_| Wish { ports: vec![port("", port_, 80, Protocol::Tcp)], ..Wish::default() };
    host.attach(&by_plugins, &a, &wish(8080)).unwrap();
    let host = host.with(|settings| settings.native = true);
    let natively = host.network();
    host.attach(&natively, &b, &wish(8081)).unwrap();
    let taken = host.attach(&natively, &Pod::new(), &wish(8080)).unwrap_err().to_string();
    assert!(taken.contains("hostPort 0.0.0.0:8080/tcp is taken by pod sandbox") && taken.contains(&a.id), "{taken}");
    let rules = || host.sh("nft list ruleset; iptables -t nat -S");
    assert!(rules().contains("CNI-DN-") && rules().contains("8081"));
    // Configurations come and go; each pod is left as it was joined.
    fs::remove_file(host.path("conf/10-test.conflist")).unwrap();
    host.detach(&natively, &a).unwrap();
    host.detach(&by_plugins, &b).unwrap();
    let rules = rules();
    assert!(!rules.contains("8080") && !rules.contains("8081") && !rules.contains("10.77.0.2"), "{rules}");
    assert_eq!(leases(&host).iter().filter(|(name, _)| name.starts_with("10.")).count(), 0);
}

#[test]
fn an_address_of_another_on_the_bridge_is_refused_or_gives_way() {
    let host = Host::real();
    host.sh("ip link add cni9 type bridge; ip addr add 10.50.0.1/24 dev cni9");
    host.conf("10-test.conflist", &conf("1.0.0", COMMON, RANGE, ""));
    let pod = Pod::new();
    let error = host.attach(&host.network(), &pod, &Wish::default()).unwrap_err().to_string();
    assert!(error.contains("bridge cni9 has the address 10.50.0.1/24 and not 10.77.0.1/24"), "{error}");
    assert!(host.is_clean());
    host.conf("10-test.conflist", &conf("1.0.0", &format!("{COMMON} \"forceAddress\": true,"), RANGE, ""));
    host.attach(&host.network(), &pod, &Wish::default()).unwrap();
    let shown = host.sh("ip -4 addr show cni9");
    assert!(shown.contains("10.77.0.1/24") && !shown.contains("10.50.0.1"), "{shown}");
    host.sh("ip link del cni9; ip link add cni9 type ifb");
    let error = host.attach(&host.network(), &pod, &Wish::default()).unwrap_err().to_string();
    assert!(error.contains("cni9 exists and is no bridge"), "{error}");
}

#[test]
fn a_native_attachment_that_fails_leaves_nothing_and_one_that_broke_is_found() {
    let host = Host::real();
    host.conf("10-test.conflist", &conf("1.0.0", COMMON, RANGE, PORTMAP));
    let (network, pod) = (host.network(), Pod::new());
    pod.sh("ip link add eth0 type bridge");
    let wish = Wish { ports: vec![port("", 8080, 80, Protocol::Udp)], ..Wish::default() };
    let error = host.attach(&network, &pod, &wish).unwrap_err().to_string();
    assert!(error.starts_with("make veth veth") && error.contains("on bridge cni9: EEXIST"), "{error}");
    assert!(host.is_clean());
    assert_eq!(leases(&host).iter().filter(|(name, _)| name.starts_with("10.")).count(), 0);
    pod.sh("ip link del eth0");
    host.attach(&network, &pod, &wish).unwrap();
    let check = || host.run(|| network.check(&pod.id, pod.netns.path().as_ref())).map_err(|e| e.to_string());
    check().unwrap();
    let ip = host.record(&pod).unwrap()["how"]["native"]["ips"][0]["ip"].as_str().unwrap().to_owned();
    pod.sh(&format!("ip addr del {ip}/24 dev eth0"));
    assert!(check().unwrap_err().contains("eth0 in the pod has lost its address"));
    fs::remove_file(host.path("data/testnet").join(&ip)).unwrap();
    assert!(check().unwrap_err().contains("is not the pod's any more"));
    host.detach(&network, &pod).unwrap();
    host.detach(&network, &pod).unwrap();
}
