//! The folder: its files, and when they change.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::mpsc::Sender;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{Files, Message};
use crate::kube::{self, yaml::MAX_BYTES};

/// More files are none of people's.
const MAX_FILES: usize = 1000;

/// Reads all files that may hold pods; hidden ones, and those of other kinds, are not looked at.
pub fn read(dir: &Path) -> Result<Files> {
    let context = || format!("list {}", dir.display());
    let mut files = Files::new();
    for entry in fs::read_dir(dir).with_context(context)? {
        let path = entry.with_context(context)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden || !kube::is_document(&path) || !path.is_file() {
            continue;
        }
        if files.len() >= MAX_FILES {
            bail!("{}: more than {MAX_FILES} files", dir.display());
        }
        let text = text(&path);
        files.insert(path, text);
    }
    Ok(files)
}

/// The text of a file.
pub fn text(path: &Path) -> Result<String> {
    let context = || format!("read {}", path.display());
    let mut bytes = Vec::new();
    // One byte more than allowed tells that there is more.
    File::open(path).and_then(|file| file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)).with_context(context)?;
    if bytes.len() > MAX_BYTES {
        bail!("{}: more than {MAX_BYTES} bytes", path.display());
    }
    String::from_utf8(bytes).with_context(context)
}

/// Tells of changes from now on. What cannot be watched is still looked at now and then.
pub fn watch(dir: &Path, messages: Sender<Message>) -> Result<()> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).context("watch a folder: inotify_init")?;
    let flags = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_CREATE;
    inotify.add_watch(dir, flags).with_context(|| format!("watch {}", dir.display()))?;
    let watcher = move || {
        loop {
            match inotify.read_events() {
                Err(Errno::EINTR) => continue,
                Err(_) => return,
                Ok(_) => {}
            }
            if messages.send(Message::Look).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("statics-watch".into()).spawn(watcher).context("start a thread")?;
    Ok(())
}
