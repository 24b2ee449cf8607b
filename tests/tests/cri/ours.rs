//! Where our server goes its own way: containerd refuses a repeated call, and knows nothing of local pods.

use coracle_tests::cri::{LONG, node, script};
use tonic::Code;

#[test]
fn a_call_that_is_repeated_finds_what_the_first_one_made() {
    node(async |node| {
        let config = node.pod("web");
        let pod = node.run_pod(&config).await.unwrap();
        assert_eq!(node.run_pod(&config).await.unwrap(), pod);
        let container = node.create(&pod, &config, script("main", LONG)).await.unwrap();
        assert_eq!(node.create(&pod, &config, script("main", LONG)).await.unwrap(), container);
        for _ in 0..2 {
            node.start_container(&container).await.unwrap();
        }
        // Now it is another container's name.
        let again = node.create(&pod, &config, script("main", LONG)).await.unwrap_err();
        assert_eq!(again.code(), Code::AlreadyExists, "{again:?}");
        node.stop_pod(&pod).await.unwrap();
        let again = node.run_pod(&config).await.unwrap_err();
        assert_eq!(again.code(), Code::AlreadyExists, "{again:?}");
    });
}

#[test]
fn local_pods_are_none_of_a_cri_clients() {
    node(async |node| {
        let (pod, _) = node.launch_pod("web", LONG).await;
        let local = node.machine().script_pod("local", LONG, "");
        node.machine().ok(&["run", "-d", &local]);
        node.machine().learn_ids();
        assert_eq!(node.pods().await.into_iter().map(|pod| pod.id).collect::<Vec<_>>(), std::slice::from_ref(&pod));
        assert_eq!(node.containers().await.len(), 1);
        // Not even by its id, by which it could be ended.
        let id = node.machine().pods().into_iter().find(|id| *id != pod).unwrap();
        assert_eq!(node.pod_status(&id).await.unwrap_err().code(), Code::NotFound);
        node.remove_pod(&id).await.unwrap();
        assert!(node.machine().pods().contains(&id));
        node.machine().ok(&["rm", "-f", "local"]);
    });
}
