//! Single values with a syntax of their own: patterns, globs, percentages, names. Knows no fault. A type of
//! the domain that is written as one value gets its syntax with `leaf_of!` where it is defined.

use globset::{Glob, GlobBuilder};
use regex::{Regex, RegexBuilder};

/// Largest size of a compiled pattern, in bytes.
const MAX_PATTERN_BYTES: usize = 1 << 20;

/// Why a text is not a value of its type. The text for people is `message | help`; `read` separates the two
/// and reports them at the value's place in the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is {reason}{}", self.help.as_ref().map(|help| format!(" | {help}")).unwrap_or_default())]
pub(crate) struct LeafError {
    text: String,
    /// Such as `not a glob: unclosed alternate group`.
    reason: String,
    help: Option<String>,
}

impl LeafError {
    /// The text is not `expected`, such as `a file name`.
    pub(crate) fn not(text: &str, expected: impl std::fmt::Display) -> LeafError {
        LeafError { text: text.into(), reason: format!("not {expected}"), help: None }
    }

    /// The text is none of the things that can stand here: `neither .. nor ..`.
    pub(crate) fn neither(text: &str, first: &str, second: &str) -> LeafError {
        LeafError { text: text.into(), reason: format!("neither {first} nor {second}"), help: None }
    }

    /// Adds what to write instead.
    pub(crate) fn help(self, help: impl Into<String>) -> LeafError {
        LeafError { help: Some(help.into()), ..self }
    }
}

/// Gives a type its syntax: it is parsed from one text. Its schema is a string with a description and a
/// pattern.
macro_rules! leaf_of {
    ($type:ty, $parse:expr, $pattern:expr, $description:expr) => {
        crate::yaml::leaf::leaf_of!($type, $parse, $pattern, $description, ["string", "integer"]);
    };
    ($type:ty, $parse:expr, $pattern:expr, $description:expr, $types:tt) => {
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                let text = String::deserialize(deserializer)?;
                $parse(&text).map_err(serde::de::Error::custom)
            }
        }

        impl schemars::JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": $types, "description": $description, "pattern": $pattern })
            }
        }
    };
}
pub(crate) use leaf_of;

/// Defines a type that is parsed from one text.
macro_rules! leaf {
    ($(#[$doc:meta])* $name:ident($inner:ty), $parse:expr, $($schema:tt)*) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub(crate) struct $name(pub(crate) $inner);

        crate::yaml::leaf::leaf_of!($name, |text: &str| $parse(text).map($name), $($schema)*);
    };
}
pub(crate) use leaf;

leaf!(Pattern(Regex), pattern, "", "A regular expression (Rust's `regex` syntax).");
leaf!(
    PathGlob(Glob),
    glob,
    "",
    "A glob on paths below the root: `failed/*/reason.json`, `checkpoints/**/*.tmp*`."
);
leaf!(NameGlob(String), name_glob, "", "A glob on a name: `attention*`.");
leaf!(Percent(f64), percent, r"^\d+(\.\d+)? ?%$", "A percentage: `1 %`, `0.5 %`.", ["string"]);
leaf!(ScenarioId(String), id, r"^[a-z]+-\d{2}[a-z]?$", "A domain and two digits: `fs-01`.");
leaf!(FileName(String), file_name, r"^[^/]+$", "A file name, without a directory.");
leaf!(
    SettingValue(String),
    setting,
    "",
    "The value of a setting, in the target's own syntax.",
    ["string", "number", "boolean"]
);

fn pattern(text: &str) -> Result<Regex, LeafError> {
    RegexBuilder::new(text).size_limit(MAX_PATTERN_BYTES).build().map_err(|error| {
        let error = error.to_string();
        let last = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
        LeafError::not(text, format!("a regular expression: {last}"))
    })
}

fn glob(text: &str) -> Result<Glob, LeafError> {
    let built = GlobBuilder::new(text).literal_separator(true).build();
    built.map_err(|error| LeafError::not(text, format!("a glob: {}", error.kind())))
}

fn name_glob(text: &str) -> Result<String, LeafError> {
    match Glob::new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(LeafError::not(text, format!("a glob: {}", error.kind()))),
    }
}

fn percent(text: &str) -> Result<f64, LeafError> {
    let number = text.strip_suffix('%').and_then(|number| number.trim_end().parse::<f64>().ok());
    match number {
        Some(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        _ => Err(LeafError::not(text, "a percentage such as `1 %`, above 0 and at most 100")),
    }
}

fn id(text: &str) -> Result<String, LeafError> {
    let is_valid = text.split_once('-').is_some_and(|(domain, number)| {
        let digits = number.strip_suffix(|c: char| c.is_ascii_lowercase()).unwrap_or(number);
        !domain.is_empty()
            && domain.bytes().all(|b| b.is_ascii_lowercase())
            && digits.len() == 2
            && digits.bytes().all(|b| b.is_ascii_digit())
    });
    if is_valid {
        Ok(text.into())
    } else {
        Err(LeafError::not(text, "a scenario id").help("write a domain and two digits, such as `fs-01`"))
    }
}

fn file_name(text: &str) -> Result<String, LeafError> {
    let is_invalid = text.is_empty() || text.contains(['/', '\0']) || text == "." || text == "..";
    if is_invalid {
        let text = text.escape_default().to_string();
        Err(LeafError::not(&text, "a file name").help("write a name without `/`"))
    } else {
        Ok(text.into())
    }
}

/// Any single value, as text: the types of a target's settings are the target's own. It becomes part of an
/// argument or of an environment variable, and the kernel ends those at a NUL byte.
fn setting(text: &str) -> Result<String, LeafError> {
    if text.contains('\0') {
        let help = "remove the NUL byte; the kernel passes none to a program";
        return Err(LeafError::not(&text.escape_default().to_string(), "a value for a program").help(help));
    }
    Ok(text.to_owned())
}
