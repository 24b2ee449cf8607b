//! Descriptors that the caller or the runtime left open: neither a working directory nor a program is found by them, and
//! nobody inherits them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::oci_support::{Answer, Bundle, ours, runtime, wait_for};
use crate::tools::{Outside, SECRET, start};

/// The runtime, called by someone who has descriptor 9 open on a directory of the host's and forgot to close it.
fn leaky(bundle: &Bundle, outside: &Outside, args: &str) -> Answer {
    let script = format!(
        "exec 3</dev/null 4<&3 5<&3 6<&3 7<&3 8<&3 9<{} && LEAKED=secret exec {} --root {} {args}",
        outside.path().display(),
        runtime().display(),
        bundle.state_root().display(),
    );
    Command::new("/bin/bash").arg("-c").arg(script).stdin(Stdio::null()).output().unwrap().into()
}

fn leaky_run(bundle: &Bundle, outside: &Outside, flags: &str) -> Answer {
    bundle.write_config();
    leaky(bundle, outside, &format!("run {flags} --bundle {} {}", bundle.dir.path().display(), bundle.id))
}

#[test]
fn cve_2024_21626_a_leaked_directory_is_no_working_directory() {
    let outside = Outside::new();
    // The witness: who is given the descriptor on purpose does see the host by it.
    let bundle = Bundle::sh("cat /proc/self/fd/9/marker");
    assert_eq!(leaky_run(&bundle, &outside, "--preserve-fds 7").ok().out, SECRET);

    for cwd in ["/proc/self/fd/9", "/proc/self/fd/9/../../../../..", "/link", "/proc/thread-self/fd/9"] {
        let mut bundle = Bundle::sh("cat ./marker; pwd");
        symlink("/proc/self/fd/9", bundle.rootfs().join("link")).unwrap();
        bundle.set("/process/cwd", json!(cwd));
        let answer = leaky_run(&bundle, &outside, "");
        assert!(!answer.out.contains(SECRET), "{cwd}: {answer:?}");
        assert_ne!(answer.code, 0, "{cwd}: {answer:?}");
        bundle.assert_gone();
    }
    outside.assert_untouched();
}

#[test]
fn cve_2024_21626_exec_finds_no_working_directory_and_no_program_by_it() {
    let outside = Outside::new();
    fs::copy("/bin/busybox", outside.path().join("busybox")).unwrap();
    let bundle = Bundle::sleeping();
    symlink("/proc/self/fd/9", bundle.rootfs().join("link")).unwrap();
    for args in [
        format!("exec --cwd /proc/self/fd/9 {} cat ./marker", bundle.id),
        format!("exec --cwd /link {} cat ./marker", bundle.id),
        format!("exec {} /proc/self/fd/9/busybox echo {SECRET}", bundle.id),
        format!("exec {} /link/busybox echo {SECRET}", bundle.id),
    ] {
        let answer = leaky(&bundle, &outside, &args);
        assert!(answer.code != 0 && !answer.out.contains(SECRET), "{args}: {answer:?}");
    }
}

#[test]
fn cve_2024_21626_no_descriptor_of_the_runtimes_own_leads_out() {
    for number in 3..24 {
        let mut bundle = Bundle::sh("test -x bin/busybox || echo outside; test -e etc/debian_version && echo outside");
        bundle.set("/process/cwd", json!(format!("/proc/self/fd/{number}")));
        let answer = bundle.run();
        assert!(!answer.out.contains("outside"), "{number}: {answer:?}");
        assert!(answer.code != 0, "{number}: {answer:?}");
    }
}

#[test]
fn the_accounts_of_the_image_are_not_read_from_the_runtimes_descriptors() {
    let outside = Outside::new();
    fs::write(outside.path().join("passwd"), "x:x:0:0::/stolen:\n").unwrap();
    // The witness: the same file inside is believed.
    let bundle = Bundle::sh("echo $HOME");
    fs::copy(outside.path().join("passwd"), bundle.rootfs().join("etc/passwd")).unwrap();
    assert_eq!(leaky_run(&bundle, &outside, "").ok().out, "/stolen\n");

    for link in ["/proc/self/fd/9/passwd", "/dev/zero", "/etc/passwd", "/proc/self/fd/0"] {
        let bundle = Bundle::sh("echo $HOME");
        symlink(link, bundle.rootfs().join("etc/passwd")).unwrap();
        let answer = leaky_run(&bundle, &outside, "");
        if ours() {
            assert_eq!(answer.ok().out, "/\n", "{link}");
        }
    }
}

#[test]
fn hooks_inherit_no_descriptor_and_no_environment() {
    if !ours() {
        return; // The peers give hooks without `env` the runtime's own, and what the caller left open.
    }
    let outside = Outside::new();
    let mut bundle = Bundle::sh("true");
    // LEAKED is in the environment and 9 is open wherever the runtime was called: nothing of it may show.
    let report = bundle.dir.path().join("report");
    let inside = bundle.rootfs().join("report");
    let hook = |file: &str| {
        let script = format!("{{ echo hook; env; ls /proc/$$/fd; }} >> {file}");
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] }])
    };
    for kind in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        bundle.set(&format!("/hooks/{kind}"), hook(report.to_str().unwrap()));
    }
    bundle.set("/hooks/startContainer", hook("/report"));
    leaky_run(&bundle, &outside, "--preserve-fds 7").ok();
    let text = fs::read_to_string(&report).unwrap() + &fs::read_to_string(&inside).unwrap();
    assert_eq!(text.matches("hook\n").count(), 6, "{text}");
    assert!(!text.contains("LEAKED"), "{text}");
    let numbers: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(numbers.contains(&2) && !numbers.iter().any(|n| (4..10).contains(n)), "{text}");
    // The program is still given what it was promised.
    let bundle = Bundle::sh("cat /proc/self/fd/9/marker");
    assert_eq!(leaky_run(&bundle, &outside, "--preserve-fds 7").ok().out, SECRET);
}

#[test]
fn a_false_ptmx_gives_no_terminal() {
    // What a hostile image or process may have at the place of the container's ptmx.
    let falsify: [(&str, &str); 4] = [
        ("regular file", "echo > /dev/pts/ptmx"),
        ("link", "ln -s /dev/null /dev/pts/ptmx"),
        ("another device", "mknod /dev/pts/ptmx c 1 5"),
        ("pipe", "mknod /dev/pts/ptmx p"),
    ];
    for (what, script) in falsify {
        let mut bundle = Bundle::sh(&format!("mkdir -p /dev/pts; {script}; echo ready; sleep 1000"));
        bundle.config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/dev/pts");
        for set in ["bounding", "effective", "permitted"] {
            bundle.set(&format!("/process/capabilities/{set}"), json!(["CAP_MKNOD"]));
        }
        start(&bundle);
        wait_for("the false ptmx", || bundle.file("out").contains("ready"));
        let socket = bundle.dir.path().join("console.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let args = ["exec", "-t", "-d", "--console-socket", socket.to_str().unwrap(), &bundle.id, "/bin/true"];
        let answer = bundle.oci(&args);
        assert_ne!(answer.code, 0, "{what}: {answer:?}");
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true).unwrap();
            let mut space = nix::cmsg_space!([i32; 4]);
            let mut buffer = [0u8; 64];
            let mut slices = [std::io::IoSliceMut::new(&mut buffer)];
            let flags = nix::sys::socket::MsgFlags::empty();
            let fd = std::os::fd::AsRawFd::as_raw_fd(&stream);
            let message = nix::sys::socket::recvmsg::<()>(fd, &mut slices, Some(&mut space), flags);
            assert!(message.map_or(0, |m| m.cmsgs().unwrap().count()) == 0, "{what}: a descriptor was sent");
        }
    }
}

#[test]
fn cve_2020_15257_no_abstract_socket_is_open_to_a_container_in_the_hosts_network() {
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    bundle.namespace("network", None);
    bundle.create().ok();
    // The init, which is still the runtime, listens for `start`: by a path that no container can see.
    let pid = bundle.state()["pid"].to_string();
    let listing = fs::read_to_string("/proc/net/unix").unwrap();
    let mut listening = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default().to_string_lossy().into_owned();
        let Some(inode) = target.strip_prefix("socket:[").and_then(|t| t.strip_suffix(']')) else { continue };
        for line in listing.lines().filter(|line| line.split_whitespace().nth(6) == Some(inode)) {
            listening += u32::from(line.contains('/'));
            assert!(!line.contains('@'), "an abstract socket: {line}");
        }
    }
    assert!(listening > 0 || !ours(), "the socket of start is not in the listing: the test proves nothing");
    let mode = fs::metadata(bundle.state_root().join(&bundle.id)).unwrap().permissions().mode();
    assert!(mode & 0o077 == 0 || !ours(), "the state directory is open to others: {mode:o}");
}
