//! Mount options: from the words of config.json to flags, attributes and filesystem data.
//!
//! `ro` and its like set an attribute of the one mount; `rro` and its like set (or clear) it on the whole subtree, by
//! mount_setattr. As in runc, a non-recursive `rw`, `suid`, `dev` or `exec` only takes back an earlier word of the same
//! list: on a bind mount it does not clear what the source has, or `rw` would open what the host holds read-only.
//! With `remount` it does: there the word is about a mount of the container's own.
//!
//! `sync`, `dirsync`, `lazytime` and `mand` belong to the filesystem and are passed on to it with its own options.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::sys::MountAttr;

/// A parsed list of mount options.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    pub bind: bool,
    pub recursive: bool,
    /// For this mount alone.
    pub attr: MountAttr,
    /// For this mount and all beneath it.
    pub deep: MountAttr,
    /// Propagation changes in order: flag, recursive.
    pub propagation: Vec<(u64, bool)>,
    /// Changes a mount that is there, instead of making one.
    pub remount: bool,
    /// `iversion`, or false for `noiversion`.
    pub iversion: Option<bool>,
    /// `tmpcopyup`: a tmpfs starts with what its target held.
    pub copy_up: bool,
    /// `idmap`, or `ridmap` for all mounts beneath as well.
    pub id_map: Option<Depth>,
    /// Only what is at this path beneath the mounted root.
    pub sub_path: Option<PathBuf>,
    /// Options of the filesystem.
    pub data: Vec<String>,
}

/// How far an option reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// The mount alone.
    Mount,
    /// All mounts beneath, too.
    Tree,
}

/// The prefix of our own word for a part of an overlay: `x-coracle.subpath=dir/file`.
const SUB_PATH: &str = "x-coracle.subpath=";

const ATIME: u64 = libc::MOUNT_ATTR__ATIME;

/// Word, attribute, whether it is set or cleared.
const ATTRIBUTES: &[(&str, u64, bool)] = &[
    ("ro", libc::MOUNT_ATTR_RDONLY, true),
    ("rw", libc::MOUNT_ATTR_RDONLY, false),
    ("nosuid", libc::MOUNT_ATTR_NOSUID, true),
    ("suid", libc::MOUNT_ATTR_NOSUID, false),
    ("nodev", libc::MOUNT_ATTR_NODEV, true),
    ("dev", libc::MOUNT_ATTR_NODEV, false),
    ("noexec", libc::MOUNT_ATTR_NOEXEC, true),
    ("exec", libc::MOUNT_ATTR_NOEXEC, false),
    ("nodiratime", libc::MOUNT_ATTR_NODIRATIME, true),
    ("diratime", libc::MOUNT_ATTR_NODIRATIME, false),
    ("nosymfollow", libc::MOUNT_ATTR_NOSYMFOLLOW, true),
    ("symfollow", libc::MOUNT_ATTR_NOSYMFOLLOW, false),
    ("noatime", libc::MOUNT_ATTR_NOATIME, true),
    ("atime", libc::MOUNT_ATTR_NOATIME, false),
    ("strictatime", libc::MOUNT_ATTR_STRICTATIME, true),
    ("nostrictatime", libc::MOUNT_ATTR_STRICTATIME, false),
    ("relatime", libc::MOUNT_ATTR_RELATIME, true),
    ("norelatime", libc::MOUNT_ATTR_RELATIME, false),
];

/// Words of the whole filesystem that the kernel takes of any, and the word that takes each back.
const SUPERBLOCK: &[(&str, &str)] = &[("sync", "async"), ("lazytime", "nolazytime"), ("mand", "nomand")];

const PROPAGATION: &[(&str, u64, bool)] = &[
    ("private", libc::MS_PRIVATE, false),
    ("rprivate", libc::MS_PRIVATE, true),
    ("shared", libc::MS_SHARED, false),
    ("rshared", libc::MS_SHARED, true),
    ("slave", libc::MS_SLAVE, false),
    ("rslave", libc::MS_SLAVE, true),
    ("unbindable", libc::MS_UNBINDABLE, false),
    ("runbindable", libc::MS_UNBINDABLE, true),
];

/// A propagation word, for mounts and for `linux.rootfsPropagation`.
pub(crate) fn propagation(word: &str) -> Option<(u64, bool)> {
    PROPAGATION.iter().find(|(name, ..)| *name == word).map(|&(_, flag, deep)| (flag, deep))
}

/// Every word this runtime knows, for `features`.
pub(crate) fn known_words() -> Vec<String> {
    let mut words: Vec<String> = ATTRIBUTES.iter().map(|(w, ..)| (*w).to_owned()).collect();
    words.extend(ATTRIBUTES.iter().map(|(w, ..)| format!("r{w}")));
    words.extend(PROPAGATION.iter().map(|(w, ..)| (*w).to_owned()));
    words.extend(SUPERBLOCK.iter().flat_map(|(on, off)| [(*on).to_owned(), (*off).to_owned()]));
    words.extend(["bind", "rbind", "remount", "defaults", "idmap", "ridmap", "tmpcopyup"].map(str::to_owned));
    words.extend(["dirsync", "silent", "loud", "iversion", "noiversion"].map(str::to_owned));
    words.sort();
    words
}

/// `clears`: whether a clearing word clears what the mount has, not only what the list said before.
fn apply(attr: &mut MountAttr, flag: u64, set: bool, clears: bool) {
    if flag & ATIME != 0 || flag == 0 {
        // The three access-time modes exclude each other: the field is replaced as a whole.
        if set {
            attr.clear |= ATIME;
            attr.set = attr.set & !ATIME | flag;
        } else if clears && flag != 0 {
            // What is left is relatime, the kernel's default.
            attr.clear |= ATIME;
            attr.set &= !ATIME;
        } else if attr.clear & ATIME != 0 && attr.set & ATIME == flag {
            attr.clear &= !ATIME;
            attr.set &= !ATIME;
        }
    } else if set {
        attr.set |= flag;
        attr.clear &= !flag;
    } else {
        attr.set &= !flag;
        if clears {
            attr.clear |= flag;
        }
    }
}

/// Parses the options of one mount; `what` names it in errors.
pub(crate) fn parse(words: &[String], what: &str) -> Result<Options> {
    let mut options = Options { remount: words.iter().any(|word| word == "remount"), ..Options::default() };
    for word in words {
        let plain = ATTRIBUTES.iter().find(|(name, ..)| name == word);
        let deep = || {
            let rest = word.strip_prefix('r')?;
            ATTRIBUTES.iter().find(|(name, ..)| *name == rest)
        };
        if let Some(&(_, flag, set)) = plain {
            apply(&mut options.attr, flag, set, options.remount);
        } else if let Some(&(_, flag, set)) = deep() {
            apply(&mut options.deep, flag, set, true);
        } else if let Some(change) = propagation(word) {
            options.propagation.push(change);
        } else if let Some((on, _)) = SUPERBLOCK.iter().find(|(_, off)| off == word) {
            options.data.retain(|earlier| earlier != on);
            if options.remount {
                options.data.push(word.clone());
            }
        } else {
            match word.as_str() {
                "bind" => options.bind = true,
                "rbind" => (options.bind, options.recursive) = (true, true),
                "defaults" | "silent" | "loud" | "remount" | "" => {}
                "tmpcopyup" => options.copy_up = true,
                "idmap" => options.id_map = Some(Depth::Mount),
                "ridmap" => options.id_map = Some(Depth::Tree),
                "iversion" => options.iversion = Some(true),
                "noiversion" => options.iversion = Some(false),
                _ => match word.strip_prefix(SUB_PATH) {
                    Some(path) => options.sub_path = Some(path.into()),
                    None => options.data.push(word.clone()),
                },
            }
        }
    }
    check(&options, what)?;
    Ok(options)
}

/// Words that contradict each other.
fn check(options: &Options, what: &str) -> Result<()> {
    let bad = |why: &str| Err(Error::invalid(format!("config.json: mount {what}: {why}")));
    if options.remount && (options.copy_up || options.id_map.is_some() || options.sub_path.is_some()) {
        return bad("tmpcopyup, idmap and parts are for new mounts, not for remount");
    }
    if options.bind && options.iversion.is_some() {
        return bad("iversion is an option of the whole filesystem, which a bind mount shares with its source");
    }
    if options.bind && options.copy_up {
        return bad("tmpcopyup is for tmpfs");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Options {
        parse(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>(), "/x").unwrap()
    }

    #[test]
    fn the_last_word_of_a_pair_wins() {
        assert_eq!(parsed(&["ro", "rw"]).attr.set, 0);
        assert_eq!(parsed(&["rw", "ro"]).attr.set, libc::MOUNT_ATTR_RDONLY);
    }

    #[test]
    fn rw_does_not_open_what_the_source_holds_read_only() {
        assert_eq!(parsed(&["rbind", "rw"]).attr.clear, 0);
        assert_eq!(parsed(&["rbind", "rrw"]).deep.clear, libc::MOUNT_ATTR_RDONLY);
    }

    #[test]
    fn access_time_modes_replace_each_other() {
        let attr = parsed(&["noatime", "strictatime"]).attr;
        assert_eq!(attr.set & ATIME, libc::MOUNT_ATTR_STRICTATIME);
        assert_eq!(attr.clear & ATIME, ATIME);
        assert_eq!(parsed(&["relatime"]).attr.set, 0);
    }

    #[test]
    fn recursive_words_apply_to_the_subtree() {
        let options = parsed(&["rbind", "rro", "rnosuid"]);
        assert_eq!(options.deep.set, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID);
        assert_eq!(options.attr, MountAttr::default());
        assert!(options.bind && options.recursive);
    }

    #[test]
    fn relatime_is_not_taken_for_a_recursive_word() {
        // "relatime" begins with r, "rslave" too: neither is "r" + an attribute.
        assert_eq!(parsed(&["relatime"]).deep, MountAttr::default());
        assert_eq!(parsed(&["rslave"]).propagation, [(libc::MS_SLAVE, true)]);
    }

    #[test]
    fn other_words_are_for_the_filesystem() {
        assert_eq!(parsed(&["mode=755", "size=64k", "sync"]).data, ["mode=755", "size=64k", "sync"]);
    }

    #[test]
    fn maps_and_parts_are_words_of_the_mount_and_not_of_the_filesystem() {
        let options = parsed(&["rbind", "ridmap", "x-coracle.subpath=a/b"]);
        assert_eq!((options.id_map, options.sub_path), (Some(Depth::Tree), Some("a/b".into())));
        assert!(options.data.is_empty());
    }

    #[test]
    fn a_word_takes_back_what_was_said_before_it() {
        assert_eq!(parsed(&["noatime", "atime"]).attr, MountAttr::default());
        assert_eq!(parsed(&["strictatime", "nostrictatime"]).attr, MountAttr::default());
        assert_eq!(parsed(&["noatime", "nostrictatime"]).attr.set, libc::MOUNT_ATTR_NOATIME);
        assert_eq!(parsed(&["sync", "lazytime", "async"]).data, ["lazytime"]);
        assert_eq!(parsed(&["rbind", "ratime"]).deep, MountAttr { clear: ATIME, ..Default::default() });
        assert_eq!(parsed(&["rbind", "rnorelatime"]).deep, MountAttr::default());
    }

    #[test]
    fn a_remount_clears_what_the_mount_has() {
        let options = parsed(&["rw", "remount", "exec", "nolazytime"]);
        assert_eq!(options.attr.clear, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOEXEC);
        assert!(options.remount && options.data == ["nolazytime"]);
    }

    #[test]
    fn words_that_contradict_each_other_are_an_error() {
        for words in [["remount", "idmap"], ["remount", "tmpcopyup"], ["bind", "iversion"], ["bind", "tmpcopyup"]] {
            let words = words.map(str::to_owned);
            assert!(parse(&words, "/x").unwrap_err().to_string().contains("mount /x"), "{words:?}");
        }
    }

    #[test]
    fn every_word_of_the_specification_is_known() {
        let known = known_words();
        for word in [
            "async",
            "atime",
            "bind",
            "defaults",
            "dev",
            "diratime",
            "dirsync",
            "exec",
            "iversion",
            "lazytime",
            "loud",
            "mand",
            "noatime",
            "nodev",
            "nodiratime",
            "noexec",
            "noiversion",
            "nolazytime",
            "nomand",
            "norelatime",
            "nostrictatime",
            "nosuid",
            "nosymfollow",
            "private",
            "ratime",
            "rbind",
            "rdev",
            "rdiratime",
            "relatime",
            "remount",
            "rexec",
            "rnoatime",
            "rnodiratime",
            "rnoexec",
            "rnorelatime",
            "rnostrictatime",
            "rnosuid",
            "rnosymfollow",
            "ro",
            "rprivate",
            "rrelatime",
            "rro",
            "rrw",
            "rshared",
            "rslave",
            "rstrictatime",
            "rsuid",
            "rsymfollow",
            "runbindable",
            "rw",
            "shared",
            "silent",
            "slave",
            "strictatime",
            "suid",
            "symfollow",
            "sync",
            "tmpcopyup",
            "unbindable",
            "idmap",
            "ridmap",
        ] {
            assert!(known.iter().any(|k| k == word), "{word}");
            // None goes to a filesystem as an option of its own, but for those the kernel takes of any.
            let data = parse(&[word.to_owned()], "/x").unwrap().data;
            assert!(data.is_empty() || ["sync", "dirsync", "lazytime", "mand"].contains(&word), "{word}");
        }
    }
}
