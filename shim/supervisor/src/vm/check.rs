//! Kernel and modules against the digests of a manifest, `sha256sum`'s lines (`HEX  NAME`), by the files' names.
//!
//! A file that was digested is not read again as long as it is the same: the digest is kept in the folder for all
//! machines ([`COMMON`]) under the file's device, inode, size and time of change, which no program can set.

use crate::failure::{Fail, Failure};
use coracle_proto::coracle::VmOptions;
use coracle_proto::ttrpc::Code;
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What all machines of this host share: digests, the answer of the probe, initial root filesystems.
pub const COMMON: &str = "/run/coracle/vm";
/// The longest manifest.
const MAX_MANIFEST: u64 = 64 << 10;

/// Makes the folder that all machines share, for root alone.
pub fn common() -> Result<PathBuf, Failure> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(COMMON);
    made.map_err(|error| Code::Unknown.failure(format!("make {COMMON}: {error}")))?;
    Ok(PathBuf::from(COMMON))
}

/// Checks the kernel and the modules, if there is a manifest.
pub fn check(options: &VmOptions) -> Result<(), Failure> {
    if options.manifest.is_empty() {
        return Ok(());
    }
    let path = Path::new(&options.manifest);
    let read = || -> io::Result<String> {
        let mut text = String::new();
        File::open(path)?.take(MAX_MANIFEST).read_to_string(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(|error| failed(&format!("read manifest {}", path.display()), error))?;
    for file in [&options.kernel, &options.modules].into_iter().filter(|file| !file.is_empty()) {
        let file = Path::new(file);
        let Some(expected) = listed(&text, file) else {
            let text = format!("{} is not in manifest {}", file.display(), path.display());
            return Err(Code::FailedPrecondition.failure(text));
        };
        let actual = digest(file)?;
        if actual != expected {
            let text =
                format!("{} has digest {actual}, and manifest {} has {expected}", file.display(), path.display());
            return Err(Code::FailedPrecondition.failure(text));
        }
    }
    Ok(())
}

fn listed(manifest: &str, file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let lines = manifest.lines().filter_map(|line| line.split_once(char::is_whitespace));
    let by_name = |(_, listed): &(&str, &str)| {
        Path::new(listed.trim_start_matches([' ', '*'])).file_name().is_some_and(|n| n == name)
    };
    lines.filter(by_name).map(|(digest, _)| digest.to_ascii_lowercase()).next()
}

/// A name for a file as it is now.
pub fn identity(file: &Path) -> Result<String, Failure> {
    let meta = fs::metadata(file).map_err(|error| failed(&format!("look at {}", file.display()), error))?;
    Ok(format!("{:x}-{:x}-{:x}-{:x}.{:x}", meta.dev(), meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec()))
}

/// A file's SHA-256 in hexadecimal.
pub fn digest(file: &Path) -> Result<String, Failure> {
    let known = common()?.join(format!("sha256-{}", identity(file)?));
    if let Ok(digest) = fs::read_to_string(&known) {
        return Ok(digest);
    }
    let mut hash = Sha256::new();
    let what = || format!("read {}", file.display());
    let mut open = File::open(file).map_err(|error| failed(&what(), error))?;
    let mut chunk = vec![0; 1 << 20];
    loop {
        match open.read(&mut chunk).map_err(|error| failed(&what(), error))? {
            0 => break,
            count => hash.update(&chunk[..count]),
        }
    }
    let digest = hex(&hash.finalize());
    // Two that do this at once write the same.
    let new = known.with_extension(format!("{}.new", std::process::id()));
    let _ = fs::write(&new, &digest).and_then(|()| fs::rename(&new, &known));
    Ok(digest)
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn failed(what: &str, error: io::Error) -> Failure {
    let code = if error.kind() == io::ErrorKind::NotFound { Code::NotFound } else { Code::Unknown };
    code.failure(format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_read_by_names() {
        let manifest = "AB12  vmlinux\ncd34 *modules.cpio\n";
        assert_eq!(listed(manifest, Path::new("/usr/lib/x/vmlinux")).as_deref(), Some("ab12"));
        assert_eq!(listed(manifest, Path::new("modules.cpio")).as_deref(), Some("cd34"));
        assert_eq!(listed(manifest, Path::new("/usr/lib/x/vmlinuz")), None);
    }
}
