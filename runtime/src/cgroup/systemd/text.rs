//! Values of D-Bus as text: what the annotations `org.systemd.property.NAME` hold.
//!
//! The form is GVariant's, the part of it that properties of units use, as runc and crun read it:
//!
//! ```text
//! true   -5   uint64 90000000   'text'   "text"   ['a', 'b']   ('a', uint32 5)   @as []   <'variant'>
//! ```
//!
//! Numbers without a word are int32, or double with a point. All elements of an array are of one type.

use super::wire::{MAX_DEPTH, Value, first_type};

/// Reads a whole text; the error says what is wrong with it.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut parser = Parser { rest: text };
    let value = parser.value(None, 0)?;
    parser.skip_space();
    if parser.rest.is_empty() { Ok(value) } else { Err(format!("{:?} follows a complete value", parser.rest)) }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn eat(&mut self, token: char) -> bool {
        self.skip_space();
        let after = self.rest.strip_prefix(token);
        self.rest = after.unwrap_or(self.rest);
        after.is_some()
    }

    fn word(&mut self) -> &'a str {
        self.skip_space();
        let end = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || "+-._".contains(c)));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        word
    }

    fn value(&mut self, wanted: Option<&str>, depth: usize) -> Result<Value, String> {
        if depth > MAX_DEPTH {
            return Err("too many levels".to_owned());
        }
        self.skip_space();
        match self.rest.chars().next().ok_or("a value is missing")? {
            '@' => {
                self.rest = &self.rest[1..];
                let (signature, rest) = first_type(self.rest).ok_or("@ needs a type, as in @as []")?;
                self.rest = rest;
                self.value(Some(signature), depth + 1)
            }
            quote @ ('\'' | '"') => textual(self.quoted(quote)?, wanted),
            '[' => self.array(wanted, depth),
            '(' => self.tuple(wanted, depth),
            '<' => {
                self.eat('<');
                let inner = self.value(None, depth + 1)?;
                if self.eat('>') { Ok(Value::Variant(Box::new(inner))) } else { Err("> is missing".to_owned()) }
            }
            _ => {
                let word = self.word();
                match keyword(word) {
                    Some(signature) => self.value(Some(signature), depth + 1),
                    None => scalar(word, wanted),
                }
            }
        }
    }

    fn quoted(&mut self, quote: char) -> Result<String, String> {
        let mut text = String::new();
        let mut characters = self.rest.char_indices().skip(1);
        while let Some((at, character)) = characters.next() {
            match character {
                '\\' => match characters.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, 't')) => text.push('\t'),
                    Some((_, escaped @ ('\\' | '\'' | '"'))) => text.push(escaped),
                    _ => return Err("only \\n, \\t, \\\\, \\' and \\\" are known escapes".to_owned()),
                },
                end if end == quote => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(text);
                }
                other => text.push(other),
            }
        }
        Err("the closing quote is missing".to_owned())
    }

    fn array(&mut self, wanted: Option<&str>, depth: usize) -> Result<Value, String> {
        let mut element = match wanted {
            Some(signature) => Some(signature.strip_prefix('a').ok_or("an array is not of that type")?.to_owned()),
            None => None,
        };
        let mut values = Vec::new();
        self.eat('[');
        while !self.eat(']') {
            let value = self.value(element.as_deref(), depth + 1)?;
            let signature = value.signature();
            if *element.get_or_insert_with(|| signature.clone()) != signature {
                return Err("the elements of an array are of different types".to_owned());
            }
            values.push(value);
            if !self.eat(',') && !self.rest.starts_with(']') {
                return Err("] is missing".to_owned());
            }
        }
        let element = element.ok_or("an empty array needs a type, as in @as []")?;
        Ok(Value::Array(element, values))
    }

    fn tuple(&mut self, wanted: Option<&str>, depth: usize) -> Result<Value, String> {
        let mut types = match wanted {
            Some(signature) => Some(
                signature.strip_prefix('(').and_then(|s| s.strip_suffix(')')).ok_or("a tuple is not of that type")?,
            ),
            None => None,
        };
        let mut fields = Vec::new();
        self.eat('(');
        while !self.eat(')') {
            let wanted = match types {
                Some(rest) => {
                    let (first, more) = first_type(rest).ok_or("the tuple has more fields than its type")?;
                    types = Some(more);
                    Some(first)
                }
                None => None,
            };
            fields.push(self.value(wanted, depth + 1)?);
            if !self.eat(',') && !self.rest.starts_with(')') {
                return Err(") is missing".to_owned());
            }
        }
        if fields.is_empty() || types.is_some_and(|rest| !rest.is_empty()) {
            return Err("the tuple has too few fields".to_owned());
        }
        Ok(Value::Struct(fields))
    }
}

/// The words before a value that name its type.
fn keyword(word: &str) -> Option<&'static str> {
    Some(match word {
        "byte" => "y",
        "boolean" => "b",
        "int16" => "n",
        "uint16" => "q",
        "int32" => "i",
        "uint32" => "u",
        "int64" => "x",
        "uint64" => "t",
        "double" => "d",
        "string" => "s",
        "objectpath" => "o",
        "signature" => "g",
        _ => return None,
    })
}

fn textual(text: String, wanted: Option<&str>) -> Result<Value, String> {
    match wanted {
        None | Some("s") => Ok(Value::Str(text)),
        Some("o") => Ok(Value::Path(text)),
        Some("g") => Ok(Value::Signature(text)),
        Some(other) => Err(format!("a text is not of type {other}")),
    }
}

fn scalar(word: &str, wanted: Option<&str>) -> Result<Value, String> {
    let bad = |_| format!("{word:?} is not a value, or not within its type (texts need quotes)");
    let implied = match word {
        "true" | "false" => "b",
        number if number.contains('.') => "d",
        _ => "i",
    };
    fn number<T: TryFrom<i128>>(word: &str) -> Result<T, String> {
        let (sign, digits) = word.strip_prefix('-').map_or((1, word), |digits| (-1, digits));
        let value = match digits.strip_prefix("0x") {
            Some(hexadecimal) => i128::from_str_radix(hexadecimal, 16),
            None => digits.parse(),
        };
        value.ok().and_then(|n| T::try_from(sign * n).ok()).ok_or_else(String::new)
    }
    match wanted.unwrap_or(implied) {
        "b" => word.parse().map(Value::Bool).map_err(|e| bad(e.to_string())),
        "y" => number(word).map(Value::Byte).map_err(bad),
        "n" => number(word).map(Value::I16).map_err(bad),
        "q" => number(word).map(Value::U16).map_err(bad),
        "i" => number(word).map(Value::I32).map_err(bad),
        "u" => number(word).map(Value::U32).map_err(bad),
        "x" => number(word).map(Value::I64).map_err(bad),
        "t" => number(word).map(Value::U64).map_err(bad),
        "d" => word.parse().map(Value::Double).map_err(|e: std::num::ParseFloatError| bad(e.to_string())),
        other => Err(format!("{word:?} is not of type {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_with_and_without_their_types() {
        let cases = [
            ("true", Value::Bool(true)),
            (" -5 ", Value::I32(-5)),
            ("uint64 90000000", Value::U64(90_000_000)),
            ("byte 0xff", Value::Byte(255)),
            ("1.5", Value::Double(1.5)),
            ("'a \\'b\\''", Value::str("a 'b'")),
            ("\"inactive-or-failed\"", Value::str("inactive-or-failed")),
            ("@as []", Value::Array("s".into(), vec![])),
            ("['a', 'b']", Value::Array("s".into(), vec![Value::str("a"), Value::str("b")])),
            ("@au [1, 2]", Value::Array("u".into(), vec![Value::U32(1), Value::U32(2)])),
            ("[('/dev/null', 'rw')]", {
                let entry = Value::Struct(vec![Value::str("/dev/null"), Value::str("rw")]);
                Value::Array("(ss)".into(), vec![entry])
            }),
            ("(uint16 5, <true>)", Value::Struct(vec![Value::U16(5), Value::Variant(Box::new(Value::Bool(true)))])),
        ];
        for (text, value) in cases {
            assert_eq!(parse(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for text in
            ["", "text", "'open", "[1, 'a']", "[]", "byte 256", "1 2", "(1", "[1", "@q ['a']", "uint32 -1", "<1", "()"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse(&"[".repeat(100)).unwrap_err().contains("levels"));
    }
}
