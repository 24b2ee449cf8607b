//! `$(VAR)` in commands, arguments and the values of variables, by kubelet's rules.
//!
//! `$(NAME)` becomes the value of NAME; an unknown name stays as it is written; `$$` becomes `$` (so `$$(NAME)` is
//! the text `$(NAME)`); a lone `$`, and `$(` without an end, stay as they are.

/// Replaces the references in a text.
pub fn expand<'v>(text: &str, lookup: impl Fn(&str) -> Option<&'v str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
            continue;
        }
        let reference = after.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        let Some((name, tail)) = reference else {
            out.push('$');
            rest = after;
            continue;
        };
        match lookup(name) {
            Some(value) => out.push_str(value),
            None => {
                out.push_str("$(");
                out.push_str(name);
                out.push(')');
            }
        }
        rest = tail;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_expand_by_kubelets_rules() {
        let vars = |name: &str| match name {
            "A" => Some("1"),
            "EMPTY" => Some(""),
            "REF" => Some("$(A)"),
            _ => None,
        };
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(EMPTY)", ""),
            ("$(NONE)", "$(NONE)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$$$$(A)", "$$(A)"),
            ("$A", "$A"),
            ("$", "$"),
            ("$(A", "$(A"),
            ("$(REF)", "$(A)"),
            ("a$", "a$"),
            ("$(", "$("),
            ("ä$(A)ß", "ä1ß"),
        ] {
            assert_eq!(expand(text, vars), expected, "{text}");
        }
    }
}
