//! The container's end: what it is told to do, by words, and how it ends.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::{Side, is_broken_pipe, pack, unpack};

/// The name by which a program is this end, as the first word of its command line; the words of a [`Task`] follow.
pub const NAME: &str = "coracle-copier";

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// A file or folder goes to standard output.
    Pack,
    /// Files are made of standard input: in the path under the name they were packed with, or as the path.
    Unpack,
    /// What stands for the folder at the top is the path itself, and not a folder in it.
    UnpackContents,
    /// The path is a folder that is there, and the stream is another's.
    UnpackForeign,
}

const TASKS: [Task; 4] = [Task::Pack, Task::Unpack, Task::UnpackContents, Task::UnpackForeign];

impl Task {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Task::Pack => "pack",
            Task::Unpack => "unpack",
            Task::UnpackContents => "unpack-contents",
            Task::UnpackForeign => "unpack-foreign",
        }
    }

    /// What a word means.
    pub fn of(word: &OsStr) -> Option<Task> {
        TASKS.into_iter().find(|task| task.word() == word)
    }

    /// Does it. False when whoever was to have the stream has gone, which is told there. `descriptors` is this process's
    /// `/proc/self/fd`.
    pub fn perform(self, path: &Path, descriptors: &File) -> Result<bool> {
        let (contents, foreign) = (self == Task::UnpackContents, self == Task::UnpackForeign);
        let done = match self {
            Task::Pack => pack(path, descriptors, io::stdout().lock()),
            _ => unpack(path, contents, foreign, Side::Container, io::stdin().lock()),
        };
        match done {
            Err(error) if self == Task::Pack && is_broken_pipe(&error) => Ok(false),
            done => done.map(|()| true),
        }
    }
}

/// Does what the words of a command line ask for, the name left out.
pub fn run(words: &[OsString]) -> Result<bool> {
    let [word, path] = words else { bail!("{NAME}: a task and a path are expected") };
    let task = Task::of(word).with_context(|| format!("{NAME}: {word:?} is no task"))?;
    task.perform(Path::new(path), &descriptors()?)
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
        for task in TASKS {
            assert_eq!(Task::of(OsStr::new(task.word())), Some(task));
        }
        assert!(run(&["remove".into(), "/".into()]).is_err() && run(&["pack".into()]).is_err());
    }
}
