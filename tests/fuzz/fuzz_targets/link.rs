//! Feeds what a guest, or a host, may send over the port: whole and in pieces both ways mean the same, nothing that waits is
//! more than was granted, and after any bytes a session can begin.
//!
//! The first byte says which end is fed and whether bytes are passed on as they come; the second how the rest is cut. Frames
//! in it need the session's seal, which therefore is always `SEAM`.
#![no_main]

use coracle_proto::link::{Event, Link, MAX_OUTPUT, MAX_STREAMS, Service, WINDOW};

/// The session's nonce, of which the seal is the end.
const NONCE: u128 = u128::from_be_bytes(*b"a nonce for SEAL");

fn feed(link: &mut Link, mut bytes: &[u8], mut each: impl FnMut(&mut Link, &Event)) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(event) = link.receive(&mut bytes) {
        each(link, &event);
        events.push(event);
    }
    assert!(bytes.is_empty(), "the link takes all");
    events
}

/// Each end with a session, the host with two streams.
fn session(nonce: u128) -> (Link, Link) {
    let (mut host, mut guest) = (Link::host(), Link::guest());
    host.restart(nonce);
    begin(&mut host, &mut guest);
    for service in [Service::Task, Service::Dial(80)] {
        host.open(service).expect("a stream");
    }
    (host, guest)
}

fn begin(host: &mut Link, guest: &mut Link) {
    for _ in 0..4 {
        let bytes = host.output().to_vec();
        host.sent(bytes.len());
        feed(guest, &bytes, |_, _| {});
        let bytes = guest.output().to_vec();
        guest.sent(bytes.len());
        feed(host, &bytes, |_, _| {});
    }
    assert!(host.is_up() && guest.is_up());
}

/// What a process does about an event.
fn act(link: &mut Link, event: &Event, passes_on: bool) {
    match *event {
        Event::Open(id, Service::Dial(_)) => link.refused(id, "no"),
        Event::Open(id, _) => link.opened(id),
        Event::Data(id) if passes_on => link.passed_on(id, link.waiting(id).len()),
        Event::Data(id) => assert!(link.waiting(id).len() <= WINDOW as usize),
        Event::Closed(id) => link.close(id),
        _ => {}
    }
    assert!(link.streams() <= MAX_STREAMS);
}

fn run(pieces: &[&[u8]], of_guest: bool, passes_on: bool) -> (Vec<Event>, Vec<u8>) {
    let (host, guest) = session(NONCE | 1);
    let (mut link, mut other) = if of_guest { (host, guest) } else { (guest, host) };
    let mut events = Vec::new();
    for piece in pieces {
        events.extend(feed(&mut link, piece, |link, event| act(link, event, passes_on)));
        assert!(link.output().len() <= MAX_OUTPUT + (1 << 20));
    }
    let said = link.output().to_vec();
    let (host, guest) = if of_guest { (&mut link, &mut other) } else { (&mut other, &mut link) };
    guest.sent(guest.output().len());
    host.restart(7);
    begin(host, guest);
    (events, said)
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [flags, size, bytes @ ..] = data else { return };
    let pieces: Vec<&[u8]> = bytes.chunks(usize::from(*size).max(1)).collect();
    let (of_guest, passes_on) = (flags & 1 == 0, flags & 2 == 0);
    assert_eq!(run(&pieces, of_guest, passes_on), run(&[bytes], of_guest, passes_on));
});
