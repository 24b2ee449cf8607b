//! Hooks: programs of the host's administrator, run at six points of a container's life.
//!
//! | kind | namespaces | when |
//! |---|---|---|
//! | prestart, createRuntime | the runtime's | namespaces and mounts are there, the root is not yet switched |
//! | createContainer | the container's | the same, after those; still the host's paths |
//! | startContainer | the container's | at start, just before the program; the container's paths |
//! | poststart | the runtime's | after the program was executed |
//! | poststop | the runtime's | after delete |
//!
//! Each gets the container's state as JSON on stdin, its own environment and nothing else. State and output go through
//! memfds, so no pipe can block either side; a timeout kills. A startContainer hook without an environment has the
//! program's, as in runc: it runs where the program does.
//!
//! | a hook that fails | ends |
//! |---|---|
//! | prestart, createRuntime, createContainer | the create; what was made is taken away, then the poststop hooks run |
//! | startContainer | the container's process, before its program ran: start fails |
//! | poststart | the container: start kills it, and fails |
//! | poststop | nothing: the next one runs, and a warning is given |

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::memfd::MFdFlags;

use crate::error::{Context, Error, Result};
use crate::handle::Handle;
use crate::spec::{Hook, Hooks};
use crate::sys;

/// How much of a failed hook's output goes into the error.
const MAX_OUTPUT_BYTES: u64 = 1024;

/// What is wrong with hooks before any is run.
pub(crate) fn check(hooks: &Hooks) -> Result<()> {
    let Hooks { prestart, create_runtime, create_container, start_container, poststart, poststop } = hooks;
    for (kind, list) in [
        ("prestart", prestart),
        ("createRuntime", create_runtime),
        ("createContainer", create_container),
        ("startContainer", start_container),
        ("poststart", poststart),
        ("poststop", poststop),
    ] {
        for (index, Hook { path, args: _, env: _, timeout }) in list.iter().enumerate() {
            let bad = |why: String| Err(Error::invalid(format!("config.json: hooks.{kind}[{index}].{why}")));
            if !path.is_absolute() {
                return bad(format!("path: {:?} is not absolute", path.display()));
            }
            if let Some(seconds) = timeout.filter(|seconds| *seconds <= 0) {
                return bad(format!("timeout: {seconds} is not above 0"));
            }
        }
    }
    Ok(())
}

/// Runs all hooks of one kind, in order. The container is gone already: one that fails is told, and the next one runs.
pub(crate) fn run_all(kind: &str, hooks: &[Hook], state: &str, cwd: &Path) {
    for (index, hook) in hooks.iter().enumerate() {
        if let Err(error) = run_at(kind, index, hook, state, cwd) {
            crate::warn(&error.to_string());
        }
    }
}

/// Runs hooks of one kind, in order; the first that fails ends it.
pub(crate) fn run(kind: &str, hooks: &[Hook], state: &str, cwd: &Path) -> Result<()> {
    hooks.iter().enumerate().try_for_each(|(index, hook)| run_at(kind, index, hook, state, cwd))
}

fn run_at(kind: &str, index: usize, hook: &Hook, state: &str, cwd: &Path) -> Result<()> {
    if index == 0 {
        // Neither what the runtime's caller left open, nor what it handed over for the container.
        sys::close_on_exec_from(3).op(|| format!("keep descriptors from the {kind} hooks"))?;
    }
    let what = format!("{kind} hook #{index} {}", hook.path.display());
    run_one(&what, hook, state, cwd)
}

fn memory(content: &str) -> io::Result<File> {
    let mut file = File::from(crate::sys::memory_file(c"hook", MFdFlags::empty())?);
    file.write_all(content.as_bytes())?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

fn run_one(what: &str, hook: &Hook, state: &str, cwd: &Path) -> Result<()> {
    let start = || -> io::Result<(Child, File)> {
        let output = memory("")?;
        let mut command = Command::new(&hook.path);
        if let Some((name, args)) = hook.args.split_first() {
            command.arg0(name).args(args);
        }
        command
            .env_clear()
            .current_dir(cwd)
            .stdin(memory(state)?)
            .stdout(output.try_clone()?)
            .stderr(Stdio::from(output.try_clone()?));
        for (name, value) in hook.env.iter().filter_map(|e| e.split_once('=')) {
            command.env(name, value);
        }
        Ok((command.spawn()?, output))
    };
    let (mut child, mut output) = start().op(|| what)?;
    let timed_out = match hook.timeout {
        Some(seconds) if seconds > 0 => {
            let ended = Handle::open(child.id() as i32)
                .and_then(|handle| handle.ends_within(Duration::from_secs(seconds as u64)));
            match ended {
                Ok(ended) => !ended,
                Err(cause) => {
                    // Nobody would end it at its time: it ends now.
                    let _ = child.kill().and_then(|()| child.wait());
                    return Err(Error::Os { what: what.to_owned(), cause });
                }
            }
        }
        _ => false,
    };
    if timed_out {
        // The child may end at this very moment; then there is nothing left to kill.
        let _ = child.kill();
    }
    let status = child.wait().op(|| format!("{what}: wait"))?;
    if timed_out {
        return Err(Error::Init(format!("{what}: killed after its timeout of {} s", hook.timeout.unwrap_or_default())));
    }
    if status.success() {
        return Ok(());
    }
    let mut words = String::new();
    let mut bytes = Vec::new();
    if output.seek(SeekFrom::Start(0)).is_ok() && (&mut output).take(MAX_OUTPUT_BYTES).read_to_end(&mut bytes).is_ok() {
        words = self::words(&bytes);
    }
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (_, Some(signal)) => format!("killed by signal {signal}"),
        _ => "ended strangely".to_owned(),
    };
    let output = if words.is_empty() { String::new() } else { format!(", output: {words}") };
    Err(Error::Init(format!("{what}: {how}{output}")))
}

/// A hook's output on one line.
pub(crate) fn words(output: &[u8]) -> String {
    String::from_utf8_lossy(output).trim().replace('\n', "; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, timeout: Option<i64>) -> Hook {
        Hook {
            path: "/bin/sh".into(),
            args: ["sh", "-c", script].map(String::from).to_vec(),
            env: vec!["A=b".into()],
            timeout,
        }
    }

    #[test]
    fn the_state_is_on_stdin_and_the_environment_is_the_hooks_own() {
        run(
            "prestart",
            &[sh("read x; test \"$x\" = '{}' && test \"$A\" = b && test -z \"$HOME\"", None)],
            "{}\n",
            Path::new("/"),
        )
        .unwrap();
    }

    #[test]
    fn a_failure_says_which_hook_how_and_its_words() {
        let hooks = [sh("true", None), sh("echo no such luck >&2; exit 3", None)];
        let error = run("poststop", &hooks, "{}", Path::new("/")).unwrap_err().to_string();
        assert_eq!(error, "poststop hook #1 /bin/sh: exit status 3, output: no such luck");
    }

    #[test]
    fn after_the_container_all_hooks_run() {
        let made = tempfile::tempdir().unwrap();
        let hooks = [sh("exit 1", None), sh(&format!("touch {}/x", made.path().display()), None)];
        run_all("poststop", &hooks, "{}", Path::new("/"));
        assert!(made.path().join("x").exists());
    }

    #[test]
    fn paths_are_absolute_and_timeouts_above_nothing() {
        let hooks = |text: &str| serde_json::from_str::<Hooks>(text).unwrap();
        check(&hooks(r#"{"prestart":[{"path":"/x","timeout":1}]}"#)).unwrap();
        for (text, field) in [
            (r#"{"poststop":[{"path":"/x"},{"path":"x"}]}"#, "hooks.poststop[1].path"),
            (r#"{"prestart":[{}]}"#, "hooks.prestart[0].path"),
            (r#"{"startContainer":[{"path":"/x","timeout":0}]}"#, "hooks.startContainer[0].timeout"),
        ] {
            let error = check(&hooks(text)).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }

    #[test]
    fn a_timeout_kills() {
        let error = run("prestart", &[sh("exec sleep 100", Some(1))], "{}", Path::new("/")).unwrap_err();
        assert!(error.to_string().contains("timeout of 1 s"), "{error}");
    }
}
