//! Runtime options: what a containerd user's configuration says of a handler, in the forms in which it arrives.
//!
//! | type | from | content |
//! |---|---|---|
//! | none | no options | the defaults |
//! | `containerd.runc.v1.Options` | clients that know runc's shim | the options themselves |
//! | `runtimeoptions.v1.Options` | containerd's CRI, for every other handler; `ctr --runtime-config-path` | TOML, as a body or the path of a file |
//!
//! The TOML is the `options` table of the handler in containerd's configuration: one `Key = value` a line, the value a
//! string, a number, a boolean or a list of strings. Keys are those of runc's handler (`BinaryName`, `SystemdCgroup`), in that spelling or with
//! underscores. What is not known is an error with its place: nothing is ignored.
//!
//! With `Vm = true` a pod is in a virtual machine, and these keys say in which:
//!
//! | key | default | |
//! |---|---|---|
//! | `VmKernelDir` | `/usr/lib/coracle/vm` | what `scripts/guest-kernel` has made: `vmlinux`, `modules.cpio`, `manifest.sha256` |
//! | `VmKernel`, `VmModules` | | instead of it: files that are not checked |
//! | `VmKernelArguments` | | added to the kernel's command line |
//! | `VmAllowEmulation` | `false` | without KVM the machine is emulated, which is slow |
//! | `VmMemory` | 512 | MiB for containers, where the pod has no limit |
//! | `VmCpus` | 1 | |
//! | `VmOverhead` | 0 | MiB that the monitor may take beyond the guest's memory; 0 is no limit |
//! | `VmMonitor` | `/usr/bin/qemu-system-x86_64` | |
//! | `VmHostPaths` | `[]` | folders of the host that may be mounted in the machine |

use coracle_proto::coracle::VmOptions;
use coracle_proto::runc::Options;
use coracle_proto::{Any, any, runtime_options};
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A file of options is a screen long.
const MAX_FILE: u64 = 64 << 10;

/// Where the handler's kernel is.
const KERNEL_DIR: &str = "/usr/lib/coracle/vm";
/// The machine's monitor.
const MONITOR: &str = "/usr/bin/qemu-system-x86_64";
/// MiB of a pod without a limit.
const MEMORY: u32 = 512;
/// What the guest's kernel and its supervisor take of its memory.
pub const RESERVE: u64 = 64 << 20;
const MEBIBYTE: u64 = 1 << 20;

/// What the options say of a virtual machine.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Machine {
    wanted: bool,
    kernel_dir: String,
    kernel: String,
    modules: String,
    arguments: String,
    emulation: bool,
    memory: u32,
    cpus: u32,
    overhead: u32,
    monitor: String,
    host_paths: Vec<String>,
    /// A key of these was there.
    named: bool,
}

impl Machine {
    fn options(self) -> Result<Option<VmOptions>, String> {
        if !self.wanted {
            return if self.named { Err("options of a virtual machine need Vm = true".to_owned()) } else { Ok(None) };
        }
        if !self.kernel.is_empty() && !self.kernel_dir.is_empty() {
            return Err("VmKernel and VmKernelDir exclude each other".to_owned());
        }
        let or = |given: String, default: &str| if given.is_empty() { default.to_owned() } else { given };
        let folder = or(self.kernel_dir, KERNEL_DIR);
        let modules = format!("{folder}/modules.cpio");
        let (kernel, modules, manifest) = match self.kernel.is_empty() {
            false => (self.kernel, self.modules, String::new()),
            true if !self.modules.is_empty() => return Err("VmModules are those of VmKernel, which is missing".into()),
            // A kernel may need none.
            true if !Path::new(&modules).exists() => {
                (format!("{folder}/vmlinux"), String::new(), format!("{folder}/manifest.sha256"))
            }
            true => (format!("{folder}/vmlinux"), modules, format!("{folder}/manifest.sha256")),
        };
        let memory = if self.memory == 0 { MEMORY } else { self.memory };
        Ok(Some(VmOptions {
            vmm: or(self.monitor, MONITOR),
            kernel,
            modules,
            manifest,
            kernel_arguments: self.arguments,
            allow_emulation: self.emulation,
            memory_bytes: u64::from(memory) * MEBIBYTE + RESERVE,
            cpus: self.cpus.max(1),
            overhead_bytes: u64::from(self.overhead) * MEBIBYTE,
            host_paths: self.host_paths,
            ..Default::default()
        }))
    }
}

/// Reads options of any form.
pub fn read(packed: Option<&Any>) -> Result<Options, String> {
    read_all(packed).map(|(options, _)| options)
}

/// The virtual machine that the options ask for.
pub fn machine(packed: Option<&Any>) -> Result<Option<VmOptions>, String> {
    read_all(packed)?.1.options()
}

fn read_all(packed: Option<&Any>) -> Result<(Options, Machine), String> {
    let Some(packed) = packed.filter(|packed| !packed.type_url.is_empty()) else { return Ok(Default::default()) };
    let damaged = |error| format!("options of type {} do not decode: {error}", packed.type_url);
    if let Some(options) = any::unpack::<Options>(packed) {
        return options.map(|options| (options, Machine::default())).map_err(damaged);
    }
    let Some(generic) = any::unpack::<runtime_options::Options>(packed) else {
        return Err(format!("options of type {} are not known", packed.type_url));
    };
    let generic = generic.map_err(damaged)?;
    if generic.config_path.is_empty() {
        let body = std::str::from_utf8(&generic.config_body).map_err(|_| "options: not UTF-8".to_owned())?;
        return parse(body, "options");
    }
    let text = read_file(Path::new(&generic.config_path));
    let text = text.map_err(|error| format!("read options from {}: {error}", generic.config_path))?;
    parse(&text, &generic.config_path)
}

/// Never waits, whatever the path names.
fn read_file(path: &Path) -> io::Result<String> {
    let invalid = |words| io::Error::new(io::ErrorKind::InvalidInput, words);
    if !path.is_absolute() {
        return Err(invalid("the path is not absolute"));
    }
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(invalid("it is not a regular file"));
    }
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE { Err(invalid("it is too long")) } else { Ok(text) }
}

/// A value of TOML.
enum Value {
    Text(String),
    Flag(bool),
    Number(u32),
    List(Vec<String>),
}

fn parse(text: &str, source: &str) -> Result<(Options, Machine), String> {
    let mut options = <(Options, Machine)>::default();
    for (number, line) in text.lines().enumerate() {
        let at = |what: String| format!("{source}:{}: {what}", number + 1);
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((key, rest)) = line.split_once('=') else {
            return Err(at(format!("{line:?} is no `Key = value`; tables are not known here")));
        };
        let key = key.trim().trim_matches(['"', '\'']);
        let value = value(rest.trim()).map_err(|what| at(format!("{key}: {what}")))?;
        set(&mut options, key, value).map_err(|what| at(format!("{key}: {what}")))?;
    }
    Ok(options)
}

fn value(text: &str) -> Result<Value, String> {
    let (value, rest) = match text.chars().next() {
        Some('[') => list(&text[1..])?,
        Some('\'' | '"') => string(text).map(|(inside, rest)| (Value::Text(inside), rest))?,
        _ => {
            let (word, rest) = text.find([' ', '\t', '#']).map_or((text, ""), |end| text.split_at(end));
            let value = match word {
                "true" => Value::Flag(true),
                "false" => Value::Flag(false),
                number => Value::Number(number.parse().map_err(|_| {
                    format!(
                        "{number:?} is neither a string in quotes, nor true or false, nor a number up to {}",
                        u32::MAX
                    )
                })?),
            };
            (value, rest)
        }
    };
    let rest = rest.trim_start();
    match rest.is_empty() || rest.starts_with('#') {
        true => Ok(value),
        false => Err(format!("{rest:?} after the value")),
    }
}

/// The rest of a list of strings.
fn list(mut text: &str) -> Result<(Value, &str), String> {
    let mut all = Vec::new();
    loop {
        text = text.trim_start();
        if let Some(rest) = text.strip_prefix(']') {
            return Ok((Value::List(all), rest));
        }
        let (inside, rest) = string(text)?;
        all.push(inside);
        let rest = rest.trim_start();
        text = rest.strip_prefix(',').or(rest.starts_with(']').then_some(rest)).ok_or("the list does not end")?;
    }
}

/// A string in quotes of either kind, and what follows it.
fn string(text: &str) -> Result<(String, &str), String> {
    if let Some(inside) = text.strip_prefix('\'') {
        let (inside, rest) = inside.split_once('\'').ok_or("the string does not end")?;
        return Ok((inside.to_owned(), rest));
    }
    basic_string(text.strip_prefix('"').ok_or("a string in quotes is needed")?)
}

/// The rest of a string in double quotes, with the escapes that paths can have.
fn basic_string(text: &str) -> Result<(String, &str), String> {
    let (mut inside, mut chars) = (String::new(), text.char_indices());
    while let Some((at, next)) = chars.next() {
        match next {
            '"' => return Ok((inside, &text[at + 1..])),
            '\\' => match chars.next() {
                Some((_, escaped @ ('"' | '\\'))) => inside.push(escaped),
                Some((_, 't')) => inside.push('\t'),
                other => return Err(format!("escape \\{} is not known", other.map_or(' ', |(_, c)| c))),
            },
            other => inside.push(other),
        }
    }
    Err("the string does not end".to_owned())
}

fn set((options, machine): &mut (Options, Machine), key: &str, value: Value) -> Result<(), String> {
    let name = key.replace('_', "").to_ascii_lowercase();
    let text = |field: &mut String, value: Value| match value {
        Value::Text(text) => {
            *field = text;
            Ok(())
        }
        _ => Err("a string is needed".to_owned()),
    };
    let flag = |field: &mut bool, value: Value| match value {
        Value::Flag(flag) => {
            *field = flag;
            Ok(())
        }
        _ => Err("true or false is needed".to_owned()),
    };
    let number = |field: &mut u32, value: Value| match value {
        Value::Number(number) => {
            *field = number;
            Ok(())
        }
        _ => Err("a number is needed".to_owned()),
    };
    match name.as_str() {
        "nopivotroot" => flag(&mut options.no_pivot_root, value),
        "nonewkeyring" => flag(&mut options.no_new_keyring, value),
        "shimcgroup" => text(&mut options.shim_cgroup, value),
        "iouid" => number(&mut options.io_uid, value),
        "iogid" => number(&mut options.io_gid, value),
        "binaryname" => text(&mut options.binary_name, value),
        "root" => text(&mut options.root, value),
        "systemdcgroup" => flag(&mut options.systemd_cgroup, value),
        "criuimagepath" => text(&mut options.criu_image_path, value),
        "criuworkpath" => text(&mut options.criu_work_path, value),
        "taskapiaddress" => text(&mut options.task_api_address, value),
        "taskapiversion" => number(&mut options.task_api_version, value),
        _ if name.starts_with("vm") => {
            machine.named = true;
            match name.as_str() {
                "vm" => flag(&mut machine.wanted, value),
                "vmkerneldir" => text(&mut machine.kernel_dir, value),
                "vmkernel" => text(&mut machine.kernel, value),
                "vmmodules" => text(&mut machine.modules, value),
                "vmkernelarguments" => text(&mut machine.arguments, value),
                "vmallowemulation" => flag(&mut machine.emulation, value),
                "vmmemory" => number(&mut machine.memory, value),
                "vmcpus" => number(&mut machine.cpus, value),
                "vmoverhead" => number(&mut machine.overhead, value),
                "vmmonitor" => text(&mut machine.monitor, value),
                "vmhostpaths" => match value {
                    Value::List(paths) => {
                        machine.host_paths = paths;
                        Ok(())
                    }
                    _ => Err("a list of strings is needed".to_owned()),
                },
                _ => Err("is not known".to_owned()),
            }
        }
        // The words that say where these words are.
        "typeurl" | "configpath" => text(&mut String::new(), value),
        "criupath" => match value {
            Value::Text(path) if path.is_empty() => Ok(()),
            _ => Err("is not supported: criu is found by PATH".to_owned()),
        },
        _ => Err("is not known".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(text: &str) -> Result<Options, String> {
        let options = runtime_options::Options { config_body: text.into(), ..Default::default() };
        read(Some(&any::pack(&options)))
    }

    #[test]
    fn options_are_found_in_each_of_their_forms() {
        assert_eq!(read(None).unwrap(), Options::default());
        assert_eq!(read(Some(&Any::default())).unwrap(), Options::default());
        let given = Options { systemd_cgroup: true, io_uid: 7, ..Default::default() };
        assert_eq!(read(Some(&any::pack(&given))).unwrap(), given);
        assert_eq!(body("SystemdCgroup = true\nIoUid=7").unwrap(), given);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("options.toml");
        std::fs::write(&path, "# ours\n\nsystemd_cgroup = true # yes\nIoUid = 7\n").unwrap();
        let by_path = runtime_options::Options { config_path: path.display().to_string(), ..Default::default() };
        assert_eq!(read(Some(&any::pack(&by_path))).unwrap(), given);
        let other = Any { type_url: "io.containerd.runsc.v1.options".into(), value: Vec::new() };
        assert!(read(Some(&other)).unwrap_err().contains("runsc"));
    }

    #[test]
    fn a_machine_is_asked_for_by_name_and_has_defaults() {
        let machine = |text: &str| {
            let options = runtime_options::Options { config_body: text.into(), ..Default::default() };
            super::machine(Some(&any::pack(&options)))
        };
        assert_eq!(machine("BinaryName = ''").unwrap(), None);
        let plain = machine("Vm = true").unwrap().unwrap();
        assert_eq!((plain.kernel.as_str(), plain.memory_bytes), ("/usr/lib/coracle/vm/vmlinux", 576 << 20));
        assert_eq!((plain.vmm.as_str(), plain.cpus, plain.allow_emulation), (MONITOR, 1, false));
        let own = "Vm = true\nVmKernel = '/k'\nvm_allow_emulation = true\nVmMemory = 128\nVmCpus = 2";
        let own = machine(own).unwrap().unwrap();
        assert_eq!((own.kernel.as_str(), own.manifest.as_str(), own.cpus), ("/k", "", 2));
        assert!(own.allow_emulation && own.memory_bytes == 192 << 20);
        for (list, paths) in [("[]", &[][..]), ("['/a', \"/b\" ,] # two", &["/a", "/b"]), ("[ '/a' ]", &["/a"])] {
            let text = format!("Vm = true\nVmHostPaths = {list}");
            assert_eq!(machine(&text).unwrap().unwrap().host_paths, paths, "{list}");
        }
        for (text, part) in [
            ("VmCpus = 2", "need Vm = true"),
            ("Vm = true\nVmKernel = '/k'\nVmKernelDir = '/d'", "exclude each other"),
            ("Vm = true\nVmModules = '/m'", "which is missing"),
            ("Vm = 1", "true or false"),
            ("VmSize = 1", "VmSize: is not known"),
            ("VmHostPaths = '/a'", "a list of strings"),
            ("VmHostPaths = ['/a'", "the list does not end"),
            ("VmHostPaths = ['/a' '/b']", "the list does not end"),
            ("VmHostPaths = [1]", "a string in quotes"),
            ("VmHostPaths = ['/a'] x", "after the value"),
        ] {
            let error = machine(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn strings_are_those_of_toml() {
        let read = |text: &str| body(&format!("BinaryName = {text}")).map(|options| options.binary_name);
        assert_eq!(read("\"/usr/bin/crun\"").unwrap(), "/usr/bin/crun");
        assert_eq!(read("'/a b' # c").unwrap(), "/a b");
        assert_eq!(read(r#""a\\\"b""#).unwrap(), "a\\\"b");
        for bad in ["\"open", "'open", "\"a\" b", "plain", "true", r#""\x41""#, ""] {
            assert!(read(bad).unwrap_err().starts_with("options:1: BinaryName: "), "{bad}");
        }
    }

    #[test]
    fn what_is_not_known_is_named_with_its_place() {
        for (text, part) in [
            ("\nBinaryNam = 'x'", "options:2: BinaryNam: is not known"),
            ("[options]", "options:1: \"[options]\" is no"),
            ("IoUid = -1", "options:1: IoUid: \"-1\" is neither"),
            ("SystemdCgroup = 1", "options:1: SystemdCgroup: true or false"),
            ("CriuPath = '/criu'", "not supported"),
        ] {
            let error = body(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        assert!(body("CriuPath = ''").is_ok());
        let folder = runtime_options::Options { config_path: "/dev".into(), ..Default::default() };
        assert!(read_any(&folder).unwrap_err().contains("/dev: it is not a regular file"));
        let relative = runtime_options::Options { config_path: "x.toml".into(), ..Default::default() };
        assert!(read_any(&relative).unwrap_err().contains("not absolute"));
    }

    fn read_any(options: &runtime_options::Options) -> Result<Options, String> {
        read(Some(&any::pack(options)))
    }
}
