//! Checks the texts of a target file in which placeholders are replaced: every word in braces must have a value
//! where it stands. Knows no other key.

use crate::template::{
    CommandArgument, RESERVED_WORDS, SETTINGS_WORD, Template, TemplatePiece, TemplatePieces,
};
use crate::yaml::problem::{Problem, SourceSpan, suggestion};
use crate::yaml::spanned::Spanned;

/// How much longer than its value the source of a text is searched for a word: a letter may be written as
/// `\U0000007b`, and the lines of a block are indented.
const MAX_SOURCE_FACTOR: usize = 12;

/// A key of the file, and the words in braces that have a value in its texts.
#[derive(Clone, Copy)]
pub(super) struct TextUse {
    key: &'static str,
    words: &'static [&'static str],
    has_places: bool,
}

const fn command(key: &'static str, words: &'static [&'static str]) -> TextUse {
    TextUse { key, words, has_places: true }
}

const fn plain(key: &'static str) -> TextUse {
    TextUse { key, words: &[], has_places: false }
}

const COMMAND_WORDS: &[&str] = &["program", "root", "seed", SETTINGS_WORD];

pub(super) const PREPARE: TextUse = command("prepare", COMMAND_WORDS);
pub(super) const START: TextUse = command("start", COMMAND_WORDS);
pub(super) const RESUME: TextUse = command("resume", COMMAND_WORDS);
pub(super) const VERIFY: TextUse = command("verify", COMMAND_WORDS);
pub(super) const SUBMIT: TextUse = command("submit", &["program", "root", "seed", SETTINGS_WORD, "file"]);
pub(super) const GENERATE: TextUse =
    command("generate", &["program", "root", "seed", SETTINGS_WORD, "file", "samples", "length"]);
pub(super) const ENVIRONMENT: TextUse = command("environment", &["program", "root", "seed"]);
pub(super) const SETTING_ARGS: TextUse =
    TextUse { key: "setting-args", words: &["key", "value"], has_places: false };
pub(super) const PROGRAM: TextUse = plain("program");
pub(super) const PLACES: TextUse = plain("places");
pub(super) const WRITABLE: TextUse = plain("writable");

/// The names of the places, and the text of the file in which problems are placed.
pub(super) struct TextChecker<'a> {
    pub(super) file_text: &'a str,
    pub(super) place_names: Vec<String>,
}

impl TextChecker<'_> {
    /// The arguments of a command. They are only valid if no problem is added.
    pub(super) fn arguments(
        &self,
        command: &[Spanned<String>],
        used: TextUse,
        problems: &mut Vec<Problem>,
    ) -> Vec<CommandArgument> {
        let argument = |argument: &Spanned<String>| {
            if argument.value == format!("{{{SETTINGS_WORD}}}") && used.words.contains(&SETTINGS_WORD) {
                return CommandArgument::Settings;
            }
            CommandArgument::Template(self.template(argument, used, problems))
        };
        command.iter().map(argument).collect()
    }

    /// A text. It is only valid if no problem is added.
    pub(super) fn template(
        &self,
        text: &Spanned<String>,
        used: TextUse,
        problems: &mut Vec<Problem>,
    ) -> Template {
        problems.extend(nul_problem(text));
        let words = TemplatePieces::of(&text.value).filter_map(|piece| match piece {
            TemplatePiece::Word { word, .. } => Some(word),
            TemplatePiece::Text(_) => None,
        });
        for (index, word) in words.enumerate() {
            if let Some((message, help)) = self.mistake(word, used) {
                let span = word_span(self.file_text, text, index, word);
                problems.push(Problem::at(span, message).help(help));
            }
        }
        Template::of(&text.value)
    }

    /// A text without placeholders. It is only valid if no problem is added.
    pub(super) fn plain(&self, text: &Spanned<String>, used: TextUse, problems: &mut Vec<Problem>) -> String {
        self.template(text, used, problems).literal().unwrap_or_default().to_owned()
    }

    /// Why the word has no value in the text, and what to write.
    fn mistake(&self, word: &str, used: TextUse) -> Option<(String, String)> {
        let TextUse { key, words, has_places } = used;
        let is_place = self.place_names.iter().any(|place| place == word);
        let literal = format!("`{{{{{word}}}}}` stands for the text `{{{word}}}`");
        if word == SETTINGS_WORD && words.contains(&word) {
            let message = format!("`{{{word}}}` must be an argument of its own");
            return Some((message, format!("write it as a list item of its own; {literal}")));
        }
        if words.contains(&word) || is_place && has_places {
            return None;
        }
        if words.is_empty() {
            let message = format!("no placeholders are replaced in `{key}`, so `{{{word}}}` has no value");
            return Some((message, format!("write the path; {literal}")));
        }
        let places = self.place_names.iter().map(String::as_str).filter(|_| has_places);
        let known: Vec<String> =
            words.iter().copied().chain(places).map(|word| format!("{{{word}}}")).collect();
        if is_place || RESERVED_WORDS.contains(&word) {
            let message = format!("`{{{word}}}` has no value in `{key}`");
            return Some((message, format!("expected one of: {}; {literal}", known.join(", "))));
        }
        let nearest = suggestion(&format!("{{{word}}}"), known.iter().map(String::as_str));
        let separator = if nearest.ends_with('?') { "" } else { ";" };
        Some((format!("there is no placeholder `{{{word}}}`"), format!("{nearest}{separator} {literal}")))
    }
}

/// A NUL byte ends a text for the kernel, so such a text cannot be an argument or a path.
pub(super) fn nul_problem(text: &Spanned<String>) -> Option<Problem> {
    let message = "a text with a NUL byte can be neither an argument nor a path";
    text.value.contains('\0').then(|| text.problem(message).help("remove the `\\0`"))
}

/// Where the word stands. `index`: of the word, among all words of the text. If the source is not written as
/// it reads, the place of the whole text.
fn word_span(file_text: &str, text: &Spanned<String>, index: usize, word: &str) -> SourceSpan {
    let start = text.span.offset;
    let max_length = text.value.len().saturating_mul(MAX_SOURCE_FACTOR).saturating_add(256);
    let mut end = start.saturating_add(max_length).min(file_text.len());
    while !file_text.is_char_boundary(end) {
        end -= 1;
    }
    let source = file_text.get(start..end).unwrap_or_default();
    let mut words = TemplatePieces::of(source).filter_map(|piece| match piece {
        TemplatePiece::Word { word, offset } => Some((word, offset)),
        TemplatePiece::Text(_) => None,
    });
    let Some((_, offset)) = words.nth(index).filter(|(found, _)| *found == word) else {
        return text.span;
    };
    let before = &source[..offset];
    let (line, column) = match before.rsplit_once('\n') {
        None => (text.span.line, text.span.column + before.chars().count()),
        Some((lines, last)) => (text.span.line + 1 + lines.matches('\n').count(), 1 + last.chars().count()),
    };
    SourceSpan { offset: start + offset, length: word.len() + 2, line, column }
}
