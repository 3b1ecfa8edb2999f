//! Texts with placeholders, such as `{root}/logs`. Knows neither which placeholders a text may have, nor their
//! values.
//!
//! A placeholder is a word in braces: a letter or `_`, then letters, digits, `-` and `_`. `{{word}}` stands for
//! the text `{word}`, `${word}` is left to the shell, and every other brace stands for itself.

use std::ffi::{OsStr, OsString};

/// What is put in place of a word in braces when the target runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placeholder {
    /// Path of the target's program.
    Program,
    /// The target's own directory.
    Root,
    /// Seed of the run.
    Seed,
    /// Path of a data file.
    File,
    /// Number of samples of a data file.
    Samples,
    /// Approximate bytes per sample of a data file; 0 means the command's default.
    Length,
    /// Name of a setting.
    Key,
    /// Value of a setting.
    Value,
    /// Path of a place, by the place's name.
    Place(String),
}

/// The word that stands for all settings. It is an argument of its own, so it is no [`Placeholder`].
pub(crate) const SETTINGS_WORD: &str = "settings";

/// Words that mean the same in every target file, so that no place can have such a name.
pub(crate) const RESERVED_WORDS: [&str; 9] =
    ["program", "root", "seed", SETTINGS_WORD, "file", "samples", "length", "key", "value"];

impl Placeholder {
    /// The placeholder for a word, which is a place if it is not reserved.
    pub(crate) fn of_word(word: &str) -> Placeholder {
        match word {
            "program" => Placeholder::Program,
            "root" => Placeholder::Root,
            "seed" => Placeholder::Seed,
            "file" => Placeholder::File,
            "samples" => Placeholder::Samples,
            "length" => Placeholder::Length,
            "key" => Placeholder::Key,
            "value" => Placeholder::Value,
            place => Placeholder::Place(place.to_owned()),
        }
    }
}

/// A checked text with placeholders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template {
    parts: Vec<TemplatePart>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum TemplatePart {
    Text(String),
    Placeholder(Placeholder),
}

impl Template {
    /// The template of a text whose words are all known.
    pub(crate) fn of(text: &str) -> Template {
        let mut parts: Vec<TemplatePart> = Vec::new();
        for piece in TemplatePieces::of(text) {
            match (piece, parts.last_mut()) {
                (TemplatePiece::Text(text), Some(TemplatePart::Text(before))) => before.push_str(text),
                (TemplatePiece::Text(text), _) => parts.push(TemplatePart::Text(text.to_owned())),
                (TemplatePiece::Word { word, .. }, _) => {
                    parts.push(TemplatePart::Placeholder(Placeholder::of_word(word)));
                }
            }
        }
        Template { parts }
    }

    /// The text, if it has no placeholder.
    pub fn literal(&self) -> Option<&str> {
        match &self.parts[..] {
            [] => Some(""),
            [TemplatePart::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// Whether the placeholder is in it.
    pub fn has(&self, placeholder: &Placeholder) -> bool {
        self.parts.iter().any(|part| matches!(part, TemplatePart::Placeholder(found) if found == placeholder))
    }

    /// The text with the values in it. A value is taken as it is, also if it has braces.
    pub fn fill(&self, value_of: impl Fn(&Placeholder) -> OsString) -> OsString {
        let mut filled = OsString::new();
        for part in &self.parts {
            match part {
                TemplatePart::Text(text) => filled.push(OsStr::new(text)),
                TemplatePart::Placeholder(placeholder) => filled.push(value_of(placeholder)),
            }
        }
        filled
    }
}

/// One argument of a command in a target file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandArgument {
    /// One argument.
    Template(Template),
    /// As many arguments as pass all settings to the target.
    Settings,
}

impl CommandArgument {
    /// The whole argument, if it has no placeholder.
    pub fn literal(&self) -> Option<&str> {
        match self {
            CommandArgument::Template(template) => template.literal(),
            CommandArgument::Settings => None,
        }
    }

    /// Whether the placeholder is in it.
    pub(crate) fn has(&self, placeholder: &Placeholder) -> bool {
        matches!(self, CommandArgument::Template(template) if template.has(placeholder))
    }
}

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TemplatePiece<'a> {
    /// Stands for itself.
    Text(&'a str),
    /// A word in braces. `offset`: of the opening brace, in bytes.
    Word { word: &'a str, offset: usize },
}

/// The parts of a text, from its beginning.
pub(crate) struct TemplatePieces<'a> {
    text: &'a str,
    offset: usize,
}

impl<'a> TemplatePieces<'a> {
    pub(crate) fn of(text: &'a str) -> TemplatePieces<'a> {
        TemplatePieces { text, offset: 0 }
    }
}

/// A part, and where it ends, in bytes.
struct FoundPiece<'a> {
    piece: TemplatePiece<'a>,
    end: usize,
}

impl<'a> Iterator for TemplatePieces<'a> {
    type Item = TemplatePiece<'a>;

    fn next(&mut self) -> Option<TemplatePiece<'a>> {
        let (text, start) = (self.text, self.offset);
        if start == text.len() {
            return None;
        }
        let mut from = start;
        while let Some(brace) = text[from..].find('{').map(|index| from + index) {
            match piece_at_brace(text, brace) {
                None => from = brace + 1,
                Some(_) if brace > start => {
                    self.offset = brace;
                    return Some(TemplatePiece::Text(&text[start..brace]));
                }
                Some(found) => {
                    self.offset = found.end;
                    return Some(found.piece);
                }
            }
        }
        self.offset = text.len();
        Some(TemplatePiece::Text(&text[start..]))
    }
}

/// The placeholder, or the text in two pairs of braces, that begins with this brace.
fn piece_at_brace(text: &str, brace: usize) -> Option<FoundPiece<'_>> {
    let after = &text[brace + 1..];
    if let Some(inner) = after.strip_prefix('{') {
        let end = brace + 2 + word_length(inner)?;
        let is_escaped = text[end..].starts_with("}}");
        return is_escaped
            .then(|| FoundPiece { piece: TemplatePiece::Text(&text[brace + 1..=end]), end: end + 2 });
    }
    let end = brace + 1 + word_length(after)?;
    let is_of_shell = text[..brace].ends_with('$');
    (!is_of_shell && text[end..].starts_with('}')).then(|| FoundPiece {
        piece: TemplatePiece::Word { word: &text[brace + 1..end], offset: brace },
        end: end + 1,
    })
}

/// Length in bytes of the word at the beginning. `None`: there is none.
fn word_length(text: &str) -> Option<usize> {
    text.starts_with(|first: char| first.is_alphabetic() || first == '_').then(|| {
        text.find(|letter: char| !(letter.is_alphanumeric() || matches!(letter, '-' | '_')))
            .unwrap_or(text.len())
    })
}

/// Whether the text can stand in braces as a placeholder.
pub(crate) fn is_word(text: &str) -> bool {
    word_length(text) == Some(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text with each word in `<>`.
    fn marked(text: &str) -> String {
        TemplatePieces::of(text)
            .map(|piece| match piece {
                TemplatePiece::Text(text) => text.to_owned(),
                TemplatePiece::Word { word, .. } => format!("<{word}>"),
            })
            .collect()
    }

    #[test]
    fn only_a_word_in_braces_is_a_placeholder() {
        for (text, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("{root}", "<root>"),
            ("--out={root}/logs", "--out=<root>/logs"),
            ("{a}{b-2}{_c}", "<a><b-2><_c>"),
            ("{größe}", "<größe>"),
            // The shell, awk, find, regular expressions and JSON use braces too.
            ("${HOME}/x", "${HOME}/x"),
            ("${VAR:-{root}}", "${VAR:-<root>}"),
            ("{print $1}", "{print $1}"),
            ("{}", "{}"),
            ("a{3}b{1,2}", "a{3}b{1,2}"),
            ("{a,b}", "{a,b}"),
            (r#"{"seed": {seed}, "x": {}}"#, r#"{"seed": <seed>, "x": {}}"#),
            ("{guards.sync}", "{guards.sync}"),
            ("{ root }", "{ root }"),
            ("{{ root }}", "{{ root }}"),
            // Two pairs of braces stand for one.
            ("{{print}}", "{print}"),
            ("{{root}}/{root}", "{root}/<root>"),
            ("${{HOME}}", "${HOME}"),
            ("{{{root}}}", "{{root}}"),
            // Braces that are not closed.
            ("{root", "{root"),
            ("{{root}", "{<root>"),
            ("{root}}", "<root>}"),
            ("{", "{"),
            ("{{", "{{"),
            ("é{root}é", "é<root>é"),
        ] {
            assert_eq!(marked(text), expected, "{text}");
        }
    }

    #[test]
    fn a_value_with_braces_is_not_filled_in_again() {
        let template = Template::of("{key}={value}");
        let filled = template.fill(|placeholder| match placeholder {
            Placeholder::Key => "{value}".into(),
            _ => "{key}".into(),
        });
        assert_eq!(filled, "{value}={key}");
    }

    #[test]
    fn every_reserved_word_but_the_settings_is_a_placeholder_of_its_own() {
        for word in RESERVED_WORDS {
            assert_eq!(
                matches!(Placeholder::of_word(word), Placeholder::Place(_)),
                word == SETTINGS_WORD,
                "{word}"
            );
        }
    }
}
