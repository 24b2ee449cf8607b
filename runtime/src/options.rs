//! Mount options: from the words of config.json to flags, attributes and filesystem data.
//!
//! `ro` and its like set an attribute of the one mount; `rro` and its like set (or clear) it on the whole subtree, by
//! mount_setattr. As in runc, a non-recursive `rw`, `suid`, `dev` or `exec` only takes back an earlier word of the same
//! list: on a bind mount it does not clear what the source has, or `rw` would open what the host holds read-only.

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
    words.extend(["bind", "rbind", "defaults", "idmap", "ridmap", "tmpcopyup"].map(str::to_owned));
    words.extend(
        ["sync", "async", "dirsync", "lazytime", "nolazytime", "mand", "nomand", "silent", "loud"].map(str::to_owned),
    );
    words.sort();
    words
}

fn apply(attr: &mut MountAttr, flag: u64, set: bool, deep: bool) {
    if flag & ATIME != 0 || flag == 0 {
        // The three access-time modes exclude each other: the field is replaced as a whole.
        attr.clear |= ATIME;
        attr.set &= !ATIME;
        if set {
            attr.set |= flag;
        }
    } else if set {
        attr.set |= flag;
        attr.clear &= !flag;
    } else {
        attr.set &= !flag;
        if deep {
            attr.clear |= flag;
        }
    }
}

/// Parses the options of one mount; `what` names it in errors.
pub(crate) fn parse(words: &[String], what: &str) -> Result<Options> {
    let mut options = Options::default();
    for word in words {
        let plain = ATTRIBUTES.iter().find(|(name, ..)| name == word);
        let deep = || {
            let rest = word.strip_prefix('r')?;
            ATTRIBUTES.iter().find(|(name, ..)| *name == rest)
        };
        if let Some(&(_, flag, set)) = plain {
            apply(&mut options.attr, flag, set, false);
        } else if let Some(&(_, flag, set)) = deep() {
            apply(&mut options.deep, flag, set, true);
        } else if let Some(change) = propagation(word) {
            options.propagation.push(change);
        } else {
            match word.as_str() {
                "bind" => options.bind = true,
                "rbind" => (options.bind, options.recursive) = (true, true),
                "defaults" | "silent" | "loud" | "" => {}
                "tmpcopyup" => options.copy_up = true,
                "async" | "nomand" | "nolazytime" => {}
                "idmap" => options.id_map = Some(Depth::Mount),
                "ridmap" => options.id_map = Some(Depth::Tree),
                "remount" | "iversion" | "noiversion" => {
                    let reason = format!("mount option {word:?} (of {what}) is not done yet");
                    return Err(Error::Refused { field: "mounts[].options".into(), reason });
                }
                _ => match word.strip_prefix(SUB_PATH) {
                    Some(path) => options.sub_path = Some(path.into()),
                    None => options.data.push(word.clone()),
                },
            }
        }
    }
    Ok(options)
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
    fn what_is_not_done_is_refused() {
        for word in ["remount", "iversion"] {
            assert!(parse(&[word.to_owned()], "/x").is_err());
        }
    }
}
