//! What a container runs: the command, its environment and its folder, from the image and from the pod.

use oci_spec::image::Config;

use crate::error::{Error, Result};
use crate::types::ContainerConfig;

/// What is looked up where, when nobody says (Docker's and containerd's).
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The command line, by the rules of Kubernetes: `command` replaces the entrypoint and with it the image's cmd;
/// `args` alone replaces the cmd. An empty list counts as not given.
pub fn args(config: &ContainerConfig, image: Option<&Config>) -> Result<Vec<String>> {
    let given = |list: &Option<Vec<String>>| list.clone().filter(|l| !l.is_empty());
    let entrypoint = || image.and_then(|i| given(i.entrypoint())).unwrap_or_default();
    let cmd = || image.and_then(|i| given(i.cmd())).unwrap_or_default();
    let line = match (given(&config.command), given(&config.args)) {
        (Some(command), args) => [command, args.unwrap_or_default()].concat(),
        (None, Some(args)) => [entrypoint(), args].concat(),
        (None, None) => [entrypoint(), cmd()].concat(),
    };
    match line.first() {
        None => Err(Error::invalid("command", "neither the pod nor the image says what to run")),
        Some(_) if line.iter().any(|a| a.contains('\0')) => Err(Error::invalid("command", "contains a NUL byte")),
        Some(_) => Ok(line),
    }
}

/// The environment: the image's, then ours where it has none, then the pod's; the last of a name wins, in the place
/// of the first.
pub fn env(config: &ContainerConfig, image: Option<&Config>, hostname: &str, home: &str) -> Result<Vec<String>> {
    let mut env: Vec<String> = Vec::new();
    for line in image.and_then(|i| i.env().as_ref()).into_iter().flatten() {
        set(&mut env, line.clone(), true);
    }
    set(&mut env, PATH.into(), false);
    set(&mut env, format!("HOSTNAME={hostname}"), true);
    set(&mut env, format!("HOME={home}"), false);
    if config.tty {
        set(&mut env, "TERM=xterm".into(), false);
    }
    for (name, value) in &config.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(Error::invalid("env", format!("{name:?} is no name, or its value has a NUL byte")));
        }
        set(&mut env, format!("{name}={value}"), true);
    }
    Ok(env)
}

fn set(env: &mut Vec<String>, line: String, replace: bool) {
    let name = line.split('=').next().unwrap_or_default();
    match env.iter_mut().find(|l| l.split('=').next() == Some(name)) {
        Some(old) if replace => *old = line,
        Some(_) => {}
        None => env.push(line),
    }
}

/// The working directory.
pub fn cwd(config: &ContainerConfig, image: Option<&Config>) -> Result<String> {
    let image_dir = || image.and_then(|i| i.working_dir().clone()).filter(|d| !d.is_empty());
    match config.working_dir.clone().filter(|d| !d.is_empty()) {
        Some(dir) if !dir.starts_with('/') => {
            Err(Error::invalid("workingDir", format!("{dir:?} must be an absolute path")))
        }
        Some(dir) => Ok(dir),
        // Docker takes a relative one from the root.
        None => Ok(image_dir().map_or("/".into(), |d| if d.starts_with('/') { d } else { format!("/{d}") })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::image::ConfigBuilder;

    fn list(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    fn image() -> Config {
        ConfigBuilder::default()
            .entrypoint(list(&["/ep", "e"]))
            .cmd(list(&["c"]))
            .env(list(&["A=1", "PATH=/x", "HOSTNAME=build"]))
            .working_dir("srv")
            .build()
            .unwrap()
    }

    #[test]
    fn command_and_args_replace_as_kubernetes_documents() {
        let run = |command: Option<&[&str]>, args_: Option<&[&str]>| {
            let config = ContainerConfig { command: command.map(list), args: args_.map(list), ..Default::default() };
            args(&config, Some(&image())).unwrap()
        };
        assert_eq!(run(None, None), ["/ep", "e", "c"]);
        assert_eq!(run(Some(&["x"]), None), ["x"]);
        assert_eq!(run(None, Some(&["y"])), ["/ep", "e", "y"]);
        assert_eq!(run(Some(&["x"]), Some(&["y"])), ["x", "y"]);
        assert_eq!(run(Some(&[]), Some(&[])), ["/ep", "e", "c"]);
        assert!(args(&ContainerConfig::default(), None).is_err());
    }

    #[test]
    fn the_pods_environment_wins_and_order_is_kept() {
        let config = ContainerConfig {
            env: vec![("A".into(), "2".into()), ("B".into(), "a=b".into()), ("B".into(), "3".into())],
            tty: true,
            ..Default::default()
        };
        let env = env(&config, Some(&image()), "web", "/root").unwrap();
        assert_eq!(env, ["A=2", "PATH=/x", "HOSTNAME=web", "HOME=/root", "TERM=xterm", "B=3"]);
        let bad = ContainerConfig { env: vec![("A=".into(), String::new())], ..Default::default() };
        assert!(super::env(&bad, None, "", "/").is_err());
    }

    #[test]
    fn the_folder_is_the_pods_or_the_images_or_the_root() {
        assert_eq!(cwd(&ContainerConfig::default(), None).unwrap(), "/");
        assert_eq!(cwd(&ContainerConfig::default(), Some(&image())).unwrap(), "/srv");
        let bad = ContainerConfig { working_dir: Some("x".into()), ..Default::default() };
        assert!(cwd(&bad, None).is_err());
    }
}
