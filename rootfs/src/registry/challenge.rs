//! `WWW-Authenticate`: what a registry wants to see (RFC 9110, section 11).

/// One challenge. Schemes that registries do not use are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token from a token service.
    Bearer {
        /// The token service's URL.
        realm: String,
        /// The name of the registry at the service.
        service: Option<String>,
        /// What the token must allow.
        scope: Option<String>,
    },
}

/// All challenges of all headers, the strongest first.
pub fn parse<'a>(headers: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = headers.into_iter().flat_map(parse_header).collect();
    found.sort_by_key(|challenge| matches!(challenge, Challenge::Basic));
    found
}

fn parse_header(header: &str) -> Vec<Challenge> {
    let mut schemes: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(|c: char| c.is_whitespace() || matches!(c, '=' | ',')).unwrap_or(rest.len());
        if rest.is_empty() {
            break;
        }
        let (word, after) = rest.split_at(end);
        match (after.trim_start().strip_prefix('='), schemes.last_mut()) {
            (Some(value), Some((_, params))) => {
                let (value, after) = parse_value(value.trim_start());
                params.push((word.to_ascii_lowercase(), value));
                rest = after;
            }
            // A parameter of no scheme: nothing to make of it.
            (Some(value), None) => rest = parse_value(value).1,
            (None, _) => {
                schemes.push((word.to_ascii_lowercase(), Vec::new()));
                rest = after;
            }
        }
    }
    schemes.into_iter().filter_map(|(scheme, params)| challenge(&scheme, params)).collect()
}

/// A token, or a quoted string with backslash escapes; and what follows.
fn parse_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

fn challenge(scheme: &str, params: Vec<(String, String)>) -> Option<Challenge> {
    let get = |name: &str| params.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    match scheme {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer { realm: get("realm")?, service: get("service"), scope: get("scope") }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer { realm: realm.into(), service: own(service), scope: own(scope) }
    }

    #[test]
    fn what_registries_send_is_understood() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let expected =
            bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:a/b:pull,push"));
        assert_eq!(parse([hub]), [expected]);
        assert_eq!(parse(["Basic realm=\"a, b\""]), [Challenge::Basic]);
        assert_eq!(parse(["bearer Realm=x , scope = \"a\\\"b\""]), [bearer("x", None, Some("a\"b"))]);
        assert_eq!(parse(["Basic realm=\"r\", Bearer realm=\"t\""]), [bearer("t", None, None), Challenge::Basic]);
        assert_eq!(parse(["Negotiate abc==", "Basic"]), [Challenge::Basic]);
        assert!(parse(["", "=", "Bearer", "Bearer realm", "Digest realm=\"x\"", "\"", ",,,"]).is_empty());
        assert_eq!(parse(["Bearer realm=\"open"]), [bearer("open", None, None)]);
    }

    proptest! {
        #[test]
        fn no_header_panics_or_hangs(header in "[ -~]{0,60}|[\"=, a-c\\\\]{0,30}") {
            parse([header.as_str()]);
        }
    }
}
