//! Handlers, chosen by `runtime_handler`: what the server says of them, and pods of theirs over a restart of the server.

use coracle_tests::cri::{LONG, Node, Options, log_text, node_with, script};
use coracle_tests::machine::until;
use k8s_cri::v1;
use tonic::{Code, Status};

const CONFIG: &str = "
[handlers.runc]
type = \"oci\"
binary = \"runc\"
allowed_annotations = [\"example.com/*\"]
[handlers.shim]
type = \"shim\"
binary = \"io.containerd.runc.v2\"
[handlers.gone]
type = \"oci\"
binary = \"/no/such/runtime\"
";

fn options() -> Options {
    Options { config: CONFIG.into(), ..Options::default() }
}

async fn run(node: &Node, config: &v1::PodSandboxConfig, handler: &str) -> Result<String, Status> {
    let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
    let id = node.runtime().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
    node.machine().learn_ids();
    Ok(id)
}

async fn exec(node: &Node, container: &str, line: &str) -> v1::ExecSyncResponse {
    let cmd = ["sh", "-c", line].map(String::from).to_vec();
    let request = v1::ExecSyncRequest { container_id: container.into(), cmd, timeout: 20 };
    node.runtime().exec_sync(request).await.unwrap().into_inner()
}

#[test]
fn pods_of_every_handler_run_side_by_side_and_outlive_the_server() {
    node_with(options(), async |node| {
        let mut pods = Vec::new();
        for handler in ["", "coracle", "runc", "shim"] {
            let name = format!("of-{}", if handler.is_empty() { "none" } else { handler });
            let config = node.pod(&name);
            let pod = run(node, &config, handler).await.unwrap();
            assert_eq!(node.pod_status(&pod).await.unwrap().runtime_handler, handler);
            let container = node.create(&pod, &config, script("main", LONG)).await.unwrap();
            node.start_container(&container).await.unwrap();
            pods.push((pod, config, container));
        }
        node.kill().await;
        node.start().await;
        for (pod, config, container) in &pods {
            let name = &config.metadata.as_ref().unwrap().name;
            let log = node.log_dir(name).join("main.log");
            until("the container to be ready", || log_text(&log).contains("ready"));
            let said = exec(node, container, "echo out; echo err >&2; exit 7").await;
            assert_eq!(
                (said.stdout.as_slice(), said.stderr.as_slice(), said.exit_code),
                (&b"out\n"[..], &b"err\n"[..], 7)
            );
            let (ended, text) = node.run_to_end(pod, config, script("other", "hostname; exit 3")).await;
            assert_eq!((ended.exit_code, text.as_str()), (3, format!("{name}\n").as_str()));
            node.stop_container(container, 20).await.unwrap();
            assert_eq!(node.exited(container).await.exit_code, 0);
        }
        let listed: Vec<String> = node.pods().await.into_iter().map(|pod| pod.runtime_handler).collect();
        assert!(["", "coracle", "runc", "shim"].iter().all(|handler| listed.contains(&(*handler).to_owned())));
    });
}

#[test]
fn handlers_are_told_with_their_features_and_unusable_ones_are_refused() {
    node_with(options(), async |node| {
        let status = node.runtime().status(v1::StatusRequest { verbose: false }).await.unwrap().into_inner();
        let names: Vec<&str> = status.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
        assert_eq!(names, ["", "coracle", "gone", "runc", "shim"]);
        let features = |name: &str| {
            let handler = status.runtime_handlers.iter().find(|handler| handler.name == name).unwrap();
            handler.features.as_ref().unwrap().recursive_read_only_mounts
        };
        assert!(features("coracle") && features("") && !features("gone"));

        let unknown = run(node, &node.pod("web"), "kata").await.unwrap_err();
        assert_eq!(unknown.code(), Code::InvalidArgument);
        assert!(unknown.message().contains("known are coracle, gone, runc, shim"), "{unknown}");
        let gone = run(node, &node.pod("web"), "gone").await.unwrap_err();
        assert!(gone.message().contains("handler gone: its program /no/such/runtime"), "{gone}");
        assert!(node.pods().await.is_empty());
        // No name stays taken by what was refused.
        run(node, &node.pod("web"), "runc").await.unwrap();
    });
}

#[test]
fn only_annotations_that_the_handler_allows_reach_the_runtime() {
    node_with(options(), async |node| {
        let mut config = node.pod("web");
        config.annotations = [("example.com/mode", "fast"), ("run.oci.keep", "no")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        let pod = run(node, &config, "runc").await.unwrap();
        let container = node.create(&pod, &config, script("main", LONG)).await.unwrap();
        let bundle = node.machine().state().join("pods").join(&pod).join("containers").join(&container);
        let spec = std::fs::read(bundle.join("config.json")).unwrap();
        let spec: serde_json::Value = serde_json::from_slice(&spec).unwrap();
        let annotations = &spec["annotations"];
        assert_eq!((&annotations["example.com/mode"], annotations.get("run.oci.keep")), (&"fast".into(), None));
        assert_eq!(annotations["io.kubernetes.cri.sandbox-id"], pod.as_str());
        assert_eq!(annotations["io.kubernetes.cri.container-type"], "container");
    });
}
