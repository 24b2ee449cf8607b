//! YAML documents as a tree in which each node knows its line and column.
//!
//! Plain scalars mean what they mean to `kubectl` (YAML 1.1 as Go's parser reads it: `yes` and `on` are booleans,
//! `0644` is octal), so a file that works there works here, and one that fails there fails here. Input may be
//! hostile: size, depth and the number of nodes after aliases are expanded are bounded ("billion laughs"), and a key
//! may stand only once in a mapping.

use std::collections::HashMap;
use std::mem;

use granit_parser::{Event, Options, Parser, ScalarStyle, Span, StrInput, Tag};

use super::Fault;

/// Largest file read, in bytes: etcd refuses objects over 1.5 MiB, and a file may hold a few.
pub const MAX_BYTES: usize = 8 << 20;
/// Deepest nesting: a Pod needs about 12.
const MAX_DEPTH: usize = 64;
/// Most nodes in a file, aliases expanded: a large pod has a few thousand.
const MAX_NODES: usize = 200_000;

/// A value and where it starts (both counted from 1).
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Line in the file.
    pub line: usize,
    /// Column in the line.
    pub column: usize,
    /// The value.
    pub kind: Kind,
}

/// The values of JSON, which are all that Kubernetes knows.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// Nothing: an absent field.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number, as it was written.
    Float(String),
    /// Text.
    Str(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the file.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// The text of it.
    pub name: String,
    /// Line in the file.
    pub line: usize,
    /// Column in the line.
    pub column: usize,
}

impl Kind {
    /// What this is, for "expected a list, found ...".
    pub fn describe(&self) -> String {
        match self {
            Kind::Null => "nothing".into(),
            Kind::Bool(value) => format!("the boolean {value}"),
            Kind::Int(value) => format!("the number {value}"),
            Kind::Float(text) => format!("the number {text}"),
            Kind::Str(text) => {
                let short: String = text.chars().take(40).collect();
                format!("the string {short:?}")
            }
            Kind::List(_) => "a list".into(),
            Kind::Map(_) => "a mapping".into(),
        }
    }

    /// Whether this says nothing: null, or an empty list or mapping.
    pub fn is_empty(&self) -> bool {
        match self {
            Kind::Null => true,
            Kind::List(items) => items.is_empty(),
            Kind::Map(entries) => entries.is_empty(),
            _ => false,
        }
    }
}

/// Parses all documents of a text; empty ones are left out.
pub fn documents(text: &str) -> Result<Vec<Node>, Fault> {
    if text.len() > MAX_BYTES {
        return Err(Fault::new(1, 1, format!("the file is larger than {} MiB", MAX_BYTES >> 20)));
    }
    let mut options = Options::default();
    options.flow_nesting_limit = MAX_DEPTH;
    options.block_nesting_limit = MAX_DEPTH;
    let mut builder =
        Builder { parser: Parser::new_from_str_with_options(text, options), nodes: 0, anchors: HashMap::new() };
    let mut documents = Vec::new();
    while let Some((event, span)) = builder.next()? {
        match event {
            Event::DocumentStart(..) => builder.anchors.clear(),
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            event => {
                let node = builder.node(event, span, 0)?;
                if node.kind != Kind::Null {
                    documents.push(node);
                }
            }
        }
    }
    Ok(documents)
}

struct Builder<'t> {
    parser: Parser<'t, StrInput<'t>>,
    nodes: usize,
    anchors: HashMap<usize, Node>,
}

impl<'t> Builder<'t> {
    fn next(&mut self) -> Result<Option<(Event<'t>, Span)>, Fault> {
        match self.parser.next_event() {
            None => Ok(None),
            Some(Ok((event, span))) => Ok(Some((event, span))),
            Some(Err(error)) => {
                let mark = error.marker();
                let text = error.info().replace('\n', " ");
                Err(Fault::new(mark.line(), mark.col() + 1, format!("not valid YAML: {text}")))
            }
        }
    }

    /// Builds the node that an event begins.
    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Result<Node, Fault> {
        let (line, column) = place(&span);
        if depth > MAX_DEPTH {
            return Err(Fault::new(line, column, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.count(1, line, column)?;
        let (anchor, kind) = match event {
            Event::Scalar(text, style, anchor, tag) => (anchor, scalar(&text, style, tag.as_deref(), line, column)?),
            Event::SequenceStart(_, anchor, _) => (anchor, Kind::List(self.list(depth)?)),
            Event::MappingStart(_, anchor, _) => (anchor, Kind::Map(self.map(depth)?)),
            Event::Alias(id) => {
                let Some(target) = self.anchors.get(&id).cloned() else {
                    return Err(Fault::new(line, column, "an alias must stand outside of what it names"));
                };
                self.count(size(&target), line, column)?;
                return Ok(Node { line, column, kind: target.kind });
            }
            _ => return Err(Fault::new(line, column, "not valid YAML: a value was expected here")),
        };
        let node = Node { line, column, kind };
        if anchor != 0 {
            // A remembered copy counts as much as the original: memory is bounded by MAX_NODES.
            self.count(size(&node), line, column)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn count(&mut self, nodes: usize, line: usize, column: usize) -> Result<(), Fault> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            return Err(Fault::new(line, column, format!("more than {MAX_NODES} values, aliases expanded")));
        }
        Ok(())
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, Fault> {
        let mut items = Vec::new();
        while let Some((event, span)) = self.next()? {
            if event == Event::SequenceEnd {
                break;
            }
            items.push(self.node(event, span, depth + 1)?);
        }
        Ok(items)
    }

    fn map(&mut self, depth: usize) -> Result<Vec<(Key, Node)>, Fault> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        let mut seen = HashMap::new();
        let mut merged = Vec::new();
        while let Some((event, span)) = self.next()? {
            if event == Event::MappingEnd {
                break;
            }
            let merge = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, ..) if text == "<<");
            let key = key(self.node(event, span, depth + 1)?)?;
            let Some((event, span)) = self.next()? else { break };
            let value = self.node(event, span, depth + 1)?;
            if merge {
                merged.push(value);
                continue;
            }
            if let Some(first) = seen.insert(key.name.clone(), key.line) {
                let text = format!("the key `{}` stands here twice: first on line {first}", key.name);
                return Err(Fault::new(key.line, key.column, text));
            }
            entries.push((key, value));
        }
        for value in merged {
            merge(&mut entries, value)?;
        }
        Ok(entries)
    }
}

/// Adds what `<<: *base` brings: the entries that the mapping does not have itself.
fn merge(entries: &mut Vec<(Key, Node)>, mut value: Node) -> Result<(), Fault> {
    let sources = match mem::replace(&mut value.kind, Kind::Null) {
        Kind::List(items) => items,
        kind => vec![Node { kind, ..value }],
    };
    for source in sources {
        let Kind::Map(more) = source.kind else {
            return Err(Fault::new(source.line, source.column, "`<<` merges a mapping, or a list of mappings"));
        };
        for (key, node) in more {
            if !entries.iter().any(|(own, _)| own.name == key.name) {
                entries.push((key, node));
            }
        }
    }
    Ok(())
}

fn key(node: Node) -> Result<Key, Fault> {
    let Node { line, column, kind } = node;
    let name = match kind {
        Kind::Str(name) => name,
        Kind::Bool(value) => value.to_string(),
        Kind::Int(value) => value.to_string(),
        Kind::Float(text) => text,
        kind => return Err(Fault::new(line, column, format!("a key must be a string, found {}", kind.describe()))),
    };
    Ok(Key { name, line, column })
}

fn size(node: &Node) -> usize {
    1 + match &node.kind {
        Kind::List(items) => items.iter().map(size).sum(),
        Kind::Map(entries) => entries.iter().map(|(_, value)| 1 + size(value)).sum(),
        _ => 0,
    }
}

fn place(span: &Span) -> (usize, usize) {
    (span.start.line(), span.start.col() + 1)
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>, line: usize, column: usize) -> Result<Kind, Fault> {
    match tag.map(|tag| (tag.core_suffix(), tag)) {
        Some((Some("str"), _)) => return Ok(Kind::Str(text.to_owned())),
        Some((Some(_), _)) => return Ok(plain(text)),
        Some((None, tag)) => {
            return Err(Fault::new(line, column, format!("the tag {} has no meaning in Kubernetes", tag.original())));
        }
        None => {}
    }
    Ok(match style {
        ScalarStyle::Plain => plain(text),
        _ => Kind::Str(text.to_owned()),
    })
}

/// What a plain scalar is, by the rules of Go's YAML parser, which `kubectl` uses.
fn plain(text: &str) -> Kind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Kind::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "y" | "Y" | "on" | "On" | "ON" => return Kind::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "n" | "N" | "off" | "Off" | "OFF" => {
            return Kind::Bool(false);
        }
        _ => {}
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return Kind::Str(text.to_owned());
    }
    match integer(text) {
        Some(value) => Kind::Int(value),
        None if is_float(text) => Kind::Float(text.to_owned()),
        None => Kind::Str(text.to_owned()),
    }
}

fn integer(text: &str) -> Option<i64> {
    let clean = text.replace('_', "");
    let (negative, digits) = match clean.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, clean.strip_prefix('+').unwrap_or(&clean)),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    if !digits.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return None;
    }
    let value = i128::from_str_radix(digits, radix).ok()?;
    i64::try_from(if negative { -value } else { value }).ok()
}

fn is_float(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let numeric = digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    numeric && digits.bytes().any(|b| b.is_ascii_digit()) && text.parse::<f64>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Kind {
        documents(text).unwrap().remove(0).kind
    }

    fn fault(text: &str) -> String {
        documents(text).unwrap_err().in_file("f").to_string()
    }

    #[test]
    fn plain_scalars_mean_what_they_mean_to_kubectl() {
        assert_eq!(one("yes"), Kind::Bool(true));
        assert_eq!(one("'yes'"), Kind::Str("yes".into()));
        assert_eq!(one("0644"), Kind::Int(420));
        assert_eq!(one("0x10"), Kind::Int(16));
        assert_eq!(one("-5"), Kind::Int(-5));
        assert_eq!(one("0.5"), Kind::Float("0.5".into()));
        assert_eq!(one("1e3"), Kind::Float("1e3".into()));
        assert_eq!(one("500m"), Kind::Str("500m".into()));
        assert_eq!(one("1.36.1"), Kind::Str("1.36.1".into()));
        assert_eq!(one("!!str 5"), Kind::Str("5".into()));
        assert_eq!(one("-"), Kind::List(vec![Node { line: 1, column: 2, kind: Kind::Null }]));
    }

    #[test]
    fn nodes_and_keys_know_their_place() {
        let documents = documents("a: 1\nb:\n  - c: x\n").unwrap();
        let Kind::Map(entries) = &documents[0].kind else { panic!() };
        assert_eq!((entries[1].0.line, entries[1].0.column), (2, 1));
        let Kind::List(items) = &entries[1].1.kind else { panic!() };
        let Kind::Map(inner) = &items[0].kind else { panic!() };
        assert_eq!((inner[0].0.line, inner[0].0.column), (3, 5));
        assert_eq!((inner[0].1.line, inner[0].1.column), (3, 8));
    }

    #[test]
    fn several_documents_are_several_trees_and_empty_ones_are_none() {
        assert_eq!(documents("---\na: 1\n---\n---\nb: 2\n").unwrap().len(), 2);
        assert_eq!(documents("").unwrap().len(), 0);
        assert_eq!(documents("# nothing\n").unwrap().len(), 0);
    }

    #[test]
    fn anchors_aliases_and_merges_work() {
        let text = "base: &b {x: 1, y: 2}\nuse: *b\nmore: {<<: *b, y: 3}\n";
        let Kind::Map(entries) = one(text) else { panic!() };
        assert_eq!(entries[0].1.kind, entries[1].1.kind);
        let Kind::Map(more) = &entries[2].1.kind else { panic!() };
        assert_eq!(more.len(), 2);
        assert_eq!(more[0].1.kind, Kind::Int(3));
    }

    #[test]
    fn malformed_text_is_told_with_line_and_column() {
        assert!(fault("a: 1\nb: [1, 2\nc: 3\n").starts_with("f:"));
        assert!(fault("a: 1\n  b: 2\n").starts_with("f:2:"));
        assert!(fault("a: b: c\n").contains("not valid YAML"));
        assert_eq!(fault("a: 1\na: 2\n"), "f:2:1: the key `a` stands here twice: first on line 1");
    }

    #[test]
    fn a_billion_laughs_is_refused_within_bounds() {
        let mut text = String::from("l0: &l0 [x,x,x,x,x,x,x,x,x,x]\n");
        for i in 1..12 {
            let p = i - 1;
            text += &format!("l{i}: &l{i} [*l{p},*l{p},*l{p},*l{p},*l{p},*l{p},*l{p},*l{p},*l{p},*l{p}]\n");
        }
        assert!(fault(&text).contains("aliases expanded"));
        assert!(fault(&"[".repeat(100_000)).starts_with("f:"));
    }
}
