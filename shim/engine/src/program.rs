//! Programs by path or by name.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Whether a path is a file that somebody may execute.
pub fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// The program's path: as given, or for a bare name the first of PATH that can be run. An error says why there is none.
pub fn find_program(name: &Path) -> Result<PathBuf, String> {
    if name.components().count() == 1 && !name.is_absolute() {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| is_program(path));
        return found.ok_or_else(|| format!("program {} is not in PATH (is it installed?)", name.display()));
    }
    match fs::metadata(name) {
        Err(error) => Err(format!("program {}: {error} (is it installed?)", name.display())),
        Ok(_) if !is_program(name) => Err(format!("program {} cannot be executed", name.display())),
        Ok(_) => name.canonicalize().map_err(|error| format!("program {}: {error}", name.display())),
    }
}
