//! Text of others that is kept or shown: cut where it is long, between characters.

/// The beginning of a text: at most so many bytes.
pub fn cut(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_character_is_cut_in_two() {
        assert_eq!(["aüb", "aü", "a", "a", ""], [4, 3, 2, 1, 0].map(|max| cut("aüb", max)));
        assert_eq!(cut("aüb", 9), "aüb");
    }
}
