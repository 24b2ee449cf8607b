//! Memory that runs out is told while the container lives.

use coracle_tests::containerd::Containerd;
use coracle_tests::machine::until;

#[test]
fn a_kill_for_want_of_memory_is_told_while_the_container_runs_on() {
    let containerd = Containerd::new("");
    let events = containerd.events();
    // The shell lives on when its child is killed.
    let script = "dd if=/dev/zero of=/dev/null bs=64M count=1; exec sleep 1000";
    containerd.start(&["--memory-limit", "16777216"], "hungry", script);
    until("the news", || events.of("hungry").iter().any(|topic| topic == "/tasks/oom"));
    assert_eq!(containerd.task("hungry").unwrap().0, "RUNNING");
    containerd.ctr(&["tasks", "delete", "--force", "hungry"]);
    until("its end", || events.of("hungry").iter().any(|topic| topic == "/tasks/delete"));
    let told = events.of("hungry").iter().filter(|topic| *topic == "/tasks/oom").count();
    assert_eq!(told, 1, "{:?}", events.of("hungry"));
    containerd.assert_clean();
}
