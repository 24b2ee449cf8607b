//! `coracle cp`: files between the machine and containers.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::{ContainerStatus, Engine};

use crate::app::{self, App};
use crate::copy::{self, Container, Side};
use crate::exit::{self, Coded};

/// Copy files from and to a container
///
/// A place in a container is POD:PATH or NAMESPACE/POD:PATH; a place of the machine that has a colon is written ./PATH. As
/// with cp -r, a folder that exists gets the copy in it, and SOURCE/. means what is in the folder. `-` is a tar archive
/// from standard input, or to standard output. Nothing of the image is run. What is copied belongs to whoever copies:
/// the container's user, or you. Devices, pipes and sockets are left out, and so are links that would lead out of the
/// copy on the machine; each is told.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coracle cp site web:/usr/share/web     a folder into a container
  coracle cp web:/etc/app.conf .         a file out of it
  coracle cp -c app web:/data - | tar t  as an archive")]
pub struct Cp {
    /// The container [default: the pod's first]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// From where
    #[arg(value_name = "SOURCE")]
    from: String,
    /// To where
    #[arg(value_name = "DEST")]
    to: String,
}

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End<'e> {
    Machine(&'e Path),
    Container(&'e str, PathBuf),
    Stream,
}

impl<'e> End<'e> {
    fn parse(text: &'e str) -> Result<End<'e>> {
        if text == "-" {
            return Ok(End::Stream);
        }
        match text.split_once(':') {
            Some((pod, path)) if !pod.starts_with(['/', '.']) => match (pod, path) {
                ("", _) | (_, "") => Err(Coded::usage(format!("{text:?}: expected POD:PATH"))),
                // A path counts from the container's root.
                (pod, path) => Ok(End::Container(pod, Path::new("/").join(path))),
            },
            _ if text.is_empty() => Err(Coded::usage("an empty path")),
            _ => Ok(End::Machine(Path::new(text))),
        }
    }
}

impl Cp {
    /// Copies.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        let (from, to) = (End::parse(&self.from)?, End::parse(&self.to)?);
        let contents = self.from.ends_with("/.") || self.from == ".";
        let engine = app.engine()?;
        let context = || format!("cp {} {}", self.from, self.to);
        match (from, to) {
            (End::Container(pod, path), End::Machine(to)) => {
                let mut child = spawn(self.pack(&engine, pod, &path).await?.stdout(Stdio::piped()))?;
                let stream = child.stdout.take().context("the helper's pipe")?;
                let unpacked = copy::unpack(to, contents, false, Side::Machine, stream);
                finish(child, unpacked.with_context(context))
            }
            (End::Machine(from), End::Container(pod, path)) => {
                let mut child = spawn(self.unpack(&engine, pod, &path, contents, false).await?.stdin(Stdio::piped()))?;
                let stream = child.stdin.take().context("the helper's pipe")?;
                let descriptors = File::open("/proc/self/fd").context("open /proc/self/fd")?;
                let packed = copy::pack(from, &descriptors, io::BufWriter::new(stream));
                finish(child, packed.with_context(context))
            }
            (End::Container(from, path), End::Container(to, dest)) => {
                let mut packer = self.pack(&engine, from, &path).await?;
                let mut unpacker = self.unpack(&engine, to, &dest, contents, false).await?;
                let mut packer = spawn(packer.stdout(Stdio::piped()))?;
                let stream = packer.stdout.take().context("the helper's pipe")?;
                let unpacker = spawn(unpacker.stdin(stream))?;
                let code = finish(packer, Ok(()))?;
                let other = finish(unpacker, Ok(()))?;
                Ok(if code == ExitCode::SUCCESS { other } else { code })
            }
            (End::Container(pod, path), End::Stream) => {
                if io::stdout().is_terminal() {
                    return Err(Coded::usage("cp: standard output is a terminal (send it to a file or a pipe)"));
                }
                finish(spawn(&mut self.pack(&engine, pod, &path).await?)?, Ok(()))
            }
            (End::Stream, End::Container(pod, path)) => {
                let mut command = self.unpack(&engine, pod, &path, false, true).await?;
                finish(spawn(command.stdin(Stdio::inherit()))?, Ok(()))
            }
            _ => Err(Coded::usage("cp: one of both is in a container: POD:PATH")),
        }
    }

    async fn pack(&self, engine: &Engine, pod: &str, path: &Path) -> Result<Command> {
        let mut command = self.inside(engine, pod).await?;
        command.arg("pack").arg("--").arg(path).stdin(Stdio::null());
        Ok(command)
    }

    async fn unpack(&self, engine: &Engine, pod: &str, path: &Path, contents: bool, foreign: bool) -> Result<Command> {
        let mut command = self.inside(engine, pod).await?;
        command.arg("unpack");
        if contents {
            command.arg("--contents");
        }
        if foreign {
            command.arg("--foreign");
        }
        command.arg("--").arg(path).stdout(Stdio::null());
        Ok(command)
    }

    /// A helper in the container. The descriptors it opens by our names of them live as long as this process.
    async fn inside(&self, engine: &Engine, pod: &str) -> Result<Command> {
        let found = app::find(engine, pod)?;
        let status = found.container(engine, self.container.as_deref()).await?;
        let pid = running(engine, &status)?;
        let user = status.user.clone().unwrap_or_default();
        let container = Container::of(pid, user.uid, user.gid, &user.supplemental_groups)?;
        // Still the same: so the namespaces are the container's, and not those of a process that took its pid.
        if running(engine, &engine.container_status(&status.id)?)? != pid {
            return Err(Coded::error(
                exit::CONFLICT,
                format!("container {} was just started again", status.config.name),
            ));
        }
        Box::leak(Box::new(container)).command()
    }
}

fn running(engine: &Engine, status: &ContainerStatus) -> Result<i32> {
    app::check_running(status)?;
    if engine.in_machine(&status.sandbox_id)? {
        let why = format!(
            "container {}: it runs in a virtual machine, whose files are not the host's (exec tar copies)",
            status.config.name
        );
        return Err(Coded::error(exit::ERROR, why));
    }
    status.pid.with_context(|| format!("container {}: its process is not known", status.config.name))
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.spawn().context("start the helper that copies")
}

/// Waits for the helper, which tells its own error. That its pipe broke is no error beside that.
fn finish(mut child: Child, own: Result<()>) -> Result<ExitCode> {
    drop(child.stdin.take());
    let status = child.wait().context("wait for the helper that copies")?;
    match (own, status.code()) {
        (Err(error), code) if code == Some(0) || !copy::is_broken_pipe(&error) => Err(error),
        (_, Some(0)) => Ok(ExitCode::SUCCESS),
        (_, code) => Ok(exit::of(code.unwrap_or(-1))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart_as_kubectl_does() {
        let inside = |pod, path| End::Container(pod, PathBuf::from(path));
        assert_eq!(End::parse("web:/etc").unwrap(), inside("web", "/etc"));
        assert_eq!(End::parse("ns/web:etc").unwrap(), inside("ns/web", "/etc"));
        assert_eq!(End::parse("./a:b").unwrap(), End::Machine(Path::new("./a:b")));
        assert_eq!(End::parse("/a:b").unwrap(), End::Machine(Path::new("/a:b")));
        assert_eq!(End::parse("-").unwrap(), End::Stream);
        assert!(End::parse(":x").is_err() && End::parse("web:").is_err() && End::parse("").is_err());
    }
}
