//! Single values with a syntax of their own: sizes, durations, patterns, names. An error text is `message |
//! help`; it is reported at the value's place in the file.

use std::time::Duration;

use globset::{Glob, GlobBuilder};
use regex::{Regex, RegexBuilder};

use crate::calls::Errno;
use crate::gpu::{CudaError, CudaVersion};
use crate::problem::suggestion;
use crate::scenario::{MemoryCap, Occurrence};
use crate::units::{ByteSize, parse_bytes, parse_duration};

/// Largest size of a compiled pattern, in bytes.
const MAX_PATTERN_BYTES: usize = 1 << 20;

/// Defines a type that is parsed from one text. Its schema is a string with a description and a pattern.
macro_rules! leaf {
    ($(#[$doc:meta])* $name:ident($inner:ty), $parse:expr, $pattern:expr, $description:expr) => {
        leaf!($(#[$doc])* $name($inner), $parse, $pattern, $description, ["string", "integer"]);
    };
    ($(#[$doc:meta])* $name:ident($inner:ty), $parse:expr, $pattern:expr, $description:expr, $types:tt) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub(crate) struct $name(pub(crate) $inner);

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                let text = String::deserialize(deserializer)?;
                $parse(&text).map($name).map_err(serde::de::Error::custom)
            }
        }

        impl schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": $types, "description": $description, "pattern": $pattern })
            }
        }
    };
}

leaf!(Pattern(Regex), pattern, "", "A regular expression (Rust's `regex` syntax).");
leaf!(
    PathGlob(Glob),
    glob,
    "",
    "A glob on paths below the root: `failed/*/reason.json`, `checkpoints/**/*.tmp*`."
);
leaf!(Size(ByteSize), parse_bytes, r"^\d+ ?(B|KiB|MiB|GiB|TiB)$", "A size with its unit: `64 MiB`.");
leaf!(TimeSpan(Duration), parse_duration, r"^\d+ ?(us|ms|s|min|h)$", "A duration with its unit: `700 ms`.");
leaf!(
    MemoryCapDraft(MemoryCap),
    memory_cap,
    r"^(\d+ ?(B|KiB|MiB|GiB)|\d+ ?% of baseline peak)$",
    "A size (`64 MiB`), or a percentage of the baseline's peak memory (`60 % of baseline peak`)."
);
leaf!(
    FreeSpace(Option<ByteSize>),
    free_space,
    r"^(every-page|\d+ ?(B|KiB|MiB|GiB))$",
    "How much stays free: a size, or `every-page` for each number of 4 KiB pages from 0 to a whole save, one \
        trial each."
);
leaf!(
    OccurrenceDraft(Occurrence),
    occurrence,
    r"^(every|[1-9]\d*)$",
    "Which occurrence: `every` (each in turn, one trial each), or a number from 1."
);
leaf!(ErrnoName(Errno), errno, r"^E[A-Z0-9]+$", "An errno by its name: `EIO`, `ENOSPC`.");
leaf!(
    CudaErrorName(CudaError),
    cuda_error,
    r"^[a-z0-9-]+$",
    "A CUDA error by its name, without `CUDA_ERROR_`: `launch-failed`, `ecc-uncorrectable`."
);
leaf!(NameGlob(String), name_glob, "", "A glob on a name: `attention*`.");
leaf!(Version(CudaVersion), version, r"^\d+\.\d+$", "A version: `12.8`.", ["string", "number"]);
leaf!(Percent(f64), percent, r"^\d+(\.\d+)? ?%$", "A percentage: `1 %`, `0.5 %`.", ["string"]);
leaf!(ScenarioId(String), id, r"^[a-z]+-\d{2}[a-z]?$", "A domain and two digits: `fs-01`.");
leaf!(FileName(String), file_name, r"^[^/]+$", "A file name, without a directory.");
leaf!(SettingValue(String), setting, "", "The value of a setting, in the target's own syntax.");

fn pattern(text: &str) -> Result<Regex, String> {
    RegexBuilder::new(text).size_limit(MAX_PATTERN_BYTES).build().map_err(|error| {
        let error = error.to_string();
        let last = error.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        format!("`{text}` is not a regular expression: {last}")
    })
}

fn glob(text: &str) -> Result<Glob, String> {
    GlobBuilder::new(text)
        .literal_separator(true)
        .build()
        .map_err(|error| format!("`{text}` is not a glob: {}", error.kind()))
}

fn memory_cap(text: &str) -> Result<MemoryCap, String> {
    let Some(percent) = text.strip_suffix("% of baseline peak") else {
        return parse_bytes(text)
            .map(MemoryCap::Bytes)
            .map_err(|error| format!("{error}, nor a percentage such as `60 % of baseline peak`"));
    };
    match percent.trim().parse() {
        Ok(percent @ 1..=99) => Ok(MemoryCap::PercentOfBaselinePeak(percent)),
        _ => Err(format!("`{text}`: the percentage must be a whole number from 1 to 99")),
    }
}

fn free_space(text: &str) -> Result<Option<ByteSize>, String> {
    if text == "every-page" {
        return Ok(None);
    }
    parse_bytes(text).map(Some).map_err(|error| format!("{error}, nor `every-page`"))
}

fn occurrence(text: &str) -> Result<Occurrence, String> {
    match text.parse() {
        _ if text == "every" => Ok(Occurrence::Every),
        Ok(nth @ 1..) => Ok(Occurrence::Nth(nth)),
        _ => Err(format!("`{text}` is neither `every` nor a number from 1")),
    }
}

fn errno(text: &str) -> Result<Errno, String> {
    Errno::from_name(text).ok_or_else(|| {
        let known: Vec<&str> = Errno::names().collect();
        format!("`{text}` is not a known errno | known are: {}", known.join(", "))
    })
}

fn cuda_error(text: &str) -> Result<CudaError, String> {
    CudaError::from_name(text).ok_or_else(|| {
        format!("`{text}` is not a known CUDA error | {}", suggestion(text, CudaError::names()))
    })
}

fn name_glob(text: &str) -> Result<String, String> {
    match Glob::new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("`{text}` is not a glob: {}", error.kind())),
    }
}

fn version(text: &str) -> Result<CudaVersion, String> {
    let parsed = text.split_once('.').and_then(|(major, minor)| {
        let minor = minor.parse().ok().filter(|minor| *minor < 100)?;
        Some(CudaVersion { major: major.parse().ok().filter(|major| *major < 1000)?, minor })
    });
    parsed.ok_or_else(|| format!("`{text}` is not a version such as `12.8`"))
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').and_then(|number| number.trim_end().parse::<f64>().ok());
    match number {
        Some(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        _ => Err(format!("`{text}` is not a percentage such as `1 %`, above 0 and at most 100")),
    }
}

fn id(text: &str) -> Result<String, String> {
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
        Err(format!("`{text}` is not a scenario id | write a domain and two digits, such as `fs-01`"))
    }
}

fn file_name(text: &str) -> Result<String, String> {
    let is_invalid = text.is_empty() || text.contains(['/', '\0']) || text == "." || text == "..";
    if is_invalid {
        Err(format!("`{}` is not a file name | write a name without `/`", text.escape_default()))
    } else {
        Ok(text.into())
    }
}

/// Any single value, as text: the types of a target's settings are the target's own.
fn setting(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}
