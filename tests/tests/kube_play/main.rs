//! The same Kubernetes YAML by `coracle run` and by Debian's `podman kube play`: `tests/pods/play/*.yaml`.
//!
//! Each file's pod writes what it finds into `/out/facts`, a folder of the host. The head of a file says what podman makes of
//! it: `# podman: same`, where both must write the same; or what podman ignores or refuses, and then the file ends with
//! the facts that Kubernetes' rules ask for (`# facts: WORDS`), which we must write and podman must not. So the table of
//! the README is true of the podman that is installed; a podman that has learned more fails here, and is then to be told of there.

mod podman;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_tests::machine::Machine;
use podman::Podman;

/// How long the pods of a file may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long podman gets for what it does not do.
const PEER_PATIENCE: Duration = Duration::from_secs(2);
/// Facts that did not change for so long are all.
const SETTLED: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(50);

/// One file.
struct Case {
    name: String,
    text: String,
    /// What podman makes of it, where that is not the same.
    differs: Vec<String>,
    /// The facts, where podman's are not the measure.
    facts: String,
}

impl Case {
    fn read(path: &Path) -> Case {
        let name = path.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
        let text = fs::read_to_string(path).expect("read the case");
        let of = |key: &str| -> Vec<String> {
            let values = text.lines().filter_map(|line| line.strip_prefix(key));
            values.map(|value| value.trim().to_owned()).collect()
        };
        let differs: Vec<String> = of("# podman:").into_iter().filter(|said| said != "same").collect();
        let facts = of("# facts:").pop().unwrap_or_default();
        assert_eq!(
            differs.is_empty(),
            facts.is_empty(),
            "{name}: the facts of what podman does not do are to be named"
        );
        Case { name, text, differs, facts }
    }

    /// Whether its last fact is written when the pod is stopped.
    fn ends_with_its_stop(&self) -> bool {
        self.text.contains("preStop:")
    }

    /// Writes the file for one who runs it, and makes the folder that its pod writes into.
    fn write(&self, dir: &Path) -> (PathBuf, PathBuf) {
        let (file, out) = (dir.join(format!("{}.yaml", self.name)), dir.join(format!("{}.out", self.name)));
        fs::create_dir(&out).expect("make the folder of the facts");
        fs::set_permissions(&out, fs::Permissions::from_mode(0o777)).expect("let any user write");
        fs::write(&file, self.text.replace("OUT", out.to_str().expect("UTF-8"))).expect("write the case");
        (file, out)
    }
}

fn cases() -> Vec<Case> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("pods/play");
    let mut paths: Vec<PathBuf> = fs::read_dir(dir).expect("the cases").flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().map(|path| Case::read(path)).collect()
}

/// What a pod has written: the first `facts` in the folder or below it; the words of one that differs, the text of others.
fn facts(case: &Case, out: &Path) -> String {
    let mut folders = vec![out.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            match path.is_dir() {
                true => folders.push(path),
                false if path.ends_with("facts") => {
                    let within =
                        path.strip_prefix(out).ok().and_then(Path::parent).map(Path::to_owned).unwrap_or_default();
                    let text = fs::read_to_string(&path).unwrap_or_default();
                    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
                    return match (case.differs.is_empty(), within.as_os_str().is_empty()) {
                        (true, _) => text,
                        (false, true) => words,
                        (false, false) => format!("{words} in {}", within.display()),
                    };
                }
                false => {}
            }
        }
    }
    String::new()
}

/// Waits until the facts are these, or no longer; and gives what they are.
fn await_facts(case: &Case, out: &Path, wanted: &str, patience: Duration) -> String {
    let deadline = Instant::now() + patience;
    loop {
        let found = facts(case, out);
        if found == wanted || Instant::now() > deadline {
            return found;
        }
        std::thread::sleep(POLL);
    }
}

/// The facts, once there are some and they change no more.
fn settled_facts(case: &Case, out: &Path) -> String {
    let deadline = Instant::now() + PATIENCE;
    let (mut found, mut since) = (String::new(), Instant::now());
    while Instant::now() < deadline && (found.is_empty() || since.elapsed() < SETTLED) {
        let now = facts(case, out);
        if now != found {
            (found, since) = (now, Instant::now());
        }
        std::thread::sleep(POLL);
    }
    found
}

/// The case by coracle: its facts.
fn by_coracle(machine: &Machine, case: &Case, wanted: &str) -> String {
    let (file, out) = case.write(&machine.path(""));
    let file = file.to_str().expect("UTF-8");
    machine.ok(&["run", "-d", file]);
    let before_stop = wanted.rsplit_once(' ').map_or(wanted, |(before, _)| before);
    let due = if case.ends_with_its_stop() { before_stop } else { wanted };
    await_facts(case, &out, due, PATIENCE);
    machine.ok(&["down", file]);
    facts(case, &out)
}

/// The case by podman, which gets this long.
fn by_podman(podman: &Podman, case: &Case, wanted: Option<&str>) -> String {
    let (file, out) = case.write(podman.dir());
    let played = podman.say(&["kube", "play", "--network=none", "-q", file.to_str().expect("UTF-8")]);
    let patience = if wanted.is_some() { PATIENCE } else { PEER_PATIENCE };
    await_facts(case, &out, wanted.unwrap_or(&case.facts), patience);
    if case.ends_with_its_stop() {
        podman.stop();
    }
    podman.clear();
    let found = facts(case, &out);
    assert!(!found.is_empty() || !case.differs.is_empty(), "podman wrote nothing: {}", played.err);
    found
}

#[test]
fn what_podman_honours_comes_out_the_same() {
    let (machine, podman) = (Machine::new(), Podman::new());
    for case in cases().iter().filter(|case| case.differs.is_empty()) {
        let (file, out) = case.write(&machine.path(""));
        let file = file.to_str().expect("UTF-8");
        machine.ok(&["run", "-d", file]);
        let ours = settled_facts(case, &out);
        machine.ok(&["down", file]);
        assert!(!ours.is_empty(), "{}: coracle wrote nothing", case.name);
        assert_eq!(by_podman(&podman, case, Some(&ours)), ours, "{}: podman's on the left", case.name);
    }
}

#[test]
fn what_podman_ignores_or_refuses_is_done_as_kubernetes_says() {
    let (machine, podman) = (Machine::new(), Podman::new());
    for case in cases().iter().filter(|case| !case.differs.is_empty()) {
        assert_eq!(by_coracle(&machine, case, &case.facts), case.facts, "{}", case.name);
        let theirs = by_podman(&podman, case, None);
        assert_ne!(theirs, case.facts, "{}: podman does it: the README says that it {:?}", case.name, case.differs);
    }
}
