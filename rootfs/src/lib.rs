//! Placeholder head, replaced by the owner of this crate.
