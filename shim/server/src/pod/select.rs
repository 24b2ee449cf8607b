//! Label selectors, as `kubectl -l` takes them, and the pods that a command is about.
//!
//! `app=web,tier!=db,env in (a,b),env notin (c),key,!key`: all of it must hold.

use std::collections::BTreeMap;

use anyhow::Result;
use coracle_engine::{Engine, SandboxFilter};

use super::keep::Folder;
use crate::app::{self, Found};
use crate::exit::{self, Coded};

/// A selector.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    Is(String, Vec<String>),
    IsNot(String, Vec<String>),
    Has(String),
    HasNot(String),
}

impl std::str::FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Selector, String> {
        split(text)?.into_iter().map(requirement).collect::<Result<_, _>>().map(Selector)
    }
}

/// Splits at the commas outside of parentheses.
fn split(text: &str) -> Result<Vec<&str>, String> {
    let (mut parts, mut start, mut inside) = (Vec::new(), 0, false);
    for (index, c) in text.char_indices() {
        match c {
            '(' | ')' if inside == (c == '(') => return Err(format!("{text:?}: parentheses do not match")),
            '(' | ')' => inside = !inside,
            ',' if !inside => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err(format!("{text:?}: parentheses do not match"));
    }
    parts.push(&text[start..]);
    Ok(parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect())
}

fn requirement(text: &str) -> Result<Requirement, String> {
    let key = |key: &str| {
        let key = key.trim();
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        match !key.is_empty() && key.chars().all(fits) {
            true => Ok(key.to_owned()),
            false => {
                Err(format!("{text:?}: expected key=value, key!=value, key in (a,b), key notin (a,b), key or !key"))
            }
        }
    };
    let one = |value: &str| vec![value.trim().to_owned()];
    if let Some((rest, list)) = text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        let values = list.split(',').map(|value| value.trim().to_owned()).collect();
        return match rest.trim().rsplit_once(char::is_whitespace) {
            Some((name, "in")) => Ok(Requirement::Is(key(name)?, values)),
            Some((name, "notin")) => Ok(Requirement::IsNot(key(name)?, values)),
            _ => key("").map(Requirement::Has),
        };
    }
    if let Some((name, value)) = text.split_once("!=") {
        return Ok(Requirement::IsNot(key(name)?, one(value)));
    }
    if let Some((name, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Ok(Requirement::Is(key(name)?, one(value)));
    }
    match text.strip_prefix('!') {
        Some(name) => Ok(Requirement::HasNot(key(name)?)),
        None => Ok(Requirement::Has(key(text)?)),
    }
}

impl Selector {
    /// Whether labels fulfil it.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::Is(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Requirement::IsNot(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Requirement::Has(key) => labels.contains_key(key),
            Requirement::HasNot(key) => !labels.contains_key(key),
        })
    }
}

/// The pods of these names, or those that the selector takes; in the order of their names.
pub fn pods(engine: &Engine, names: &[String], selector: Option<&Selector>) -> Result<Vec<Found>> {
    match (names, selector) {
        ([], None) => Err(Coded::usage("name pods, or select them with -l")),
        ([], Some(selector)) => {
            let mut sandboxes = engine.list_sandboxes(&SandboxFilter::default())?;
            sandboxes.retain(|sandbox| selector.matches(&sandbox.config.labels));
            sandboxes.sort_by(|a, b| (&a.config.namespace, &a.config.name).cmp(&(&b.config.namespace, &b.config.name)));
            if sandboxes.is_empty() {
                return Err(Coded::error(exit::NOT_FOUND, "no pod has these labels"));
            }
            let found = |sandbox: coracle_engine::SandboxStatus| {
                let folder = Folder::of(engine.paths(), &sandbox.id);
                let kept = folder.read_pod()?;
                Ok(Found { sandbox: sandbox.id, folder, kept })
            };
            sandboxes.into_iter().map(found).collect()
        }
        (_, Some(_)) => Err(Coded::usage("names and -l exclude each other")),
        (names, None) => {
            names.iter().map(|name| app::find(engine, name.strip_prefix("pod/").unwrap_or(name))).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(selector: &str) -> bool {
        let labels = [("app", "web"), ("tier", "front"), ("a/b", "")];
        let labels = labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        selector.parse::<Selector>().unwrap().matches(&labels)
    }

    #[test]
    fn selectors_are_kubectls() {
        for holds in
            ["app=web", "app==web,tier", "tier in (back, front),app!=db", "!gone,gone!=x", "x notin (a,b)", "a/b=", ""]
        {
            assert!(matches(holds), "{holds}");
        }
        for fails in ["app=db", "!app", "gone", "app in (db)", "app notin (web,db)", "app=web,tier=back"] {
            assert!(!matches(fails), "{fails}");
        }
        for wrong in ["=web", "app in web)", "app in (web", "a b", "app of (web)", "((a)"] {
            assert!(wrong.parse::<Selector>().is_err(), "{wrong}");
        }
    }
}
