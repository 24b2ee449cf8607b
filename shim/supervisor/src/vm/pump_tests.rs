//! Cases of `pump`: the guest is the other end of a socket pair.

use super::*;
use coracle_proto::attach::{Frame, encode};
use std::time::Instant;

struct Rig {
    reactor: Reactor,
    pumps: Pumps,
    key: u32,
    guest: UnixStream,
    stdin: Option<File>,
    stdout: Option<File>,
}

fn rig() -> Rig {
    let (ours, guest) = UnixStream::pair().unwrap();
    let pipe = || nix::unistd::pipe().map(|(reader, writer)| (reader, File::from(writer))).unwrap();
    let (stdin, feeder) = pipe();
    let (reader, stdout) = pipe();
    let (reactor, mut pumps) = (Reactor::new().unwrap(), Pumps::default());
    let ends = Ends { stream: ours, stdin: Some(stdin), outputs: [Some(stdout.into()), None] };
    let key = pumps.start(&reactor, ends).unwrap();
    guest.set_nonblocking(true).unwrap();
    Rig { reactor, pumps, key, guest, stdin: Some(feeder), stdout: Some(reader.into()) }
}

impl Rig {
    /// Turns of the loop until nothing more happens.
    fn turn(&mut self) {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let mut ready = Vec::new();
            self.reactor.wait(Some(Duration::from_millis(20)), &mut ready).unwrap();
            if ready.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "the loop spins: {ready:?}");
            ready.into_iter().for_each(|event| self.pumps.ready(&self.reactor, self.key, event));
        }
    }

    fn say(&mut self, kind: Kind, bytes: &[u8]) {
        let mut frame = Vec::new();
        encode(kind, bytes, &mut frame);
        self.guest.write_all(&frame).unwrap();
    }

    fn standing(&self) -> Standing {
        self.pumps.standing(self.key)
    }

    fn heard(&mut self) -> Vec<Frame> {
        let (mut bytes, mut frames, mut reader) = (Vec::new(), Vec::new(), FrameReader::new());
        let _ = self.guest.read_to_end(&mut bytes);
        let mut rest = bytes.as_slice();
        while let Some(frame) = reader.take(&mut rest).unwrap() {
            frames.push(frame);
        }
        frames
    }
}

#[test]
fn what_is_said_and_heard_passes_and_the_end_comes_last() {
    let mut rig = rig();
    rig.stdin.as_mut().unwrap().write_all(b"in").unwrap();
    rig.say(Kind::Stdout, b"out");
    rig.turn();
    rig.stdin = None;
    rig.turn();
    let frame = |payload: &[u8]| Frame { kind: Kind::Stdin, payload: payload.to_vec() };
    assert_eq!(rig.heard(), [frame(b"in"), frame(b"")]);
    assert_eq!(rig.standing(), Standing::Open);
    rig.say(Kind::Stderr, b"for nobody");
    rig.say(Kind::End, b"");
    rig.turn();
    assert_eq!(rig.standing(), Standing::Done);
    let mut text = String::new();
    rig.stdout.as_mut().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "out");
}

#[test]
fn a_slow_reader_makes_the_guest_wait_and_loses_nothing() {
    let mut rig = rig();
    let piece = vec![b'x'; 60_000];
    let mut frame = Vec::new();
    encode(Kind::Stdout, &piece, &mut frame);
    let (mut sent, mut at) = (0usize, 0);
    // As much as goes in.
    loop {
        match rig.guest.write(&frame[at..]) {
            Ok(count) => at += count,
            Err(_) => {
                let before = at;
                rig.turn();
                match rig.guest.write(&frame[at..]) {
                    Ok(count) => at += count,
                    Err(_) if before == at => break,
                    Err(_) => {}
                }
            }
        }
        if at == frame.len() {
            (sent, at) = (sent + piece.len(), 0);
        }
    }
    assert!((100_000..2_000_000).contains(&sent), "{sent}");
    let (mut out, rest) = (rig.stdout.take().unwrap(), frame[at..].to_vec());
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        out.read_to_end(&mut bytes).map(|_| bytes.len())
    });
    let mut guest = rig.guest.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        guest.set_nonblocking(false).unwrap();
        guest.write_all(&rest).unwrap();
        guest.write_all(&header(Kind::End, 0)).unwrap();
    });
    while rig.standing() != Standing::Done {
        rig.turn();
    }
    writer.join().unwrap();
    assert_eq!(reader.join().unwrap().unwrap(), sent + piece.len());
}

#[test]
fn a_reader_that_has_gone_is_told_to_the_guest() {
    let mut rig = rig();
    rig.stdout = None;
    rig.say(Kind::Stdout, b"x");
    rig.turn();
    assert_eq!(rig.standing(), Standing::Done);
    assert_eq!(rig.heard(), [Frame { kind: Kind::End, payload: Vec::new() }]);
}

#[test]
fn a_connection_that_breaks_is_made_again_and_goes_on() {
    let mut rig = rig();
    rig.say(Kind::Stdout, b"one ");
    rig.stdin.as_mut().unwrap().write_all(b"in").unwrap();
    // Cut in the middle of a frame.
    rig.guest.write_all(&[1, 0, 0, 0, 9, b'h', b'a']).unwrap();
    rig.turn();
    rig.stdin = None;
    rig.turn();
    let (ours, guest) = UnixStream::pair().unwrap();
    guest.set_nonblocking(true).unwrap();
    rig.guest = guest;
    rig.turn();
    assert_eq!(rig.standing(), Standing::Broken);
    // The frame that was cut, and what the guest has not heard.
    assert_eq!(rig.pumps.again(&rig.reactor, rig.key, ours, [0, 4 + 9, 0]), 9 + 2);
    rig.say(Kind::Stdout, b"more");
    rig.say(Kind::End, b"");
    rig.turn();
    assert_eq!(rig.heard(), [Frame { kind: Kind::Stdin, payload: Vec::new() }], "the end of the input, once more");
    let mut text = String::new();
    rig.stdout.as_mut().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), rig.standing()), ("one more", Standing::Done));
}

#[test]
fn nonsense_is_the_end() {
    for bytes in [&[9u8, 0, 0, 0, 0][..], &[1, 0xff, 0xff, 0xff, 0xff], &[0, 0, 0, 0, 0]] {
        let mut rig = rig();
        rig.guest.write_all(bytes).unwrap();
        rig.turn();
        assert_eq!(rig.standing(), Standing::Done, "{bytes:?}");
    }
}

#[test]
fn the_answer_to_the_first_line_is_read_and_nothing_behind_it() {
    let (ours, mut guest) = UnixStream::pair().unwrap();
    guest.write_all(b"{\"ok\":true,\"passed\":[1,2,3]}\n\x01").unwrap();
    assert_eq!(greet(&ours, "web", "", true).unwrap(), [1, 2, 3]);
    let mut byte = [0; 1];
    (&ours).read_exact(&mut byte).unwrap();
    assert_eq!(byte, [1]);
    let mut line = [0; 256];
    let count = guest.read(&mut line).unwrap();
    let hello: serde_json::Value = serde_json::from_slice(&line[..count]).unwrap();
    assert_eq!((&hello["container"], &hello["wait"], &hello["again"]), (&"web".into(), &true.into(), &true.into()));

    for (answer, part) in
        [(&b"{\"error\":\"attached\\nalready\"}\n"[..], "attached already"), (b"nonsense\n", "expected")]
    {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        guest.write_all(answer).unwrap();
        let failure = greet(&ours, "web", "x", true).unwrap_err();
        assert!(failure.message.contains(part), "{}", failure.message);
    }
    let (ours, mut guest) = UnixStream::pair().unwrap();
    guest.write_all(&[b'x'; MAX_HELLO + 1]).unwrap();
    assert!(greet(&ours, "web", "", false).unwrap_err().message.contains("too long"));
}

#[test]
fn a_terminals_words_are_for_one_stream_there_and_none_is_a_terminal_here() {
    let names = |terminal, stdin: &str, stdout: &str, stderr: &str| Names {
        terminal,
        stdin: stdin.into(),
        stdout: stdout.into(),
        stderr: stderr.into(),
    };
    assert_eq!(names_there(&names(false, "", "cri:/l", "/fifo")), ["", "attach:wait", "attach:wait"]);
    assert_eq!(names_there(&names(false, "attach:", "", "")), ["attach:once", "", ""]);
    assert_eq!(names_there(&names(true, "/in", "", "/err")), ["attach:once", "attach:wait", ""]);
    assert_eq!(names_here(&names(true, "/in", "/out", "/err")), names(false, "/in", "/out", ""));
}

#[test]
fn what_was_said_before_the_guest_took_no_more_is_still_heard() {
    let mut rig = rig();
    rig.say(Kind::Stdout, b"no such folder");
    rig.say(Kind::End, b"");
    // It has left with input unread, and more comes for it before anything of it was read.
    rig.guest.shutdown(std::net::Shutdown::Both).unwrap();
    rig.stdin.as_mut().unwrap().write_all(b"input for nobody").unwrap();
    let input = |token| Ready { token, read: true, write: false };
    rig.pumps.ready(&rig.reactor, rig.key, input(Token::PumpIn(rig.key)));
    assert_eq!(rig.standing(), Standing::Open);
    rig.turn();
    let mut text = String::new();
    rig.stdout.as_mut().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), rig.standing()), ("no such folder", Standing::Done));
}
