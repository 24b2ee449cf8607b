//! Does a key of a keyring match an image? Kubelet's rules, without their URL parser.

/// A key without its scheme, and with docker's `/v1/` and `/v2/` gone.
pub fn normalize(key: &str) -> String {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = key.find('/').map_or((key, ""), |at| key.split_at(at));
    let path = match path.strip_prefix("/v1/").or_else(|| path.strip_prefix("/v2/")) {
        Some(rest) => format!("/{rest}"),
        None => path.to_owned(),
    };
    match path.as_str() {
        "/" => host.to_owned(),
        path => format!("{host}{path}"),
    }
}

/// Does the normalized key match the image's name (`HOST[:PORT]/PATH`)?
pub fn matches(key: &str, image: &str) -> bool {
    let (key_host, key_path) = key.find('/').map_or((key, ""), |at| key.split_at(at));
    let (image_host, image_path) = image.find('/').map_or((image, ""), |at| image.split_at(at));
    let (key_host, key_port) = split_port(key_host);
    let (image_host, image_port) = split_port(image_host);
    let (globs, parts): (Vec<&str>, Vec<&str>) = (key_host.split('.').collect(), image_host.split('.').collect());
    key_port == image_port
        && globs.len() == parts.len()
        && image_path.starts_with(key_path)
        && globs.iter().zip(&parts).all(|(pattern, part)| glob(pattern.as_bytes(), part.as_bytes()))
}

/// The port is what follows the last colon, unless that colon is inside an IPv6 address, which loses its brackets.
fn split_port(host: &str) -> (&str, &str) {
    let (host, port) = match host.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (host, ""),
    };
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).filter(|inner| inner.contains(':'));
    (address.unwrap_or(host), port)
}

/// Go's `filepath.Match` for one part: `*`, `?`, `[a-z]`, `[^a]`, `\x`. A malformed pattern matches nothing.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], text) => text.is_empty(),
        // Hosts are short (DNS: 253 bytes), and both sides shrink: this ends soon for every sane pattern.
        ([b'*', rest @ ..], text) => (0..=text.len()).any(|skipped| glob(rest, &text[skipped..])),
        ([b'?', rest @ ..], [_, text @ ..]) => glob(rest, text),
        ([b'[', rest @ ..], [byte, text @ ..]) => match class(rest, *byte) {
            Some((true, rest)) => glob(rest, text),
            _ => false,
        },
        ([b'\\', literal, rest @ ..], [byte, text @ ..]) => literal == byte && glob(rest, text),
        ([literal, rest @ ..], [byte, text @ ..]) => literal == byte && glob(rest, text),
        (_, []) => false,
    }
}

/// Is the byte in the class that starts here, and what comes after the class?
fn class(pattern: &[u8], byte: u8) -> Option<(bool, &[u8])> {
    let (negated, mut rest) = match pattern {
        [b'^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut found = false;
    let mut first = true;
    loop {
        rest = match rest {
            [b']', rest @ ..] if !first => return Some((found != negated, rest)),
            [low, b'-', high, rest @ ..] if *high != b']' => {
                found |= (low..=high).contains(&&byte);
                rest
            }
            [one, rest @ ..] => {
                found |= *one == byte;
                rest
            }
            [] => return None,
        };
        first = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_normalized_as_docker_means_them() {
        for (key, normal) in [
            ("https://index.docker.io/v1/", "index.docker.io"),
            ("http://foo:5000", "foo:5000"),
            ("foo.io/v2/team", "foo.io/team"),
            ("foo.io/v1", "foo.io/v1"),
            ("foo.io/", "foo.io"),
            ("foo.io/a/", "foo.io/a/"),
        ] {
            assert_eq!(normalize(key), normal);
        }
    }

    #[test]
    fn hosts_match_part_by_part_ports_exactly_and_paths_as_prefixes() {
        // The table of kubelet's documentation, and its corners.
        for (key, image, expected) in [
            ("*.kubernetes.io", "abc.kubernetes.io/x", true),
            ("*.kubernetes.io", "kubernetes.io/x", false),
            ("*.kubernetes.io", "a.b.kubernetes.io/x", false),
            ("*.*.kubernetes.io", "a.b.kubernetes.io/x", true),
            ("prefix.*.io", "prefix.kubernetes.io/x", true),
            ("*-good.kubernetes.io", "prefix-good.kubernetes.io/x", true),
            ("app*.k8s.io", "app1.k8s.io/x", true),
            ("reg?.io", "reg1.io/x", true),
            ("reg[0-3].io", "reg2.io/x", true),
            ("reg[^0-3].io", "reg2.io/x", false),
            ("reg[", "reg[/x", false),
            ("foo.io:5000", "foo.io:5000/x", true),
            ("foo.io", "foo.io:5000/x", false),
            ("*.io:5000", "foo.io:5000/x", true),
            ("foo.io/team", "foo.io/team/app", true),
            ("foo.io/team", "foo.io/teammate/app", true),
            ("foo.io/team/", "foo.io/teammate/app", false),
            ("foo.io/team", "foo.io/app", false),
            ("[::1]:5000", "[::1]:5000/x", true),
            ("*", "localhost/x", true),
        ] {
            assert_eq!(matches(key, image), expected, "{key} {image}");
        }
    }
}
