//! How events are counted: kubelet's correlator, as one pure change of a list.
//!
//! - The same event (type, field, reason, message) again is one event that happened more often.
//! - Of events that differ only in their field and message, the tenth within ten minutes and all that follow are one
//!   event, `(combined from similar events): ` with the latest message. One that is known already goes on being
//!   counted by itself.
//! - A list is bounded: the event that was not seen for the longest makes room.

use super::{Event, Type};
use crate::text::cut;
use crate::time::SECOND;

/// So many events that differ only in their message are told one by one.
const MAX_SIMILAR: usize = 10;
/// Events are similar as long as no more time than this passes between them.
const SIMILAR_FOR: i64 = 600 * SECOND;
/// Most events of a pod that are kept.
const MAX_EVENTS: usize = 256;
/// The longest message, in bytes: an API server's limit.
const MAX_MESSAGE: usize = 1024;
const COMBINED: &str = "(combined from similar events): ";

/// Something that happened.
pub struct Happened<'h> {
    pub kind: Type,
    pub field_path: String,
    pub reason: &'h str,
    pub message: &'h str,
    pub now: i64,
}

impl Happened<'_> {
    fn similar(&self, event: &Event) -> bool {
        event.kind == self.kind && event.reason == self.reason
    }

    fn same(&self, event: &Event, message: &str) -> bool {
        self.similar(event) && !event.combined && event.field_path == self.field_path && event.message == message
    }
}

/// Counts what happened in a list, which is in the order of the events' last change.
pub fn add(events: &mut Vec<Event>, happened: Happened<'_>) {
    let number = events.iter().map(|event| event.number).max().unwrap_or(0) + 1;
    let message = cut(happened.message, MAX_MESSAGE);
    let near = |event: &&Event| happened.similar(event) && event.last > happened.now - SIMILAR_FOR;
    let known = events.iter().position(|event| happened.same(event, message));
    let many = events.iter().filter(near).count() + 1 >= MAX_SIMILAR;
    let counted = match known {
        None if many => events.iter().position(|event| happened.similar(event) && event.combined),
        known => known,
    };
    let mut event = match counted {
        Some(index) => events.remove(index),
        None => happened.new_event(message, known.is_none() && many),
    };
    if event.combined {
        event.message = format!("{COMBINED}{}", cut(message, MAX_MESSAGE - COMBINED.len()));
        event.field_path = happened.field_path;
    }
    event.count = event.count.saturating_add(1);
    event.last = happened.now;
    event.number = number;
    if events.len() >= MAX_EVENTS {
        events.remove(0);
    }
    events.push(event);
}

impl Happened<'_> {
    fn new_event(&self, message: &str, combined: bool) -> Event {
        Event {
            number: 0,
            kind: self.kind,
            reason: self.reason.to_owned(),
            message: message.to_owned(),
            field_path: self.field_path.clone(),
            count: 0,
            first: self.now,
            last: self.now,
            combined,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at<'h>(message: &'h str, seconds: i64) -> Happened<'h> {
        Happened {
            kind: Type::Normal,
            field_path: String::new(),
            reason: "Pulled",
            message,
            now: (10_000 + seconds) * SECOND,
        }
    }

    fn messages(events: &[Event]) -> Vec<(&str, u32)> {
        events.iter().map(|event| (event.message.as_str(), event.count)).collect()
    }

    #[test]
    fn the_same_is_counted_and_moves_to_the_end() {
        let mut events = Vec::new();
        for (message, second) in [("a", 0), ("b", 1), ("a", 2)] {
            add(&mut events, at(message, second));
        }
        assert_eq!(messages(&events), [("b", 1), ("a", 2)]);
        assert_eq!((events[1].first, events[1].last), (10_000 * SECOND, 10_002 * SECOND));
        assert_eq!((events[0].number, events[1].number), (2, 3));
    }

    #[test]
    fn the_tenth_of_a_kind_and_all_after_it_are_combined() {
        let mut events = Vec::new();
        let texts: Vec<String> = (0..12).map(|n| format!("message {n}")).collect();
        for (second, text) in (0..).zip(&texts) {
            add(&mut events, at(text, second));
        }
        assert_eq!(events.len(), 10);
        assert_eq!(messages(&events)[9], ("(combined from similar events): message 11", 3));
        add(&mut events, at("message 3", 20));
        assert_eq!(messages(&events)[9], ("message 3", 2), "one that is known goes on by itself");
    }

    #[test]
    fn what_lies_far_apart_is_not_combined() {
        let mut events = Vec::new();
        let texts: Vec<String> = (0..12).map(|n| format!("message {n}")).collect();
        for (index, text) in (0..).zip(&texts) {
            add(&mut events, at(text, index * 601));
        }
        assert!(events.iter().all(|event| !event.combined));
    }

    #[test]
    fn lists_and_messages_are_bounded() {
        let mut events = Vec::new();
        let long = "ü".repeat(4000);
        for index in 0..1000i64 {
            let text = format!("{index}{long}");
            add(&mut events, at(&text, index * 601));
            assert!(events.len() <= MAX_EVENTS);
        }
        assert!(events.iter().all(|event| event.message.len() <= MAX_MESSAGE));
        assert!(events[MAX_EVENTS - 1].message.starts_with("999"));
    }
}
