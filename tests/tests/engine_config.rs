//! Everything in the configurations of pods and containers, through the engine, the supervisor and the runtime: what is
//! asked for is seen inside; what cannot be is an error that names it, and leaves nothing.

#[path = "engine_config/devices.rs"]
mod devices;
#[path = "engine_config/limits.rs"]
mod limits;
#[path = "engine_config/security.rs"]
mod security;
#[path = "engine_config/user_namespace.rs"]
mod user_namespace;
#[path = "engine_config/volumes.rs"]
mod volumes;

use coracle_engine::{ContainerConfig, ContainerStatus};
use coracle_tests::rig::Rig;

/// A script that tells that it runs, and waits to be killed.
const LONG: &str = "echo ready; while :; do sleep 0.05; done";

/// Starts a container and waits until it has said "ready".
async fn ready(rig: &Rig, sandbox: &str, config: ContainerConfig) -> ContainerStatus {
    let id = rig.start(sandbox, config).await.expect("start a container");
    while !rig.log(&id).contains("ready") {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    rig.engine.container_status(&id).expect("its status")
}

/// Runs to the end and must succeed; the log's lines.
async fn lines(rig: &Rig, sandbox: &str, config: ContainerConfig) -> Vec<String> {
    let (exit, log) = rig.run(sandbox, config).await;
    assert_eq!(exit.code, 0, "{log}");
    log.lines().map(str::to_owned).collect()
}

/// The error of a container that cannot be made.
async fn refusal(rig: &Rig, sandbox: &str, config: ContainerConfig) -> String {
    rig.engine.create_container(sandbox, config).await.expect_err("it must be refused").to_string()
}
