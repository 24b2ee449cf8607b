//! Reads `config.json` and `.dockercfg`, and names the field that is wrong.

use std::io::{self, Read};
use std::path::Path;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

use super::{Credentials, Keyring, matching};
use crate::error::{Error, ErrorKind, Result};

/// No keyring is larger; kubelet has the same limit for a secret.
const SIZE_LIMIT: u64 = 1 << 20;

/// Both padded and unpadded base64 is around.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Which of the two file formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `{"auths": {KEY: ENTRY}, "credHelpers": {HOST: NAME}, "credsStore": NAME}`
    ConfigJson,
    /// `{KEY: ENTRY}`
    Dockercfg,
}

/// The text of a file, or `None` if there is no such file.
pub fn read(path: &Path) -> Result<Option<String>> {
    let failed = |err| Error::io(format_args!("read credentials {}", path.display()), err);
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(err) => return Err(failed(err)),
    };
    let mut text = String::new();
    file.take(SIZE_LIMIT + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > SIZE_LIMIT {
        let message = format!("credentials {}: larger than {SIZE_LIMIT} bytes", path.display());
        return Err(Error::new(ErrorKind::Limit, message));
    }
    Ok(Some(text))
}

/// The keyring in a text; `None` if the text is some other program's `config.json`.
pub fn parse(text: &str, path: &Path, format: Format) -> Result<Option<Keyring>> {
    let invalid = |why: String| {
        Error::new(ErrorKind::Invalid, format!("credentials {}: {why}", path.display()))
            .hint("the format is that of docker's config.json")
    };
    let value: Value = serde_json::from_str(text).map_err(|err| invalid(err.to_string()))?;
    let top = value.as_object().ok_or_else(|| invalid("is not a JSON object".into()))?;
    if format == Format::ConfigJson && !["auths", "credHelpers", "credsStore"].iter().any(|key| top.contains_key(*key))
    {
        return Ok(None);
    }
    let mut keyring = Keyring { origin: path.to_owned(), ..Keyring::default() };
    let auths = match format {
        Format::Dockercfg => Some(top),
        Format::ConfigJson => object(top, "auths").map_err(invalid)?,
    };
    for (key, entry) in auths.into_iter().flatten() {
        let field = if format == Format::Dockercfg { format!("{key:?}") } else { format!("auths.{key:?}") };
        let credentials = parse_entry(entry, &field).map_err(invalid)?;
        if credentials != Credentials::Anonymous {
            keyring.entries.push((matching::normalize(key), credentials));
        }
    }
    // Kubelet's order: reverse, so that of two paths the longer one comes first. Stable: several credentials may
    // share one normalized key.
    keyring.entries.sort_by(|(a, _), (b, _)| b.cmp(a));
    if format == Format::ConfigJson {
        for (host, name) in object(top, "credHelpers").map_err(invalid)?.into_iter().flatten() {
            let name = helper_name(name, &format!("credHelpers.{host:?}")).map_err(invalid)?;
            keyring.cred_helpers.push((host.clone(), name));
        }
        let store = top.get("credsStore").filter(|name| !name.is_null() && *name != "");
        keyring.creds_store = store.map(|name| helper_name(name, "credsStore")).transpose().map_err(invalid)?;
    }
    Ok(Some(keyring))
}

fn object<'a>(top: &'a Map<String, Value>, field: &str) -> Result<Option<&'a Map<String, Value>>, String> {
    match top.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(_) => Err(format!("{field}: is not an object")),
    }
}

fn string<'a>(entry: &'a Map<String, Value>, field: &str, name: &str) -> Result<&'a str, String> {
    match entry.get(name) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(format!("{field}.{name}: is not a string")),
    }
}

fn parse_entry(entry: &Value, field: &str) -> Result<Credentials, String> {
    let entry = entry.as_object().ok_or_else(|| format!("{field}: is not an object"))?;
    let token = string(entry, field, "identitytoken")?;
    if !token.is_empty() {
        return Ok(Credentials::IdentityToken(token.to_owned()));
    }
    let token = string(entry, field, "registrytoken")?;
    if !token.is_empty() {
        return Ok(Credentials::RegistryToken(token.to_owned()));
    }
    let auth = string(entry, field, "auth")?;
    if !auth.is_empty() {
        return decode_auth(auth).map_err(|why| format!("{field}.auth: {why}"));
    }
    Ok(Credentials::basic(string(entry, field, "username")?, string(entry, field, "password")?))
}

/// Decodes the base64 of `USER:PASSWORD`.
pub fn decode_auth(auth: &str) -> Result<Credentials, String> {
    let bytes = BASE64.decode(auth.trim()).map_err(|_| "is not base64".to_owned())?;
    let text = String::from_utf8(bytes).map_err(|_| "is not the base64 of text".to_owned())?;
    let (username, password) = text.split_once(':').ok_or("is not the base64 of USER:PASSWORD")?;
    // Some old clients padded the password with NULs.
    Ok(Credentials::basic(username, password.trim_end_matches('\0')))
}

/// The name becomes part of a program's: it may not lead out of `PATH`.
fn helper_name(name: &Value, field: &str) -> Result<String, String> {
    let name = name.as_str().ok_or_else(|| format!("{field}: is not a string"))?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    match !name.is_empty() && name.bytes().all(plain) {
        true => Ok(name.to_owned()),
        false => Err(format!("{field}: {name:?} is not the name of a docker-credential-* program")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str, format: Format) -> String {
        parse(text, Path::new("/x/file"), format).unwrap_err().to_string()
    }

    #[test]
    fn errors_name_the_file_and_the_field() {
        for (text, words) in [
            ("{", "line 1 column 1"),
            ("[]", "is not a JSON object"),
            (r#"{"auths":[]}"#, "auths: is not an object"),
            (r#"{"auths":{"a":1}}"#, r#"auths."a": is not an object"#),
            (r#"{"auths":{"a":{"auth":"%%"}}}"#, r#"auths."a".auth: is not base64"#),
            (r#"{"auths":{"a":{"auth":"YWJj"}}}"#, r#"auths."a".auth: is not the base64 of USER:PASSWORD"#),
            (r#"{"auths":{"a":{"username":7}}}"#, r#"auths."a".username: is not a string"#),
            (r#"{"credsStore":"../evil"}"#, "credsStore: "),
            (r#"{"credHelpers":{"a":"b/c"}}"#, r#"credHelpers."a": "#),
        ] {
            let err = error(text, Format::ConfigJson);
            assert!(err.starts_with("credentials /x/file: ") && err.contains(words), "{text}: {err}");
        }
        assert!(error(r#"{"a":{"auth":1}}"#, Format::Dockercfg).contains(r#""a".auth: is not a string"#));
    }

    #[test]
    fn every_kind_of_entry_is_understood() {
        let text = r#"{"auths":{
            "a":{"auth":"dTpwOnE="}, "b":{"auth":"dTpwOnE"}, "c":{"username":"u","password":"p:q","email":"e"},
            "d":{"identitytoken":"t","auth":"dTo="}, "e":{}, "f":{"registrytoken":"t"}},
            "HttpHeaders":{"User-Agent":"x"},"credsStore":""}"#;
        let keyring = parse(text, Path::new("x"), Format::ConfigJson).unwrap().unwrap();
        let basic = Credentials::basic("u", "p:q");
        let expected = [
            ("f", Credentials::RegistryToken("t".into())),
            ("d", Credentials::IdentityToken("t".into())),
            ("c", basic.clone()),
            ("b", basic.clone()),
            ("a", basic),
        ];
        assert_eq!(keyring.entries, expected.map(|(key, credentials)| (key.to_owned(), credentials)));
        assert_eq!(keyring.creds_store, None);
        assert!(!format!("{keyring:?}").contains("p:q"), "secrets must not show");
    }
}
