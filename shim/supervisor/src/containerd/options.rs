//! Runtime options: what a containerd user's configuration says of a handler, in the forms in which it arrives.
//!
//! | type | from | content |
//! |---|---|---|
//! | none | no options | the defaults |
//! | `containerd.runc.v1.Options` | clients that know runc's shim | the options themselves |
//! | `runtimeoptions.v1.Options` | containerd's CRI, for every other handler; `ctr --runtime-config-path` | TOML, as a body or the path of a file |
//!
//! The TOML is the `options` table of the handler in containerd's configuration: one `Key = value` a line, the value a
//! string, a number or a boolean. Keys are those of runc's handler (`BinaryName`, `SystemdCgroup`), in that spelling or with
//! underscores. What is not known is an error with its place: nothing is ignored.

use coracle_proto::runc::Options;
use coracle_proto::{Any, any, runtime_options};
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A file of options is a screen long.
const MAX_FILE: u64 = 64 << 10;

/// Reads options of any form.
pub fn read(packed: Option<&Any>) -> Result<Options, String> {
    let Some(packed) = packed.filter(|packed| !packed.type_url.is_empty()) else { return Ok(Options::default()) };
    let damaged = |error| format!("options of type {} do not decode: {error}", packed.type_url);
    if let Some(options) = any::unpack::<Options>(packed) {
        return options.map_err(damaged);
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
}

fn parse(text: &str, source: &str) -> Result<Options, String> {
    let mut options = Options::default();
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
        Some('\'') => {
            let (inside, rest) = text[1..].split_once('\'').ok_or("the string does not end")?;
            (Value::Text(inside.to_owned()), rest)
        }
        Some('"') => basic_string(&text[1..])?,
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

/// The rest of a string in double quotes, with the escapes that paths can have.
fn basic_string(text: &str) -> Result<(Value, &str), String> {
    let (mut inside, mut chars) = (String::new(), text.char_indices());
    while let Some((at, next)) = chars.next() {
        match next {
            '"' => return Ok((Value::Text(inside), &text[at + 1..])),
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

fn set(options: &mut Options, key: &str, value: Value) -> Result<(), String> {
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
