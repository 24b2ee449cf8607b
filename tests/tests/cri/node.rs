//! The runtime as such: who it is, and whether it is ready.

use coracle_tests::cri::node;
use k8s_cri::v1;

#[test]
fn the_version_names_the_runtime_and_the_api() {
    node(async |node| {
        let answer = node.runtime().version(v1::VersionRequest { version: "v1".into() }).await.unwrap().into_inner();
        assert_eq!((answer.runtime_name.as_str(), answer.runtime_api_version.as_str()), ("coracle", "v1"));
        assert!(answer.runtime_version.starts_with(|c: char| c.is_ascii_digit()), "{answer:?}");
    });
}

#[test]
fn the_status_says_that_runtime_and_network_are_ready() {
    node(async |node| {
        let answer = node.runtime().status(v1::StatusRequest { verbose: true }).await.unwrap().into_inner();
        let conditions = answer.status.unwrap().conditions;
        for wanted in ["RuntimeReady", "NetworkReady"] {
            let condition = conditions.iter().find(|condition| condition.r#type == wanted);
            assert!(condition.is_some_and(|condition| condition.status), "{wanted}: {conditions:?}");
        }
        let handlers: Vec<_> = answer.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
        assert!(handlers.contains(&"") && handlers.contains(&"coracle"), "{handlers:?}");
    });
}
