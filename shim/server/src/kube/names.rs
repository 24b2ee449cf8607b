//! The rules of Kubernetes for names, as its API server applies them. Each check answers what the name must be.

/// Longest DNS label.
pub const MAX_LABEL: usize = 63;
/// Longest DNS name.
pub const MAX_SUBDOMAIN: usize = 253;

/// The answer of a check: what the name must be, when it is not.
pub type Check = Result<(), String>;

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edges = bytes.first().is_some_and(|b| lower_alnum(*b)) && bytes.last().is_some_and(|b| lower_alnum(*b));
    edges && bytes.iter().all(|b| lower_alnum(*b) || *b == b'-')
}

/// A DNS-1123 label: a container, a volume, a namespace, a host name.
pub fn label(text: &str) -> Check {
    if text.len() > MAX_LABEL {
        return Err(format!("must be no more than {MAX_LABEL} characters"));
    }
    match is_label(text) {
        true => Ok(()),
        false => Err(format!(
            "{text:?} must consist of lower case letters, digits and '-', and start and end with a letter or digit"
        )),
    }
}

/// A DNS-1123 subdomain: a pod's name.
pub fn subdomain(text: &str) -> Check {
    if text.len() > MAX_SUBDOMAIN {
        return Err(format!("must be no more than {MAX_SUBDOMAIN} characters"));
    }
    match text.split('.').all(is_label) {
        true => Ok(()),
        false => Err(format!(
            "{text:?} must consist of lower case letters, digits, '-' and '.', and start and end with a letter or digit"
        )),
    }
}

/// A DNS-1035 label, which starts with a letter: a Service.
pub fn service(text: &str) -> Check {
    label(text)?;
    match text.starts_with(|c: char| c.is_ascii_lowercase()) {
        true => Ok(()),
        false => Err(format!("{text:?} must start with a lower case letter")),
    }
}

/// A key of a ConfigMap or Secret: a file name.
pub fn config_key(text: &str) -> Check {
    if text.is_empty() || text.len() > MAX_SUBDOMAIN {
        return Err(format!("must be 1 to {MAX_SUBDOMAIN} characters"));
    }
    if text == "." || text.starts_with("..") {
        return Err(format!("{text:?} must not be '.' nor start with '..'"));
    }
    match text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        true => Ok(()),
        false => Err(format!("{text:?} must consist of letters, digits, '-', '_' and '.'")),
    }
}

/// The name of a port: an IANA service name.
pub fn port_name(text: &str) -> Check {
    if text.len() > 15 {
        return Err("must be no more than 15 characters".into());
    }
    if !is_label(text) || text.contains("--") {
        return Err(format!("{text:?} must consist of lower case letters, digits and single '-' between them"));
    }
    match text.bytes().any(|b| b.is_ascii_lowercase()) {
        true => Ok(()),
        false => Err(format!("{text:?} must contain at least one letter")),
    }
}

/// The name of a signal, as Kubernetes writes it.
pub fn signal(text: &str) -> Check {
    let known = text.starts_with("SIG") && coracle_engine::signal::parse(text).is_some();
    match known {
        true => Ok(()),
        false => Err(format!("{text:?} is not a signal such as SIGTERM")),
    }
}

/// The name of an environment variable: printable ASCII without '='.
pub fn env_var(text: &str) -> Check {
    if text.is_empty() {
        return Err("must not be empty".into());
    }
    match text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        true => Ok(()),
        false => Err(format!("{text:?} must consist of printable ASCII characters other than '='")),
    }
}

fn is_qualified_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    bytes.len() <= MAX_LABEL
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// The key of a label or an annotation: `name` or `prefix.example/name`.
pub fn qualified(text: &str) -> Check {
    let name = match text.split_once('/') {
        Some((prefix, name)) => {
            subdomain(prefix).map_err(|why| format!("the prefix {why}"))?;
            name
        }
        None => text,
    };
    match is_qualified_part(name) {
        true => Ok(()),
        false => Err(format!(
            "{name:?} must be up to 63 letters, digits, '-', '_' or '.', and start and end with a letter or digit"
        )),
    }
}

/// The value of a label.
pub fn label_value(text: &str) -> Check {
    match text.is_empty() || is_qualified_part(text) {
        true => Ok(()),
        false => Err(format!(
            "{text:?} must be up to 63 letters, digits, '-', '_' or '.', and start and end with a letter or digit"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_subdomains_follow_dns_1123() {
        for good in ["a", "web-1", "0", &"x".repeat(63)] {
            assert!(label(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", &"x".repeat(64)] {
            assert!(label(bad).is_err(), "{bad}");
        }
        assert!(subdomain("web.example-1.com").is_ok());
        for bad in ["", ".", "a..b", "a.-b", "Web"] {
            assert!(subdomain(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn port_names_need_a_letter_and_have_15_characters_at_most() {
        assert!(port_name("http").is_ok() && port_name("8080-tcp").is_ok());
        for bad in ["8080", "a--b", "-a", "abcdefghijklmnop", ""] {
            assert!(port_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_of_labels_may_have_a_prefix() {
        assert!(qualified("app.kubernetes.io/name").is_ok() && qualified("Tier_1").is_ok());
        for bad in ["", "/x", "a/", "a/b/c", "-x", "A.b/c"] {
            assert!(qualified(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_variables_are_printable_ascii_without_equals() {
        assert!(env_var("A_b.c-1").is_ok() && env_var("1 two").is_ok());
        assert!(env_var("A=B").is_err() && env_var("").is_err() && env_var("ä").is_err());
    }
}
