//! Cases of `spec`.

use super::*;
use proptest::prelude::*;

const ID: &str = "0123";

fn pod() -> Pod<'static> {
    Pod {
        id: ID,
        bundle: Path::new("/run/coracle/pods/0123"),
        pids: &[40, 41],
        init: Some(39),
        supervisor: 4242,
        folders: &[],
    }
}

fn spec() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "root": { "path": "/somewhere/rootfs", "readonly": true },
        "process": { "args": ["sh"], "apparmorProfile": "docker-default", "selinuxLabel": "" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/etc/hosts", "type": "bind", "source": "/run/coracle/pods/0123/hosts",
              "options": ["rbind", "rprivate", "rw"] },
            { "destination": "/dev/shm", "type": "bind", "source": "/run/coracle/pods/0123/shm", "options": ["rbind"] },
            { "destination": "/img", "type": "erofs", "source": "/var/lib/coracle/erofs/x",
              "options": ["ro", "nosuid", "x-coracle.subpath=a"] },
        ],
        "linux": {
            "cgroupsPath": "/pods/0123/c",
            "namespaces": [
                { "type": "mount" }, { "type": "pid" }, { "type": "cgroup" },
                { "type": "network", "path": "/proc/777/ns/net" }, { "type": "uts", "path": "/proc/1/ns/uts" },
                { "type": "ipc", "path": "/proc/40/ns/ipc" },
            ],
            "resources": {
                "cpu": { "shares": 10, "cpus": "0-3", "mems": "0" },
                "memory": { "limit": 7, "swap": 7, "swappiness": 60, "kernel": 0, "kernelTCP": -1 },
                "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }],
                "unified": { "cpuset.cpus": "1", "memory.high": "5", "memory.swap.max": "0" },
            },
        },
    })
}

fn adapted(spec: Value) -> Result<(Value, Vec<Volume>), Refused> {
    adapt(spec, "web", &pod())
}

#[test]
fn what_is_the_machines_becomes_the_guests() {
    let (spec, volumes) = adapted(spec()).unwrap();
    assert_eq!(spec["root"], json!({ "path": "rootfs", "readonly": true }));
    assert_eq!(spec["process"], json!({ "args": ["sh"] }));
    let linux = &spec["linux"];
    assert_eq!(linux["cgroupsPath"], "/coracle/web");
    let paths: Vec<_> = linux["namespaces"].as_array().unwrap().iter().filter_map(|n| n["path"].as_str()).collect();
    assert_eq!(paths, ["/proc/1/ns/net", "/proc/1/ns/uts", "/proc/40/ns/ipc"]);
    assert_eq!(linux["resources"]["cpu"], json!({ "shares": 10 }));
    assert_eq!(linux["resources"]["memory"], json!({ "limit": 7 }));
    assert_eq!(linux["resources"]["unified"], json!({ "memory.high": "5" }));
    assert!(linux["resources"].get("hugepageLimits").is_none());
    let mut shared = self::spec();
    shared["linux"]["namespaces"][1]["path"] = json!("/proc/1/ns/pid");
    assert_eq!(adapted(shared.clone()).unwrap().0["linux"]["namespaces"][1]["path"], "/proc/39/ns/pid");
    assert!(adapt(shared, "web", &Pod { init: None, ..pod() }).unwrap_err().contains("which has none"));
    for profile in DEFAULT_PROFILES {
        let mut process = json!({ "apparmorProfile": profile });
        adapt_process(&mut process).unwrap();
        assert_eq!(process, json!({}), "RuntimeDefault");
    }
    let kinds: Vec<_> = volumes.iter().map(|volume| (volume.at, volume.kind)).collect();
    assert_eq!(kinds, [(1, Kind::Sent), (2, Kind::Local), (3, Kind::Disk)]);
    assert_eq!(spec["mounts"][3]["type"], "bind");
    assert_eq!(spec["mounts"][3]["options"], json!(["ro", "nosuid", "x-coracle.subpath=a", "rbind", "ro"]));
}

#[test]
fn a_folder_of_the_machine_is_shared_where_the_handler_says_so() {
    let folders = [PathBuf::from("/srv/data")];
    let shared = |source: &str, options: Value| {
        let mut spec = spec();
        spec["mounts"] = json!([{ "destination": "/m", "type": "bind", "source": source, "options": options }]);
        adapt(spec, "web", &Pod { folders: &folders, ..pod() }).map(|(_, volumes)| volumes[0].kind)
    };
    for (options, read_only) in
        [(json!(["rbind", "rprivate", "rw"]), false), (json!(["rbind", "ro"]), true), (json!(["bind", "rro"]), true)]
    {
        assert_eq!(shared("/srv/data/a", options), Ok(Kind::Shared { read_only }));
    }
    assert_eq!(shared("/run/coracle/pods/0123/hosts", json!(["rbind"])), Ok(Kind::Sent), "the pod's own is sent");
    for (source, options, part) in [
        ("/srv/data2", json!(["rbind"]), "options.host_paths"),
        ("/srv/data/../x", json!(["rbind"]), "no plain path"),
        ("/srv/data/a", json!(["rbind", "rslave"]), "HostToContainer propagation"),
        ("/srv/data/a", json!(["rbind", "rshared"]), "Bidirectional propagation"),
    ] {
        let refused = shared(source, options).unwrap_err();
        assert!(refused.contains(part), "{refused}");
    }
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let namespaces = |without: &str| {
        let mut list = spec()["linux"]["namespaces"].clone();
        list.as_array_mut().unwrap().retain(|n| n["type"] != without);
        list
    };
    let mount = |mount: Value| json!([mount]);
    for (path, value, part) in [
        ("/hooks", json!({ "poststop": [{ "path": "/x" }] }), "OCI hooks"),
        ("/process/apparmorProfile", json!("mine"), "AppArmor profile \"mine\""),
        ("/process/selinuxLabel", json!("a:b"), "SELinux"),
        ("/linux/mountLabel", json!("a:b"), "SELinux"),
        ("/linux/intelRdt", json!({ "closID": "x" }), "Intel RDT"),
        ("/linux/uidMappings", json!([{ "containerID": 0 }]), "a user namespace"),
        ("/linux/namespaces", namespaces("network"), "hostNetwork"),
        ("/linux/namespaces", namespaces("ipc"), "hostIPC"),
        ("/linux/namespaces", namespaces("pid"), "hostPID"),
        ("/linux/namespaces/1/path", json!("/proc/99/ns/pid"), "not the pod's"),
        ("/linux/namespaces/0/path", json!("/proc/1/ns/mnt"), "mount namespace"),
        ("/linux/devices", json!([{ "path": "/dev/sda", "major": 8, "minor": 0 }]), "device \"/dev/sda\""),
        ("/linux/devices", json!([{ "path": "/dev/null", "major": 8, "minor": 0 }]), "device \"/dev/null\""),
        ("/linux/resources/hugepageLimits", json!([{ "pageSize": "2MB", "limit": 1 }]), "huge pages"),
        ("/linux/resources/memory/kernelTCP", json!(5), "memory.kernelTCP"),
        ("/linux/resources/rdma", json!({ "mlx": { "hcaHandles": 1 } }), "RDMA"),
        ("/linux/resources/network", json!({ "classID": 5 }), "network traffic"),
        ("/linux/resources/blockIO", json!({ "throttleReadBpsDevice": [{ "rate": 1 }] }), "rates"),
        ("/mounts", mount(json!({ "destination": "/h", "type": "bind", "source": "/etc" })), "/etc is a folder"),
        ("/mounts", mount(json!({ "destination": "/h", "source": "/etc", "options": ["bind"] })), "hostPath"),
        ("/mounts", mount(json!({ "destination": "/h", "type": "overlay", "source": "o" })), "\"overlay\""),
        ("/mounts", mount(json!({ "destination": "/h", "type": "bind", "source": "/a/../b" })), "no plain path"),
        (
            "/mounts",
            mount(json!({ "destination": "/h", "type": "bind", "source": "/x/pods/0123/volumes/a",
                "options": ["rbind", "rshared"] })),
            "Bidirectional",
        ),
    ] {
        let mut spec = spec();
        match spec.pointer_mut(path) {
            Some(place) => *place = value,
            None => {
                let (parent, key) = path.rsplit_once('/').unwrap();
                spec.pointer_mut(parent).unwrap()[key] = value;
            }
        }
        let why = adapted(spec).expect_err(path);
        assert!(why.contains(part) && why.ends_with("(not in a virtual machine)"), "{path}: {why}");
    }
}

#[test]
fn sources_are_told_apart_by_where_they_lie() {
    let kind = |source: &str| kind_of(Path::new(source), "/t", &pod());
    for (source, expected) in [
        ("/run/coracle/pods/0123/resolv.conf", Kind::Sent),
        ("/run/coracle/pods/0123/volumes/config", Kind::Sent),
        ("/run/coracle/pods/0123/memory/scratch", Kind::Local),
        ("/var/lib/coracle/pods/0123/volumes/data", Kind::Local),
        ("/var/lib/coracle/pods/0123/messages/web.0", Kind::Message),
        ("/var/lib/kubelet/pods/0a1b2c3d-0000-1111-2222-0a1b2c3d4e5f/volumes/kubernetes.io~configmap/c", Kind::Sent),
        (
            "/var/lib/kubelet/pods/0a1b2c3d-0000-1111-2222-0a1b2c3d4e5f/volumes/kubernetes.io~projected/kube-api-access-x",
            Kind::Sent,
        ),
        ("/var/lib/kubelet/pods/0a1b2c3d-0000-1111-2222-0a1b2c3d4e5f/volumes/kubernetes.io~empty-dir/e", Kind::Local),
        ("/var/lib/kubelet/pods/0a1b2c3d-0000-1111-2222-0a1b2c3d4e5f/etc-hosts", Kind::Sent),
        ("/var/lib/kubelet/pods/0a1b2c3d-0000-1111-2222-0a1b2c3d4e5f/containers/web/1a2b", Kind::Message),
        ("/run/containerd/io.containerd.grpc.v1.cri/sandboxes/0123/shm", Kind::Local),
        ("/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/0123/hosts", Kind::Sent),
    ] {
        assert_eq!(kind(source), Ok(expected), "{source}");
    }
    for source in [
        "/",
        "/run/coracle/pods/0123",
        "/run/coracle/pods/0123/config.json",
        "/run/coracle/pods/0123/containers/web/config.json",
        "/run/coracle/pods/4567/hosts",
        "/var/lib/coracle/pods/4567/volumes/data",
        "/var/lib/kubelet/pods/0a1b2c3d-0000-1111-2222-0a1b2c3d4e5f/volumes/kubernetes.io~nfs/n",
        "/var/lib/kubelet/pods/0a1b2c3d-0000-1111-2222-0a1b2c3d4e5f/volumes/kubernetes.io~secret/s/deeper",
        "/var/lib/kubelet/pods/0a1b2c3d-0000-1111-2222-0a1b2c3d4e5f/volume-subpaths/v/web/0",
        "/var/lib/kubelet/pods/0a1b2c3d-0000-1111-2222-0a1b2c3d4e5g/etc-hosts",
        "/run/coracle/pods/4567/containers/web/config.json",
        "/x/sandboxes/4567/hosts",
        "relative/pods/0123/volumes/a",
    ] {
        assert!(kind(source).is_err(), "{source}");
    }
}

#[test]
fn the_container_that_stands_for_the_pod_has_the_pods_namespaces() {
    let mut sandbox = spec();
    sandbox["annotations"] = json!({ CONTAINER_TYPE: SANDBOX });
    sandbox["linux"]["namespaces"] = json!([
        { "type": "mount" }, { "type": "pid" }, { "type": "ipc" }, { "type": "uts" },
        { "type": "network", "path": "/var/run/netns/cni-1" },
    ]);
    let (adapted, _) = adapted(sandbox).unwrap();
    let list = adapted["linux"]["namespaces"].as_array().unwrap();
    let path = |kind: &str| list.iter().find(|n| n["type"] == kind).unwrap()["path"].as_str();
    assert_eq!((path("ipc"), path("uts")), (Some("/proc/1/ns/ipc"), Some("/proc/1/ns/uts")));
    assert_eq!((path("network"), path("pid")), (Some("/proc/1/ns/net"), None));
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-z/.0-9]{0,12}".prop_map(Value::from),
    ];
    let key = prop_oneof![
        Just("type".to_owned()),
        Just("path".to_owned()),
        Just("options".to_owned()),
        Just("limit".to_owned()),
        "[a-z]{1,6}"
    ];
    leaf.prop_recursive(3, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// Whatever somebody writes in whatever place: no panic, and no path of the machine is left as a source.
    #[test]
    fn nothing_of_the_machine_gets_through(
        place in prop::sample::select(vec!["/process", "/linux", "/mounts", "/linux/namespaces", "/linux/resources",
            "/linux/devices", "/mounts/1", "/mounts/1/options", "/linux/namespaces/3", "/annotations", "/hooks"]),
        value in json_value(),
    ) {
        let mut spec = spec();
        match spec.pointer_mut(place) {
            Some(at) => *at = value,
            None => spec[&place[1..]] = value,
        }
        if let Ok((spec, volumes)) = adapted(spec) {
            for (at, mount) in spec["mounts"].as_array().into_iter().flatten().enumerate() {
                let kernel = mount["type"].as_str().is_some_and(|kind| KERNEL.contains(&kind));
                prop_assert!(kernel || volumes.iter().any(|volume| volume.at == at));
            }
            for namespace in spec["linux"]["namespaces"].as_array().unwrap() {
                if let Some(path) = namespace["path"].as_str().filter(|path| !path.is_empty()) {
                    prop_assert!(["/proc/1/", "/proc/39/", "/proc/40/", "/proc/41/"].iter().any(|known| path.starts_with(known)));
                }
            }
        }
    }
}
