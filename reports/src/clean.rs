//! Text from a target, made harmless to look at: no terminal escapes, no characters that turn the line around, not endless.

/// Characters of one shown line at most.
const MAX_LINE_CHARS: usize = 600;

/// Control characters become their pictures; what changes the direction of text becomes a mark.
pub(crate) fn clean(text: &str) -> String {
    let shown: String = text.chars().take(MAX_LINE_CHARS).map(visible).collect();
    if text.chars().nth(MAX_LINE_CHARS).is_some() { format!("{shown} ..") } else { shown }
}

/// As [`clean`], keeping line ends: for whole files.
pub(crate) fn clean_block(text: &str) -> String {
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
