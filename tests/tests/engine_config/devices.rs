//! Devices: of the host by path, and of vendors by their CDI names.

use std::fs;

use coracle_engine::{Device, Engine, EngineConfig, IdMapping, SandboxConfig, UserNamespace};
use coracle_tests::rig::{Rig, rig, script};

use crate::{lines, refusal};

fn device(host: &str, to: &str, permissions: &str) -> Device {
    Device { host_path: host.into(), container_path: to.into(), permissions: permissions.into() }
}

#[test]
fn a_device_is_there_with_its_permissions_and_no_other_is() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        // kmsg is no device of every container's.
        let look = "test -c /dev/log0 && echo node; head -c 1 /dev/log0 > /dev/null && echo read; \
                    (echo x > /dev/log0) 2>/dev/null || echo no write; mknod /k c 1 11; (: < /k) && echo read again; \
                    mknod /p c 1 4; (: < /p) 2>/dev/null || echo no port";
        let mut config = script("look", look);
        config.devices = vec![device("/dev/kmsg", "/dev/log0", "r")];
        config.security.add_capabilities = vec!["SYSLOG".into()];
        let seen = lines(rig, &sandbox.id, config).await;
        assert_eq!(seen, ["node", "read", "no write", "read again", "no port"]);
        let (exit, _) = rig.run(&sandbox.id, script("without", "mknod /k c 1 11; : < /k")).await;
        assert_ne!(exit.code, 0, "not asked for");
    });
}

#[test]
fn a_device_of_another_name_is_found_in_a_user_namespace() {
    rig(async |rig| {
        let maps = vec![IdMapping { container_id: 0, host_id: 200_000, length: 65_536 }];
        let user_namespace = Some(UserNamespace { uids: maps.clone(), gids: maps });
        let sandbox = rig.engine.run_sandbox(SandboxConfig { user_namespace, ..rig.pod("web") }).await.unwrap();
        let mut config = script("look", "head -c 3 /dev/nought | wc -c; echo x > /dev/null && echo null");
        config.devices = vec![device("/dev/zero", "/dev/nought", "r")];
        assert_eq!(lines(rig, &sandbox.id, config).await, ["3", "null"]);
    });
}

#[test]
fn devices_that_cannot_be_are_refused_by_name() {
    rig(async |rig| {
        let sandbox = rig.engine.run_sandbox(rig.pod("web")).await.unwrap();
        for (device, words) in [
            (device("/dev/no-such", "/dev/x", "r"), "/dev/no-such"),
            (device("/etc/passwd", "/dev/x", "r"), "neither a device"),
            (device("/dev/zero", "/dev/x", "rq"), "\"rq\""),
        ] {
            let mut config = script("main", "");
            config.devices = vec![device];
            let error = refusal(rig, &sandbox.id, config).await;
            assert!(error.contains("device") && error.contains(words), "{error}");
        }
    });
}

/// The rig's engine with CDI folders of its own.
fn with_cdi(rig: &Rig) -> Engine {
    let folder = rig.dir.join("cdi");
    fs::create_dir_all(&folder).unwrap();
    let config = EngineConfig { cdi_dirs: vec![folder], ..rig.engine.config().clone() };
    Engine::open(rig.engine.paths().clone(), config).unwrap()
}

#[test]
fn a_cdi_device_brings_nodes_mounts_variables_groups_and_hooks() {
    rig(async |rig| {
        let engine = with_cdi(rig);
        let library = rig.dir.join("library");
        fs::create_dir(&library).unwrap();
        fs::write(library.join("x"), "library\n").unwrap();
        let hooked = rig.dir.join("hooked");
        let text = serde_json::json!({
            "cdiVersion": "0.6.0", "kind": "vendor.com/gpu", "containerEdits": { "env": ["GPU_ALL=1"] },
            "devices": [{ "name": "0", "containerEdits": {
                "env": ["GPU=0"], "additionalGids": [4711],
                "deviceNodes": [{ "path": "/dev/gpu0", "hostPath": "/dev/kmsg", "permissions": "r" }],
                "mounts": [{ "hostPath": library, "containerPath": "/gpu", "options": ["ro", "rbind"] }],
                "hooks": [{ "hookName": "createRuntime", "path": "/bin/touch", "args": ["touch", hooked] }],
            }}],
        });
        fs::write(rig.dir.join("cdi/gpu.json"), text.to_string()).unwrap();
        let sandbox = engine.run_sandbox(rig.pod("web")).await.unwrap();
        let look = "echo $GPU$GPU_ALL; head -c 1 /dev/gpu0 > /dev/null && echo read; cat /gpu/x; \
                    touch /gpu/y 2>/dev/null || echo readonly; id -G | grep -o 4711";
        let mut config = script("look", look);
        config.cdi_devices = vec!["vendor.com/gpu=0".into()];
        config.security.add_capabilities = vec!["SYSLOG".into()];
        let id = engine.create_container(&sandbox.id, config).await.unwrap();
        engine.start_container(&id).await.unwrap();
        engine.wait_container(&id).await.unwrap();
        assert_eq!(rig.log(&id), "01\nread\nlibrary\nreadonly\n4711\n");
        assert!(hooked.exists());

        let mut missing = script("missing", "");
        missing.cdi_devices = vec!["vendor.com/gpu=7".into()];
        let error = engine.create_container(&sandbox.id, missing).await.unwrap_err().to_string();
        assert!(error.contains("vendor.com/gpu=7") && error.contains("cdi"), "{error}");
    });
}
