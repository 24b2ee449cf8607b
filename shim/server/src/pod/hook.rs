//! Hooks: what a container has done after its start and before its end.
//!
//! A hook is called at least once: that it is done is written down after it, so whoever comes after a tender that died
//! in between calls it again. As with kubelet, a web server's answer counts whatever its status; unlike kubelet's,
//! `tcpSocket` is done here, and succeeds when the connection does.

use std::time::Duration;

use coracle_engine::ContainerState;

use super::reach::Reach;
use crate::kube::container::Container;
use crate::kube::lifecycle::Action;

/// Who asks.
const AGENT: &str = concat!("kube-lifecycle/coracle-", env!("CARGO_PKG_VERSION"));
/// A connection that is not made by then is not made at all; Go's own default.
const CONNECT: Duration = Duration::from_secs(30);

/// Does what a hook says for a container's incarnation. The error is why it counts as failed.
pub async fn run(reach: &Reach, container: &Container, id: &str, action: &Action) -> Result<(), String> {
    match action {
        Action::Exec(command) => match reach.exec(id, command, None).await {
            Ok(outcome) if outcome.code == 0 => Ok(()),
            Ok(outcome) => {
                let said = [outcome.stdout, outcome.stderr].concat();
                let said = String::from_utf8_lossy(&said).trim().to_owned();
                Err(format!("command {:?} exited with {}: {said:?}", command.join(" "), outcome.code))
            }
            Err(error) => Err(error.to_string()),
        },
        Action::HttpGet(get) => reach.get(container, get, AGENT).await.map(drop),
        Action::TcpSocket { host, port } => {
            let connected = tokio::time::timeout(CONNECT, reach.connect(container, host.as_deref(), port)).await;
            connected.map_err(|_| format!("dial tcp port {port}: i/o timeout"))?
        }
        Action::Sleep(seconds) => {
            let ended = async { reach.engine.wait_container(id).await.is_ok() };
            match tokio::time::timeout(Duration::from_secs(*seconds), ended).await {
                Err(_) => Ok(()),
                Ok(_) if !runs(reach, id) => Err("container terminated before sleep hook finished".into()),
                Ok(_) => Err("the container cannot be watched".into()),
            }
        }
    }
}

/// Whether an incarnation of a container runs.
pub fn runs(reach: &Reach, id: &str) -> bool {
    let state = reach.engine.container_status(id).map(|status| status.state);
    matches!(state, Ok(ContainerState::Running | ContainerState::Unknown))
}
