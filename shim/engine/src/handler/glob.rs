//! Patterns of annotations, as of Go's `path.Match`, which containerd uses: `*` is anything without a slash, `?` one
//! character that is no slash. Classes (`[a-z]`) and escapes are refused.

/// Whether the pattern is one.
pub fn check(pattern: &str) -> Result<(), String> {
    match pattern.chars().find(|c| matches!(c, '[' | ']' | '\\')) {
        Some(c) => Err(format!("{pattern:?}: {c:?} is not known in patterns; * and ? are")),
        None if pattern.is_empty() => Err("a pattern is empty".to_owned()),
        None => Ok(()),
    }
}

/// Whether `text` as a whole is what the pattern says. One star is remembered at a time: a later one makes going back
/// behind it needless, so this is never slower than both lengths multiplied.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(b'?') if text[t] != b'/' => (p, t) = (p + 1, t + 1),
            Some(byte) if *byte == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, from)) if text[from] != b'/' => {
                    star = Some((at, from + 1));
                    (p, t) = (at + 1, from + 1);
                }
                _ => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stops_at_a_slash() {
        for (pattern, text, expected) in [
            ("io.katacontainers.*", "io.katacontainers.config.hypervisor", true),
            ("io.katacontainers.*", "io.katacontainers.config/x", false),
            ("*/*", "a.b/c", true),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abcd", false),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn what_is_not_known_in_a_pattern_is_named() {
        assert!(check("[a]").unwrap_err().contains("'['"));
        assert!(check("").is_err());
        assert!(check("a.*/b?").is_ok());
    }
}
