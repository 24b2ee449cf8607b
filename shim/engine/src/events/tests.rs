//! A state folder whose records are written by hand, and a feed that watches it.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use super::*;
use crate::config::{EngineConfig, Paths};
use crate::record::{ContainerRecord, SandboxRecord};
use crate::status::{ContainerState, SandboxState};
use crate::types::{ContainerConfig, SandboxConfig};

/// An event whose pod is called `web`; later than all that were made before it.
pub(super) fn event(id: &str, pod: &str, kind: EventKind) -> Event {
    static LAST: AtomicI64 = AtomicI64::new(1);
    let sandbox = SandboxStatus {
        id: pod.into(),
        config: SandboxConfig { name: "web".into(), ..Default::default() },
        state: SandboxState::Ready,
        created_at: 1,
        ips: Vec::new(),
        notes: Vec::new(),
        supervisor: None,
    };
    let view = PodView { sandbox, containers: Vec::new() };
    let at = LAST.fetch_add(1, Ordering::Relaxed);
    Event { id: id.into(), sandbox_id: pod.into(), kind, at, pod: Arc::new(view) }
}

struct Folder {
    _dir: tempfile::TempDir,
    engine: Engine,
    /// Held as a supervisor would.
    locks: Vec<LifeLock>,
}

fn ids(letter: char) -> String {
    letter.to_string().repeat(64)
}

impl Folder {
    fn new() -> Folder {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths {
            state: dir.path().join("state"),
            root: dir.path().join("root"),
            logs: dir.path().join("logs"),
            supervisor: "/bin/false".into(),
        };
        let engine = Engine::open(paths, EngineConfig::default()).unwrap();
        Folder { _dir: dir, engine, locks: Vec::new() }
    }

    fn pod(&mut self, id: &str, state: SandboxState) {
        let dir = self.engine.paths().pod(id);
        if !dir.exists() {
            fs::create_dir_all(dir.join("containers")).unwrap();
            self.locks.push(LifeLock::try_take(&dir.join("lock")).unwrap().unwrap());
        }
        let json = serde_json::json!({
            "boot_id": "", "id": id, "state": state, "created_at": 1, "cgroup": "/none",
            "config": SandboxConfig { name: "web".into(), uid: "u".into(), ..Default::default() },
        });
        let record: SandboxRecord = serde_json::from_value(json).unwrap();
        self.engine.write_sandbox(&record).unwrap();
    }

    fn container(&self, pod: &str, id: &str, state: ContainerState) {
        let dir = self.engine.paths().container(pod, id);
        fs::create_dir_all(dir).unwrap();
        let started_at = if matches!(state, ContainerState::Creating | ContainerState::Created) { 0 } else { 5 };
        let json = serde_json::json!({
            "id": id, "sandbox_id": pod, "config": ContainerConfig { name: "main".into(), ..Default::default() },
            "state": state, "created_at": 2, "started_at": started_at,
        });
        let record: ContainerRecord = serde_json::from_value(json).unwrap();
        self.engine.write_container(&record).unwrap();
    }

    fn exit(&self, pod: &str, id: &str) {
        let dir = self.engine.paths().container(pod, id);
        let text = r#"{"exit_status":3,"exited_at":"2026-01-02T03:04:05Z"}"#;
        fs::write(dir.join(".exit.json.new"), text).unwrap();
        fs::rename(dir.join(".exit.json.new"), dir.join("exit.json")).unwrap();
    }

    fn feed(&self) -> Feed {
        Feed::new(self.engine.clone(), Some(false))
    }
}

async fn next(subscription: &mut Subscription) -> (char, EventKind) {
    let event = tokio::time::timeout(Duration::from_secs(20), subscription.next()).await.expect("an event in time");
    let event = event.expect("it goes on").expect("no end");
    (event.id.chars().next().unwrap(), event.kind)
}

async fn expect(subscription: &mut Subscription, expected: &[(char, EventKind)]) {
    for one in expected {
        assert_eq!(next(subscription).await, *one);
    }
}

/// Nothing waits: what a look at everything finds would be in the queue already.
async fn quiet(subscription: &mut Subscription) {
    let more = tokio::time::timeout(Duration::from_millis(50), subscription.next()).await;
    assert!(more.is_err(), "{:?}", more.unwrap().map(|e| e.map(|e| (e.id.clone(), e.kind))));
}

use EventKind::{Created, Deleted, Started, Stopped};

#[tokio::test]
async fn a_pods_life_is_told_in_its_order_and_with_its_state() {
    let (p, c) = (ids('a'), ids('b'));
    let mut folder = Folder::new();
    let feed = folder.feed();
    let mut subscription = feed.subscribe().await.unwrap();
    folder.pod(&p, SandboxState::Creating);
    folder.pod(&p, SandboxState::Ready);
    expect(&mut subscription, &[('a', Created), ('a', Started)]).await;
    folder.container(&p, &c, ContainerState::Creating);
    folder.container(&p, &c, ContainerState::Created);
    expect(&mut subscription, &[('b', Created)]).await;
    folder.container(&p, &c, ContainerState::Running);
    expect(&mut subscription, &[('b', Started)]).await;
    folder.exit(&p, &c);
    let event = subscription.next().await.unwrap().unwrap();
    assert_eq!((event.kind, event.id.as_str(), event.sandbox_id.as_str()), (Stopped, c.as_str(), p.as_str()));
    assert_eq!(event.pod.containers[0].exit.as_ref().unwrap().code, 3);
    fs::remove_dir_all(folder.engine.paths().container(&p, &c)).unwrap();
    expect(&mut subscription, &[('b', Deleted)]).await;
    folder.pod(&p, SandboxState::NotReady);
    expect(&mut subscription, &[('a', Stopped)]).await;
    fs::remove_dir_all(folder.engine.paths().pod(&p)).unwrap();
    let event = subscription.next().await.unwrap().unwrap();
    assert_eq!((event.kind, event.pod.sandbox.config.name.as_str()), (Deleted, "web"), "its name outlives it");
    quiet(&mut subscription).await;
}

#[tokio::test]
async fn a_pod_that_cannot_be_read_is_looked_at_again() {
    let (p, c) = (ids('a'), ids('b'));
    let mut folder = Folder::new();
    folder.pod(&p, SandboxState::Ready);
    let mut subscription = folder.feed().subscribe().await.unwrap();
    let record = folder.engine.paths().pod(&p).join("record.json");
    let whole = fs::read(&record).unwrap();
    fs::write(&record, "{").unwrap();
    folder.container(&p, &c, ContainerState::Created);
    quiet(&mut subscription).await;
    // In place, which makes no noise.
    fs::write(&record, whole).unwrap();
    expect(&mut subscription, &[('b', Created)]).await;
    // A damaged record is not the end of its container.
    fs::write(folder.engine.paths().container(&p, &c).join("record.json"), "{").unwrap();
    folder.pod(&p, SandboxState::Ready);
    quiet(&mut subscription).await;
}

#[tokio::test]
async fn pods_that_are_not_wanted_are_not_told() {
    let (p, c) = (ids('a'), ids('b'));
    let mut folder = Folder::new();
    let mut subscription = Feed::new(folder.engine.clone(), Some(true)).subscribe().await.unwrap();
    folder.pod(&p, SandboxState::Ready);
    folder.container(&p, &c, ContainerState::Running);
    quiet(&mut subscription).await;
    fs::remove_dir_all(folder.engine.paths().pod(&p)).unwrap();
    quiet(&mut subscription).await;
}

#[tokio::test]
async fn what_is_there_already_is_not_told_and_what_vanishes_at_once_is() {
    let (p, c, d) = (ids('a'), ids('b'), ids('c'));
    let mut folder = Folder::new();
    folder.pod(&p, SandboxState::Ready);
    folder.container(&p, &c, ContainerState::Running);
    folder.container(&p, &d, ContainerState::Created);
    let mut subscription = folder.feed().subscribe().await.unwrap();
    quiet(&mut subscription).await;
    fs::rename(folder.engine.paths().pod(&p), folder.engine.paths().state.join("gone")).unwrap();
    expect(&mut subscription, &[('b', Stopped), ('b', Deleted), ('c', Deleted), ('a', Stopped), ('a', Deleted)]).await;
}

#[tokio::test]
async fn another_server_tells_what_the_one_before_it_did_not() {
    let (p, c, d) = (ids('a'), ids('b'), ids('c'));
    let mut folder = Folder::new();
    folder.pod(&p, SandboxState::Ready);
    {
        let mut subscription = folder.feed().subscribe().await.unwrap();
        folder.container(&p, &c, ContainerState::Created);
        folder.container(&p, &c, ContainerState::Running);
        expect(&mut subscription, &[('b', Created), ('b', Started)]).await;
        // Asking for more says that the last one was passed on.
        quiet(&mut subscription).await;
        folder.container(&p, &d, ContainerState::Created);
        // It was taken and not passed on: a kill at this moment must not lose it.
        assert_eq!(next(&mut subscription).await, ('c', Created));
    }
    folder.exit(&p, &c);
    folder.container(&p, &d, ContainerState::Running);
    // The one before may still be about to let go of the folder.
    let mut subscription = subscribe(&folder).await;
    expect(&mut subscription, &[('b', Stopped), ('c', Created), ('c', Started)]).await;
    quiet(&mut subscription).await;
}

/// A feed of another server, as soon as the one before has let go of the folder.
async fn subscribe(folder: &Folder) -> Subscription {
    loop {
        match folder.feed().subscribe().await {
            Ok(subscription) => return subscription,
            Err(Error::State { .. }) => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(e) => panic!("{e}"),
        }
    }
}

#[tokio::test]
async fn two_servers_do_not_share_a_journal_but_subscribers_of_one_do() {
    let (p, c) = (ids('a'), ids('b'));
    let mut folder = Folder::new();
    folder.pod(&p, SandboxState::Ready);
    let feed = folder.feed();
    let mut one = feed.subscribe().await.unwrap();
    let refused = folder.feed().subscribe().await.err().expect("the folder is watched");
    assert!(refused.to_string().contains("another server"), "{refused}");
    let mut two = feed.subscribe().await.unwrap();
    folder.container(&p, &c, ContainerState::Created);
    assert_eq!(next(&mut one).await, ('b', Created));
    assert_eq!(next(&mut two).await, ('b', Created));
    drop(one);
    folder.container(&p, &c, ContainerState::Running);
    assert_eq!(next(&mut two).await, ('b', Started));
}

#[tokio::test]
async fn a_subscriber_that_does_not_listen_is_cut_off_and_told_so() {
    let folder = Folder::new();
    let feed = folder.feed();
    let mut slow = feed.subscribe().await.unwrap();
    let mut quick = feed.subscribe().await.unwrap();
    for n in 0..=QUEUE {
        feed.hub.send(event(&n.to_string(), "p", Created));
        assert!(quick.next().await.unwrap().is_ok());
    }
    for _ in 0..QUEUE {
        assert!(slow.next().await.unwrap().is_ok());
    }
    assert_eq!(slow.next().await.unwrap().err(), Some(Ended::TooSlow));
    assert!(slow.next().await.is_none());
    quiet(&mut quick).await;
}

#[test]
fn a_damaged_journal_is_no_reason_not_to_watch() {
    let dir = tempfile::tempdir().unwrap();
    let path: &Path = &dir.path().join("events.log");
    fs::write(path, "\0\0garbage\n{\"id\":1}\n").unwrap();
    assert_eq!(journal::read(path, ABSENCE).unwrap().unwrap().len(), 0);
}
