//! Local pods in virtual machines: all that a pod can be asked, by `coracle run` and its sisters.

use std::fs;

use coracle_tests::machine::{IMAGE, Machine, until};

use crate::common::{CLASS, Vms};

/// What runs until it is told to stop.
const LONG: &str =
    "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.2; test ! -e /scratch/say || echo said; done";

/// A ConfigMap with one word.
fn config_map(vms: &Vms, word: &str) -> String {
    let path = vms.path("settings.yaml");
    let text = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{word: {word}}}\n");
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// Two containers with nearly all that a pod can have.
fn rich(vms: &Vms) -> String {
    let script = LONG.replace('\'', "''");
    let container = |name: &str, more: &str| {
        format!(
            "  - name: {name}\n    image: {IMAGE}\n    imagePullPolicy: Never\n    command: ['sh', '-c', '{script}']\n\
             \x20   volumeMounts: [{{name: scratch, mountPath: /scratch}}, {{name: settings, mountPath: /settings}}, \
             {{name: image, mountPath: /image}}, {{name: memory, mountPath: /memory}}]\n{more}"
        )
    };
    let main = container(
        "main",
        "    resources: {limits: {memory: 96Mi, cpu: 500m}}\n    env: [{name: WORD, valueFrom: {configMapKeyRef: {name: \
         settings, key: word}}}, {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]\n    \
         lifecycle:\n      postStart: {exec: {command: [sh, -c, 'echo hook > /scratch/started']}}\n    \
         readinessProbe: {exec: {command: [test, -e, /scratch/ready]}, periodSeconds: 1}\n",
    );
    let side = container("side", "    resources: {limits: {memory: 64Mi, cpu: 500m}}\n");
    let volumes = format!(
        "  volumes:\n  - {{name: scratch, emptyDir: {{}}}}\n  - {{name: memory, emptyDir: {{medium: Memory, sizeLimit: 8Mi}}}}\n  \
         - {{name: settings, configMap: {{name: settings}}}}\n  - {{name: image, image: {{reference: '{IMAGE}', \
         pullPolicy: Never}}}}\n"
    );
    let head =
        "  hostname: guest\n  terminationGracePeriodSeconds: 5\n  hostAliases: [{ip: 192.0.2.9, hostnames: [alias]}]\n";
    vms.pod("rich", &format!("{CLASS}{head}  containers:\n{main}{side}{volumes}"))
}

#[test]
fn what_a_pod_can_be_asked_it_can_be_asked_in_a_virtual_machine() {
    let vms = Vms::with("");
    vms.ok(&["apply", &config_map(&vms, "old")]);
    // The bridge and its table come with the first pod and stay.
    vms.ok(&["run", "-d", &Machine::script_pod(&vms, "plain", "true", "")]);
    vms.ok(&["rm", "-f", "plain"]);
    let before = vms.traces();
    vms.ok(&["run", "-d", &rich(&vms)]);
    let state = |view: &serde_json::Value| view["containers"][1]["state"] == "running";
    until("both containers to run", || state(&vms.view("rich")));
    let inside = |line: &str| vms.inside("rich", line);
    let side = |line: &str| vms.ok(&["exec", "rich", "-c", "side", "--", "sh", "-c", line]);

    // Another kernel, and the pod's own names and limits in it.
    assert_ne!(
        inside("cat /proc/sys/kernel/random/boot_id"),
        fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap()
    );
    assert_eq!(inside("hostname; echo $HOSTNAME"), "guest\nguest\n");
    assert!(inside("cat /etc/hosts").contains("192.0.2.9\talias"));
    assert_eq!(inside("echo $WORD $IP"), format!("old {}\n", vms.ip("rich")));
    assert_eq!(inside("cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max"), format!("{}\n50000 100000\n", 96 << 20));
    assert_eq!(side("cat /sys/fs/cgroup/memory.max"), format!("{}\n", 64 << 20));
    let total: u64 = inside("grep MemTotal /proc/meminfo").split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((160 << 10..(160 + 64) << 10).contains(&total), "{total} KiB: the limits' sum and the kernel's part");

    // Volumes are shared by its containers and by nobody else.
    inside("echo shared > /scratch/file; echo fast > /memory/file");
    assert_eq!(side("cat /scratch/file /memory/file /scratch/started /settings/word"), "shared\nfast\nhook\nold");
    // Those in memory have their sizes there, too.
    let (size, shm) = (inside("df -k /memory | tail -n 1"), inside("df -k /dev/shm | tail -n 1"));
    let blocks = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
    assert_eq!((blocks(&size).as_deref(), blocks(&shm).as_deref()), (Some("8192"), Some("65536")), "{size}{shm}");
    assert!(inside("dd if=/dev/zero of=/memory/big bs=1M count=9 2>&1; rm /memory/big").contains("No space"));
    assert!(side("grep ' /dev/shm ' /proc/mounts").contains("noexec"));
    assert_eq!(
        side("ls /image/bin/busybox; touch /image/x 2>&1 | grep -o 'Read-only'"),
        "/image/bin/busybox\nRead-only\n"
    );
    vms.ok(&["apply", &config_map(&vms, "new")]);
    until("the new word", || inside("cat /settings/word") == "new");

    // The root can be written to, and is each container's own.
    inside("echo mine > /mine && chmod 600 /mine");
    assert_eq!(side("ls /mine 2>/dev/null; echo $?"), "1\n");

    // The probe decides.
    assert_eq!(vms.view("rich")["ready"], 1, "only the one without a probe: {}", vms.view("rich"));
    inside("touch /scratch/ready");
    until("the pod to be ready", || vms.view("rich")["ready"] == 2);

    // Exits, streams and terminals of commands.
    let said = vms.say(&["exec", "rich", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((said.status.code(), said.out.as_str(), said.err.as_str()), (Some(7), "out\n", "err\n"));
    assert_eq!(vms.ok(&["logs", "rich", "-c", "side"]), "ready\n");
    let config = vms.path("config.toml").display().to_string();
    let terminal = ["--config", &config, "exec", "-it", "rich", "--", "sh", "-c", "tty; test -t 0 && echo terminal"];
    let line = format!("{:?}", vms.command(&terminal));
    let shown = vms.sh(&format!("script -qec '{line}' /dev/null < /dev/null"));
    assert!(shown.contains("/dev/pts/0") && shown.contains("terminal"), "{shown}");
    let shown = vms.ok(&["top", "rich", "--containers"]);
    assert!(shown.contains("main") && shown.contains("side"), "{shown}");
    copies(&vms);
    let attached = vms.path("attached");
    let shown = fs::File::create(&attached).unwrap();
    let mut attach = vms.command(&["--config", &config, "attach", "rich", "-c", "side"]).stdout(shown).spawn().unwrap();
    inside("touch /scratch/say");
    until("what the container says", || fs::read_to_string(&attached).unwrap().contains("said\n"));
    inside("rm /scratch/say");
    attach.kill().unwrap();
    attach.wait().unwrap();

    let inspected: serde_json::Value = serde_json::from_str(&vms.ok(&["inspect", "rich"])).unwrap();
    assert_eq!(inspected[0]["machine"]["machine"]["pid"].as_i64().map(|pid| pid > 1), Some(true), "{inspected}");
    vms.ok(&["stop", "rich"]);
    assert!(vms.ok(&["logs", "rich", "-c", "main"]).ends_with("bye\n"));
    vms.ok(&["rm", "rich"]);
    let kept = |trace: &str| ["/objects", "/state/vm", "/leases", "/last"].iter().any(|part| trace.contains(part));
    vms.assert_traces(&before, kept);
}

/// Files go into its containers and out of them, and between them, by nothing of the image.
fn copies(vms: &Vms) {
    let path = |name: &str| vms.path(name).display().to_string();
    let (site, back) = (vms.path("site"), vms.path("back"));
    fs::create_dir_all(site.join("sub")).unwrap();
    let big: Vec<u8> = (0..3_000_000u32).map(|at| (at ^ (at >> 8)) as u8).collect();
    fs::write(site.join("sub/big"), &big).unwrap();
    std::os::unix::fs::symlink("sub/big", site.join("link")).unwrap();
    vms.ok(&["cp", &path("site"), "rich:/tmp"]);
    vms.ok(&["cp", "-c", "side", &format!("{}/.", path("site")), "rich:/tmp"]);
    assert_eq!(vms.inside("rich", "readlink /tmp/site/link; wc -c < /tmp/site/link"), "sub/big\n3000000\n");
    vms.ok(&["cp", "rich:/tmp/site", &path("back")]);
    assert!(fs::read(back.join("link")).unwrap() == big, "3 MB there and back");
    vms.ok(&["cp", "-c", "side", "rich:/tmp/sub/big", &path("one")]);
    assert!(fs::read(vms.path("one")).unwrap() == big);
    vms.ok(&["cp", "rich:/tmp/site", "rich:/tmp/twice"]);
    assert_eq!(vms.inside("rich", "cmp /tmp/site/sub/big /tmp/twice/sub/big && echo same"), "same\n");
    // What cannot be is told by the end that cannot, and is no success.
    let error = vms.fails(&["--config", &path("config.toml"), "cp", "rich:/none", &path("x")]);
    assert!(error.contains("/none") && error.contains("ENOENT"), "{error}");
    let error = vms.fails(&["--config", &path("config.toml"), "cp", &path("site"), "rich:/no/such"]);
    assert!(error.contains("open the folder \"/no\""), "{error}");
    let said = vms.say(&["cp", "rich:/dev", &path("devices")]);
    assert!(said.err.contains("\"dev/null\" is left out: it is a device"), "{said:?}");
}

#[test]
fn how_containers_end_in_a_virtual_machine_is_told() {
    let vms = Vms::with("");
    let container = |name: &str, script: &str, more: &str| {
        format!(
            "  - name: {name}\n    image: {IMAGE}\n    imagePullPolicy: Never\n    command: [sh, -c, '{script}']\n{more}"
        )
    };
    let spec = [
        format!("{CLASS}  restartPolicy: Never\n  terminationGracePeriodSeconds: 1\n  containers:\n"),
        container("well", "echo done > /dev/termination-log", ""),
        container("wrong", "exit 3", ""),
        container("greedy", "tail /dev/zero", "    resources: {limits: {memory: 32Mi}}\n"),
    ];
    vms.ok(&["run", "-d", &vms.pod("ends", &spec.concat())]);
    until("the pod's end", || vms.view("ends")["phase"] == "Failed");
    let told = |name: &str| {
        let view = vms.view("ends");
        let all = view["containers"].as_array().unwrap().clone();
        let one = all.into_iter().find(|container| container["name"] == name).unwrap();
        (one["exitCode"].as_i64().unwrap(), one["reason"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(told("well"), (0, "Completed".into()));
    assert_eq!(told("wrong"), (3, "Error".into()));
    assert_eq!(told("greedy"), (137, "OOMKilled".into()));
    assert!(vms.ok(&["describe", "ends"]).contains("done"), "its termination message");
    vms.ok(&["rm", "ends"]);
}

#[test]
fn what_a_virtual_machine_cannot_have_is_refused_by_name() {
    let vms = Vms::with("");
    let container = |more: &str| {
        format!(
            "{CLASS}  containers:\n  - {{name: main, image: {IMAGE}, imagePullPolicy: Never, command: [sh]{more}}}\n"
        )
    };
    let volume = "  volumes: [{name: v, hostPath: {path: /etc}}]\n";
    for (name, spec, words) in [
        ("net", format!("  hostNetwork: true\n{}", container("")), "hostNetwork: the host's network cannot be had"),
        ("pid", format!("  hostPID: true\n{}", container("")), "hostPID: "),
        ("ipc", format!("  hostIPC: true\n{}", container("")), "hostIPC: "),
        ("users", format!("  hostUsers: false\n{}", container("")), "hostUsers: "),
        ("privileged", container(", securityContext: {privileged: true}"), "privileged_without_host_devices"),
        ("small", container(", resources: {limits: {memory: 32Mi}}"), "too little for a virtual machine"),
        (
            "path",
            format!("{}{volume}", container(", volumeMounts: [{name: v, mountPath: /v}]")),
            "hostPath: /v: /etc is a folder of the host (options.host_paths of handler vm can let it in)",
        ),
    ] {
        let said = vms.say(&["run", &vms.pod(name, &spec)]);
        let told = format!("{}{}", said.err, vms.ok(&["events"]));
        assert!(!said.status.success() && told.contains(words), "{name}: {told}");
        vms.say(&["rm", "-f", name]);
    }
}
