//! The fault `plant`: files in a place, with hostile names or contents, or written in a hostile way.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::effect::checker::Checker;
use crate::effect::checker::NameKind;
use crate::effect::data_kind::DataKind;
use crate::effect::keys::fault;
use crate::effect::measurements::Measurements;
use crate::effect::spec::{CheckEffect, EffectSpec};
use crate::units::TimeSpan;
use crate::yaml::leaf::FileName;
use crate::yaml::spanned::Spanned;

/// The longest name that file systems allow, in bytes.
const MAX_NAME_BYTES: usize = 255;

fault!(
    /// Files in a place.
    PlantDraft {
        /// A place of the target file.
        place: Spanned<String>,
        /// The files that are put there.
        files: Spanned<Vec<PlantedFileDraft>>,
        /// Puts one file there in each trial, one trial for each. Default: `false`, all in the same trial.
        #[serde(default)]
        each: bool,
    }
);

/// A file to be planted. It has `holds`, or `is` if it is no regular file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct PlantedFileDraft {
    /// Name of the file.
    pub(crate) name: Option<FileName>,
    /// A long name, instead of `name`.
    pub(crate) long_name: Option<RepeatedName>,
    /// What the file contains.
    pub(crate) holds: Option<DataKind>,
    /// What it is, if it is no regular file.
    pub(crate) is: Option<SpecialFile>,
    /// How the content is encoded. Default: as it is, which is UTF-8 with `\n`.
    #[serde(rename = "as")]
    pub(crate) encoding: Option<FileEncoding>,
    /// How the file is written. Default: `renamed`.
    pub(crate) written: Option<WriteStyleDraft>,
}

/// A long name: a text that is repeated, and an end.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct RepeatedName {
    /// The text.
    pub(crate) repeat: FileName,
    /// How often it is repeated.
    pub(crate) times: u16,
    /// The end of the name.
    pub(crate) end: FileName,
}

/// Something that has a name in a directory and is no regular file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SpecialFile {
    /// A pipe into which nobody writes.
    Pipe,
    /// A socket on which nobody listens.
    Socket,
    /// An empty directory.
    Directory,
    /// A symbolic link to this path, such as `/dev/zero`. A relative one begins in the place.
    LinkTo(String),
    /// Another name of the file at this path below the root.
    HardLinkTo(String),
}

/// How the content of a file is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FileEncoding {
    /// UTF-8 that begins with a byte order mark.
    Utf8Bom,
    /// UTF-16, little endian, with a byte order mark.
    Utf16Le,
    /// UTF-16, big endian, with a byte order mark.
    Utf16Be,
    /// Each line ends with `\r\n`.
    Crlf,
    /// Without the last line end.
    NoFinalNewline,
    /// Without the last half of the last line.
    Cut,
}

/// How a file is written.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum WriteStyleDraft {
    /// Beside the place, then renamed into it.
    Renamed,
    /// In the place, piece by piece over this time, by a writer that keeps it open.
    Slowly(TimeSpan),
    /// In the place, piece by piece over this time, by a writer that opens and closes it for each piece.
    Growing(TimeSpan),
}

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteStyle {
    /// Written elsewhere, then renamed into the place.
    Renamed,
    /// Written in the place over this time, and kept open.
    Slowly(std::time::Duration),
    /// Written in the place over this time, and opened for each piece.
    Growing(std::time::Duration),
}

/// Puts files into a place.
#[derive(Debug, Clone)]
pub struct Plant {
    /// A place of the target file.
    pub place: String,
    /// Never empty.
    pub files: Vec<PlantedFile>,
    /// One file in each trial. Never in a planned trial with several files.
    pub each: bool,
}

/// A file to be planted.
#[derive(Debug, Clone, PartialEq)]
pub struct PlantedFile {
    /// File name, without separators.
    pub name: String,
    /// What it is.
    pub content: PlantedContent,
}

/// What a planted file is.
#[derive(Debug, Clone, PartialEq)]
pub enum PlantedContent {
    /// A regular file.
    Data {
        /// What it contains.
        kind: DataKind,
        /// How that is encoded. `None`: as it is.
        encoding: Option<FileEncoding>,
        /// How it is written.
        style: WriteStyle,
    },
    /// Something else.
    Special(SpecialFile),
}

impl PlantedFileDraft {
    fn check(&self, checker: &mut Checker, list: &Spanned<Vec<PlantedFileDraft>>) -> Option<PlantedFile> {
        let mut problem = |message: String| checker.problems.push(list.problem(message));
        let name = match (&self.name, &self.long_name) {
            (Some(name), None) => name.0.clone(),
            (None, Some(RepeatedName { repeat, times, end })) => {
                format!("{}{}", repeat.0.repeat(usize::from(*times)), end.0)
            }
            (None, None) if !checker.is_complete => return None,
            _ => {
                problem("a file must have `name` or `long-name`, and not both".into());
                return None;
            }
        };
        if name.len() > MAX_NAME_BYTES {
            problem(format!(
                "a name has {} bytes, and file systems allow at most {MAX_NAME_BYTES}",
                name.len()
            ));
        }
        let shown = name.escape_debug();
        let content = match (&self.holds, &self.is) {
            (Some(kind), None) => {
                let style = match &self.written {
                    None | Some(WriteStyleDraft::Renamed) => WriteStyle::Renamed,
                    Some(WriteStyleDraft::Slowly(time)) => WriteStyle::Slowly(time.0),
                    Some(WriteStyleDraft::Growing(time)) => WriteStyle::Growing(time.0),
                };
                let is_piecewise = self.encoding.is_some() || style != WriteStyle::Renamed;
                if is_piecewise && matches!(kind, DataKind::LongLine(_)) {
                    problem(format!("`{shown}`: a `long-line` can have neither `as` nor `written`"));
                }
                kind.check(list.span, checker);
                PlantedContent::Data { kind: kind.clone(), encoding: self.encoding, style }
            }
            (None, Some(special)) => {
                if self.encoding.is_some() || self.written.is_some() {
                    problem(format!("`{shown}` is no regular file, so it has neither `as` nor `written`"));
                }
                PlantedContent::Special(special.clone())
            }
            (None, None) if !checker.is_complete => return None,
            _ => {
                problem(format!("`{shown}` must have `holds`, or `is` if it is no regular file"));
                return None;
            }
        };
        Some(PlantedFile { name, content })
    }
}

impl CheckEffect for PlantDraft {
    type Checked = Plant;

    fn check(&self, checker: &mut Checker) -> Plant {
        checker.require_not_empty(&self.files, "`files` is empty");
        let files = self.files.value.iter().filter_map(|file| file.check(checker, &self.files)).collect();
        Plant { place: checker.target_name(NameKind::Place, &self.place), files, each: self.each }
    }
}

impl EffectSpec for Plant {
    fn is_momentary(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        match &self.files[..] {
            [file] => format!("`{}` in `{}`", file.name.escape_debug(), self.place),
            files => format!("{} files in `{}`", files.len(), self.place),
        }
    }

    fn choices(&self, _measured: Measurements<'_>) -> Vec<Plant> {
        if !self.each {
            return vec![self.clone()];
        }
        let only = |file: &PlantedFile| Plant { files: vec![file.clone()], each: false, ..self.clone() };
        self.files.iter().map(only).collect()
    }

    fn adds_work(&self) -> bool {
        let may_be_valid = |file: &PlantedFile| match &file.content {
            PlantedContent::Data { kind, .. } => kind.may_be_valid(),
            PlantedContent::Special(_) => false,
        };
        self.files.iter().any(may_be_valid)
    }
}
