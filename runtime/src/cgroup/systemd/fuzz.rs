//! What the fuzzer feeds: properties as words, and messages off the wire.

use super::{text, wire::Message};

/// A property's text is a value or an error; a message is one that is encoded again as it was understood.
pub fn parsers(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = text::parse(text);
    }
    let Some(message) = Message::decode(data) else { return };
    assert_eq!(Message::decode(&message.encode()), Some(message), "a message changes by being sent on");
}
