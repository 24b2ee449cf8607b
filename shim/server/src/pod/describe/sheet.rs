//! The text of `coracle describe`: keys and values, aligned within each part, and parts in parts.

/// How far a part is indented within another.
const INDENT: usize = 2;
/// Spaces between the longest key of a part and its value.
const GAP: usize = 2;

#[derive(Debug)]
struct Row {
    level: usize,
    key: String,
    value: Option<String>,
}

/// A text in the making.
#[derive(Debug, Default)]
pub struct Sheet(Vec<Row>);

impl Sheet {
    /// A key and its value.
    pub fn put(&mut self, level: usize, key: &str, value: impl Into<String>) {
        self.0.push(Row { level, key: format!("{key}:"), value: Some(value.into()) });
    }

    /// A key with several values, one beneath the other; `<none>` where there are none.
    pub fn list(&mut self, level: usize, key: &str, values: impl IntoIterator<Item = String>) {
        let mut key = format!("{key}:");
        for value in values {
            self.0.push(Row { level, key: std::mem::take(&mut key), value: Some(value) });
        }
        if !key.is_empty() {
            self.0.push(Row { level, key, value: Some("<none>".into()) });
        }
    }

    /// A key whose value is the part that follows.
    pub fn part(&mut self, level: usize, key: &str) {
        self.0.push(Row { level, key: format!("{key}:"), value: None });
    }

    /// A line without a key.
    pub fn line(&mut self, level: usize, text: impl Into<String>) {
        self.0.push(Row { level, key: text.into(), value: None });
    }

    /// The text.
    pub fn render(&self) -> String {
        let mut out = String::new();
        for (index, row) in self.0.iter().enumerate() {
            out.extend(std::iter::repeat_n(' ', row.level * INDENT));
            out.push_str(&row.key);
            if let Some(value) = &row.value {
                let width = self.width(index) + GAP;
                out.extend(std::iter::repeat_n(' ', width.saturating_sub(row.key.chars().count())));
                out.push_str(value);
            }
            out.truncate(out.trim_end_matches(' ').len());
            out.push('\n');
        }
        out
    }

    /// The longest key of the part that a row is in.
    fn width(&self, index: usize) -> usize {
        let level = self.0[index].level;
        let inside = |row: &&Row| row.level >= level;
        let before = self.0[..index].iter().rev().take_while(inside);
        let keys = before.chain(self.0[index..].iter().take_while(inside));
        keys.filter(|row| row.level == level && row.value.is_some())
            .map(|row| row.key.chars().count())
            .max()
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_aligned_within_their_part() {
        let mut sheet = Sheet::default();
        sheet.put(0, "Name", "web");
        sheet.list(0, "Labels", ["a=b".to_owned(), "c=d".to_owned()]);
        sheet.list(0, "Annotations", []);
        sheet.part(0, "Containers");
        sheet.part(1, "main");
        sheet.put(2, "Image", "x");
        sheet.put(2, "State", "Running");
        sheet.put(3, "Started", "now");
        sheet.put(2, "Restart Count", "0");
        let text = "\
Name:         web
Labels:       a=b
              c=d
Annotations:  <none>
Containers:
  main:
    Image:          x
    State:          Running
      Started:  now
    Restart Count:  0
";
        assert_eq!(sheet.render(), text);
    }
}
