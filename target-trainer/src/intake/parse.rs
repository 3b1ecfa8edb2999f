//! Parses one line of JSON into a sample.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::diagnosis::name_problem;
use super::error::{LineError, LineProblem, SampleProblem};
use super::sample::{Sample, Segment};
use crate::plain_text::{one_line, shown};

/// Longest message of the parser that is kept, in characters.
const MAX_MESSAGE_CHARS: usize = 300;

/// The pairs of a JSON object without duplicate keys.
struct UniqueKeyObject(Vec<(String, Value)>);

/// Reads a [`UniqueKeyObject`].
struct UniqueKeyVisitor;

impl<'de> Visitor<'de> for UniqueKeyVisitor {
    type Value = UniqueKeyObject;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `prompt` and `completion`, or `text`, or `messages`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueKeyObject, A::Error> {
        let mut pairs: Vec<(String, Value)> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if pairs.iter().any(|(known, _)| *known == key) {
                return Err(serde::de::Error::custom(format!("duplicate key `{}`", shown(&key))));
            }
            pairs.push((key, map.next_value()?));
            if pairs.len() > 64 {
                return Err(serde::de::Error::custom("more than 64 keys"));
            }
        }
        Ok(UniqueKeyObject(pairs))
    }
}

impl<'de> Deserialize<'de> for UniqueKeyObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<UniqueKeyObject, D::Error> {
        deserializer.deserialize_map(UniqueKeyVisitor)
    }
}

/// Parses a line.
///
/// # Errors
/// If the line is not the JSON of a sample.
pub fn parse_line(line: &[u8]) -> Result<Sample, LineError> {
    let at_column = |column: usize, problem| LineError { column: column as u64, problem };
    let text = std::str::from_utf8(line)
        .map_err(|error| at_column(error.valid_up_to() + 1, LineProblem::NotUtf8))?;
    let mut reader = serde_json::Deserializer::from_str(text);
    // The nesting is checked before, by `check_line_limits`, if the guard `nesting_limit` is on.
    reader.disable_recursion_limit();
    let object = UniqueKeyObject::deserialize(&mut reader).and_then(|object| reader.end().map(|()| object));
    let UniqueKeyObject(pairs) = object.map_err(|error| {
        name_problem(text, &error).unwrap_or_else(|| {
            at_column(error.column().max(1), LineProblem::Json(message_without_position(&error)))
        })
    })?;
    sample_from_pairs(&pairs).map_err(|problem| at_column(1, problem.into()))
}

/// The error's text without its line and column, which the caller reports itself.
fn message_without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
    // The parser quotes texts and keys in full.
    let end = message.char_indices().nth(MAX_MESSAGE_CHARS).map_or(message.len(), |(end, _)| end);
    one_line(&message[..end]).into_owned()
}

fn sample_from_pairs(pairs: &[(String, Value)]) -> Result<Sample, SampleProblem> {
    let (mut weight, mut unknown_keys) = (1.0, Vec::new());
    let (mut prompt, mut completion, mut text, mut messages) = (None, None, None, None);
    for (key, value) in pairs {
        match key.as_str() {
            "prompt" => prompt = Some(expect_string(key, value)?),
            "completion" => completion = Some(expect_string(key, value)?),
            "text" => text = Some(expect_string(key, value)?),
            "messages" => messages = Some(value),
            "weight" => weight = parse_weight(value)?,
            _ => unknown_keys.push(key.clone()),
        }
    }
    let segments = match (prompt, completion, text, messages) {
        (Some(prompt), Some(completion), None, None) => {
            vec![segment(prompt, false), segment(completion, true)]
        }
        (None, None, Some(text), None) => vec![segment(text, true)],
        (None, None, None, Some(messages)) => parse_chat(messages)?,
        // The key may be misspelt.
        _ if !unknown_keys.is_empty() => return Err(SampleProblem::UnknownKey(unknown_keys.swap_remove(0))),
        _ => return Err(SampleProblem::NotOneForm),
    };
    Ok(Sample { segments, weight, unknown_keys })
}

fn segment(text: impl Into<String>, learned: bool) -> Segment {
    Segment { text: text.into(), learned }
}

fn expect_string<'a>(key: &str, value: &'a Value) -> Result<&'a str, SampleProblem> {
    value.as_str().ok_or_else(|| SampleProblem::NotAString(key.to_owned()))
}

fn parse_weight(value: &Value) -> Result<f32, SampleProblem> {
    let weight =
        value.as_f64().map(|weight| weight as f32).filter(|weight| weight.is_finite() && *weight >= 0.0);
    weight.ok_or(SampleProblem::Weight)
}

/// Each message becomes a line `<|role|>` and a line with its text. Only the assistant's texts are trained
/// on.
fn parse_chat(messages: &Value) -> Result<Vec<Segment>, SampleProblem> {
    let messages =
        messages.as_array().filter(|messages| !messages.is_empty()).ok_or(SampleProblem::NoMessages)?;
    let mut segments = Vec::new();
    for (number, message) in (1..).zip(messages) {
        let part = |key| {
            let text = message.get(key).and_then(Value::as_str);
            text.ok_or(SampleProblem::MessagePart { number, key })
        };
        let role = part("role")?;
        if !["system", "user", "assistant", "tool"].contains(&role) {
            return Err(SampleProblem::UnknownRole { number, role: role.to_owned() });
        }
        segments.push(segment(format!("<|{role}|>\n"), false));
        segments.push(segment(format!("{}\n", part("content")?), role == "assistant"));
    }
    Ok(segments)
}

#[cfg(test)]
mod tests {
    use super::{LineError, LineProblem, parse_line};

    fn check(line: &str, expected: Result<&str, &str>) {
        let result = parse_line(line.as_bytes());
        let marked_text = result.as_ref().map(|sample| {
            let mark = |segment: &super::Segment| {
                if segment.learned { format!("[{}]", segment.text) } else { segment.text.clone() }
            };
            sample.segments.iter().map(mark).collect::<String>()
        });
        assert_eq!(
            marked_text.as_deref(),
            expected
                .map_err(|text| result.as_ref().err().filter(|e| e.problem.to_string() == text).unwrap())
                .as_deref()
        );
    }

    #[test]
    fn all_three_forms_are_read_and_the_trained_text_is_marked() {
        check(r#"{"prompt":"1+1=","completion":"2"}"#, Ok("1+1=[2]"));
        check(r#"{"text":"abc","weight":2}"#, Ok("[abc]"));
        check(
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
            Ok("<|user|>\na\n<|assistant|>\n[b\n]"),
        );
    }

    #[test]
    fn errors_have_a_column() {
        let wrong = |line: &[u8]| parse_line(line).unwrap_err();
        let message = |line: &[u8]| wrong(line).problem.to_string();
        assert_eq!(message(br#"{"text":"a","text":"b"}"#), "duplicate key `text`");
        assert!(
            message(br#"{"txt":"a"}"#).starts_with("unknown key `txt`; known keys are prompt, completion")
        );
        assert_eq!(parse_line(br#"{"text":"a","id":1,"meta":{}}"#).unwrap().unknown_keys, ["id", "meta"]);
        assert_eq!(wrong(b"{\"text\":\"\xff\"}"), LineError { column: 10, problem: LineProblem::NotUtf8 });
        assert_eq!(wrong(br#"{"text":"a"} x"#).column, 14);
        assert_eq!(wrong(br#"[1]"#).column, 1);
        assert_eq!(message(br#"{"text":"a","weight":1e99}"#), "`weight` must be a number from 0 to 3.4e38");
        assert_eq!(wrong(br#"{"prompt":"a"}"#).column, 1);
        for (line, text, column) in [
            (r#"{"text":"\ud83d"}"#, "`\\ud83d` is half of a character", 10),
            (r#"{"text":"a\udcb2"}"#, "`\\udcb2` is half of a character", 11),
            (r#"{"text":"a","weight":NaN}"#, "`NaN` is not JSON", 22),
            (r#"{"text":"a","weight":-Infinity}"#, "`-Infinity` is not JSON", 22),
            (r#"{"text":None}"#, "`None` is not JSON", 9),
            (r#"{"text":"a""#, "the line ends within the object", 11),
            (r#"{'text':"a"}"#, "single quotes are not JSON", 2),
            (r#"{"text":"a"}{"text":"b"}"#, "another object on the same line", 13),
            ("\0\0\0", "only NUL bytes", 1),
            ("{\"text\":\"a\"}\u{feff}{\"text\":\"b\"}", "a byte order mark", 13),
        ] {
            assert!(message(line.as_bytes()).starts_with(text), "{line}: {}", message(line.as_bytes()));
            assert_eq!(wrong(line.as_bytes()).column, column, "{line}");
        }
    }
}
