//! The kernel's modules, where it has its drivers in such: `/modules/order` of the initial file system names the files
//! beside it, one a line, in the order of loading. A kernel that has all built in comes without.

use super::sys;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Where the modules are.
const FOLDER: &str = "/modules";
/// More are never needed for a guest's devices and file systems.
const MAX_MODULES: usize = 128;

/// Loads them all.
pub fn load() -> Result<()> {
    let folder = Path::new(FOLDER);
    let order = match fs::read_to_string(folder.join("order")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.context("read /modules/order")?,
    };
    for name in names(&order)? {
        let file = File::open(folder.join(name)).with_context(|| format!("open module {name}"))?;
        match sys::load_module(&file) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            loaded => loaded.with_context(|| format!("load module {name} (of another kernel?)"))?,
        }
    }
    Ok(())
}

/// The names in the order file.
fn names(order: &str) -> Result<Vec<&str>> {
    let names: Vec<&str> = order.lines().map(str::trim).filter(|name| !name.is_empty()).collect();
    anyhow::ensure!(names.len() <= MAX_MODULES, "/modules/order names {} modules, at most {MAX_MODULES}", names.len());
    let strange = names.iter().find(|name| name.contains('/') || name.starts_with('.'));
    anyhow::ensure!(strange.is_none(), "/modules/order: {strange:?} is not a file's name");
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_names_one_a_line() {
        assert_eq!(names("a.ko\n\n b.ko \n").unwrap(), ["a.ko", "b.ko"]);
        assert_eq!(names("").unwrap(), Vec::<&str>::new());
        assert!(names("../a.ko\n").is_err());
        assert!(names(&"a.ko\n".repeat(MAX_MODULES + 1)).is_err());
    }
}
