//! Plugins of our own making: what they are told, and what becomes of their answers, errors and silence.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use coracle_engine::net::Orphan;
use coracle_engine::{DnsConfig, Protocol};
use coracle_tests::machine::sh;
use serde_json::json;

use crate::common::{Host, Pod, VERSIONS, Wish, pin, port};

/// A list of two plugins.
fn two(version: &str, more: &str) -> String {
    format!(
        r#"{{"cniVersion": "{version}", "name": "two", {more} "plugins": [
            {{"type": "one", "capabilities": {{"portMappings": true, "bandwidth": true, "dns": false}}, "own": {{"x": [1, "y"]}}}},
            {{"type": "other"}}]}}"#
    )
}

fn two_givers(version: &str, more: &str) -> Host {
    let host = Host::new();
    host.conf("10-two.conflist", &two(version, more));
    host.giver("one", "10.5.0.2/24");
    host.giver("other", "10.5.0.9/24");
    host
}

#[test]
fn plugins_are_run_in_order_with_all_that_the_specification_says_and_undone_in_reverse() {
    let host = two_givers("1.0.0", "");
    let (network, pod) = (host.network(), Pod::new());
    let wish = Wish {
        ports: vec![port("", 8080, 80, Protocol::Tcp), port("", 0, 81, Protocol::Tcp)],
        annotations: BTreeMap::from([("kubernetes.io/ingress-bandwidth".into(), "1M".into())]),
        dns: Some(DnsConfig { servers: vec!["192.0.2.53".into()], ..DnsConfig::default() }),
        local: false,
    };
    let attached = host.attach(&network, &pod, &wish).unwrap();
    assert_eq!(host.calls(), ["ADD one", "ADD other"]);
    assert_eq!((attached.ips[0].to_string().as_str(), attached.mac.as_str()), ("10.5.0.9/24", "02:00:00:00:00:01"));
    assert!(pod.sh("ip link show lo").contains("UP"));

    let (env, config) = host.call("ADD one");
    let netns = pin(&pod).display().to_string();
    let args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID=uid-1",
        pod.id
    );
    let expected = [
        ("CNI_ARGS", args.as_str()),
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", &pod.id),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", &netns),
        ("CNI_PATH", &host.path("bin").display().to_string()),
    ];
    assert_eq!(env, expected.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect::<BTreeMap<String, String>>());
    assert_eq!(
        config,
        json!({
            "cniVersion": "1.0.0", "name": "two", "type": "one", "own": {"x": [1, "y"]},
            "capabilities": {"portMappings": true, "bandwidth": true, "dns": false},
            "runtimeConfig": {
                "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
                "bandwidth": {"ingressRate": 1_000_000, "ingressBurst": u32::MAX},
            },
        })
    );
    assert_eq!(fs::metadata(&netns).unwrap().ino(), fs::metadata(pod.netns.path()).unwrap().ino());
    let (_, second) = host.call("ADD other");
    assert_eq!((&second["prevResult"]["from"], second.get("runtimeConfig")), (&json!("one"), None));
    assert_eq!(second["prevResult"]["cniVersion"], "1.0.0");

    host.detach(&network, &pod).unwrap();
    assert_eq!(host.calls()[2..], ["DEL other", "DEL one"]);
    let (env, config) = host.call("DEL one");
    assert_eq!((env["CNI_NETNS"].as_str(), env["CNI_ARGS"].as_str()), (netns.as_str(), args.as_str()));
    assert_eq!(
        (&config["prevResult"]["from"], &config["runtimeConfig"]["portMappings"][0]["hostPort"]),
        (&json!("other"), &json!(8080))
    );
    assert!(!pin(&pod).exists() && host.is_clean());
    host.detach(&network, &pod).unwrap();
    assert_eq!(host.calls().len(), 4, "nothing is left to undo");
}

#[test]
fn those_who_detach_at_once_run_each_plugin_once() {
    let host = two_givers("1.0.0", "");
    let (network, pods) = (host.network(), [Pod::new(), Pod::new(), Pod::new()]);
    for pod in &pods {
        host.attach(&network, pod, &Wish::default()).unwrap();
        host.forget_calls();
        host.run(|| {
            std::thread::scope(|scope| {
                let workers: Vec<_> = (0..8).map(|_| scope.spawn(|| network.detach(&pod.id))).collect();
                workers.into_iter().for_each(|worker| worker.join().unwrap().unwrap());
            });
        });
        assert_eq!(host.calls(), ["DEL other", "DEL one"]);
        assert!(host.is_clean());
    }
}

#[test]
fn before_0_4_no_result_is_given_to_del_and_addresses_say_their_version() {
    let host = two_givers("0.3.1", "");
    let (network, pod) = (host.network(), Pod::new());
    host.attach(&network, &pod, &Wish::default()).unwrap();
    assert_eq!(host.call("ADD other").1["prevResult"]["ips"][0]["version"], "4");
    host.run(|| network.check(&pod.id, Path::new(&pod.netns.path()))).unwrap();
    host.detach(&network, &pod).unwrap();
    assert!(host.call("DEL one").1.get("prevResult").is_none());
    assert!(!host.calls().contains(&"CHECK one".to_owned()));
}

#[test]
fn a_failed_add_is_undone_by_del_of_all_and_told_in_one_line() {
    let host = two_givers("1.0.0", "");
    host.plugin(
        "other",
        r#"test $CNI_COMMAND != ADD || { printf %s '{"code": 7, "msg": "bad\nconfig", "details": "x"}'; exit 1; }"#,
    );
    let (network, pod) = (host.network(), Pod::new());
    let error = host.attach(&network, &pod, &Wish::default()).unwrap_err().to_string();
    assert_eq!(error, r"CNI network two: plugin other: ADD: bad; config (code 7): x");
    assert_eq!(host.calls(), ["ADD one", "ADD other", "DEL other", "DEL one"]);
    assert!(!pin(&pod).exists() && host.is_clean());
    for (answer, words) in [("", "it answered nothing"), ("{", "no JSON"), (r#"{"cniVersion": "5.0.0"}"#, "5.0.0")] {
        host.plugin("other", &format!("test $CNI_COMMAND != ADD || echo '{answer}'"));
        let error = host.attach(&network, &pod, &Wish::default()).unwrap_err().to_string();
        assert!(error.starts_with("CNI network two: plugin other: ADD: ") && error.contains(words), "{error}");
    }
    host.plugin("other", "test $CNI_COMMAND != ADD || echo '{\"cniVersion\": \"1.0.0\"}'");
    let error = host.attach(&network, &pod, &Wish::default()).unwrap_err().to_string();
    assert!(error.contains("CNI network two: its plugins gave eth0 no address"), "{error}");
    assert!(host.is_clean());
}

#[test]
fn a_failed_del_stops_there_and_is_run_again_by_who_tries_again() {
    let host = two_givers("1.0.0", "");
    let (network, pod) = (host.network(), Pod::new());
    host.attach(&network, &pod, &Wish::default()).unwrap();
    host.plugin("other", "echo busy >&2; test -e $dir/free");
    host.forget_calls();
    let error = host.detach(&network, &pod).unwrap_err().to_string();
    assert_eq!(error, "CNI network two: plugin other: DEL: busy (exit status: 1)");
    assert_eq!(host.calls(), ["DEL other"]);
    assert!(host.record(&pod).is_some() && pin(&pod).exists());
    fs::write(host.path("free"), "").unwrap();
    // Another process, after a change of the configuration, and with the namespace gone.
    host.conf("10-two.conflist", "{}");
    sh(&format!("umount {}", pin(&pod).display()));
    let found = host.run(|| host.network().orphans(|_| false)).unwrap();
    let orphan = Orphan::Attachment { sandbox: pod.id.clone(), network: "two".into() };
    assert_eq!(found, [orphan]);
    assert_eq!(found[0].to_string(), format!("sandbox {}, which is not alive, is attached to CNI network two", pod.id));
    assert!(host.run(|| host.network().orphans(|_| true)).unwrap().is_empty());
    host.run(|| host.network().clear(&found)).unwrap();
    assert_eq!(host.calls()[1..], ["DEL other", "DEL one"]);
    assert_eq!(host.call("DEL one").0["CNI_NETNS"], "");
    assert_eq!(host.call("DEL one").1["own"], json!({"x": [1, "y"]}));
    assert!(!pin(&pod).exists() && host.is_clean());
}

#[test]
fn an_add_that_a_crash_cut_off_is_undone_from_its_record() {
    let host = two_givers("1.1.0", "");
    // What a crash at this moment would leave.
    host.plugin(
        "other",
        &format!("test $CNI_COMMAND != ADD || cp -r $dir/state $dir/crashed\n{VERSIONS}\ntest $CNI_COMMAND != ADD"),
    );
    let pod = Pod::new();
    host.attach(&host.network(), &pod, &Wish::default()).unwrap_err();
    host.forget_calls();
    let after = host.network_in("crashed");
    let found = host.run(|| after.orphans(|_| false)).unwrap();
    assert_eq!(found.len(), 1);
    host.run(|| after.clear(&found)).unwrap();
    assert_eq!(host.calls(), ["DEL other", "DEL one"]);
    assert!(host.call("DEL one").1.get("prevResult").is_none());
    assert!(host.run(|| after.orphans(|_| false)).unwrap().is_empty());
}

#[test]
fn a_plugin_that_hangs_is_ended_with_its_children_and_a_late_child_keeps_nobody_waiting() {
    let host = two_givers("1.0.0", "").with(|settings| settings.cni_timeout = Duration::from_secs(3));
    host.plugin(
        "other",
        "test $CNI_COMMAND = ADD || exit 0; setsid sh -c 'echo $$ > '$dir'/pid; exec sleep 1000' & sleep 1000",
    );
    let (network, pod) = (host.network(), Pod::new());
    let error = host.attach(&network, &pod, &Wish::default()).unwrap_err().to_string();
    assert!(error.contains("plugin other: ADD: no answer within 3 s; it was killed"), "{error}");
    let pid = fs::read_to_string(host.path("pid")).unwrap();
    let gone = || !fs::read_to_string(format!("/proc/{}/cmdline", pid.trim())).is_ok_and(|line| line.contains("sleep"));
    coracle_tests::machine::until("the plugin's child to be gone", gone);
    assert!(host.is_clean());

    host.giver("other", "10.5.0.9/24");
    let script = fs::read_to_string(host.path("bin/other")).unwrap();
    fs::write(host.path("bin/other"), format!("{script}\nsleep 30 &\necho $! > $dir/pid\nexit 0\n")).unwrap();
    let before = Instant::now();
    host.attach(&network, &pod, &Wish::default()).unwrap();
    host.detach(&network, &pod).unwrap();
    assert!(before.elapsed() < Duration::from_secs(20), "nobody waits for the child");
}

#[test]
fn the_newest_version_that_all_plugins_speak_is_spoken() {
    let host = two_givers("0.4.0", r#""cniVersions": ["0.3.1", "1.0.0", "1.1.0"],"#);
    let old = r#"test $CNI_COMMAND != VERSION || echo '{"supportedVersions": ["0.3.1", "0.4.0", "1.0.0"]}'"#;
    let add = r#"test $CNI_COMMAND != ADD || echo '{"ips": [{"address": "10.5.0.9/24"}]}'"#;
    host.plugin("other", &format!("{old}\n{add}"));
    let (network, pod) = (host.network(), Pod::new());
    host.attach(&network, &pod, &Wish::default()).unwrap();
    assert_eq!(host.calls(), ["VERSION one", "VERSION other", "ADD one", "ADD other"]);
    assert_eq!(host.call("ADD other").1["cniVersion"], "1.0.0");
    host.attach(&network, &Pod::new(), &Wish::default()).unwrap();
    assert_eq!(host.calls()[4..], ["ADD one", "ADD other"], "a program is asked once");

    host.conf("10-two.conflist", &two("1.1.0", ""));
    let status = host.run(|| network.status());
    assert!(!status.ready);
    assert!(
        status.message.contains("plugin other: it does not speak cniVersion 1.1.0")
            && status.message.contains("0.4.0, 1.0.0"),
        "{status:?}"
    );
}

#[test]
fn the_status_is_the_folders_and_the_plugins_of_this_moment() {
    let host = Host::new();
    let network = host.network();
    let status = || host.run(|| network.status());
    let attach = || host.attach(&network, &Pod::new(), &Wish::default()).map_err(|e| e.to_string());
    let told = |words: &str| {
        let status = status();
        assert!(!status.ready && status.reason == "NetworkPluginNotReady", "{status:?}");
        assert!(status.message.contains(words), "{words}: {status:?}");
    };
    told("no CNI network configuration is in");
    assert!(attach().unwrap_err().starts_with("the pod network is not ready: no CNI network configuration"));
    host.conf("05-bad.conflist", "{");
    told("05-bad.conflist: it is no JSON");
    assert!(attach().unwrap_err().contains("05-bad.conflist"));
    host.conf("10-two.conflist", &two("1.1.0", ""));
    told("plugin one: no program of this name is in");
    host.giver("one", "10.5.0.2/24");
    host.plugin(
        "other",
        &format!(
            "{VERSIONS}\ntest $CNI_COMMAND != STATUS || {{ echo '{{\"code\": 50, \"msg\": \"no agent\"}}'; exit 1; }}"
        ),
    );
    told("CNI network two: plugin other: STATUS: no agent (code 50); passed over: ");
    host.giver("other", "10.5.0.9/24");
    let ready = status();
    assert!(ready.ready && ready.message.contains("05-bad.conflist"), "{ready:?}");
    assert_eq!(host.call("STATUS one").1["name"], "two");
    attach().unwrap();
    fs::remove_file(host.path("conf/10-two.conflist")).unwrap();
    told("05-bad.conflist");

    // A configuration that makes no sense is no reason for another network; none at all is, where it may be.
    let host = Host::new().with(|settings| (settings.embedded, settings.bridge) = (true, "cnitest0".into()));
    let (network, pod) = (host.network(), Pod::new());
    assert!(host.run(|| network.status()).ready);
    host.attach(&network, &pod, &Wish::default()).unwrap();
    assert!(host.sh("ip link").contains("cnitest0"));
    host.conf("05-bad.conflist", "{");
    assert!(!host.run(|| network.status()).ready);
    host.attach(&network, &Pod::new(), &Wish::default()).unwrap_err();
    host.attach(&network, &Pod::new(), &Wish { local: true, ..Wish::default() }).unwrap();
    host.detach(&network, &pod).unwrap();
}

#[test]
fn check_and_gc_are_asked_where_they_may_be() {
    let host = two_givers("1.1.0", "");
    let (network, a, b) = (host.network(), Pod::new(), Pod::new());
    host.attach(&network, &a, &Wish::default()).unwrap();
    host.attach(&network, &b, &Wish::default()).unwrap();
    host.forget_calls();
    host.run(|| network.check(&a.id, Path::new(&a.netns.path()))).unwrap();
    assert_eq!(host.calls(), ["CHECK one", "CHECK other"]);
    assert_eq!(host.call("CHECK one").1["prevResult"]["from"], "other");
    host.detach(&network, &b).unwrap();
    host.forget_calls();
    host.run(|| network.collect()).unwrap();
    assert_eq!(host.calls(), ["GC one", "GC other"]);
    let (env, config) = host.call("GC other");
    assert_eq!(config["cni.dev/valid-attachments"], json!([{"containerID": a.id, "ifname": "eth0"}]));
    assert_eq!(config["cni.dev/attachments"], config["cni.dev/valid-attachments"]);
    assert_eq!(env.keys().map(String::as_str).collect::<Vec<_>>(), ["CNI_COMMAND", "CNI_PATH"]);

    host.plugin("one", "echo lost >&2; exit 1");
    let error = host.run(|| network.collect()).unwrap_err().to_string();
    assert_eq!(error, "CNI network two: plugin one: GC: lost (exit status: 1)");
    assert_eq!(host.calls()[2..], ["GC one", "GC other"], "the others are asked all the same");
    let error = host.run(|| network.check(&a.id, Path::new(&a.netns.path()))).unwrap_err().to_string();
    assert_eq!(error, "CNI network two: plugin one: CHECK: lost (exit status: 1)");

    host.forget_calls();
    host.run(|| host.network_in("elsewhere").collect()).unwrap();
    host.conf("10-two.conflist", &two("1.1.0", r#""disableGC": true, "disableCheck": true,"#));
    host.run(|| network.collect()).unwrap();
    host.conf("10-two.conflist", &two("1.0.0", ""));
    host.run(|| network.collect()).unwrap();
    assert!(host.calls().is_empty(), "{:?}", host.calls());
}

#[test]
fn ports_are_taken_once_whoever_has_them() {
    let host = two_givers("1.0.0", "").with(|settings| settings.bridge = "cnitest0".into());
    let network = host.network();
    let wish = |ip: &str, local| Wish { ports: vec![port(ip, 8080, 80, Protocol::Tcp)], local, ..Wish::default() };
    let (a, local) = (Pod::new(), Pod::new());
    host.attach(&network, &a, &wish("", false)).unwrap();
    host.forget_calls();
    for other in [wish("127.0.0.1", false), wish("::1", false), wish("", true)] {
        let error = host.attach(&network, &Pod::new(), &other).unwrap_err().to_string();
        assert!(error.contains(":8080/tcp is taken by pod sandbox") && error.contains(&a.id), "{error}");
    }
    assert!(host.calls().is_empty());
    host.detach(&network, &a).unwrap();
    host.attach(&network, &local, &wish("", true)).unwrap();
    let error = host.attach(&network, &a, &wish("", false)).unwrap_err().to_string();
    assert!(error.contains(&local.id), "{error}");
    host.detach(&network, &local).unwrap();
    let _listener = host.run(|| std::net::TcpListener::bind("127.0.0.1:8080").unwrap());
    let error = host.attach(&network, &a, &wish("", false)).unwrap_err().to_string();
    assert!(error.contains("is taken by process"), "{error}");
    host.run(|| network.clear(&network.orphans(|_| false).unwrap())).unwrap();
}
