//! Makes texts from outside safe to print and to log: names, keys and values that somebody else has chosen.
//! Without it, a line break in a file's name starts a line of its own, which looks like the trainer's.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};

/// Longest text from outside within a message, in characters.
const MAX_SHOWN_CHARS: usize = 80;

/// The guard `escape_text` is off: texts stay as they are.
static LEAVES_RAW: AtomicBool = AtomicBool::new(false);

/// From now on texts stay as they are. Only for the guard `escape_text`.
pub(crate) fn leave_raw() {
    LEAVES_RAW.store(true, Ordering::Relaxed);
}

/// A text from outside as part of a message: on one line, cut to 80 characters, and with every character
/// that is invisible or steers a terminal written as an escape. Backslashes are doubled, so that two
/// different short texts are shown differently.
pub fn shown(text: &str) -> String {
    let mut result = String::new();
    let mut count = 0;
    for character in text.chars() {
        let escaped = match character {
            '\\' => "\\\\".to_owned(),
            character if is_unprintable(character) => character.escape_debug().to_string(),
            character => character.to_string(),
        };
        count += escaped.chars().count();
        if count > MAX_SHOWN_CHARS {
            return result + "..";
        }
        result.push_str(&escaped);
    }
    result
}

/// A line as it may be printed: characters that are invisible or steer a terminal are written as escapes,
/// line breaks among them. Texts that [`shown`] has made stay as they are.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unprintable) {
        return Cow::Borrowed(text);
    }
    let mut result = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match is_unprintable(character) {
            true => result.extend(character.escape_debug()),
            false => result.push(character),
        }
    }
    Cow::Owned(result)
}

/// Whether [`one_line`] leaves a text as it is.
pub(crate) fn is_one_plain_line(text: &str) -> bool {
    !text.chars().any(is_unprintable)
}

/// Control characters, the characters that change the direction of a text, other invisible ones, line and
/// paragraph separators, and code points without a character.
fn is_unprintable(character: char) -> bool {
    if character.is_ascii() {
        return character.is_ascii_control() && !LEAVES_RAW.load(Ordering::Relaxed);
    }
    // `escape_debug` of a text knows what is printable. A combining character at its start would be escaped
    // too, so another one comes first.
    let mut buffer = [b'a'; 5];
    let len = character.encode_utf8(&mut buffer[1..]).len();
    std::str::from_utf8(&buffer[..=len]).is_ok_and(|text| text.escape_debug().nth(1) == Some('\\'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every control character and every character that changes the direction of a text.
    fn hostile_characters() -> impl Iterator<Item = char> {
        ('\0'..=char::MAX).filter(|c| c.is_control()).chain(
            "\u{61c}\u{200b}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2060}\
             \u{2066}\u{2067}\u{2068}\u{2069}\u{feff}\u{ad}\u{fff9}\u{e0041}"
                .chars(),
        )
    }

    #[test]
    fn no_invisible_character_is_left_in_a_line() {
        for character in hostile_characters() {
            let text = format!("a{character}b");
            for line in [shown(&text), one_line(&text).into_owned()] {
                assert!(!line.contains(character) && line.starts_with("a\\"), "{:x}", u32::from(character));
                assert_eq!(one_line(&line), line, "escaping twice changes nothing");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_becomes_one_plain_line(text in "(\\PC|\\p{C}|\\p{Z}|[\\\\\"']){0,60}") {
            for line in [shown(&text), one_line(&text).into_owned()] {
                proptest::prop_assert!(is_one_plain_line(&line), "{line:?}");
                proptest::prop_assert!(!line.chars().any(|c| c.is_control()));
                let again = one_line(&line).into_owned();
                proptest::prop_assert_eq!(&again, &line);
            }
        }

        #[test]
        fn different_short_texts_are_shown_differently(a in "\\PC{0,8}|[\\\\nu{}0-9\n\t]{0,8}", b in "[\\\\nu{}0-9\n\t]{0,8}") {
            proptest::prop_assert_eq!(a == b, shown(&a) == shown(&b));
        }
    }

    #[test]
    fn ordinary_texts_stay_as_they_are() {
        for text in ["it's \"1+1=2\".jsonl", "données.jsonl", "e\u{301}te\u{301}", "数据集", "🎉"] {
            assert_eq!((shown(text).as_str(), &*one_line(text)), (text, text));
        }
        assert_ne!(shown("a\\nb"), shown("a\nb"));
    }

    #[test]
    fn a_long_text_is_cut_between_two_escapes() {
        assert_eq!(shown(&"\n".repeat(1 << 20)), "\\n".repeat(40) + "..");
        assert_eq!(shown(&"x".repeat(81)), "x".repeat(80) + "..");
        assert_eq!(shown(&"x".repeat(80)), "x".repeat(80));
    }
}
