//! Logs, attach, terminals.

use crate::pod::{Pod, Wish, descriptors, until};
use coracle_proto::Empty;
use coracle_proto::coracle::ReopenLogRequest;
use coracle_proto::task::*;
use coracle_proto::ttrpc::{method, service};
use coracle_tests::ttrpc::Attach;
use nix::mount::{MsFlags, mount, umount};
use std::fs;
use std::io::{Read, Write};

#[test]
fn logs_are_in_cri_format_with_long_lines_cut_and_the_unfinished_marked() {
    let mut pod = Pod::new();
    pod.run("web", &["sh", "-c", "head -c 40000 /dev/zero | tr '\\0' x; echo; echo err >&2; echo -n rest"]);
    assert_eq!(pod.wait("web", ""), 0);
    let lines = pod.log_lines("web");
    let x = |count: usize| "x".repeat(count);
    let stdout: Vec<_> = lines.iter().filter(|line| line.starts_with("stdout")).cloned().collect();
    let expected = [
        format!("stdout P {}", x(16384)),
        format!("stdout P {}", x(16384)),
        format!("stdout F {}", x(40000 - 2 * 16384)),
        "stdout P rest".to_owned(),
    ];
    assert_eq!(stdout, expected);
    assert!(lines.contains(&"stderr F err".to_owned()));
    pod.shutdown();
}

#[test]
fn no_line_is_lost_or_out_of_order_however_fast_they_come() {
    let mut pod = Pod::new();
    pod.run("web", &["seq", "1", "200000"]);
    assert_eq!(pod.wait("web", ""), 0);
    let lines = pod.log_lines("web");
    assert_eq!(lines.len(), 200_000);
    for (at, line) in lines.iter().enumerate() {
        assert_eq!(*line, format!("stdout F {}", at + 1));
    }
    pod.shutdown();
}

#[test]
fn a_rotated_log_is_opened_again_on_request() {
    let mut pod = Pod::new();
    let wish = Wish { stdin: "attach:", ..Wish::default() };
    pod.run_with("web", &["cat"], &wish);
    let mut attach = pod.attach("web", true);
    attach.input(b"before\n");
    until("the first line is there", || pod.log_lines("web") == ["stdout F before"]);
    let old = pod.path("old.log");
    fs::rename(pod.log("web"), &old).unwrap();
    let request = ReopenLogRequest { id: "web".into() };
    pod.client.call::<Empty>(service::CONTROL, method::REOPEN_LOG, &request).unwrap();
    attach.input(b"after\n");
    until("the second line is there", || pod.log_lines("web") == ["stdout F after"]);
    assert!(fs::read_to_string(&old).unwrap().ends_with("stdout F before\n"));
    pod.shutdown();
}

#[test]
fn a_container_goes_on_when_its_log_has_no_space_and_the_log_tells_what_is_missing() {
    let mut pod = Pod::new();
    let small = pod.path("small");
    fs::create_dir(&small).unwrap();
    mount(Some("small"), &small, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
    let log = small.join("log");
    let wish = Wish { stdout: format!("cri:{}", log.display()), stdin: "attach:", ..Wish::default() };
    pod.run_with("web", &["sh", "-c", "seq 1 20000; echo done >&2; cat"], &wish);
    let mut attach = pod.attach("web", true);
    fn text(log: &std::path::Path) -> String {
        fs::read_to_string(log).unwrap()
    }
    until("the disk is full", || text(&log).len() > 60_000);
    // The container is not held up: it reaches its last command.
    attach.input(b"alive\n");
    let heard = attach.listen(|heard| heard.stdout.ends_with(b"alive\n"));
    assert!(!heard.stdout.is_empty());
    assert!(text(&log).ends_with('\n'), "a torn line");
    let file = fs::OpenOptions::new().write(true).open(&log).unwrap();
    file.set_len(0).unwrap();
    attach.input(b"space\n");
    until("the line after the gap is there", || text(&log).ends_with("stdout F space\n"));
    let note = text(&log).lines().next().unwrap().to_owned();
    assert!(note.contains("stderr F coracle: ") && note.contains("lines were lost here"), "{note}");
    pod.shutdown();
    drop((file, attach));
    umount(&small).unwrap();
}

#[test]
fn attach_clients_see_what_the_log_sees_and_feed_the_input() {
    let mut pod = Pod::new();
    let wish = Wish { stdin: "attach:once", ..Wish::default() };
    pod.create("web", &["sh", "-c", "cat; echo err >&2; exit 4"], &wish).unwrap();
    let (mut feeder, mut reader) = (pod.attach("web", true), pod.attach("web", false));
    pod.start("web", "").unwrap();
    feeder.input(b"one\n");
    feeder.input(b"two\n");
    feeder.end_input();
    for attach in [&mut feeder, &mut reader] {
        let heard = attach.listen_to_the_end();
        assert_eq!((heard.stdout.as_slice(), heard.stderr.as_slice()), (&b"one\ntwo\n"[..], &b"err\n"[..]));
        assert!(heard.ended);
    }
    assert_eq!(pod.wait("web", ""), 4);
    assert_eq!(pod.log_lines("web"), ["stdout F one", "stdout F two", "stderr F err"]);
    assert!(Attach::open(&pod.path("attach.sock"), "web", "", false).unwrap_err().contains("ended"));
    assert!(Attach::open(&pod.path("attach.sock"), "nobody", "", false).unwrap_err().contains("not found"));
    pod.shutdown();
}

#[test]
fn the_input_stays_open_when_a_client_leaves_unless_it_is_for_once() {
    let mut pod = Pod::new();
    pod.run_with("web", &["cat"], &Wish { stdin: "attach:", ..Wish::default() });
    let mut first = pod.attach("web", true);
    first.input(b"first\n");
    first.end_input();
    drop(first);
    until("the first line is there", || pod.log_lines("web").len() == 1);
    pod.attach("web", true).input(b"second\n");
    until("the second line is there", || pod.log_lines("web").len() == 2);

    pod.run_with("once", &["cat"], &Wish { stdin: "attach:once", ..Wish::default() });
    drop(pod.attach("once", true));
    assert_eq!(pod.wait("once", ""), 0);

    let close = CloseIoRequest { id: "web".into(), exec_id: String::new(), stdin: true };
    pod.task::<Empty>(method::CLOSE_IO, &close).unwrap();
    assert_eq!(pod.wait("web", ""), 0);
    pod.shutdown();
}

#[test]
fn a_client_that_does_not_read_holds_up_neither_the_container_nor_the_log() {
    let mut pod = Pod::new();
    pod.create("web", &["seq", "1", "400000"], &Wish::default()).unwrap();
    let mut lazy = pod.attach("web", false);
    pod.start("web", "").unwrap();
    assert_eq!(pod.wait("web", ""), 0);
    assert_eq!(pod.log_lines("web").len(), 400_000);
    // It was dropped: the connection ends without the end being announced.
    assert!(!lazy.listen_to_the_end().ended);
    pod.shutdown();
}

#[test]
fn an_exec_waits_for_its_slow_reader_and_nothing_is_lost() {
    let mut pod = Pod::new();
    pod.run("web", &["sleep", "1000"]);
    let mut attach = pod.exec("web", "big", &["seq", "1", "300000"], false);
    std::thread::sleep(std::time::Duration::from_millis(300));
    let heard = attach.listen_to_the_end();
    let expected: String = (1..=300_000).map(|number| format!("{number}\n")).collect();
    assert!(heard.ended && heard.stdout == expected.as_bytes(), "{} of {}", heard.stdout.len(), expected.len());
    assert_eq!(pod.wait("web", "big"), 0);
    pod.shutdown();
}

#[test]
fn what_waits_for_its_client_loses_nothing_whoever_comes_first() {
    let mut pod = Pod::new();
    let socket = pod.path("attach.sock");
    pod.run("web", &["sleep", "1000"]);
    let lines = ["sh", "-c", "echo out; echo err >&2"];

    let early = Attach::ask(&socket, "web", "first", true, true);
    // By then it is known that there is no such exec.
    pod.sandbox_status();
    pod.add_exec_with("attach:wait", "web", "first", &lines, false).unwrap();
    pod.start("web", "first").unwrap();
    let mut early = Attach::hear(early).unwrap();
    assert_eq!(pod.wait("web", "first"), 0);

    pod.add_exec_with("attach:wait", "web", "second", &lines, false).unwrap();
    pod.start("web", "second").unwrap();
    assert_eq!(pod.wait("web", "second"), 0);
    let mut late = Attach::hear(Attach::ask(&socket, "web", "second", true, true)).unwrap();

    for attach in [&mut early, &mut late] {
        let heard = attach.listen_to_the_end();
        assert_eq!((heard.stdout.as_slice(), heard.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
        assert!(heard.ended);
    }
    // Of one that has told everything, that is the answer; but nobody else's exec is waited for, nor one of nobody.
    let again = Attach::hear(Attach::ask(&socket, "web", "second", true, true)).unwrap().listen_to_the_end();
    assert!(again.ended && again.stdout.is_empty(), "{again:?}");
    for (container, exec, wait) in [("web", "none", false), ("nobody", "first", true), ("web", "third", true)] {
        let asked = Attach::ask(&socket, container, exec, true, wait);
        if exec == "third" {
            pod.sandbox_status();
            pod.kill("web", "", 9, false).unwrap();
            pod.wait("web", "");
            pod.delete("web", "").unwrap();
        }
        assert!(Attach::hear(asked).is_err(), "{container} {exec}");
    }
    pod.shutdown();
}

#[test]
fn a_client_that_leaves_before_its_exec_stands_in_nobodys_way() {
    let mut pod = Pod::new();
    let socket = pod.path("attach.sock");
    pod.run("web", &["sleep", "1000"]);
    let open = descriptors(pod.pid);
    // More than there may be at once.
    for _ in 0..300 {
        drop(Attach::ask(&socket, "web", "cat", true, true));
    }
    until("those that left are forgotten", || descriptors(pod.pid) == open);
    let mut asked = |exec: &str, clients: usize| {
        let client = Attach::ask(&socket, "web", exec, true, true);
        until("it is heard", || descriptors(pod.pid) == open + clients);
        pod.sandbox_status();
        client
    };
    let (stale, living) = (asked("cat", 1), asked("cat", 2));
    pod.add_exec_with("attach:wait", "web", "cat", &["cat"], false).unwrap();
    pod.start("web", "cat").unwrap();
    let mut living = Attach::hear(living).unwrap();
    assert_eq!(Attach::hear(stale).unwrap_err(), "attached already");

    // Who comes in its place learns what has passed, so far as it was heard.
    living.input(b"four");
    assert_eq!(living.listen(|heard| heard.stdout.len() == 4).stdout, b"four");
    living.stream.write_all(&[0, 0, 0, 0, 9, b'c', b'u', b't']).unwrap();
    drop(living);
    let mut next = Attach::hear(Attach::ask_again(&socket, "web", "cat")).unwrap();
    assert_eq!(next.passed, [4, 4, 0]);
    next.input(b" more");
    next.end_input();
    assert_eq!(next.listen_to_the_end().stdout, b" more");
    assert_eq!(pod.wait("web", "cat"), 0);
    // It is not waited for once more, nor is one whose container runs no more.
    pod.delete("web", "cat").unwrap();
    assert!(Attach::hear(Attach::ask_again(&socket, "web", "cat")).is_err());
    let late = Attach::ask(&socket, "web", "late", true, true);
    pod.sandbox_status();
    pod.kill("web", "", 9, false).unwrap();
    pod.wait("web", "");
    assert!(Attach::hear(late).is_err());
    pod.shutdown();
}

#[test]
fn input_of_an_exec_arrives_whole_and_its_end_too() {
    let mut pod = Pod::new();
    pod.run("web", &["sleep", "1000"]);
    pod.add_exec("web", "cat", &["sh", "-c", "sleep 0.2; cat"], false).unwrap();
    let mut attach = Attach::open(&pod.path("attach.sock"), "web", "cat", true).unwrap();
    // More than any buffer on the way, and before the process is even there.
    let input: Vec<u8> = (0..500_000u32).map(|at| at as u8).collect();
    let mut writer = attach.another_end();
    let sent = input.clone();
    let feeding = std::thread::spawn(move || {
        sent.chunks(50_000).for_each(|piece| writer.input(piece));
        writer.end_input();
    });
    pod.start("web", "cat").unwrap();
    let heard = attach.listen_to_the_end();
    feeding.join().unwrap();
    assert!(heard.stdout == input, "{} of {}", heard.stdout.len(), input.len());
    assert_eq!(pod.wait("web", "cat"), 0);
    pod.shutdown();
}

#[test]
fn an_exec_ends_when_its_process_does_even_if_a_child_keeps_its_output_open() {
    let mut pod = Pod::new();
    pod.run("web", &["sleep", "1000"]);
    let mut attach = pod.exec("web", "bg", &["sh", "-c", "sleep 1000 & echo started"], false);
    let heard = attach.listen_to_the_end();
    assert_eq!((heard.stdout.as_slice(), heard.ended), (&b"started\n"[..], true));
    assert_eq!(pod.wait("web", "bg"), 0);
    pod.shutdown();
}

#[test]
fn a_terminal_can_be_resized_and_typed_into() {
    let mut pod = Pod::new();
    pod.run("web", &["sleep", "1000"]);
    pod.add_exec("web", "tty", &["sh", "-c", "read x; stty size; read x; stty size; echo got $x"], true).unwrap();
    let mut attach = Attach::open(&pod.path("attach.sock"), "web", "tty", true).unwrap();
    let resize = |width, height| ResizePtyRequest { id: "web".into(), exec_id: "tty".into(), width, height };
    pod.task::<Empty>(method::RESIZE_PTY, &resize(100, 40)).unwrap();
    pod.start("web", "tty").unwrap();
    attach.input(b"\n");
    let mut text = attach.listen(|heard| contains(&heard.stdout, "40 100")).stdout;
    pod.task::<Empty>(method::RESIZE_PTY, &resize(132, 50)).unwrap();
    attach.input(b"word\n");
    text.extend(attach.listen_to_the_end().stdout);
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(text.contains("40 100") && text.contains("50 132") && text.contains("got word"), "{text}");
    assert_eq!(pod.wait("web", "tty"), 0);
    pod.shutdown();
}

fn contains(bytes: &[u8], text: &str) -> bool {
    String::from_utf8_lossy(bytes).contains(text)
}

#[test]
fn a_container_with_a_terminal_is_logged_and_attached_to() {
    let mut pod = Pod::new();
    let wish = Wish { terminal: true, stdin: "attach:", ..Wish::default() };
    pod.create("web", &["sh", "-c", "read x; echo got $x"], &wish).unwrap();
    let mut attach = pod.attach("web", true);
    pod.start("web", "").unwrap();
    attach.input(b"this\n");
    let heard = attach.listen_to_the_end();
    assert!(contains(&heard.stdout, "got this\r\n"), "{heard:?}");
    assert_eq!(pod.wait("web", ""), 0);
    assert!(pod.log_lines("web").contains(&"stdout F got this\r".to_owned()), "{:?}", pod.log_lines("web"));
    pod.shutdown();
}

#[test]
fn containerds_fifos_are_given_to_the_process() {
    let mut pod = Pod::new();
    let (input, output) = (pod.path("in"), pod.path("out"));
    for path in [&input, &output] {
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    let mut request = pod.request("web", &["cat"], &Wish::default());
    request.stdin = input.display().to_string();
    request.stdout = output.display().to_string();
    request.stderr = String::new();
    pod.task::<CreateTaskResponse>(method::CREATE, &request).unwrap();
    pod.start("web", "").unwrap();
    fs::write(&input, "through\n").unwrap();
    let mut reader = fs::File::open(&output).unwrap();
    let mut line = [0; 8];
    reader.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"through\n");
    // The supervisor holds the fifo until it is told to close it.
    let close = CloseIoRequest { id: "web".into(), exec_id: String::new(), stdin: true };
    pod.task::<Empty>(method::CLOSE_IO, &close).unwrap();
    assert_eq!(pod.wait("web", ""), 0);
    pod.shutdown();
}
