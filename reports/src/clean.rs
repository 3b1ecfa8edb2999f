//! Makes text from a target safe to show: without terminal escapes, without characters that change the text's
//! direction, and of limited length. Knows nothing of HTML.

/// Largest number of characters of a line that are shown.
const MAX_LINE_CHARS: usize = 600;

/// Replaces control characters by visible symbols, and characters that change the direction of text by
/// U+FFFD. Shortens long text.
pub fn clean(text: &str) -> String {
    let shown: String = text.chars().take(MAX_LINE_CHARS).map(visible).collect();
    if text.chars().nth(MAX_LINE_CHARS).is_some() { format!("{shown} ..") } else { shown }
}

/// Like [`clean`] for whole files: keeps newlines and the whole length.
pub fn clean_block(text: &str) -> String {
    text.chars().map(|c| if c == '\n' { c } else { visible(c) }).collect()
}

fn visible(c: char) -> char {
    match c {
        '\t' => ' ',
        '\u{0}'..='\u{1f}' => char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}'),
        '\u{7f}' => '\u{2421}',
        '\u{80}'..='\u{9f}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}'
        | '\u{feff}'
        | '\u{fffe}'
        | '\u{ffff}' => '\u{fffd}',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn escapes_and_direction_marks_are_made_visible() {
        assert_eq!(clean("\u{1b}[31m\0\u{202e}x"), "\u{241b}[31m\u{2400}\u{fffd}x");
        assert!(clean(&"a".repeat(10_000)).len() < 700);
    }
}
