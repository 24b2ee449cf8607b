//! Messages that are written and read again, messages that lie, and anything at all.

use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn question(text: &str, kind: u16) -> Question {
    Question { name: name(text), kind, class: 1 }
}

fn asked(text: &str, kind: u16) -> Query {
    query(&encode_query(7, &question(text, kind), true)).unwrap()
}

fn addresses_of(text: &str, count: u32) -> Answer {
    let record = |n: u32| Record { name: name(text), ttl: 5, data: Data::A(Ipv4Addr::from(n)) };
    Answer { authoritative: true, answers: (0..count).map(record).collect(), ..Answer::code(Code::Ok) }
}

#[test]
fn a_query_is_read_as_it_was_written() {
    let query = asked("Web.default.svc.cluster.local", kind::A);
    assert_eq!((query.id, query.recursion, query.edns), (7, true, Some(MAX_UDP as u16)));
    assert_eq!(query.question.name.plain().unwrap()[0], "web");
    assert_eq!(format!("{:?}", query.question.name), "Web.default.svc.cluster.local.");
    assert!(query.question.same(&question("web.DEFAULT.svc.cluster.local.", kind::A)));
}

#[test]
fn names_have_their_limits() {
    assert!(Name::parse(&"a".repeat(63)).is_some() && Name::parse(&"a".repeat(64)).is_none());
    let long = vec!["a".repeat(63); 4].join(".");
    assert!(Name::parse(&long).is_none() && Name::parse(&long[..253]).is_some());
    assert!(Name::parse("a..b").is_none());
    assert_eq!(name("").labels().count(), 0);
    assert_eq!(name("a b.c").plain(), None);
}

#[test]
fn pointers_lead_backwards_only() {
    let head = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let with = |name: &[u8]| query(&[&head[..], name, &[0, 1, 0, 1]].concat());
    assert_eq!(with(&[0xc0, 0x0c]), Err(Wrong::Refuse(1, Code::FormErr)), "to itself");
    assert_eq!(with(&[0xc0, 0x0e]), Err(Wrong::Refuse(1, Code::FormErr)), "forwards");
    assert_eq!(with(&[1, b'a', 0xc0, 0x0c]), Err(Wrong::Refuse(1, Code::FormErr)), "in a circle");
    assert_eq!(with(&[0x80, 0]), Err(Wrong::Refuse(1, Code::FormErr)), "of no kind");
    // Into the head, whose bytes make a name: odd, and harmless.
    assert!(with(&[0xc0, 0x04]).is_ok());
}

#[test]
fn what_is_no_query_is_refused_or_passed_over() {
    assert_eq!(query(&[0; 11]), Err(Wrong::Silent));
    let mut message = encode_query(9, &question("a", kind::A), false);
    message[2] |= 0x80;
    assert_eq!(query(&message), Err(Wrong::Silent), "an answer is not answered");
    message[2] = 0x28;
    assert_eq!(query(&message), Err(Wrong::Refuse(9, Code::NotImp)), "an update");
    message[2] = 0;
    message[5] = 2;
    assert_eq!(query(&message), Err(Wrong::Refuse(9, Code::FormErr)), "two questions");
    let refusal = encode_refusal(9, Code::NotImp);
    assert_eq!((refusal.len(), &refusal[..4]), (HEADER, &[0, 9, 0x80, 4][..]));
}

#[test]
fn an_answer_that_does_not_fit_is_cut_and_says_so() {
    let query = asked("web", kind::A);
    let whole = encode(&query, &addresses_of("web", 10), MAX_UDP);
    assert!(!is_truncated(&whole));
    assert_eq!(addresses(&whole).unwrap().1.len(), 10);
    let cut = encode(&query, &addresses_of("web", 100), CLASSIC_UDP);
    assert!(is_truncated(&cut) && cut.len() <= CLASSIC_UDP);
    assert!(answers(&cut, 7, &query.question) && !answers(&cut, 8, &query.question));
    assert!(!answers(&cut, 7, &question("other", kind::A)));
    let found = addresses(&cut).unwrap().1.len();
    assert!((20..100).contains(&found), "{found} of 100");
}

#[test]
fn aliases_are_followed_through_compressed_names() {
    // The question db., an answer db. CNAME x.db. whose data is a label and a pointer, and x.db. A 10.0.0.1.
    let mut message = vec![0, 7, 0x81, 0x80, 0, 1, 0, 2, 0, 0, 0, 0, 2, b'd', b'b', 0, 0, 1, 0, 1];
    message.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 4, 1, b'x', 0xc0, 12]);
    message.extend([1, b'x', 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 0, 0, 1]);
    let (code, records) = addresses(&message).unwrap();
    assert_eq!(code, 0);
    assert_eq!(records[0].data, Data::Cname(name("x.db")));
    assert_eq!(records[1].data, Data::A(Ipv4Addr::new(10, 0, 0, 1)));
    assert!(records[1].name.same(&name("X.db")));
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_fall(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = addresses(&bytes);
        if let Ok(query) = query(&bytes) {
            let _ = answers(&bytes, query.id, &query.question);
            let written = encode(&query, &addresses_of("web.default.svc.cluster.local", 3), CLASSIC_UDP);
            prop_assert!(written.len() <= CLASSIC_UDP);
        }
    }

    #[test]
    fn a_changed_query_is_read_or_refused(flips in proptest::collection::vec((0usize..64, any::<u8>()), 0..6)) {
        let mut bytes = encode_query(7, &question("web.default.svc.cluster.local", kind::SRV), true);
        for (at, value) in flips {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        let _ = query(&bytes);
        let _ = addresses(&bytes);
    }

    #[test]
    fn names_are_read_as_they_were_written(labels in proptest::collection::vec("[a-zA-Z0-9_-]{1,63}", 0..8)) {
        if let Some(name) = Name::parse(&labels.join(".")) {
            let question = Question { name, kind: kind::A, class: 1 };
            let read = query(&encode_query(1, &question, false)).unwrap();
            prop_assert_eq!(&read.question, &question);
        } else {
            prop_assert!(labels.join(".").len() > 253);
        }
    }

    #[test]
    fn no_answer_passes_its_limit(count in 0u32..300, limit in 512usize..4096) {
        let query = asked("web.default.svc.cluster.local", kind::A);
        let written = encode(&query, &addresses_of("web.default.svc.cluster.local", count), limit);
        prop_assert!(written.len() <= limit);
        let (_, records) = addresses(&written).unwrap();
        prop_assert_eq!(is_truncated(&written), records.len() < (count as usize).min(256));
    }
}
