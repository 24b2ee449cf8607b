//! The server as a daemon: restarts and upgrades under running pods, reload, stop, what it says to systemd and to its log.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use coracle_tests::cri::{LONG, Options, log_text, node, node_with, script};
use coracle_tests::machine::until;
use k8s_cri::v1;
use nix::sys::signal::Signal;

#[test]
fn a_new_server_goes_on_with_the_pods_of_the_one_before() {
    node(async |node| {
        let (pod, container) = node.launch_pod("web", LONG).await;
        let config = node.pod("web");
        let ended = node.launch(&pod, &config, script("ended", "exit 9")).await;
        assert_eq!(node.exited(&ended).await.exit_code, 9);
        let before = (node.pod_status(&pod).await.unwrap(), node.container_status(&container).await.unwrap());
        for killed in [false, true] {
            if killed {
                node.kill().await
            } else {
                node.stop().await
            }
            assert!(!node.machine().programs().is_empty(), "the supervisor stays");
            node.start().await;
            let after = (node.pod_status(&pod).await.unwrap(), node.container_status(&container).await.unwrap());
            assert_eq!(after, before);
            assert_eq!(node.container_status(&ended).await.unwrap().exit_code, 9);
        }
        let cmd = ["echo", "still here"].map(String::from).to_vec();
        let exec = v1::ExecSyncRequest { container_id: container.clone(), cmd, timeout: 10 };
        assert_eq!(node.runtime().exec_sync(exec).await.unwrap().into_inner().stdout, b"still here\n");
        let (more, log) = node.run_to_end(&pod, &config, script("more", "echo more; exit 2")).await;
        assert_eq!((more.exit_code, log.as_str()), (2, "more\n"));
        node.stop_container(&container, 10).await.unwrap();
        assert_eq!(node.exited(&container).await.exit_code, 0);
        assert_eq!(log_text(&node.log_dir("web").join("main.log")), "ready\n");
    });
}

/// A field that only a newer record has is dropped, as the records of an older server would lack it.
fn drop_fields(record: &std::path::Path, fields: &[&str]) {
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    let object = value.as_object_mut().unwrap();
    for field in fields {
        object.remove(*field);
        object.get_mut("config").and_then(|c| c.as_object_mut()).map(|config| config.remove(*field));
    }
    fs::write(record, value.to_string()).unwrap();
}

#[test]
fn records_of_an_older_server_are_read() {
    node(async |node| {
        let (pod, container) = node.launch_pod("web", LONG).await;
        node.stop().await;
        // What came after the first released records.
        let folder = node.machine().state().join("pods").join(&pod);
        drop_fields(
            &folder.join("record.json"),
            &["handler", "selinux", "user_namespace", "overhead", "log_max_bytes"],
        );
        let of_container = folder.join("containers").join(&container).join("record.json");
        drop_fields(&of_container, &["image_digest", "user", "devices", "cdi_devices", "pid"]);
        node.start().await;
        assert_eq!(node.pod_status(&pod).await.unwrap().state(), v1::PodSandboxState::SandboxReady);
        let status = node.container_status(&container).await.unwrap();
        assert_eq!(status.state(), v1::ContainerState::ContainerRunning);
        node.stop_container(&container, 10).await.unwrap();
        assert_eq!(node.exited(&container).await.exit_code, 0);
        let (again, _) = node.run_to_end(&pod, &node.pod("web"), script("again", "exit 5")).await;
        assert_eq!(again.exit_code, 5);
    });
}

#[test]
fn a_reload_takes_over_what_it_can_and_names_the_rest() {
    node(async |node| {
        node.set_config("log_level = 'debug'\n[network]\nmtu = 1400\n");
        node.signal(Signal::SIGHUP);
        until("the reload", || node.server_log().contains("reloaded; changed: log_level"));
        until("the hint", || {
            node.server_log().contains("network.mtu has changed in the configuration and needs a restart")
        });
        let _ = node.pods().await;
        until("a line of the new level", || node.server_log().contains("rpc=ListPodSandbox"));
        node.set_config("rooot = 1\n");
        node.signal(Signal::SIGHUP);
        let wanted = "config.toml:1:1: unknown key `rooot`: did you mean `root`?";
        until("the error", || node.server_log().contains(wanted));
        node.set_config("");
    });
}

#[test]
fn a_reload_brings_handlers_and_variables_to_what_is_made_later() {
    node(async |node| {
        let services = node.path("services");
        fs::create_dir(&services).unwrap();
        let db = "kind: Service\nmetadata: {name: db}\nspec: {clusterIP: 10.9.8.7, ports: [{port: 5432}]}\n";
        fs::write(services.join("db.yaml"), db).unwrap();
        let config = node.pod("web");
        let pod = node.run_pod(&config).await.unwrap();
        let (_, before) = node.run_to_end(&pod, &config, script("before", "env")).await;
        assert!(before.contains("HOSTNAME=web\n") && !before.contains("POD_NAME"), "{before}");
        node.set_config(&format!(
            "[serve]\ninject_env = true\nservices_dir = {services:?}\n[handlers.other]\ntype = 'coracle'\n"
        ));
        node.signal(Signal::SIGHUP);
        until("the reload", || node.server_log().contains("reloaded; changed: handlers.other, serve.inject_env"));
        let mut wanted = script("after", "env");
        wanted.envs = vec![v1::KeyValue { key: "POD_NAME".into(), value: "mine".into() }];
        let (_, after) = node.run_to_end(&pod, &config, wanted).await;
        for line in ["POD_NAME=mine\n", "POD_NAMESPACE=default\n", "POD_IP=10.", "DB_SERVICE_HOST=10.9.8.7\n"] {
            assert!(after.contains(line), "{line}: {after}");
        }
        let other = v1::RunPodSandboxRequest { config: Some(node.pod("other")), runtime_handler: "other".into() };
        node.runtime().run_pod_sandbox(other).await.unwrap();
    });
}

#[test]
fn a_call_that_changes_something_is_one_line_of_the_log() {
    node(async |node| {
        let (pod, container) = node.launch_pod("web", "exit 0").await;
        node.exited(&container).await;
        let unknown = v1::StartContainerRequest { container_id: "0".repeat(64) };
        node.runtime().start_container(unknown).await.unwrap_err();
        let log = node.server_log();
        let line = |rpc: &str| {
            let lines: Vec<&str> = log.lines().filter(|line| line.contains(&format!("rpc={rpc} "))).collect();
            assert_eq!(lines.len(), 1, "{rpc}: {lines:?}");
            lines[0].to_owned()
        };
        let run = line("RunPodSandbox");
        assert!(run.contains("done took_ms=") && run.contains("name=default/web"), "{run}");
        assert!(run.contains(&format!("sandbox={}", &pod[..12])), "{run}");
        let create = line("CreateContainer");
        assert!(create.contains(&format!("sandbox={}", &pod[..12])), "{create}");
        assert!(create.contains(&format!("container={}", &container[..12])), "{create}");
        let start: Vec<_> = log.lines().filter(|line| line.contains("rpc=StartContainer ")).collect();
        assert!(start.len() == 2 && start[1].contains("failed: NotFound: "), "{start:?}");
    });
}

#[test]
fn systemd_is_told_of_readiness_life_and_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let env = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "200000")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let told = std::thread::spawn(move || {
        let mut all = Vec::new();
        loop {
            let mut buffer = [0; 512];
            let n = socket.recv(&mut buffer).expect("a message");
            all.push(String::from_utf8_lossy(&buffer[..n]).into_owned());
            if all.last().is_some_and(|last| last.starts_with("STOPPING=1")) {
                return all;
            }
        }
    });
    node_with(Options { env, ..Options::default() }, async |node| {
        tokio::time::sleep(Duration::from_millis(500)).await;
        node.signal(Signal::SIGHUP);
        until("the reload", || node.server_log().contains("reloaded"));
    });
    let told = told.join().unwrap();
    let first =
        |what: &str| told.iter().position(|message| message.starts_with(what)).unwrap_or_else(|| panic!("{told:?}"));
    assert!(first("READY=1") < first("RELOADING=1"));
    assert!(told.iter().filter(|message| *message == "WATCHDOG=1").count() >= 2, "{told:?}");
    assert_eq!(told.iter().filter(|message| message.starts_with("READY=1")).count(), 2, "{told:?}");
}

#[test]
fn a_server_that_stops_tells_its_streams_and_does_not_wait_for_them() {
    node(async |node| {
        let mut events =
            node.runtime().get_container_events(v1::GetEventsRequest::default()).await.unwrap().into_inner();
        let stopped = node.stop();
        let (_, end) = tokio::join!(stopped, events.message());
        assert_eq!(end.unwrap_err().code(), tonic::Code::Unavailable);
        assert!(node.server_log().trim_end().ends_with("stopped"), "{}", node.server_log());
        assert!(!node.socket().exists());
    });
}

#[test]
fn a_configuration_with_problems_starts_no_server_and_the_check_tells_all_of_them() {
    node(async |node| {
        node.stop().await;
        node.set_config(
            "log_level = 'coracle=loud'\n[serve]\nstreaming_address = '0.0.0.0:0'\n[handlers.x]\ntype = 'vm'\noptions = { kernel = 'vmlinux' }\n",
        );
        let path = node.config_path().display().to_string();
        let said = node.machine().coracle(&["config", "check", &path]);
        let lines: Vec<&str> = said.err.lines().collect();
        assert_eq!((said.status.code(), lines.len()), (Some(2), 3), "{lines:?}");
        assert!(lines[1].contains("config.toml:3:1: serve.streaming_address: "), "{lines:?}");
        let output = node.machine().run(|| node.command().output().expect("start the server"));
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains("handlers.x.options.kernel: vmlinux is no absolute path"), "{error}");
        node.set_config("");
        let default = node.machine().ok(&["config", "default"]);
        fs::write(node.path("default.toml"), &default).unwrap();
        let path = node.path("default.toml").display().to_string();
        assert!(node.machine().ok(&["config", "check", &path]).contains("no problem"));
        node.start().await;
    });
}
