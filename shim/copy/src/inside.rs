//! The container's end: what it is told to do, by words, and how it ends.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::{Side, Stream, is_broken_pipe, pack, unpack};

/// The name by which a program is this end, as the first word of its command line; [`Task::words`] follow.
pub const NAME: &str = "coracle-copier";

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// A file or folder goes to standard output.
    Pack,
    /// What has this name is made of standard input: in the path, or as the path.
    Unpack(OsString),
    /// What stands for the folder at the top is the path itself, and not a folder in it.
    UnpackContents,
    /// The path is a folder that is there, and the stream is another's.
    UnpackForeign,
}

impl Task {
    /// The words for doing it to a path.
    pub fn words(&self, path: &Path) -> Vec<OsString> {
        let path = path.as_os_str().to_owned();
        match self {
            Task::Pack => vec!["pack".into(), path],
            Task::Unpack(name) => vec!["unpack".into(), path, name.clone()],
            Task::UnpackContents => vec!["unpack-contents".into(), path],
            Task::UnpackForeign => vec!["unpack-foreign".into(), path],
        }
    }

    /// What words mean, and the path in them.
    pub fn of(words: &[OsString]) -> Result<(Task, &Path)> {
        let [word, path, rest @ ..] = words else { bail!("{NAME}: a task and a path are expected") };
        let task = match (word.to_str(), rest) {
            (Some("pack"), []) => Task::Pack,
            (Some("unpack"), [name]) => Task::Unpack(name.clone()),
            (Some("unpack-contents"), []) => Task::UnpackContents,
            (Some("unpack-foreign"), []) => Task::UnpackForeign,
            _ => bail!("{NAME}: {words:?} are no task"),
        };
        Ok((task, Path::new(path)))
    }

    /// Does it. False when whoever was to have the stream has gone, which is told there. `descriptors` is this process's
    /// `/proc/self/fd`.
    pub fn perform(&self, path: &Path, descriptors: &File) -> Result<bool> {
        let stream = match self {
            Task::Pack => {
                return match pack(path, descriptors, io::stdout().lock()) {
                    Err(error) if is_broken_pipe(&error) => Ok(false),
                    done => done.map(|()| true),
                };
            }
            Task::Unpack(name) => Stream::Named(name),
            Task::UnpackContents => Stream::Contents,
            Task::UnpackForeign => Stream::Foreign,
        };
        unpack(path, stream, Side::Container, io::stdin().lock()).map(|()| true)
    }
}

/// Does what the words of a command line ask for, the name left out.
pub fn run(words: &[OsString]) -> Result<bool> {
    let (task, path) = Task::of(words)?;
    task.perform(path, &descriptors()?)
}

/// This process's `/proc/self/fd`.
pub fn descriptors() -> Result<File> {
    File::open("/proc/self/fd").context("open /proc/self/fd")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_is_what_its_word_means() {
        for task in [Task::Pack, Task::Unpack("name".into()), Task::UnpackContents, Task::UnpackForeign] {
            assert_eq!(Task::of(&task.words(Path::new("/p"))).unwrap(), (task.clone(), Path::new("/p")));
        }
        for wrong in [&["remove", "/"][..], &["pack"], &["unpack", "/p"], &["pack", "/p", "name"]] {
            assert!(Task::of(&wrong.iter().map(OsString::from).collect::<Vec<_>>()).is_err(), "{wrong:?}");
        }
    }
}
