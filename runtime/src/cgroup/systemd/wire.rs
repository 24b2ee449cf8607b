//! D-Bus on the wire, as far as talking to systemd needs it: values, messages, and both directions.
//!
//! A message is a header and a body. The header is `l` (little-endian), kind, flags, protocol version, the body's length,
//! a serial number and an array of fields (code and variant), padded to 8 bytes. A value stands at a multiple of its own
//! alignment, counted from the message's start; the body starts at a multiple of 8, so it can be counted from its own.
//! What is read came from another process: every length is checked against what there is.

/// The longest message read: systemd's answers to what we ask take some hundred bytes.
pub(super) const MAX_MESSAGE: usize = 1 << 20;
/// The part of the header whose length is always the same.
pub(super) const FIXED_HEADER: usize = 16;
/// Containers within containers that are read or parsed; D-Bus allows 64.
pub(super) const MAX_DEPTH: usize = 16;

/// A value of D-Bus.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Byte(u8),
    Bool(bool),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    Double(f64),
    Str(String),
    Path(String),
    Signature(String),
    /// The elements' signature, which an empty array does not show.
    Array(String, Vec<Value>),
    Struct(Vec<Value>),
    Variant(Box<Value>),
}

impl Value {
    pub fn str(text: impl Into<String>) -> Value {
        Value::Str(text.into())
    }

    /// The text of a string or an object path.
    pub fn text(&self) -> Option<&str> {
        match self {
            Value::Str(text) | Value::Path(text) => Some(text),
            _ => None,
        }
    }

    /// Its signature.
    pub fn signature(&self) -> String {
        let letter = match self {
            Value::Byte(_) => "y",
            Value::Bool(_) => "b",
            Value::I16(_) => "n",
            Value::U16(_) => "q",
            Value::I32(_) => "i",
            Value::U32(_) => "u",
            Value::I64(_) => "x",
            Value::U64(_) => "t",
            Value::Double(_) => "d",
            Value::Str(_) => "s",
            Value::Path(_) => "o",
            Value::Signature(_) => "g",
            Value::Variant(_) => "v",
            Value::Array(element, _) => return format!("a{element}"),
            Value::Struct(fields) => return format!("({})", signature_of(fields)),
        };
        letter.to_owned()
    }
}

/// The signatures of several values in a row.
pub(super) fn signature_of(values: &[Value]) -> String {
    values.iter().map(Value::signature).collect()
}

/// The first complete type of a signature, and the rest of it.
pub(super) fn first_type(signature: &str) -> Option<(&str, &str)> {
    let mut depth = 0usize;
    for (at, byte) in signature.bytes().enumerate() {
        match byte {
            b'a' => continue,
            b'(' | b'{' => depth += 1,
            b')' | b'}' => depth = depth.checked_sub(1)?,
            b'y' | b'b' | b'n' | b'q' | b'i' | b'u' | b'x' | b't' | b'd' | b's' | b'o' | b'g' | b'v' | b'h' => {}
            _ => return None,
        }
        if depth == 0 {
            return Some(signature.split_at(at + 1));
        }
    }
    None
}

fn alignment(signature: &str) -> usize {
    match signature.as_bytes().first() {
        Some(b'n' | b'q') => 2,
        Some(b'b' | b'i' | b'u' | b's' | b'o' | b'a' | b'h') => 4,
        Some(b'x' | b't' | b'd' | b'(' | b'{') => 8,
        _ => 1,
    }
}

fn pad(bytes: &mut Vec<u8>, alignment: usize) {
    bytes.resize(bytes.len().next_multiple_of(alignment), 0);
}

fn put(bytes: &mut Vec<u8>, value: &Value) {
    pad(bytes, alignment(&value.signature()));
    match value {
        Value::Byte(n) => bytes.push(*n),
        Value::Bool(b) => bytes.extend(u32::from(*b).to_le_bytes()),
        Value::I16(n) => bytes.extend(n.to_le_bytes()),
        Value::U16(n) => bytes.extend(n.to_le_bytes()),
        Value::I32(n) => bytes.extend(n.to_le_bytes()),
        Value::U32(n) => bytes.extend(n.to_le_bytes()),
        Value::I64(n) => bytes.extend(n.to_le_bytes()),
        Value::U64(n) => bytes.extend(n.to_le_bytes()),
        Value::Double(n) => bytes.extend(n.to_le_bytes()),
        Value::Str(text) | Value::Path(text) => {
            bytes.extend((text.len() as u32).to_le_bytes());
            bytes.extend(text.as_bytes());
            bytes.push(0);
        }
        Value::Signature(text) => put_signature(bytes, text),
        Value::Variant(inner) => {
            put_signature(bytes, &inner.signature());
            put(bytes, inner);
        }
        Value::Struct(fields) => fields.iter().for_each(|field| put(bytes, field)),
        Value::Array(element, values) => {
            let length_at = bytes.len();
            bytes.extend([0; 4]);
            // The padding before the first element does not count, but is there even when the array is empty.
            pad(bytes, alignment(element));
            let start = bytes.len();
            values.iter().for_each(|value| put(bytes, value));
            let length = (bytes.len() - start) as u32;
            bytes[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
        }
    }
}

fn put_signature(bytes: &mut Vec<u8>, text: &str) {
    bytes.push(text.len() as u8);
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Call = 1,
    Return = 2,
    Error = 3,
    Signal = 4,
}

/// One message; fields that it does not have are empty or 0.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Message {
    pub kind: Kind,
    pub serial: u32,
    pub reply_to: u32,
    pub path: String,
    pub interface: String,
    pub member: String,
    pub error: String,
    pub destination: String,
    pub body: Vec<Value>,
}

impl Message {
    pub fn new(kind: Kind, serial: u32) -> Message {
        let [path, interface, member, error, destination] = [const { String::new() }; 5];
        Message { kind, serial, reply_to: 0, path, interface, member, error, destination, body: Vec::new() }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        self.body.iter().for_each(|value| put(&mut body, value));
        let text =
            |code: u8, text: &String, make: fn(String) -> Value| (!text.is_empty()).then(|| (code, make(text.clone())));
        let fields = [
            text(1, &self.path, Value::Path),
            text(2, &self.interface, Value::Str),
            text(3, &self.member, Value::Str),
            text(4, &self.error, Value::Str),
            (self.reply_to != 0).then_some((5, Value::U32(self.reply_to))),
            text(6, &self.destination, Value::Str),
            text(8, &signature_of(&self.body), Value::Signature),
        ];
        let field = |(code, value)| Value::Struct(vec![Value::Byte(code), Value::Variant(Box::new(value))]);
        let fields = Value::Array("(yv)".to_owned(), fields.into_iter().flatten().map(field).collect());
        let mut bytes = vec![b'l', self.kind as u8, 0, 1];
        put(&mut bytes, &Value::U32(body.len() as u32));
        put(&mut bytes, &Value::U32(self.serial));
        put(&mut bytes, &fields);
        pad(&mut bytes, 8);
        bytes.extend(body);
        bytes
    }

    /// The length of the whole message that starts with these bytes; `None` if it cannot be one.
    pub fn length(fixed: &[u8; FIXED_HEADER]) -> Option<usize> {
        if fixed[0] != b'l' || fixed[3] != 1 {
            return None;
        }
        let mut reader = Reader { bytes: fixed, at: 4 };
        let (body, _serial, fields) = (reader.u32()? as usize, reader.u32()?, reader.u32()? as usize);
        let length = FIXED_HEADER.checked_add(fields)?.checked_next_multiple_of(8)?.checked_add(body)?;
        (length <= MAX_MESSAGE).then_some(length)
    }

    /// Reads a whole message. A signal's body that is not understood is no error: it was not asked for.
    pub fn decode(bytes: &[u8]) -> Option<Message> {
        let kind = match bytes.get(1)? {
            1 => Kind::Call,
            2 => Kind::Return,
            3 => Kind::Error,
            4 => Kind::Signal,
            _ => return None,
        };
        let mut reader = Reader { bytes, at: 8 };
        let mut message = Message::new(kind, reader.u32()?);
        let mut signature = String::new();
        let Value::Array(_, fields) = reader.value("a(yv)", 0)? else { return None };
        for field in fields {
            let Value::Struct(field) = field else { return None };
            let [Value::Byte(code), Value::Variant(value)] = &field[..] else { return None };
            match (code, &**value) {
                (1, Value::Path(text)) => message.path.clone_from(text),
                (2, Value::Str(text)) => message.interface.clone_from(text),
                (3, Value::Str(text)) => message.member.clone_from(text),
                (4, Value::Str(text)) => message.error.clone_from(text),
                (5, Value::U32(serial)) => message.reply_to = *serial,
                (6, Value::Str(text)) => message.destination.clone_from(text),
                (8, Value::Signature(text)) => signature.clone_from(text),
                _ => {}
            }
        }
        reader.align(8)?;
        let mut reader = Reader { bytes: bytes.get(reader.at..)?, at: 0 };
        let mut rest = signature.as_str();
        while !rest.is_empty() {
            let (first, more) = first_type(rest)?;
            match reader.value(first, 0) {
                Some(value) => message.body.push(value),
                None if kind == Kind::Signal => break,
                None => return None,
            }
            rest = more;
        }
        Some(message)
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, alignment: usize) -> Option<()> {
        self.at = self.at.checked_next_multiple_of(alignment)?;
        (self.at <= self.bytes.len()).then_some(())
    }

    fn take(&mut self, length: usize) -> Option<&[u8]> {
        let end = self.at.checked_add(length)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn number<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.align(N)?;
        self.take(N)?.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.number().map(u32::from_le_bytes)
    }

    fn text(&mut self, length: usize) -> Option<String> {
        let text = std::str::from_utf8(self.take(length)?).ok()?.to_owned();
        (self.take(1)? == [0]).then_some(text)
    }

    fn value(&mut self, signature: &str, depth: usize) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        Some(match signature.as_bytes().first()? {
            b'y' => Value::Byte(self.number::<1>()?[0]),
            b'b' => Value::Bool(self.u32()? != 0),
            b'n' => Value::I16(i16::from_le_bytes(self.number()?)),
            b'q' => Value::U16(u16::from_le_bytes(self.number()?)),
            b'i' => Value::I32(i32::from_le_bytes(self.number()?)),
            b'u' | b'h' => Value::U32(self.u32()?),
            b'x' => Value::I64(i64::from_le_bytes(self.number()?)),
            b't' => Value::U64(u64::from_le_bytes(self.number()?)),
            b'd' => Value::Double(f64::from_le_bytes(self.number()?)),
            kind @ (b's' | b'o') => {
                let length = self.u32()? as usize;
                let text = self.text(length)?;
                if *kind == b's' { Value::Str(text) } else { Value::Path(text) }
            }
            b'g' => Value::Signature(self.signature()?),
            b'v' => {
                let inner = self.signature()?;
                let (first, rest) = first_type(&inner)?;
                rest.is_empty().then_some(())?;
                Value::Variant(Box::new(self.value(first, depth + 1)?))
            }
            b'a' => self.array(&signature[1..], depth)?,
            _ => {
                self.align(8)?;
                let mut fields = Vec::new();
                let mut rest = &signature[1..signature.len() - 1];
                while !rest.is_empty() {
                    let (first, more) = first_type(rest)?;
                    fields.push(self.value(first, depth + 1)?);
                    rest = more;
                }
                Value::Struct(fields)
            }
        })
    }

    fn signature(&mut self) -> Option<String> {
        let length = usize::from(self.number::<1>()?[0]);
        self.text(length)
    }

    fn array(&mut self, element: &str, depth: usize) -> Option<Value> {
        let length = self.u32()? as usize;
        self.align(alignment(element))?;
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len())?;
        let mut values = Vec::new();
        while self.at < end {
            let before = self.at;
            values.push(self.value(element, depth + 1)?);
            // An element of no length (an empty struct) would never end.
            (self.at > before).then_some(())?;
        }
        (self.at == end).then(|| Value::Array(element.to_owned(), values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<u8>().prop_map(Value::Byte),
            any::<bool>().prop_map(Value::Bool),
            any::<i16>().prop_map(Value::I16),
            any::<u32>().prop_map(Value::U32),
            any::<u64>().prop_map(Value::U64),
            "[a-z/]{0,9}".prop_map(Value::Str),
            "(/[a-z]{1,3}){1,3}".prop_map(Value::Path),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 1..4).prop_map(Value::Struct),
                inner.clone().prop_map(|value| Value::Variant(Box::new(value))),
                (inner, 0usize..4).prop_map(|(value, n)| Value::Array(value.signature(), vec![value; n])),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(body in prop::collection::vec(any_value(), 0..4), serial in 1u32..) {
            let mut message = Message::new(Kind::Call, serial);
            message.member = "Member".to_owned();
            message.path = "/a/b".to_owned();
            message.body = body;
            let bytes = message.encode();
            prop_assert_eq!(Message::length(bytes[..16].try_into().unwrap()), Some(bytes.len()));
            prop_assert_eq!(Message::decode(&bytes), Some(message));
        }

        #[test]
        fn no_bytes_make_the_reader_fall_over(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::decode(&bytes);
        }

        #[test]
        fn no_damaged_message_makes_the_reader_fall_over(
            body in prop::collection::vec(any_value(), 1..4), at in any::<prop::sample::Index>(), byte in any::<u8>()
        ) {
            let mut message = Message::new(Kind::Return, 7);
            message.body = body;
            let mut bytes = message.encode();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = Message::decode(&bytes);
        }
    }

    /// The bytes as the specification's rules give them, laid out by hand.
    #[test]
    fn a_call_has_the_layout_of_the_specification() {
        let mut message = Message::new(Kind::Call, 2);
        message.path = "/o".to_owned();
        message.member = "M".to_owned();
        message.body = vec![Value::U64(5)];
        let expected: Vec<u8> = [
            &[b'l', 1, 0, 1, 8, 0, 0, 0, 2, 0, 0, 0, 39, 0, 0, 0][..],
            &[1, 1, b'o', 0, 2, 0, 0, 0, b'/', b'o', 0, 0, 0, 0, 0, 0],
            &[3, 1, b's', 0, 1, 0, 0, 0, b'M', 0, 0, 0, 0, 0, 0, 0],
            &[8, 1, b'g', 0, 1, b't', 0, 0],
            &[5, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(message.encode(), expected);
    }

    #[test]
    fn signatures_are_taken_apart_type_by_type() {
        assert_eq!(first_type("a(ss)u"), Some(("a(ss)", "u")));
        assert_eq!(first_type("aay"), Some(("aay", "")));
        for bad in ["", "(s", ")", "a", "z"] {
            assert_eq!(first_type(bad), None, "{bad}");
        }
    }

    #[test]
    fn messages_that_are_too_long_are_not_read() {
        let mut fixed = [0; FIXED_HEADER];
        (fixed[0], fixed[3]) = (b'l', 1);
        fixed[4..8].copy_from_slice(&(MAX_MESSAGE as u32).to_le_bytes());
        assert_eq!(Message::length(&fixed), None);
        fixed[0] = b'B';
        assert_eq!(Message::length(&fixed), None);
    }
}
