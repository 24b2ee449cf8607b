//! `coracle cp`: files between the machine and containers.

use std::ffi::OsStr;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use coracle_copy::inside::{self, Task};
use coracle_copy::{Side, Stream, packed_name};
use coracle_engine::{ContainerStatus, Engine};

use crate::app::{self, App};
use crate::copy::Container;
use crate::copy::helper::{Helper, Input, To};
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

    /// The name of what is copied from here.
    fn packed_name(&self) -> Result<&OsStr> {
        match self {
            End::Machine(path) => packed_name(path),
            End::Container(_, path) => packed_name(path),
            End::Stream => Ok(OsStr::new("")),
        }
    }
}

impl Cp {
    /// Copies.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        let (from, to) = (End::parse(&self.from)?, End::parse(&self.to)?);
        let contents = self.from.ends_with("/.") || self.from == ".";
        let name = from.packed_name()?.to_owned();
        let unpack = || if contents { Task::UnpackContents } else { Task::Unpack(name.clone()) };
        let engine = app.engine()?;
        let context = || format!("cp {} {}", self.from, self.to);
        let (reader, writer) = io::pipe().context("make a pipe")?;
        let code = match (from, to) {
            (End::Container(pod, path), End::Machine(to)) => {
                let helper = self.inside(&engine, (pod, &path), Task::Pack, Input::Nothing, To::Pipe(writer)).await?;
                let to = to.to_owned();
                let unpacked = blocking(move || {
                    let stream = if contents { Stream::Contents } else { Stream::Named(&name) };
                    coracle_copy::unpack(&to, stream, Side::Machine, reader)
                });
                helper.finish(unpacked.await.with_context(context)).await?
            }
            (End::Machine(from), End::Container(pod, path)) => {
                let helper = self.inside(&engine, (pod, &path), unpack(), Input::Pipe(reader), To::Nothing).await?;
                let from = from.to_owned();
                let packed =
                    blocking(move || coracle_copy::pack(&from, &inside::descriptors()?, io::BufWriter::new(writer)));
                helper.finish(packed.await.with_context(context)).await?
            }
            (End::Container(from, path), End::Container(to, dest)) => {
                let packer = self.inside(&engine, (from, &path), Task::Pack, Input::Nothing, To::Pipe(writer)).await?;
                let unpacker = self.inside(&engine, (to, &dest), unpack(), Input::Pipe(reader), To::Nothing).await?;
                let code = packer.finish(Ok(())).await?;
                let other = unpacker.finish(Ok(())).await?;
                if code == 0 { other } else { code }
            }
            (End::Container(pod, path), End::Stream) => {
                if io::stdout().is_terminal() {
                    return Err(Coded::usage("cp: standard output is a terminal (send it to a file or a pipe)"));
                }
                let packer = self.inside(&engine, (pod, &path), Task::Pack, Input::Nothing, To::Stdout).await?;
                packer.finish(Ok(())).await?
            }
            (End::Stream, End::Container(pod, path)) => {
                let task = Task::UnpackForeign;
                let unpacker = self.inside(&engine, (pod, &path), task, Input::Stdin, To::Nothing).await?;
                unpacker.finish(Ok(())).await?
            }
            _ => return Err(Coded::usage("cp: one of both is in a container: POD:PATH")),
        };
        Ok(if code == 0 { ExitCode::SUCCESS } else { exit::of(code) })
    }

    /// The container's end.
    async fn inside(
        &self,
        engine: &Engine,
        (pod, path): (&str, &Path),
        task: Task,
        input: Input,
        output: To,
    ) -> Result<Helper> {
        let found = app::find(engine, pod)?;
        let status = found.container(engine, self.container.as_deref()).await?;
        app::check_running(&status)?;
        if engine.in_machine(&status.sandbox_id)? {
            return Helper::in_guest(engine, &status.id, task, path, input, output).await;
        }
        let pid = pid(&status)?;
        let user = status.user.clone().unwrap_or_default();
        let container = Container::of(pid, user.uid, user.gid, &user.supplemental_groups)?;
        // Still the same: so the namespaces are the container's, and not those of a process that took its pid.
        let now = engine.container_status(&status.id)?;
        app::check_running(&now)?;
        if self::pid(&now)? != pid {
            return Err(Coded::error(
                exit::CONFLICT,
                format!("container {} was just started again", status.config.name),
            ));
        }
        // The descriptors that the helper opens by our names of them live as long as this process.
        let mut command = Box::leak(Box::new(container)).command()?;
        command.arg("--").args(task.words(path));
        Helper::spawn(command, input, output)
    }
}

fn pid(status: &ContainerStatus) -> Result<i32> {
    status.pid.with_context(|| format!("container {}: its process is not known", status.config.name))
}

/// An end of the copy on this machine, which blocks.
async fn blocking(copy: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    tokio::task::spawn_blocking(copy).await.context("the copy's thread")?
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
