//! Who a container's process is: the image's user, the pod's overrides, and the image's own /etc/passwd and /etc/group.
//!
//! The rules are containerd's: a numeric user needs no entry, its group is then 0; a name needs one. The primary group
//! is always among the additional ones, so that dropping a group from the list cannot open a file that denies it.

use crate::error::{Error, Result};
use crate::spec::view::View;
use crate::types::Security;

/// /etc/passwd and /etc/group are read up to here.
const MAX_FILE: u64 = 1 << 20;
/// The longest list of groups the kernel takes (NGROUPS_MAX).
const MAX_GROUPS: usize = 65_536;

/// A resolved user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups, the primary one first.
    pub groups: Vec<u32>,
    /// Home folder.
    pub home: String,
}

/// A line of /etc/passwd.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Passwd {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

/// A line of /etc/group.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

fn parse_passwd(text: &str) -> Vec<Passwd> {
    let line = |line: &str| {
        let mut f = line.split(':');
        let (name, _, uid, gid) = (f.next()?, f.next()?, f.next()?.parse().ok()?, f.next()?.parse().ok()?);
        let home = f.nth(1).unwrap_or("").trim_end().to_owned();
        Some(Passwd { name: name.to_owned(), uid, gid, home })
    };
    text.lines().filter_map(line).collect()
}

fn parse_group(text: &str) -> Vec<Group> {
    let line = |line: &str| {
        let mut f = line.split(':');
        let (name, _, gid) = (f.next()?, f.next()?, f.next()?.parse().ok()?);
        let members = f.next().unwrap_or("").trim_end().split(',').filter(|m| !m.is_empty());
        Some(Group { name: name.to_owned(), gid, members: members.map(str::to_owned).collect() })
    };
    text.lines().filter_map(line).collect()
}

fn read(view: &View, path: &'static str) -> Result<String> {
    let bytes = view.read(path, MAX_FILE).map_err(Error::io("read in the image", path))?;
    Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
}

/// Resolves the user of a container whose image names `image_user` (`user[:group]`, each a name or a number).
pub fn resolve(view: &View, image_user: &str, security: &Security) -> Result<User> {
    let passwd = parse_passwd(&read(view, "/etc/passwd")?);
    let group = parse_group(&read(view, "/etc/group")?);
    resolve_in(&passwd, &group, image_user, security)
}

fn resolve_in(passwd: &[Passwd], group: &[Group], image_user: &str, security: &Security) -> Result<User> {
    let (image_user, image_group) = image_user.split_once(':').unwrap_or((image_user, ""));
    let overridden = security.run_as_user.is_some() || security.run_as_username.is_some();
    let (field, wanted) = match (security.run_as_user, &security.run_as_username) {
        (Some(uid), _) => ("run_as_user", uid.to_string()),
        (None, Some(name)) => ("run_as_username", name.clone()),
        (None, None) if image_user.is_empty() => ("image user", "0".to_owned()),
        (None, None) => ("image user", image_user.to_owned()),
    };
    let entry = match wanted.parse::<u32>() {
        Ok(uid) => passwd.iter().find(|p| p.uid == uid).cloned().unwrap_or(Passwd {
            name: String::new(),
            uid,
            gid: 0,
            home: "/".into(),
        }),
        Err(_) => passwd
            .iter()
            .find(|p| p.name == wanted)
            .cloned()
            .ok_or_else(|| Error::invalid(field, format!("the image's /etc/passwd has no user {wanted:?}")))?,
    };
    if security.require_non_root && entry.uid == 0 {
        return Err(Error::invalid(
            "runAsNonRoot",
            format!("the container would run as root ({field} {wanted}); set runAsUser or use another image"),
        ));
    }
    let gid = match (security.run_as_group, image_group) {
        (Some(gid), _) => gid,
        (None, name) if !name.is_empty() && !overridden => group_id(group, name)?,
        _ => entry.gid,
    };
    let mut groups = vec![gid];
    if !security.strict_groups && !entry.name.is_empty() {
        groups.extend(group.iter().filter(|g| g.members.contains(&entry.name)).map(|g| g.gid));
    }
    groups.extend(&security.supplemental_groups);
    let mut seen = std::collections::HashSet::new();
    groups.retain(|g| seen.insert(*g));
    groups.truncate(MAX_GROUPS);
    let home = if entry.home.is_empty() { "/".into() } else { entry.home };
    Ok(User { uid: entry.uid, gid, groups, home })
}

fn group_id(groups: &[Group], name: &str) -> Result<u32> {
    if let Ok(gid) = name.parse() {
        return Ok(gid);
    }
    let found = groups.iter().find(|g| g.name == name).map(|g| g.gid);
    found.ok_or_else(|| Error::invalid("image user", format!("the image's /etc/group has no group {name:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/false\n# broken\nx:y\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlog:x:40:web,other\nempty:x:41:\n";

    fn resolve(image_user: &str, security: Security) -> Result<User> {
        resolve_in(&parse_passwd(PASSWD), &parse_group(GROUP), image_user, &security)
    }

    fn ids(image_user: &str, security: Security) -> (u32, u32, Vec<u32>) {
        let u = resolve(image_user, security).unwrap();
        (u.uid, u.gid, u.groups)
    }

    #[test]
    fn the_images_user_is_a_name_or_a_number_with_or_without_a_group() {
        assert_eq!(ids("", Security::default()), (0, 0, vec![0]));
        assert_eq!(ids("web", Security::default()), (33, 34, vec![34, 40]));
        assert_eq!(ids("33", Security::default()), (33, 34, vec![34, 40]));
        assert_eq!(ids("web:log", Security::default()), (33, 40, vec![40]));
        assert_eq!(ids("77:88", Security::default()), (77, 88, vec![88]));
        assert_eq!(ids("77", Security::default()), (77, 0, vec![0]));
        assert_eq!(resolve("web", Security::default()).unwrap().home, "/srv");
    }

    #[test]
    fn the_pods_user_wins_and_drops_the_images_group() {
        let as_web = Security { run_as_user: Some(33), ..Default::default() };
        assert_eq!(ids("root:log", as_web), (33, 34, vec![34, 40]));
        let grouped = Security {
            run_as_user: Some(5),
            run_as_group: Some(6),
            supplemental_groups: vec![7, 6],
            ..Default::default()
        };
        assert_eq!(ids("", grouped), (5, 6, vec![6, 7]));
        let strict = Security { strict_groups: true, supplemental_groups: vec![9], ..Default::default() };
        assert_eq!(ids("web", strict), (33, 34, vec![34, 9]));
    }

    #[test]
    fn what_cannot_be_resolved_is_an_error_that_names_it() {
        let missing = resolve("nobody", Security::default()).unwrap_err().to_string();
        assert!(missing.contains("\"nobody\""), "{missing}");
        assert!(resolve("web:nogroup", Security::default()).unwrap_err().to_string().contains("\"nogroup\""));
        let root = resolve("", Security { require_non_root: true, ..Default::default() }).unwrap_err().to_string();
        assert!(root.contains("runAsNonRoot"), "{root}");
    }
}
