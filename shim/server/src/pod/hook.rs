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
use crate::text;

/// Who asks.
const AGENT: &str = concat!("kube-lifecycle/coracle-", env!("CARGO_PKG_VERSION"));
/// A connection that is not made by then is not made at all; Go's own default.
const CONNECT: Duration = Duration::from_secs(30);

/// Of a command's output this many characters are shown, in either place of the sentence.
const MAX_OUTPUT: usize = 300;
/// No sentence is longer, as the API server has it for events.
const MAX_SENTENCE: usize = 1024;

/// Does what a hook says for a container's incarnation. The error is the event's message, in kubelet's words: why it
/// counts as failed, with a command's output but without a server's answer, which may hold a secret.
pub async fn run(reach: &Reach, container: &Container, id: &str, action: &Action) -> Result<(), String> {
    let done = act(reach, container, id, action).await;
    let kept = &reach.kept;
    let pod = format!("{}_{}({})", kept.pod.name, kept.pod.namespace, kept.uid);
    done.map_err(|why| sentence(&what(action), &container.name, &pod, &why))
}

async fn act(reach: &Reach, container: &Container, id: &str, action: &Action) -> Result<(), String> {
    match action {
        Action::Exec(command) => match reach.exec(id, command, None).await {
            Ok(outcome) if outcome.code == 0 => Ok(()),
            Ok(outcome) => Err(exited(command, outcome.code, &outcome.stdout, &outcome.stderr)),
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

/// A command's failure. Its words are shown twice, as by kubelet: what it said of errors, and all that it said.
fn exited(command: &[String], code: i32, stdout: &[u8], stderr: &[u8]) -> String {
    let text = |bytes: &[u8]| cut(String::from_utf8_lossy(bytes).trim(), MAX_OUTPUT);
    let errors = text(stderr).split_whitespace().collect::<Vec<_>>().join(" ");
    let said = text(&[stdout, stderr].concat());
    let command = cut(&command.join(" "), MAX_OUTPUT);
    format!("command '{command}' exited with {code}: {errors}, message: {said:?}")
}

/// What kind of hook it is, and its heart.
fn what(action: &Action) -> String {
    match action {
        Action::Exec(command) => format!("Exec lifecycle hook ([{}])", cut(&command.join(" "), MAX_OUTPUT)),
        Action::HttpGet(get) => format!("Http lifecycle hook ({})", get.path),
        Action::TcpSocket { port, .. } => format!("TcpSocket lifecycle hook ({port})"),
        Action::Sleep(seconds) => format!("Sleep lifecycle hook ({seconds})"),
    }
}

fn sentence(what: &str, container: &str, pod: &str, why: &str) -> String {
    cut(&format!("{what} for Container {container:?} in Pod {pod:?} failed - error: {why}"), MAX_SENTENCE)
}

/// At most so many bytes, and a mark where something is left out.
fn cut(text: &str, max: usize) -> String {
    const MARK: &str = "...";
    match text.len() > max {
        false => text.to_owned(),
        true => format!("{}{MARK}", text::cut(text, max - MARK.len())),
    }
}

/// Whether an incarnation of a container runs.
pub fn runs(reach: &Reach, id: &str) -> bool {
    let state = reach.engine.container_status(id).map(|status| status.state);
    matches!(state, Ok(ContainerState::Running | ContainerState::Unknown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_in_kubelets_words() {
        let command = ["badcommand".to_owned()];
        let why = exited(&command, 126, b"out\n", b"not\nfound\n");
        let told = sentence(&what(&Action::Exec(command.to_vec())), "main", "web_default(u)", &why);
        let expected = r#"Exec lifecycle hook ([badcommand]) for Container "main" in Pod "web_default(u)" failed - error: command 'badcommand' exited with 126: not found, message: "out\nnot\nfound""#;
        assert_eq!(told, expected);
    }

    #[test]
    fn a_long_story_is_cut() {
        let long = "\u{e9}\u{1}".repeat(5000);
        let why = exited(std::slice::from_ref(&long), 1, long.as_bytes(), long.as_bytes());
        let told = sentence(&what(&Action::Exec(vec![long])), "main", "web_default(u)", &why);
        assert!(told.len() <= MAX_SENTENCE && told.ends_with("..."), "{told}");
    }
}
