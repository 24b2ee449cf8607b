//! Two links against each other, with their bytes cut and lost in every way, and each against nonsense.

use super::frame::{BadFrame, Body};
use super::*;
use proptest::prelude::*;

/// Moves the bytes that `from` has for `to`, at most `count`, in pieces of `piece`; returns what they meant.
fn carry(from: &mut Link, to: &mut Link, count: usize, piece: usize) -> Vec<Event> {
    let bytes = from.output()[..count.min(from.output().len())].to_vec();
    from.sent(bytes.len());
    bytes.chunks(piece.max(1)).flat_map(|piece| feed(to, piece)).collect()
}

fn feed(to: &mut Link, mut bytes: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(event) = to.receive(&mut bytes) {
        events.push(event);
    }
    assert!(bytes.is_empty(), "all is taken");
    events
}

/// Both ways, until nothing is on its way; what host and guest were told.
fn settle(host: &mut Link, guest: &mut Link) -> (Vec<Event>, Vec<Event>) {
    let mut told = (Vec::new(), Vec::new());
    while !(host.output().is_empty() && guest.output().is_empty()) {
        told.1.extend(carry(host, guest, usize::MAX, usize::MAX));
        told.0.extend(carry(guest, host, usize::MAX, usize::MAX));
    }
    told
}

fn session() -> (Link, Link) {
    let (mut host, mut guest) = (Link::host(), Link::guest());
    host.restart(0x1234_5678_9abc_def0_0fed_cba9_8765_4320);
    let told = settle(&mut host, &mut guest);
    assert_eq!(told, (vec![Event::Up], vec![Event::Up]));
    (host, guest)
}

/// A frame as this session's guest would send it.
fn sealed(host: &Link, stream: u32, body: Body<'_>) -> Vec<u8> {
    let Phase::Up(seal) = host.phase else { panic!("no session") };
    let mut bytes = Vec::new();
    body.encode(stream, seal, &mut bytes);
    bytes
}

/// A session with one stream that the guest has accepted.
fn stream() -> (Link, Link, u32) {
    let (mut host, mut guest) = session();
    let id = host.open(Service::Task).unwrap();
    assert_eq!(settle(&mut host, &mut guest).1, [Event::Open(id, Service::Task)]);
    guest.opened(id);
    assert_eq!(settle(&mut host, &mut guest).0, [Event::Opened(id)]);
    (host, guest, id)
}

#[test]
fn a_stream_ends_each_way_by_itself() {
    let (mut host, mut guest, id) = stream();
    assert_eq!(host.send(id, b"question"), 8);
    host.end(id);
    assert_eq!(settle(&mut host, &mut guest).1, [Event::Data(id), Event::Eof(id)]);
    assert_eq!(guest.waiting(id), b"question");
    guest.passed_on(id, 8);
    assert!(guest.peer_ended(id) && host.room(id) == 0);
    guest.send(id, b"answer");
    guest.end(id);
    assert_eq!(settle(&mut host, &mut guest).0, [Event::Data(id), Event::Eof(id)]);
    host.passed_on(id, 6);
    host.close(id);
    guest.close(id);
    assert!(host.output().is_empty() && guest.output().is_empty(), "both know: nothing has to be said");
    assert_eq!((host.streams(), guest.streams()), (0, 0));
}

#[test]
fn what_a_forgotten_stream_still_gets_is_nobodys() {
    let (mut host, mut guest, id) = stream();
    guest.send(id, b"on its way");
    host.close(id);
    let told = settle(&mut host, &mut guest);
    assert_eq!(told, (vec![], vec![Event::Closed(id)]));
    assert_eq!((guest.room(id), guest.send(id, b"more")), (0, 0));
    guest.close(id);
    assert!(guest.output().is_empty() && host.is_up());
}

#[test]
fn a_refusal_is_words_that_fit_a_line() {
    let (mut host, mut guest) = session();
    let id = host.open(Service::Dial(80)).unwrap();
    host.send(id, b"early");
    assert_eq!(settle(&mut host, &mut guest).1, [Event::Open(id, Service::Dial(80)), Event::Data(id)]);
    guest.refused(id, "no\n\x1b[31m\u{e4}");
    assert_eq!(settle(&mut host, &mut guest).0, [Event::Refused(id, "no??[31m??".into())]);
    assert_eq!((host.streams(), guest.streams()), (0, 0));
}

#[test]
fn a_slow_reader_stops_its_own_stream_alone() {
    let (mut host, mut guest, slow) = stream();
    let quick = host.open(Service::Attach).unwrap();
    let mut sent = 0;
    loop {
        let count = host.send(slow, &[1; MAX_PAYLOAD]);
        settle(&mut host, &mut guest);
        if count == 0 {
            break;
        }
        sent += count;
    }
    assert_eq!((sent, guest.waiting(slow).len()), (WINDOW as usize, WINDOW as usize));
    assert_eq!(host.send(quick, b"passes"), 6);
    settle(&mut host, &mut guest);
    assert_eq!(guest.waiting(quick), b"passes");
    guest.passed_on(slow, 1);
    settle(&mut host, &mut guest);
    assert_eq!(host.room(slow), 0, "granted in portions");
    guest.passed_on(slow, GRANT as usize);
    settle(&mut host, &mut guest);
    assert_eq!(host.room(slow), MAX_PAYLOAD);
}

#[test]
fn a_peer_that_does_not_read_makes_nobody_hold_more() {
    let (mut host, mut guest, id) = stream();
    while guest.send(id, &[0; MAX_PAYLOAD]) > 0 {}
    assert!(guest.output().len() < DATA_OUTPUT + MAX_FRAME);
    assert!(guest.room(id) == 0 && !guest.peer_ended(id));
    carry(&mut guest, &mut host, usize::MAX, 4096);
    while host.can_open() {
        host.open(Service::Task).unwrap();
    }
    assert!(host.output().len() <= DATA_OUTPUT + MAX_FRAME || host.streams() == MAX_STREAMS);
}

#[test]
fn a_thousand_streams_are_as_good_as_one_and_no_more_are_opened() {
    let (mut host, mut guest) = session();
    let mut ids = Vec::new();
    while let Some(id) = host.open(Service::Dial(1)) {
        ids.push(id);
        for event in settle(&mut host, &mut guest).1 {
            let Event::Open(id, Service::Dial(1)) = event else { panic!("{event:?}") };
            guest.opened(id);
        }
    }
    assert_eq!((ids.len(), guest.streams()), (MAX_STREAMS, MAX_STREAMS));
    settle(&mut host, &mut guest);
    for id in &ids {
        assert_eq!(guest.send(*id, &id.to_be_bytes()), 4);
        settle(&mut host, &mut guest);
    }
    assert!(ids.iter().all(|id| host.waiting(*id) == id.to_be_bytes()));
    let last = *ids.last().unwrap();
    let mut more = sealed(&host, last + 1, Body::Open(Service::Task));
    assert_eq!(feed(&mut guest, &more), [Event::Down(Breach::Streams)]);
    more = sealed(&host, 1, Body::Open(Service::Task));
    assert_eq!(feed(&mut host, &more), [Event::Down(Breach::Order(1))], "only the host opens");
}

#[test]
fn a_hostile_guest_loses_its_session() {
    let full = [7; MAX_PAYLOAD];
    let data = |count: usize| vec![Body::Data(&full); count];
    let cases: Vec<(Vec<Body<'_>>, Breach)> = vec![
        (data(WINDOW as usize / MAX_PAYLOAD + 1), Breach::Window(1)),
        (vec![Body::Window(1)], Breach::Grant(1)),
        (vec![Body::Window(u32::MAX)], Breach::Grant(1)),
        (vec![Body::Opened], Breach::Order(1)),
        (vec![Body::Refused(b"late")], Breach::Order(1)),
        (vec![Body::Eof, Body::Data(b"x")], Breach::Order(1)),
        (vec![Body::Eof, Body::Eof], Breach::Order(1)),
        (vec![Body::Close, Body::Data(b"x")], Breach::Order(1)),
        (vec![Body::Open(Service::Task)], Breach::Order(1)),
    ];
    for (frames, breach) in cases {
        let (mut host, _, id) = stream();
        let bytes: Vec<u8> = frames.iter().flat_map(|body| sealed(&host, id, *body)).collect();
        assert_eq!(feed(&mut host, &bytes).pop(), Some(Event::Down(breach)), "{frames:?}");
        assert!(host.is_idle() && host.streams() == 0 && host.output().is_empty());
        assert_eq!(feed(&mut host, &bytes), [], "until the next session it is not heard");
    }
    let (mut host, ..) = stream();
    let unknown = sealed(&host, 9, Body::Data(b"x"));
    assert_eq!(feed(&mut host, &unknown), [Event::Down(Breach::Order(9))]);
    let (mut host, _) = session();
    let id = host.open(Service::Dial(80)).unwrap();
    let early = sealed(&host, id, Body::Data(b"x"));
    assert_eq!(feed(&mut host, &early), [Event::Down(Breach::Order(id))], "data before the answer");
    let (mut host, ..) = stream();
    let bytes = [0, 0, 0, 1, 4, 0, 0xff, 0xff];
    assert_eq!(feed(&mut host, &bytes), [Event::Down(Breach::Frame(BadFrame::Header(4, 0xffff)))]);
}

#[test]
fn a_guest_that_reads_nothing_cannot_make_the_host_hold_more() {
    let (mut host, _, id) = stream();
    let bytes = sealed(&host, id, Body::Data(&[0; MAX_PAYLOAD]));
    let mut told = None;
    for _ in 0..1_000_000 {
        match feed(&mut host, &bytes).pop() {
            Some(Event::Data(id)) => host.passed_on(id, MAX_PAYLOAD),
            other => {
                told = other;
                break;
            }
        }
    }
    assert_eq!(told, Some(Event::Down(Breach::Output)));
}

#[test]
fn a_guest_that_never_answers_is_not_listened_to_for_ever() {
    let mut host = Link::host();
    host.restart(1);
    let noise = vec![b'c'; 64 << 10];
    let events: Vec<Event> = (0..32).flat_map(|_| feed(&mut host, &noise)).collect();
    assert_eq!(events, [Event::Down(Breach::NoAnswer)]);
}

#[test]
fn an_answer_to_an_earlier_beginning_is_no_answer() {
    let (mut host, mut guest) = (Link::host(), Link::guest());
    host.restart(10);
    carry(&mut host, &mut guest, usize::MAX, 100);
    host.restart(20);
    assert_eq!(carry(&mut guest, &mut host, usize::MAX, 7), []);
    let told = settle(&mut host, &mut guest);
    assert_eq!(told.0, [Event::Up]);
    assert_eq!(told.1, [Event::Down(Breach::Frame(BadFrame::Header(0, 0))), Event::Up]);
}

#[test]
fn a_guest_that_was_started_again_gets_a_session() {
    let (mut host, mut guest, id) = stream();
    host.send(id, b"for the guest that died");
    let mut other = Link::guest();
    carry(&mut host, &mut other, usize::MAX, usize::MAX);
    let told = carry(&mut other, &mut host, usize::MAX, usize::MAX);
    assert!(matches!(told[..], [Event::Down(Breach::Frame(_))]), "{told:?}");
    guest.lost();
    host.restart(99);
    assert_eq!(settle(&mut host, &mut other), (vec![Event::Up], vec![Event::Up]));
}

/// What a test does with a session.
#[derive(Debug, Clone)]
enum Act {
    Open,
    Send(bool, usize, u8, usize),
    Read(bool, usize, usize),
    End(bool, usize),
    Close(bool, usize),
    Carry(bool, usize, usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let one = prop_oneof![
        1 => Just(Act::Open),
        4 => (any::<bool>(), 0usize..8, any::<u8>(), 0usize..40_000).prop_map(|(h, s, b, n)| Act::Send(h, s, b, n)),
        4 => (any::<bool>(), 0usize..8, 0usize..60_000).prop_map(|(h, s, n)| Act::Read(h, s, n)),
        1 => (any::<bool>(), 0usize..8).prop_map(|(h, s)| Act::End(h, s)),
        1 => (any::<bool>(), 0usize..8).prop_map(|(h, s)| Act::Close(h, s)),
        6 => (any::<bool>(), 0usize..100_000, 1usize..20_000).prop_map(|(h, n, p)| Act::Carry(h, n, p)),
    ];
    prop::collection::vec(one, 1..120)
}

/// What was sent on each stream and what has arrived, by the side that sends.
#[derive(Default)]
struct Model {
    sent: BTreeMap<(bool, u32), Vec<u8>>,
    got: BTreeMap<(bool, u32), Vec<u8>>,
    ids: Vec<u32>,
}

impl Model {
    fn act(&mut self, act: &Act, host: &mut Link, guest: &mut Link) {
        let id = |place: usize| self.ids.get(place % self.ids.len().max(1)).copied().unwrap_or(1);
        match *act {
            Act::Open => self.ids.extend(host.open(Service::Attach)),
            Act::Send(from_host, place, byte, count) => {
                let (id, link) = (id(place), if from_host { host } else { guest });
                let taken = link.send(id, &vec![byte; count]);
                self.sent.entry((from_host, id)).or_default().extend(vec![byte; taken]);
            }
            Act::Read(at_host, place, count) => {
                let (id, link) = (id(place), if at_host { host } else { guest });
                let bytes = link.waiting(id);
                let bytes = bytes[..count.min(bytes.len())].to_vec();
                link.passed_on(id, bytes.len());
                self.got.entry((!at_host, id)).or_default().extend(bytes);
            }
            Act::End(at_host, place) => (if at_host { host } else { guest }).end(id(place)),
            Act::Close(at_host, place) => {
                let (id, link) = (id(place), if at_host { host } else { guest });
                // A guest has answered before it does anything else.
                if !at_host {
                    link.opened(id);
                }
                link.close(id);
            }
            Act::Carry(true, count, piece) => check(carry(host, guest, count, piece), guest),
            Act::Carry(false, count, piece) => check(carry(guest, host, count, piece), host),
        }
    }
}

fn check(events: Vec<Event>, at: &mut Link) {
    for event in events {
        match event {
            Event::Open(id, _) => at.opened(id),
            Event::Closed(id) => at.close(id),
            Event::Down(breach) => panic!("{breach}"),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn honest_ends_never_breach_and_bytes_arrive_in_order_and_once(acts in acts()) {
        let (mut host, mut guest) = session();
        let mut model = Model::default();
        for act in &acts {
            model.act(act, &mut host, &mut guest);
            for link in [&host, &guest] {
                prop_assert!(link.output().len() < MAX_OUTPUT);
                prop_assert!(model.ids.iter().all(|id| link.waiting(*id).len() <= WINDOW as usize));
            }
        }
        for (key, got) in &model.got {
            prop_assert!(model.sent.get(key).map_or(got.is_empty(), |sent| sent.starts_with(got)));
        }
    }

    /// A host dies in the middle of a frame and the guest does not notice: no byte of it is taken for data, and the next
    /// host gets its session.
    #[test]
    fn a_cut_frame_is_nobodys(size in 1usize..MAX_PAYLOAD, cut in 0usize..MAX_FRAME, piece in 1usize..5000) {
        let (mut host, mut guest, id) = stream();
        host.send(id, &vec![0; size]);
        let cut = cut % host.output().len();
        prop_assert_eq!(carry(&mut host, &mut guest, cut, piece), vec![]);
        let mut next = Link::host();
        next.restart(0xffff_ffff_ffff_ffff_ffff_ffff_0000_0000);
        let told = carry(&mut next, &mut guest, usize::MAX, piece);
        prop_assert!(matches!(told[..], [Event::Down(Breach::Frame(_)), Event::Up]), "{:?}", told);
        prop_assert_eq!(settle(&mut next, &mut guest), (vec![Event::Up], vec![]));
    }

    /// The same the other way: what the guest had begun to say to the last host, the next one drops.
    #[test]
    fn a_guests_cut_answer_is_dropped(size in 1usize..MAX_PAYLOAD, cut in 0usize..MAX_FRAME) {
        let (mut host, mut guest, id) = stream();
        guest.send(id, &vec![0; size]);
        let cut = cut % guest.output().len();
        let half = guest.output()[..cut].to_vec();
        guest.lost();
        host.lost();
        host.restart(7);
        prop_assert_eq!(feed(&mut host, &half), vec![]);
        prop_assert_eq!(settle(&mut host, &mut guest), (vec![Event::Up], vec![Event::Up]));
    }

    #[test]
    fn any_bytes_are_survived(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        kind in 0u8..9, stream in 0u32..3, length in 0u16..40, piece in 1usize..300,
    ) {
        let (mut host, mut guest, _) = self::stream();
        let mut lie = stream.to_be_bytes().to_vec();
        lie.extend([kind, 0]);
        lie.extend(length.to_be_bytes());
        lie.extend(&bytes);
        for link in [&mut host, &mut guest] {
            for piece in lie.chunks(piece) {
                feed(link, piece);
            }
        }
        host.restart(5);
        let told = settle(&mut host, &mut guest);
        prop_assert_eq!(told.0, vec![Event::Up]);
        prop_assert_eq!(told.1.last(), Some(&Event::Up));
    }
}
