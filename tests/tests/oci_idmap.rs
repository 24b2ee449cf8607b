//! Idmapped mounts, and user namespaces beneath folders that are closed to their root. Debian's peers do neither: runc 1.1
//! ignores the maps, crun 1.8 refuses hybrid hosts.

mod oci_support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use oci_support::{Bundle, ours};
use serde_json::{Value, json};

/// Gives the last mount its maps.
fn map_last(bundle: &mut Bundle, uids: Option<Value>, gids: Option<Value>) {
    let at = bundle.config["mounts"].as_array().expect("mounts").len() - 1;
    for (name, maps) in [("uidMappings", uids), ("gidMappings", gids)] {
        if let Some(maps) = maps {
            bundle.set(&format!("/mounts/{at}/{name}"), maps);
        }
    }
}

fn maps(first: u32) -> Value {
    json!([{ "containerID": 0, "hostID": first, "size": 1000 }])
}

/// A container in a user namespace, on a root filesystem whose mount points are there already.
fn in_user_namespace(script: &str) -> Bundle {
    let mut bundle = Bundle::sh(script);
    bundle.namespace("user", Some(None));
    bundle.set("/linux/uidMappings", maps(100_000)).set("/linux/gidMappings", maps(100_000));
    ["plain", "mapped"].iter().for_each(|name| fs::create_dir(bundle.rootfs().join(name)).unwrap());
    bundle
}

/// A directory with a file of this owner.
fn owned(uid: u32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(dir.path().join("f"), "").unwrap();
    chown(dir.path().join("f"), Some(uid), Some(uid)).unwrap();
    dir
}

#[test]
fn a_mount_is_idmapped_by_its_own_maps() {
    if !ours() {
        return;
    }
    let volume = owned(7);
    let source = volume.path().to_str().unwrap();
    let mut bundle = Bundle::sh("stat -c %u:%g /plain/f /mapped/f; touch /mapped/new");
    bundle.mount("/plain", "bind", source, &["rbind"]).mount("/mapped", "bind", source, &["rbind", "idmap"]);
    map_last(&mut bundle, Some(maps(5000)), Some(maps(6000)));
    bundle.set("/process/user", json!({ "uid": 5003, "gid": 6004 }));
    assert_eq!(bundle.run().ok().out, "7:7\n5007:6007\n");
    assert_eq!(fs::metadata(volume.path().join("new")).unwrap().uid(), 3);
}

#[test]
fn idmap_alone_takes_the_containers_maps() {
    if !ours() {
        return;
    }
    let volume = owned(3);
    let source = volume.path().to_str().unwrap();
    let mut bundle = in_user_namespace("stat -c %u /plain/f /mapped/f; touch /mapped/new");
    bundle.mount("/plain", "bind", source, &["rbind"]).mount("/mapped", "bind", source, &["rbind", "idmap"]);
    assert_eq!(bundle.run().ok().out, "65534\n3\n");
    assert_eq!(fs::metadata(volume.path().join("new")).unwrap().uid(), 0);
}

#[test]
fn an_idmap_that_cannot_be_is_an_error_and_leaves_nothing() {
    if !ours() {
        return;
    }
    /// Type, source, options; which maps; words of the error.
    type Case = (&'static str, &'static str, &'static [&'static str], bool, bool, &'static str);
    let cases: [Case; 4] = [
        // No maps anywhere; half of them; a filesystem that knows none; a mount that is made new.
        ("bind", "/tmp", &["rbind", "idmap"], false, false, "idmap"),
        ("bind", "/tmp", &["rbind"], true, false, "map"),
        ("bind", "/proc", &["rbind", "idmap"], true, true, "map"),
        ("tmpfs", "tmpfs", &[], true, true, "map"),
    ];
    for (kind, source, options, uids, gids, words) in cases {
        let mut bundle = Bundle::new(&["/bin/true"]);
        bundle.mount("/x", kind, source, options);
        map_last(&mut bundle, uids.then(|| maps(100_000)), gids.then(|| maps(100_000)));
        bundle.create().fails(words);
        bundle.assert_gone();
    }
}

#[test]
fn a_user_namespace_needs_no_open_folder_above_the_root() {
    let bundle = in_user_namespace("id -u");
    fs::set_permissions(bundle.dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    if ours() {
        assert_eq!(bundle.run().ok().out, "0\n");
    }
}
