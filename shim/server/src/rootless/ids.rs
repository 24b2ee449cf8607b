//! Which ids an ordinary user has: his own, and what `/etc/subuid` and `/etc/subgid` give him.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::unistd::{Uid, User};
use serde::{Deserialize, Serialize};

use crate::exit::Coded;

/// Where ids are given, to users by name or number.
const SUBUID: &str = "/etc/subuid";
const SUBGID: &str = "/etc/subgid";
/// The kernel takes no more ranges.
const MAX_RANGES: usize = 340;

/// One line of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The first id inside.
    pub inside: u32,
    /// The first id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// A user's maps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// Of users.
    pub uids: Vec<Range>,
    /// Of groups.
    pub gids: Vec<Range>,
}

impl Ids {
    /// Those of a user, as the machine's files say now.
    pub fn of(uid: u32, gid: u32) -> Result<Ids> {
        let user = User::from_uid(Uid::from_raw(uid)).with_context(|| format!("look up user {uid}"))?;
        let name = user.map(|user| user.name).unwrap_or_default();
        let [uids, gids] = [(SUBUID, uid), (SUBGID, gid)].map(|(path, own)| {
            let text = fs::read_to_string(path).unwrap_or_default();
            map(own, &given(&text, &name, uid))
        });
        Ok(Ids { uids, gids })
    }

    /// Whether the user has but his own ids.
    pub fn single(&self) -> bool {
        self.uids.len() == 1 && self.gids.len() == 1
    }

    /// Whether every id that was mapped before still is the same.
    pub fn extend(&self, before: &Ids) -> bool {
        let all = |now: &[Range], before: &[Range]| {
            before.iter().all(|old| {
                now.iter().any(|new| new.inside == old.inside && new.outside == old.outside && new.count >= old.count)
            })
        };
        all(&self.uids, &before.uids) && all(&self.gids, &before.gids)
    }

    /// What is to be done when they are not.
    pub fn changed(&self, before: &Ids, root: &Path) -> anyhow::Error {
        let words = |ids: &Ids| format!("users {}, groups {}", text(&ids.uids), text(&ids.gids));
        Coded::usage(format!(
            "the files in {} were stored when this user had the ids {}, and now he has {}: their owners would change (put \
             the lines of {SUBUID} and {SUBGID} back, or use another --root)",
            root.display(),
            words(before),
            words(self)
        ))
    }
}

fn text(map: &[Range]) -> String {
    let range = |r: &Range| format!("{}:{}:{}", r.inside, r.outside, r.count);
    map.iter().map(range).collect::<Vec<_>>().join(",")
}

/// The first ids and counts that lines of a file give to a user.
fn given(text: &str, name: &str, uid: u32) -> Vec<(u32, u32)> {
    let line = |line: &str| {
        let mut parts = line.trim().split(':');
        let who = parts.next()?;
        let mut number = || parts.next()?.parse::<u32>().ok();
        let (first, count) = (number()?, number()?);
        let his = (!name.is_empty() && who == name) || who == uid.to_string();
        (his && count > 0).then_some((first, count))
    };
    text.lines().filter_map(line).take(MAX_RANGES - 1).collect()
}

/// The user is root, and what he was given follows.
fn map(own: u32, given: &[(u32, u32)]) -> Vec<Range> {
    let mut map = vec![Range { inside: 0, outside: own, count: 1 }];
    let mut inside = 1_u32;
    for (outside, count) in given {
        // Ids end where the numbers do.
        let Some(next) = inside.checked_add(*count) else { break };
        map.push(Range { inside, outside: *outside, count: *count });
        inside = next;
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_given_by_name_or_number() {
        let text = "alice:100000:65536\n1000:300000:10\nbob:1:1\nalice:bad\n#alice:5:5\nalice:7:0\n";
        assert_eq!(given(text, "alice", 1000), [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(given(text, "", 1000), [(300_000, 10)]);
        assert_eq!(given("", "alice", 1000), []);
    }

    #[test]
    fn the_user_is_root_and_the_rest_follows_without_gaps() {
        let map = map(1000, &[(100_000, 65_536), (300_000, 10)]);
        assert_eq!(text(&map), "0:1000:1,1:100000:65536,65537:300000:10");
    }

    #[test]
    fn more_ids_may_come_and_none_may_go() {
        let ids = |given: &[(u32, u32)]| Ids { uids: map(1000, given), gids: map(1000, given) };
        assert!(ids(&[(100_000, 65_536)]).extend(&ids(&[])));
        assert!(ids(&[(100_000, 65_536), (9, 9)]).extend(&ids(&[(100_000, 65_536)])));
        let (now, before) = (ids(&[(200_000, 65_536)]), ids(&[(100_000, 65_536)]));
        assert!(!now.extend(&before) && !ids(&[]).extend(&before));
        let told = now.changed(&before, Path::new("/data")).to_string();
        assert!(told.contains("1:100000:65536") && told.contains("1:200000:65536"), "{told}");
        assert!(ids(&[]).single() && !now.single());
    }
}
