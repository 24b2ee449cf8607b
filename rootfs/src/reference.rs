//! Image references: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`, as docker and OCI write them.
//!
//! Parsing fills in what people leave out, once, so that the rest of the program only meets whole names:
//!
//! | written | meant |
//! |---|---|
//! | `busybox` | `docker.io/library/busybox:latest` |
//! | `bitnami/redis:7` | `docker.io/bitnami/redis:7` |
//! | `index.docker.io/x` | `docker.io/library/x:latest` |
//! | `localhost/x`, `host:5000/x`, `a.example/x` | as written, with `:latest` |
//! | `x@sha256:...` | that content, no tag |
//! | `x:1@sha256:...` | that content; the tag is kept as a name and not asked for |
//!
//! The first component is a host if it has a dot or a colon, or is `localhost`. The grammar of the rest is
//! distribution's: lower-case components joined by `.`, `_`, `__` or any number of `-`.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};

/// The registry that is meant when none is named.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The namespace that is meant when the default registry's is left out.
const DEFAULT_NAMESPACE: &str = "library";
/// The tag that is meant when neither tag nor digest is given.
pub const DEFAULT_TAG: &str = "latest";

/// Distribution's limit on the path of a repository.
const PATH_LIMIT: usize = 255;
/// Distribution's limit on a tag.
const TAG_LIMIT: usize = 128;
/// DNS's limit on a name.
const HOST_LIMIT: usize = 253;
/// Nothing longer is looked at: every part at its limit, and a sha512 digest.
const TEXT_LIMIT: usize = 1024;

/// A complete image reference. At least one of tag and digest is there.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses what a person or a manifest wrote.
    pub fn parse(text: &str) -> Result<Reference> {
        parse(text).map_err(|problem| {
            let shown: String = text.chars().take(TEXT_LIMIT).collect();
            Error::new(ErrorKind::Invalid, format!("image reference {shown:?}: {}", problem.what)).hint(problem.hint)
        })
    }

    /// The registry's name: `docker.io`, `127.0.0.1:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository within the registry: `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Registry and repository: `docker.io/library/busybox`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The tag, if one was given or neither was.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same repository with that tag and no digest.
    pub fn with_tag(&self, tag: &str) -> Result<Reference> {
        Reference::parse(&format!("{}:{tag}", self.name()))
    }

    /// The same repository with that digest and no tag.
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The shortest form that means the same: `busybox:1.36`.
    pub fn familiar(&self) -> String {
        let default = (self.registry == DEFAULT_REGISTRY).then_some(self.repository.as_str());
        let name = match default {
            // `library/a/b` must keep its namespace: `a/b` means another repository.
            Some(path) => match path.strip_prefix("library/") {
                Some(short) if !short.contains('/') => short.to_owned(),
                _ => path.to_owned(),
            },
            None => self.name(),
        };
        name + &self.suffix()
    }

    fn suffix(&self) -> String {
        let tag = self.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        let digest = self.digest.as_ref().map(|digest| format!("@{digest}")).unwrap_or_default();
        tag + &digest
    }
}

/// The canonical form: `docker.io/library/busybox:latest`.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.registry, self.repository, self.suffix())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference> {
        Reference::parse(text)
    }
}

/// What is wrong, and what to write instead.
struct Problem {
    what: String,
    hint: String,
}

fn problem(what: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem { what: what.into(), hint: hint.into() }
}

const EXAMPLE: &str = "as in busybox, busybox:1.36, registry.example:5000/team/app:v2 or app@sha256:...";

fn parse(text: &str) -> Result<Reference, Problem> {
    if text.is_empty() {
        return Err(problem("is empty", EXAMPLE));
    }
    if text.len() > TEXT_LIMIT {
        return Err(problem(format!("is longer than {TEXT_LIMIT} bytes"), EXAMPLE));
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        return Err(problem(format!("{scheme:?} is a scheme, not a registry"), format!("leave it out: {rest}")));
    }
    if let Some(bad) = text.chars().find(|c| !c.is_ascii_graphic()) {
        return Err(problem(format!("contains {bad:?}"), EXAMPLE));
    }
    let (rest, digest) = split_digest(text)?;
    let (name, tag) = split_tag(rest)?;
    let (registry, path) = split_registry(name)?;
    let repository = match path.contains('/') {
        false if registry == DEFAULT_REGISTRY => format!("{DEFAULT_NAMESPACE}/{path}"),
        _ => path.to_owned(),
    };
    if repository.len() > PATH_LIMIT {
        return Err(problem(format!("the repository's name is longer than {PATH_LIMIT} bytes"), EXAMPLE));
    }
    if digest.is_none() && name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(problem("is an image id, not a name", "pull by name or by name@sha256:..."));
    }
    let tag = tag.or_else(|| digest.is_none().then(|| DEFAULT_TAG.to_owned()));
    Ok(Reference { registry, repository, tag, digest })
}

fn split_digest(text: &str) -> Result<(&str, Option<Digest>), Problem> {
    let Some((rest, digest)) = text.split_once('@') else {
        return Ok((text, None));
    };
    let digest = Digest::parse(digest)
        .map_err(|err| problem(format!("after the '@': {err}"), "name@sha256: and 64 hex digits"))?;
    Ok((rest, Some(digest)))
}

/// A colon is a tag's if no slash comes after it; otherwise it is a port's.
fn split_tag(text: &str) -> Result<(&str, Option<String>), Problem> {
    let Some((name, tag)) = text.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) else {
        return Ok((text, None));
    };
    let hint = "a tag is up to 128 letters, digits, '_', '.' and '-', and starts with none of the last two";
    if tag.is_empty() {
        return Err(problem("the tag after ':' is empty", hint));
    }
    if tag.len() > TAG_LIMIT {
        return Err(problem(format!("the tag is longer than {TAG_LIMIT} characters"), hint));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if !plain(tag.as_bytes()[0]) || !tag.bytes().all(|b| plain(b) || b == b'.' || b == b'-') {
        return Err(problem(format!("{tag:?} is not a tag"), hint));
    }
    Ok((name, Some(tag.to_owned())))
}

fn split_registry(name: &str) -> Result<(String, &str), Problem> {
    let host_like = |first: &str| first == "localhost" || first.contains(['.', ':', '[']);
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if host_like(first) => (first, rest),
        _ => (DEFAULT_REGISTRY, name),
    };
    check_host(registry)?;
    check_path(path, name)?;
    let registry = match registry {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        other => other,
    };
    Ok((registry.to_owned(), path))
}

fn check_host(host: &str) -> Result<(), Problem> {
    let bad = |what: &str| {
        problem(
            format!("{host:?} is not a registry's host: {what}"),
            "as in registry.example, 10.0.0.1:5000 or [::1]:5000",
        )
    };
    if host.len() > HOST_LIMIT {
        return Err(bad("it is too long"));
    }
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or_else(|| bad("the ']' is missing"))?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| bad("there is no IPv6 address between the brackets"))?;
            let port = match port.strip_prefix(':') {
                None if port.is_empty() => None,
                None => return Err(bad("only a port may follow the ']'")),
                port => port,
            };
            ("localhost", port)
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    if let Some(port) = port
        && (!port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().map_or(true, |port| port == 0))
    {
        return Err(bad(&format!("{port:?} is not a port")));
    }
    let label = |label: &str| {
        let plain = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        plain && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    match name.split('.').all(label) {
        true => Ok(()),
        false => Err(bad("its labels are letters, digits and inner '-'")),
    }
}

fn check_path(path: &str, name: &str) -> Result<(), Problem> {
    if path.is_empty() {
        return Err(problem("the name of the repository is missing", EXAMPLE));
    }
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        let lower = name.replace(path, &path.to_ascii_lowercase());
        return Err(problem("a repository's name must be in lower case", format!("try {lower}")));
    }
    for component in path.split('/') {
        if component.is_empty() {
            return Err(problem("has an empty component: a '/' too many", EXAMPLE));
        }
        if let Some(bad) = component.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-')) {
            return Err(problem(format!("{bad:?} may not stand in the name {component:?}"), EXAMPLE));
        }
        if !separators_are_fine(component) {
            let hint = "names start and end with a letter or digit, joined by one '.', one or two '_', or any '-'";
            return Err(problem(format!("{component:?} is not a repository's name"), hint));
        }
    }
    Ok(())
}

/// Each run of separators between alphanumerics is `.`, `_`, `__` or dashes; none is at an end.
fn separators_are_fine(component: &str) -> bool {
    let is_separator = |c: char| matches!(c, '.' | '_' | '-');
    if component.starts_with(is_separator) || component.ends_with(is_separator) {
        return false;
    }
    let mut runs = component.split(|c: char| !is_separator(c)).filter(|run| !run.is_empty());
    runs.all(|run| matches!(run, "." | "_" | "__") || run.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn canonical(text: &str) -> String {
        Reference::parse(text).unwrap_or_else(|err| panic!("{err}")).to_string()
    }

    #[test]
    fn what_people_leave_out_is_filled_in() {
        for (written, meant) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("bitnami/redis", "docker.io/bitnami/redis:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/library/busybox", "docker.io/library/busybox:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x:1", "localhost:5000/x:1"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("[::1]/x", "[::1]/x:latest"),
            ("Registry.Example/x", "Registry.Example/x:latest"),
            ("foo:5000", "docker.io/library/foo:5000"),
            ("a__b/c---d/e.f_g", "docker.io/a__b/c---d/e.f_g:latest"),
        ] {
            assert_eq!(canonical(written), meant);
        }
    }

    #[test]
    fn a_digest_pins_and_a_tag_beside_it_is_kept() {
        assert_eq!(canonical(&format!("busybox@{DIGEST}")), format!("docker.io/library/busybox@{DIGEST}"));
        let both = Reference::parse(&format!("busybox:1@{DIGEST}")).unwrap();
        assert_eq!((both.tag(), both.digest().map(Digest::to_string)), (Some("1"), Some(DIGEST.to_owned())));
        assert_eq!(both.familiar(), format!("busybox:1@{DIGEST}"));
        assert_eq!(both.with_tag("2").unwrap().to_string(), "docker.io/library/busybox:2");
    }

    #[test]
    fn the_familiar_form_is_short_and_means_the_same() {
        for (written, short) in [
            ("docker.io/library/busybox:1", "busybox:1"),
            ("docker.io/a/b", "a/b:latest"),
            ("docker.io/library/a/b", "library/a/b:latest"),
            ("quay.io/a", "quay.io/a:latest"),
        ] {
            let reference = Reference::parse(written).unwrap();
            assert_eq!(reference.familiar(), short);
            assert_eq!(Reference::parse(short).unwrap(), reference);
        }
    }

    #[test]
    fn errors_say_what_is_wrong_and_what_to_write() {
        let long_path = "a/".repeat(130) + "a";
        let long_tag = format!("a:{}", "t".repeat(129));
        let id = "a".repeat(64);
        for (written, words) in [
            ("", "is empty"),
            ("BusyBox", "try busybox"),
            ("quay.io/Team/App:V1", "try quay.io/team/app"),
            ("https://quay.io/x", "leave it out: quay.io/x"),
            ("a b", "contains ' '"),
            ("busybox:", "tag after ':' is empty"),
            ("busybox:-x", "is not a tag"),
            ("busybox@sha256:12", "2 hex digits where 64"),
            ("busybox@md5:12", "unknown algorithm"),
            ("a//b", "a '/' too many"),
            ("/a", "a '/' too many"),
            ("a/", "a '/' too many"),
            ("quay.io/", "name of the repository is missing"),
            ("host:99999/x", "is not a port"),
            ("host:/x", "is not a port"),
            ("-a.b/x", "labels"),
            ("[::1/x", "']' is missing"),
            ("[zz]/x", "no IPv6 address"),
            ("a..b", "is not a repository's name"),
            ("_a", "is not a repository's name"),
            ("a___b", "is not a repository's name"),
            ("a+b", "may not stand in"),
            (&long_path, "longer than 255"),
            (&long_tag, "longer than 128"),
            (&id, "is an image id"),
        ] {
            let err = Reference::parse(written).expect_err(written);
            assert_eq!(err.kind(), ErrorKind::Invalid);
            assert!(err.to_string().contains(words), "{written:?}: {err}");
            assert!(!err.to_string().contains('\n'));
        }
    }

    fn component() -> impl Strategy<Value = String> {
        "[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}"
    }

    proptest! {
        #[test]
        fn every_name_of_the_grammar_survives_the_round_trip(
            host in prop::option::of("([a-zA-Z0-9]{1,5}\\.){1,3}[a-z]{2,3}(:[1-9][0-9]{0,3})?|localhost(:[1-9][0-9]{3})?|\\[::1\\]:[1-9][0-9]{2}"),
            path in prop::collection::vec(component(), 1..4),
            tag in prop::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
            digest in prop::option::of("[0-9a-f]{64}"),
        ) {
            let mut text = host.clone().map(|host| host + "/").unwrap_or_default() + &path.join("/");
            // Without a host, a first component with a dot is a host: docker's own ambiguity.
            prop_assume!(host.is_some() || path.len() == 1 || (!path[0].contains('.') && path[0] != "localhost"));
            if let Some(tag) = &tag { text = format!("{text}:{tag}"); }
            if let Some(digest) = &digest { text = format!("{text}@sha256:{digest}"); }
            let reference = Reference::parse(&text).unwrap();
            prop_assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference.clone());
            prop_assert_eq!(Reference::parse(&reference.familiar()).unwrap(), reference.clone());
            prop_assert!(reference.tag().is_some() || reference.digest().is_some());
            if let Some(host) = host {
                prop_assert_eq!(reference.registry(), host);
            }
        }

        #[test]
        fn no_text_panics_and_whatever_parses_is_stable(text in "\\PC{0,40}|[a-zA-Z0-9./:@_\\-\\[\\]]{0,60}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference);
            }
        }
    }
}
