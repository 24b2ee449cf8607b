//! Seccomp profiles through the front door of any OCI runtime. `OCI_RUNTIME=runc` runs the same against libseccomp.

use serde_json::{Value, json};

mod oci_support;
use oci_support::{Bundle, ours, peer};

fn filtered(script: &str, profile: Value) -> Bundle {
    let mut bundle = Bundle::sh(script);
    bundle.set("/linux/seccomp", profile);
    bundle
}

fn allow_but(rules: Value) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], "syscalls": rules})
}

#[test]
fn an_error_number_of_the_profile_reaches_the_program() {
    let rules = json!([{"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]);
    filtered("mkdir /tmp/x", allow_but(rules)).run().fails("No space left");
}

#[test]
fn an_error_without_a_number_is_eperm() {
    let rules = json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]);
    filtered("mkdir /tmp/x", allow_but(rules)).run().fails("not permitted");
}

#[test]
fn conditions_look_at_arguments() {
    let mode = |index| json!([{"index": index, "value": 0o777, "op": "SCMP_CMP_EQ"}]);
    let rules = json!([
        {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "args": mode(1)},
        {"names": ["fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO", "args": mode(2)},
    ]);
    let script = "chmod 700 /tmp || exit 9; chmod 777 /tmp && exit 8; exit 0";
    filtered(script, allow_but(rules)).run().ok();
}

#[test]
fn a_masked_condition_sees_through_other_bits() {
    let setuid = |index| json!([{"index": index, "value": 0o4000, "valueTwo": 0o4000, "op": "SCMP_CMP_MASKED_EQ"}]);
    let rules = json!([
        {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "args": setuid(1)},
        {"names": ["fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO", "args": setuid(2)},
    ]);
    let script = "touch /tmp/f; chmod 755 /tmp/f || exit 9; chmod 4755 /tmp/f && exit 8; exit 0";
    filtered(script, allow_but(rules)).run().ok();
}

#[test]
fn killing_actions_kill() {
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        let rules = json!([{"names": ["mkdir", "mkdirat"], "action": action}]);
        // 31 is SIGSYS.
        let answer = filtered("mkdir /tmp/x; [ $? = 159 ]", allow_but(rules)).run();
        assert_eq!(answer.code, 0, "{action}: {answer:?}");
    }
}

#[test]
fn the_filter_holds_for_exec_and_with_new_privileges() {
    for restricted in [true, false] {
        let rules = json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]);
        let mut bundle = filtered("sleep 1000", allow_but(rules));
        bundle.set("/process/noNewPrivileges", json!(restricted));
        bundle.create().ok();
        bundle.oci(&["start", &bundle.id]).ok();
        bundle.exec(&["/bin/mkdir", "/tmp/x"]).fails("not permitted");
        let status = bundle.exec(&["/bin/cat", "/proc/self/status"]).ok().out;
        assert!(status.contains("Seccomp:\t2"), "{status}");
    }
}

#[test]
fn flags_are_taken() {
    let mut profile = allow_but(json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]));
    profile["flags"] = json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]);
    let answer = filtered("mkdir /tmp/x", profile).run();
    // runc before 1.2 refuses flags.
    answer.fails(if ours() { "not permitted" } else { "" });
}

#[test]
fn the_built_in_profile_runs_programs_and_refuses_mounts() {
    let profile = serde_json::to_value(coracle_engine::seccomp_default::profile(&[])).expect("JSON");
    let script = "ls / > /dev/null && date > /tmp/d && cat /tmp/d | wc -l && sleep 0.01 || exit 9
        mount -t tmpfs none /tmp && exit 8; hostname other && exit 7; exit 0";
    let mut bundle = filtered(script, profile);
    for set in ["bounding", "effective", "permitted"] {
        bundle.set(&format!("/process/capabilities/{set}"), json!(["CAP_SYS_ADMIN"]));
    }
    let answer = bundle.run().ok();
    assert!(answer.err.contains("not permitted") || answer.err.contains("permission denied"), "{answer:?}");
}

#[test]
fn a_profile_that_cannot_be_is_refused_with_its_place() {
    if peer("crun") {
        return; // It loads both.
    }
    let notify = allow_but(json!([{"names": ["write"], "action": "SCMP_ACT_NOTIFY"}]));
    filtered("true", notify).run().fails("write");
    let argument = json!([{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 7, "value": 0, "op": "SCMP_CMP_EQ"}]}]);
    if ours() {
        filtered("true", allow_but(argument)).run().fails("linux.seccomp.syscalls[0].args");
    }
}
