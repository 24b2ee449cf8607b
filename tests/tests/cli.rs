//! Bad input and bad luck: each is answered with one line that names the object, the operation and what to do, with the
//! documented exit code, and leaves no half state.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use coracle_tests::http::{Response, Server};
use coracle_tests::machine::{IMAGE, Machine};

const USAGE: i32 = 2;
const NOT_FOUND: i32 = 4;
const IMAGE_ERROR: i32 = 5;
const PERMISSION: i32 = 6;
const NO_SPACE: i32 = 7;
const CONFLICT: i32 = 8;

/// Runs a command that must fail with this code and one line that has these words, and gives the line.
fn refused(machine: &Machine, code: i32, args: &[&str], words: &[&str]) -> String {
    let said = machine.coracle(args);
    let line = said.err.trim_end();
    assert_eq!(said.status.code(), Some(code), "coracle {}: {line}", args.join(" "));
    check_line(line, words);
    assert_eq!(said.out, "", "an error has no result");
    assert_eq!(said.err.matches("coracle: ").count(), 1, "more than one line: {line}");
    line.to_owned()
}

fn check_line(line: &str, words: &[&str]) {
    let last = line.lines().last().unwrap_or_default();
    assert!(last.starts_with("coracle: "), "no line of an error: {line:?}");
    for word in words {
        assert!(last.contains(word), "{word:?} is not in {last:?}");
    }
}

fn file(machine: &Machine, name: &str, text: &str) -> String {
    let path = machine.path(name);
    fs::write(&path, text).expect("write a file");
    path.display().to_string()
}

/// A Pod of this image, pulled always.
fn pulls(machine: &Machine, image: &str) -> String {
    machine.pod("pulls", &format!("  containers: [{{name: main, image: \"{image}\", imagePullPolicy: Always}}]"))
}

#[test]
fn a_wrong_command_line_is_one_line_with_what_was_meant() {
    let machine = Machine::new();
    refused(&machine, USAGE, &["run", "--detatch", "x"], &["--detatch", "--detach", "`coracle run --help`"]);
    refused(&machine, USAGE, &["imges"], &["imges", "images", "`coracle --help`"]);
    refused(&machine, USAGE, &["stop"], &["POD", "`coracle stop --help`"]);
    refused(&machine, USAGE, &["stop", "-t", "soon", "x"], &["soon", "--time"]);
    refused(&machine, USAGE, &["ps", "-o", "xml"], &["xml", "json"]);
    refused(&machine, USAGE, &["exec", "web"], &["COMMAND"]);
    for args in [vec!["--help"], vec!["run", "--help"], vec!["--version"]] {
        let said = machine.coracle(&args);
        assert!(said.status.success() && said.err.is_empty() && !said.out.is_empty(), "{said:?}");
    }
    let help = machine.ok(&["--help"]);
    assert!(help.contains("Exit codes:") && help.contains("\n  7  no space is left"), "{help}");
}

#[test]
fn a_wrong_yaml_is_told_with_its_line_and_column() {
    let machine = Machine::new();
    let run = |text: &str, words: &[&str]| {
        let path = file(&machine, "bad.yaml", text);
        refused(&machine, USAGE, &["run", "-d", &path], words)
    };
    let head = "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec:\n  containers:\n  - name: c\n    image: x\n";
    run(&format!("{head}    ports: [80\n"), &["bad.yaml:", "not valid YAML"]);
    run(&format!("{head}\tx: 1\n"), &["bad.yaml:7:12: ", "not valid YAML", "tab"]);
    run(
        &format!("{head}    imagee: y\n"),
        &["bad.yaml:8:5: spec.containers[0]: unknown field `imagee`: did you mean `image`?"],
    );
    run(
        &format!("{head}    volumeDevices: [{{name: d, devicePath: /dev/x}}]\n"),
        &["bad.yaml:8:5: spec.containers[0].volumeDevices is block storage"],
    );
    run(&format!("{head}    image: y\n"), &["bad.yaml:8:5: the key `image` stands here twice: first on line 7"]);
    run("apiVersion: batch/v1\nkind: CronJob\n", &["bad.yaml:2:1: kind CronJob is not done here"]);
    run("", &["bad.yaml:1:1: the file holds no document"]);
    run(&head.replace("name: bad", "name: Bad_Name"), &["metadata.name: \"Bad_Name\" must consist of"]);
    run(&head.replace("image: x", "image: UPPER/x"), &["spec.containers[0].image: "]);
    refused(&machine, USAGE, &["run", "/no/such.yaml"], &["read /no/such.yaml: there is no such file"]);
    refused(&machine, USAGE, &["run", "-"], &["standard input:1:1: the file holds no document"]);
    let binary = machine.path("binary.yaml");
    fs::write(&binary, [0xff, 0xfe, 0xfd]).expect("write a file");
    refused(&machine, USAGE, &["run", &binary.display().to_string()], &["not UTF-8"]);
    assert!(machine.pods().is_empty(), "nothing was begun");
}

#[test]
fn a_valid_file_can_be_checked_without_running_it() {
    let machine = Machine::new();
    let path = pulls(&machine, "localhost:1/none");
    assert!(machine.ok(&["run", "--dry-run", &path]).starts_with("pod pulls is valid\n"));
    assert!(machine.pods().is_empty());
}

#[test]
fn a_wrong_configuration_is_told_with_its_line_and_column() {
    let machine = Machine::new();
    let config = |text: &str, words: &[&str]| {
        let path = file(&machine, "config.toml", text);
        refused(&machine, USAGE, &["--config", &path, "ps"], words);
    };
    config("\nrooot = '/x'\n", &["config.toml:2:1: unknown key `rooot`: did you mean `root`?"]);
    config("[network]\nmtu = 'big'\n", &["config.toml:2:7: invalid type"]);
    config("[network]\nsubnet = '10.0.0.0'\n", &["config.toml:2:10: ", "10.0.0.0", "IPv4 subnet"]);
    config("cgroup_parent = 'x'\n", &["cgroup_parent"]);
    refused(&machine, USAGE, &["--config", "/no/such.toml", "ps"], &["/no/such.toml", "No such file"]);
}

#[test]
fn what_does_not_exist_is_not_found_by_any_command() {
    let machine = Machine::new();
    for args in [vec!["logs", "none"], vec!["stop", "none"], vec!["rm", "none"], vec!["exec", "none", "--", "true"]] {
        refused(&machine, NOT_FOUND, &args, &["no pod none", "`coracle ps -a` lists all"]);
    }
    refused(&machine, NOT_FOUND, &["rmi", "none"], &["no image none", "`coracle images` lists them"]);
    refused(&machine, NOT_FOUND, &["save", "-o", "/dev/null", "none"], &["no image none"]);
    refused(&machine, USAGE, &["load", "/no/such.tar"], &["/no/such.tar"]);
    assert_eq!(machine.ok(&["rm", "-f", "none"]), "");

    machine.ok(&["run", "-d", &machine.script_pod("there", "sleep 600", "")]);
    refused(&machine, NOT_FOUND, &["logs", "-c", "other", "there"], &["no container other in the pod: it has main"]);
    refused(&machine, NOT_FOUND, &["exec", "-c", "other", "there", "ls"], &["no container other"]);
    refused(&machine, NOT_FOUND, &["logs", "-p", "-c", "main", "there"], &["was not restarted"]);
    refused(&machine, CONFLICT, &["rm", "there"], &["it is running", "`coracle rm -f there`"]);
    let line = machine.fails(&["exec", "there", "/no/such/command"]);
    check_line(&line, &["exec in there", "/no/such/command"]);
    machine.ok(&["stop", "there"]);
    refused(&machine, CONFLICT, &["exec", "there", "ls"], &["container main is not running"]);
    machine.ok(&["rm", "there"]);
}

#[test]
fn several_objects_are_all_tried_and_each_failure_is_told() {
    let machine = Machine::new();
    machine.ok(&["run", "-d", &machine.script_pod("there", "sleep 600", "")]);
    let said = machine.coracle(&["rm", "-f", "there"]);
    assert!(said.status.success());
    let said = machine.coracle(&["stop", "one", "two"]);
    assert_eq!(said.status.code(), Some(NOT_FOUND));
    assert!(said.err.contains("stop one: no pod one") && said.err.contains("stop two: no pod two"), "{}", said.err);
}

#[test]
fn an_image_that_cannot_be_had_is_told_in_kubelets_words() {
    let machine = Machine::new();
    let never = machine.pod("never", "  containers: [{name: main, image: \"none:1\", imagePullPolicy: Never}]");
    refused(&machine, IMAGE_ERROR, &["run", &never], &["run never", "container main", "ErrImageNeverPull", "none:1"]);

    let wants_user = |_: &_| Response::new(401, "").header("WWW-Authenticate", "Basic realm=\"test\"");
    let server = machine.run(|| Server::start(wants_user));
    let image = format!("{}/team/app:1", server.host());
    refused(&machine, IMAGE_ERROR, &["pull", &image], &["pull", &image, "401"]);
    let words = ["run pulls", "container main", "ErrImagePull", "401"];
    refused(&machine, IMAGE_ERROR, &["run", "-d", &pulls(&machine, &image)], &words);

    let unknown =
        |_: &_| Response::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#);
    let server = machine.run(|| Server::start(unknown));
    let image = format!("{}/team/app:2", server.host());
    refused(&machine, IMAGE_ERROR, &["pull", &image], &[&image]);

    let other = |_: &_| {
        Response::new(200, r#"{"schemaVersion":2}"#)
            .header("Content-Type", "application/vnd.oci.image.manifest.v1+json")
    };
    let server = machine.run(|| Server::start(other));
    let image = format!("{}/team/app@sha256:{}", server.host(), "0".repeat(64));
    refused(&machine, IMAGE_ERROR, &["pull", &image], &[&image]);

    refused(&machine, USAGE, &["pull", "UPPER"], &["UPPER"]);
    let broken = file(&machine, "broken.tar", "this is no archive");
    refused(&machine, IMAGE_ERROR, &["load", &broken], &["broken.tar"]);
    assert!(machine.pods().is_empty(), "no pod was begun");
    assert_eq!(machine.ok(&["images", "-q"]).lines().count(), 1, "no image but the machine's own");
}

#[test]
fn an_ordinary_user_is_told_of_the_missing_permission() {
    let machine = Machine::new();
    // The place itself can be reached: it is what lies in it that is root's.
    fs::set_permissions(machine.path(""), fs::Permissions::from_mode(0o711)).expect("open the scratch place");
    // The program as well, wherever it was built.
    let program = machine.path("coracle");
    coracle_tests::copy_program(coracle_tests::bin("coracle"), &program);
    for verb in ["ps", "images", "gc"] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
        command.arg("--root").arg(machine.path("root")).arg("--state").arg(machine.path("state")).arg(verb);
        let output = machine.run(|| command.stdin(Stdio::null()).output()).expect("run setpriv");
        let line = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(PERMISSION), "{verb}: {line}");
        assert_eq!(line.lines().count(), 1, "{verb}: {line}");
        check_line(line.trim_end(), &["ermission denied"]);
    }
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing_half_done() {
    let machine = Machine::new();
    let archive = machine.path("busybox.tar").display().to_string();
    machine.ok(&["save", "-o", &archive, IMAGE]);
    let small = machine.path("small");
    fs::create_dir(&small).expect("make a mountpoint");
    // In a mount namespace of its own: nothing to unmount.
    let script = format!(
        "mount -t tmpfs -o size=1m none {0} && {1} --root {0} load {2}; code=$?; {1} --root {0} images -q; exit $code",
        small.display(),
        coracle_tests::bin("coracle").display(),
        archive
    );
    let output = Command::new("unshare").args(["-m", "sh", "-c", &script]).output().expect("run unshare");
    let line = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(NO_SPACE), "{line}");
    check_line(line.trim_end(), &["No space left on device"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "the image is not there in part");
}

#[test]
fn images_are_loaded_saved_listed_and_removed() {
    let machine = Machine::new();
    let list = machine.ok(&["images"]);
    assert!(list.starts_with("IMAGE               TAG      ID             SIZE"), "{list}");
    assert!(list.contains("localhost/busybox   latest   "), "{list}");
    for (format, name) in [("docker-archive", "a.tar"), ("oci-archive", "b.tar"), ("oci-dir", "c")] {
        let path = machine.path(name).display().to_string();
        machine.ok(&["save", "-f", format, "-o", &path, IMAGE]);
        assert!(machine.ok(&["rmi", IMAGE]).contains("untagged localhost/busybox:latest"));
        assert_eq!(machine.ok(&["images", "-q"]), "");
        assert_eq!(machine.ok(&["load", &path]), format!("loaded {IMAGE}\n"), "{format}");
    }
    refused(&machine, USAGE, &["save", "-f", "oci-dir", IMAGE], &["--output"]);
    machine.ok(&["run", "-d", &machine.script_pod("user", "sleep 600", "")]);
    refused(&machine, CONFLICT, &["rmi", IMAGE], &["in use"]);
    machine.ok(&["rm", "-f", "user"]);
    machine.ok(&["gc", "--all"]);
    assert_eq!(machine.ok(&["images", "-q"]), "");
}

#[test]
fn doctor_finds_nothing_on_a_machine_that_is_well_and_json_is_json() {
    let machine = Machine::new();
    machine.ok(&["run", "-d", &machine.script_pod("well", "sleep 600", "")]);
    assert_eq!(machine.ok(&["doctor", "--images"]), "all is well\n");
    for args in [
        vec!["ps", "-o", "json"],
        vec!["images", "-o", "json"],
        vec!["doctor", "-o", "json"],
        vec!["version", "-o", "json"],
    ] {
        let text = machine.ok(&args);
        serde_json::from_str::<serde_json::Value>(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"));
    }
    assert_eq!(machine.ok(&["gc", "--dry-run"]), "");
    machine.ok(&["rm", "-f", "well"]);
}

#[test]
fn completions_are_scripts_that_the_shell_takes() {
    let machine = Machine::new();
    let script = machine.ok(&["completion", "bash"]);
    let path = file(&machine, "completion", &script);
    assert!(Command::new("bash").args(["-n", &path]).status().expect("run bash").success());
    assert!(Path::new(&path).metadata().is_ok_and(|meta| meta.len() > 1000));
    refused(&machine, USAGE, &["completion", "cobol"], &["cobol", "bash"]);
}

#[test]
fn colour_is_for_terminals_only() {
    let machine = Machine::new();
    let said = machine.coracle(&["ps", "-a"]);
    assert!(!said.out.contains('\x1b') && !said.err.contains('\x1b'));
    machine.ok(&["run", "-d", &machine.script_pod("bright", "sleep 600", "")]);
    let line = machine.command(&["ps"]);
    let words: Vec<String> = std::iter::once(line.get_program())
        .chain(line.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let on_terminal = |env: &str| {
        let inner = format!("env TERM=xterm {env} {}", words.join(" "));
        let mut command = Command::new("script");
        let output = machine.run(|| command.args(["-qec", &inner, "/dev/null"]).stdin(Stdio::null()).output());
        String::from_utf8_lossy(&output.expect("run the script program").stdout).into_owned()
    };
    assert!(on_terminal("").contains("\x1b[32mRunning"));
    assert!(!on_terminal("NO_COLOR=1").contains("\x1b[32m"));
    machine.ok(&["rm", "-f", "bright"]);
}
