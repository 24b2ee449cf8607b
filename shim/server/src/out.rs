//! What people read: tables with aligned columns, colour on a terminal only, sizes, and JSON for programs.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;

/// How a list is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns.
    #[default]
    Table,
    /// More columns.
    Wide,
    /// JSON.
    Json,
}

/// A colour of the terminal's own palette.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// As the terminal writes anyway.
    Plain,
    /// Well.
    Green,
    /// Worth a look.
    Yellow,
    /// Wrong.
    Red,
    /// Done, and no longer of interest.
    Dim,
}

impl Colour {
    fn code(self) -> &'static str {
        match self {
            Colour::Plain => "",
            Colour::Green => "\x1b[32m",
            Colour::Yellow => "\x1b[33m",
            Colour::Red => "\x1b[31m",
            Colour::Dim => "\x1b[2m",
        }
    }
}

/// Whether to colour what goes to this stream: a terminal, and the user did not ask otherwise (no-color.org).
pub fn colours(stream: &impl IsTerminal) -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    stream.is_terminal() && !no_color && !dumb
}

/// A cell of a table.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    colour: Colour,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Cell {
        Cell { text: text.into(), colour: Colour::Plain }
    }
}

impl Cell {
    /// A cell in a colour.
    pub fn coloured(text: impl Into<String>, colour: Colour) -> Cell {
        Cell { text: text.into(), colour }
    }
}

/// Rows beneath headings.
#[derive(Debug)]
pub struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
    widths: Vec<usize>,
}

/// Spaces between columns, as kubectl has them.
const GAP: usize = 3;

impl Table {
    /// A table with these columns.
    pub fn new(headings: impl IntoIterator<Item = &'static str>) -> Table {
        Table { headings: headings.into_iter().collect(), rows: Vec::new(), widths: Vec::new() }
    }

    /// Gives the first columns widths below which they do not shrink.
    pub fn at_least(&mut self, widths: impl IntoIterator<Item = usize>) {
        self.widths = widths.into_iter().collect();
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Writes it to standard output.
    pub fn print(&self) -> Result<()> {
        let colours = colours(&io::stdout());
        write(&self.render(colours))
    }

    /// Writes it without the headings, below others of the same columns.
    pub fn print_rows(&self) -> Result<()> {
        let text = self.render(colours(&io::stdout()));
        write(text.split_once('\n').map_or("", |(_, rows)| rows))
    }

    /// Writes it indented: as a part of a larger text.
    pub fn render_below(&self, indent: &str, colours: bool) -> String {
        self.render(colours).lines().map(|line| format!("{indent}{line}\n")).collect()
    }

    fn render(&self, colours: bool) -> String {
        let mut widths: Vec<usize> = self.headings.iter().map(|heading| heading.len()).collect();
        for (width, least) in widths.iter_mut().zip(&self.widths) {
            *width = (*width).max(*least);
        }
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        let mut out = String::new();
        let headings: Vec<Cell> = self.headings.iter().map(|heading| Cell::from(*heading)).collect();
        for row in std::iter::once(&headings).chain(&self.rows) {
            render_row(&mut out, row, &widths, colours);
        }
        out
    }
}

fn render_row(out: &mut String, row: &[Cell], widths: &[usize], colours: bool) {
    for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
        let colour = if colours { cell.colour.code() } else { "" };
        out.push_str(colour);
        out.push_str(&cell.text);
        if !colour.is_empty() {
            out.push_str("\x1b[0m");
        }
        if column + 1 < row.len() {
            out.extend(std::iter::repeat_n(' ', width - cell.text.chars().count() + GAP));
        }
    }
    out.push('\n');
}

/// Writes a line to standard output.
pub fn line(text: impl AsRef<str>) -> Result<()> {
    write(&format!("{}\n", text.as_ref()))
}

/// Clears the terminal: what follows is at its top.
pub fn clear() -> Result<()> {
    write("\x1b[H\x1b[2J")
}

/// Writes a value as JSON to standard output.
pub fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("write JSON")?;
    line(text)
}

/// Writes text to standard output. A reader that has gone (`coracle ps | head -1`) is not an error.
fn write(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("write to standard output"),
    }
}

/// A text of others (a container, a registry) on one line of the terminal, without what would command it.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A size in decimal units, as image tools write it.
pub fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes}B"),
        _ if value < 9.95 => format!("{value:.2}{}", units[unit]),
        _ if value < 99.95 => format!("{value:.1}{}", units[unit]),
        _ => format!("{value:.0}{}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_whatever_the_colour() {
        let mut table = Table::new(["NAME", "STATUS", "AGE"]);
        table.row(["web".into(), Cell::coloured("Running", Colour::Green), "5s".into()]);
        table.row(["größer".into(), "Failed".into(), "10m".into()]);
        assert_eq!(table.render(false), "NAME     STATUS    AGE\nweb      Running   5s\ngrößer   Failed    10m\n");
        assert!(table.render(true).contains("\x1b[32mRunning\x1b[0m   5s"));
    }

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [(0, "0B"), (999, "999B"), (1000, "1.00kB"), (4_321_000, "4.32MB"), (1 << 30, "1.07GB")] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(123_456_789), "123MB");
    }
}
