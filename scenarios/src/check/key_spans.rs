//! Checks the keys that the author of a target file chooses: names of places, variables and guards. serde gives
//! no places of keys, so they are taken from the tree. Knows no value.

use std::collections::BTreeMap;

use super::inherited::variable_name_problem;
use crate::target::TargetFile;
use crate::template::{RESERVED_WORDS, is_word};
use crate::yaml::problem::{Problem, SourceSpan};
use crate::yaml::tree::{YamlNode, YamlNodeKind};

/// Where the keys of the maps stand, by the key of the map and their own.
pub(super) struct KeySpans(BTreeMap<String, BTreeMap<String, SourceSpan>>);

impl KeySpans {
    /// The keys of the maps in the root.
    pub(super) fn of(root: &YamlNode) -> KeySpans {
        let text = |node: &YamlNode| match &node.kind {
            YamlNodeKind::Scalar { text, .. } => text.clone(),
            _ => String::new(),
        };
        let pairs = |node: &YamlNode| match &node.kind {
            YamlNodeKind::Map(pairs) => pairs.clone(),
            _ => Vec::new(),
        };
        let keys = |map: &YamlNode| pairs(map).iter().map(|(key, _)| (text(key), key.span)).collect();
        KeySpans(pairs(root).iter().map(|(key, value)| (text(key), keys(value))).collect())
    }

    fn span(&self, map: &str, key: &str) -> SourceSpan {
        self.0.get(map).and_then(|keys| keys.get(key)).copied().unwrap_or_default()
    }

    /// Checks the names of places.
    pub(super) fn check_places<'n>(
        &self,
        names: impl Iterator<Item = &'n String>,
        problems: &mut Vec<Problem>,
    ) {
        for name in names {
            let (message, help) = match name.as_str() {
                reserved if RESERVED_WORDS.contains(&reserved) => {
                    let message =
                        format!("a place cannot be named `{name}`: `{{{name}}}` has its own meaning");
                    (message, "choose another name")
                }
                word if is_word(word) => continue,
                _ => {
                    let message = format!("a place cannot be named `{name}`");
                    (message, "write a letter or `_`, then letters, digits, `-` and `_`")
                }
            };
            problems.push(Problem::at(self.span("places", name), message).help(help));
        }
    }

    /// Checks the names of environment variables.
    pub(super) fn check_variables<'n>(
        &self,
        names: impl Iterator<Item = &'n String>,
        problems: &mut Vec<Problem>,
    ) {
        problems.extend(names.filter_map(|name| variable_name_problem(name, self.span("environment", name))));
    }

    /// Checks that each guard can be switched off.
    pub(super) fn check_guards(&self, target: &TargetFile, problems: &mut Vec<Problem>) {
        for (name, settings) in &target.guards {
            let (message, help) = if settings.is_empty() {
                (
                    format!("guard `{name}` has no setting that switches it off"),
                    "add a setting, or remove the guard",
                )
            } else if !target.passes_settings() {
                (
                    format!("the settings that switch off guard `{name}` do not reach the target"),
                    "add `setting-args`, and an argument '{settings}' to a command",
                )
            } else {
                continue;
            };
            problems.push(Problem::at(self.span("guards", name), message).help(help));
        }
    }
}
