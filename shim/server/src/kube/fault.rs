//! A fault in a YAML file: where, and what to do about it, on one line.

use std::fmt;

/// What is wrong with a file, and where: displayed as `web.yaml:12:7: spec.containers[0].image: ...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    file: String,
    line: usize,
    column: usize,
    text: String,
}

impl Fault {
    /// A fault at a line and column, both counted from 1.
    pub fn new(line: usize, column: usize, text: impl Into<String>) -> Fault {
        Fault { file: String::new(), line, column, text: text.into() }
    }

    /// The same fault, in the file of this name.
    pub fn in_file(mut self, file: &str) -> Fault {
        self.file = file.to_owned();
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.text)
    }
}

impl std::error::Error for Fault {}

/// The known word that a misspelt one most likely meant: within a third of its length, letter case aside.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (distance(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len().max(word.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Longest word whose edit distance is computed: a hostile key of a megabyte costs nothing.
const MAX_WORD: usize = 64;

/// Edits (insert, delete, replace, swap of neighbours) between two words.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(MAX_WORD).collect();
    let b: Vec<char> = b.chars().take(MAX_WORD).collect();
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_finds_the_word_it_meant() {
        let known = ["image", "imagePullPolicy", "name", "ports"];
        assert_eq!(nearest("imagee", known), Some("image"));
        assert_eq!(nearest("imagepullpolicy", known), Some("imagePullPolicy"));
        assert_eq!(nearest("prots", known), Some("ports"));
        assert_eq!(nearest("entirely", known), None);
    }
}
