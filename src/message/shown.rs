//! Which characters of texts of others are not shown as they are.

/// Whether a character would act on the terminal, the line or the direction of the text that it is shown in: control
/// characters, the separators of lines and paragraphs, and the marks of bidirectional text, with which a text looks as if it
/// went on elsewhere.
pub(crate) fn acts_on_text(c: char) -> bool {
    let is_separator = matches!(c, '\u{2028}' | '\u{2029}');
    let is_direction =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || is_separator || is_direction
}

/// The text with a question mark for each such character.
pub(crate) fn printable(text: &str) -> String {
    text.replace(acts_on_text, "?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_turns_or_ends_a_line_is_not_shown() {
        assert_eq!(printable("a\nb\u{1b}[2J\u{202e}c\u{2028}d\u{2069}\u{200f}\u{85}"), "a?b?[2J?c?d???");
        let usual = "Küche, кухня, 台所, مطبخ, 🏠 \u{a0}\u{301}";
        assert_eq!(printable(usual), usual);
    }
}
