//! The tables behind the types: each field's type and what is done with it. The parser reads by them, `coracle explain`
//! and `--dry-run` tell from them, so that what is told is what is done.

use super::*;

/// What a value looks like.
#[derive(Clone, Copy)]
pub enum Shape {
    /// A value of this type.
    Scalar(&'static str),
    /// A list of such.
    List(fn() -> Shape),
    /// A mapping of names to such.
    Map(fn() -> Shape),
    /// A mapping with these fields.
    Object(&'static Table),
    /// Anything.
    Any,
}

/// A type's fields.
pub struct Table {
    /// The type's name.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Its fields, in the order in which they are told.
    pub fields: &'static [Field],
}

/// A field.
pub struct Field {
    /// Its name.
    pub key: &'static str,
    /// What it does.
    pub about: &'static str,
    /// What its value looks like.
    pub shape: fn() -> Shape,
    /// What is done with it.
    pub fate: Fate,
}

/// What is done with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// What Kubernetes says.
    Done,
    /// Its type is checked; on one machine it has no effect, for this reason.
    Idle(&'static str),
    /// It is an error to use it, for this reason.
    Refused(&'static str),
}

impl Table {
    /// A field by its name.
    pub fn field(&self, key: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.key == key)
    }

    /// Why a field may not be used.
    pub fn refusal(&self, key: &str) -> Option<&'static str> {
        self.field(key).and_then(|field| match field.fate {
            Fate::Refused(why) => Some(why),
            Fate::Done | Fate::Idle(_) => None,
        })
    }
}

/// Any value.
#[derive(Debug, Clone)]
pub struct Anything;

impl Raw for Anything {
    fn read(_node: &Node, _place: &Place) -> Result<Self, Fault> {
        Ok(Anything)
    }

    fn shape() -> Shape {
        Shape::Any
    }
}

impl Shape {
    /// In a few words: `[]Container`, `map[string]string`.
    pub fn describe(self) -> String {
        match self {
            Shape::Scalar(name) => name.to_owned(),
            Shape::List(item) => format!("[]{}", item().describe()),
            Shape::Map(item) => format!("map[string]{}", item().describe()),
            Shape::Object(table) => table.name.to_owned(),
            Shape::Any => "any".to_owned(),
        }
    }

    /// The table of the mapping that this is, or that its items are.
    pub fn table(self) -> Option<&'static Table> {
        match self {
            Shape::Object(table) => Some(table),
            Shape::List(item) | Shape::Map(item) => item().table(),
            Shape::Scalar(_) | Shape::Any => None,
        }
    }
}
