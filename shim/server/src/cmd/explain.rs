//! `coracle explain`: what is done with each field, from the tables that the parser itself reads by.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::exit::{self, Coded};
use crate::kube::documents::{KINDS, Known};
use crate::kube::fault::nearest;
use crate::kube::raw::{Fate, Field, Shape, Table};
use crate::out::{self, Cell, Colour, Format};

/// Tell what is done with each field of Kubernetes YAML
///
/// A field is done as Kubernetes does it, or has no effect on one machine, or is refused.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coracle explain                                 the kinds of documents
  coracle explain pod.spec.containers             a type and its fields
  coracle explain deployment.spec.template.spec   fields of other kinds
  coracle explain pod --recursive -o json         all of them")]
pub struct Explain {
    /// With the fields of fields
    #[arg(long)]
    recursive: bool,
    /// How it is told
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// A kind, and a path of fields in it
    #[arg(value_name = "KIND.FIELD...")]
    path: Option<String>,
}

/// A field, for programs and for tables.
#[derive(Debug, Serialize)]
struct Line {
    field: String,
    #[serde(rename = "type")]
    kind: String,
    status: &'static str,
    about: String,
}

impl Explain {
    /// Tells it.
    pub fn run(&self) -> Result<ExitCode> {
        match &self.path {
            None => self.kinds()?,
            Some(path) => self.path(path)?,
        }
        Ok(ExitCode::SUCCESS)
    }

    fn kinds(&self) -> Result<()> {
        let line = |known: &Known| Line {
            field: known.kind.to_owned(),
            kind: known.version.to_owned(),
            status: "done",
            about: known.table.about.trim().to_owned(),
        };
        print(&KINDS.iter().map(line).collect::<Vec<_>>(), self.output, ["KIND", "VERSION", "STATUS", "WHAT IT IS"])
    }

    fn path(&self, path: &str) -> Result<()> {
        let mut words = path.split('.');
        let kind = words.next().unwrap_or_default();
        let plain = kind.to_lowercase();
        let known = KINDS.iter().find(|known| {
            let name = known.kind.to_lowercase();
            name == plain || format!("{name}s") == plain
        });
        let Some(known) = known else {
            return Err(not_found(kind, "kind", KINDS.iter().map(|known| known.kind)));
        };
        let mut shape = Shape::Object(known.table);
        let mut told = (known.kind.to_owned(), known.table.about, Fate::Done);
        for word in words {
            // `containers[0]` is meant as `containers`.
            let word = word.split('[').next().unwrap_or(word);
            let Some(table) = shape.table() else {
                return Err(Coded::error(exit::NOT_FOUND, format!("explain {path}: {} has no fields", told.0)));
            };
            let Some(field) = table.field(word) else {
                return Err(not_found(word, "field", table.fields.iter().map(|field| field.key)));
            };
            shape = (field.shape)();
            told = (field.key.to_owned(), field.about, field.fate);
        }
        self.told(known, shape, told)
    }

    fn told(&self, known: &Known, shape: Shape, (name, about, fate): (String, &str, Fate)) -> Result<()> {
        let mut lines = Vec::new();
        if let Some(table) = shape.table() {
            self.fields(table, "", &mut vec![table.name], &mut lines);
        }
        if self.output == Format::Json {
            return out::json(&lines);
        }
        out::line(format!("KIND:    {} ({})", known.kind, known.version))?;
        if name != known.kind {
            out::line(format!("FIELD:   {name} <{}>", shape.describe()))?;
        }
        let (status, why) = status(fate);
        out::line(format!("STATUS:  {status}"))?;
        let about = if why.is_empty() { about.trim().to_owned() } else { format!("{name} {why}") };
        out::line(format!("WHAT:    {about}"))?;
        if lines.is_empty() {
            return Ok(());
        }
        out::line("")?;
        print(&lines, self.output, ["FIELD", "TYPE", "STATUS", "WHAT IT DOES"])
    }

    /// The fields of a type, and of their types; a type within itself is told once.
    fn fields(&self, table: &Table, prefix: &str, within: &mut Vec<&'static str>, out: &mut Vec<Line>) {
        for field in table.fields {
            out.push(line(field, prefix));
            let inner = (field.shape)().table().filter(|inner| !within.contains(&inner.name));
            let done = field.fate == Fate::Done;
            if let (true, true, Some(inner)) = (self.recursive, done, inner) {
                within.push(inner.name);
                self.fields(inner, &format!("{prefix}{}.", field.key), within, out);
                within.pop();
            }
        }
    }
}

fn line(field: &Field, prefix: &str) -> Line {
    let (status, why) = status(field.fate);
    Line {
        field: format!("{prefix}{}", field.key),
        kind: (field.shape)().describe(),
        status,
        about: if why.is_empty() { field.about.trim().to_owned() } else { why.to_owned() },
    }
}

fn status(fate: Fate) -> (&'static str, &'static str) {
    match fate {
        Fate::Done => ("done", ""),
        Fate::Idle(why) => ("no effect", why),
        Fate::Refused(why) => ("refused", why),
    }
}

fn not_found(word: &str, what: &str, known: impl Iterator<Item = &'static str> + Clone) -> anyhow::Error {
    let hint = match nearest(word, known.clone()) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("known are {}", known.collect::<Vec<_>>().join(", ")),
    };
    Coded::error(exit::NOT_FOUND, format!("explain: no {what} {word}: {hint}"))
}

fn print(lines: &[Line], format: Format, headings: [&'static str; 4]) -> Result<()> {
    if format == Format::Json {
        return out::json(&lines);
    }
    let mut table = out::Table::new(headings);
    for line in lines {
        let colour = match line.status {
            "done" => Colour::Green,
            "refused" => Colour::Red,
            _ => Colour::Dim,
        };
        let status = Cell::coloured(line.status, colour);
        table.row([line.field.clone().into(), line.kind.clone().into(), status, line.about.clone().into()]);
    }
    table.print()
}
