//! The one list of what Kubernetes has, this program reads, and does not do yet. A line here makes the field an error
//! that names it; who makes it work deletes the line.

use super::Fault;
use super::raw::At;

/// What the error says after the field's path.
pub const WHY: &str = "is not honoured yet: remove it";

/// Fields, as `Type.field`.
const FIELDS: &[&str] = &[];

/// Values of fields that are done otherwise.
const VALUES: &[&str] = &[];

/// Whether this field of this type is not done yet.
pub fn field(table: &str, key: &str) -> bool {
    FIELDS.iter().any(|line| line.split_once('.') == Some((table, key)))
}

/// Refuses a value that is not done yet.
pub fn value<T>(name: &str, at: &At<T>) -> Result<(), Fault> {
    match VALUES.contains(&name) {
        true => Err(at.fault(format!("{} {WHY}", name.rsplit([' ', '.']).next().unwrap_or(name)))),
        false => Ok(()),
    }
}
