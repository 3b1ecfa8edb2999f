//! Keys that settings of earlier versions have. They are read under their names of today; the file stays as it is, so
//! that an earlier version can read it again.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

/// A key that an earlier version had.
struct FormerKey {
    section: &'static str,
    name: &'static str,
    now: &'static str,
    /// The value of today, from the text of the former one. `None`: it is read as it is.
    convert: Option<fn(&str) -> Option<String>>,
}

const FORMER_KEYS: [FormerKey; 3] = [
    FormerKey { section: "guards", name: "folder_sync", now: "directory_sync", convert: None },
    FormerKey { section: "guards", name: "memory_warnings", now: "host_warnings", convert: None },
    FormerKey { section: "limits", name: "settle_ms", now: "settle_s", convert: Some(whole_seconds) },
];

/// A number of milliseconds as seconds, no fewer. `None`: it is no such number.
fn whole_seconds(text: &str) -> Option<String> {
    let milliseconds: u64 = text.replace('_', "").parse().ok()?;
    Some(milliseconds.div_ceil(1000).to_string())
}

/// Settings under the names of today.
pub(super) struct CurrentText {
    pub(super) text: String,
    /// What was read under another name, a line each.
    pub(super) notes: Vec<String>,
}

/// A part of the text, and what is read in its place.
struct Replacement {
    range: Range<usize>,
    by: String,
}

/// Reads former keys under their names of today, line by line: every other key keeps its line. `file`: its name for the
/// notes. A text that is no TOML, and a former key beside the one of today, stay as they are.
pub(super) fn with_current_keys(text: &str, file: &str) -> CurrentText {
    let mut current = CurrentText { text: text.to_owned(), notes: Vec::new() };
    let Ok(table) = DeTable::parse(text) else { return current };
    let mut replacements = Vec::new();
    for FormerKey { section, name, now, convert } in FORMER_KEYS {
        let Some(DeValue::Table(keys)) = table.get_ref().get(section).map(|value| value.get_ref()) else {
            continue;
        };
        let Some((key, value)) = keys.get_key_value(name).filter(|_| !keys.contains_key(now)) else {
            continue;
        };
        let former = &text[value.span()];
        let converted = convert.and_then(|convert| convert(former));
        let value_now = converted.clone().unwrap_or_else(|| former.to_owned());
        current.notes.push(format!(
            "{file}:{}: `{section}.{name} = {former}` of an earlier version is read as `{now} = {value_now}`; write \
             it so once no earlier version uses the root",
            line_and_column(text, key.span().start)
        ));
        replacements.push(Replacement { range: key.span(), by: now.to_owned() });
        replacements.extend(converted.map(|by| Replacement { range: value.span(), by }));
    }
    replacements.sort_by_key(|replacement| std::cmp::Reverse(replacement.range.start));
    for Replacement { range, by } in replacements {
        current.text.replace_range(range, &by);
    }
    current
}

/// Where an offset is in a text.
pub(super) fn line_and_column(text: &str, offset: usize) -> String {
    let before = &text[..offset.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    format!("{line}:{column}")
}

/// What a key of this name is called now. `None`: no earlier version had it.
pub(super) fn name_of_today(name: &str) -> Option<&'static str> {
    FORMER_KEYS.iter().find(|former| former.name == name).map(|former| former.now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    #[test]
    fn former_keys_are_read_as_those_of_today_and_told() {
        let text = "# Mine.\n[limits]\nsettle_ms = 1_500 # slow disk\n\n[guards]\n\"folder_sync\" = false\n";
        let CurrentText { text: current, notes } = with_current_keys(text, "s.toml");
        assert_eq!(
            current,
            "# Mine.\n[limits]\nsettle_s = 2 # slow disk\n\n[guards]\ndirectory_sync = false\n"
        );
        assert!(
            notes[0].starts_with("s.toml:6:1: `guards.folder_sync = false` of an earlier version"),
            "{notes:?}"
        );
        assert!(
            notes[1].contains("`limits.settle_ms = 1_500`") && notes[1].contains("`settle_s = 2`"),
            "{notes:?}"
        );
        let settings = Settings::parse(text, "s.toml").unwrap();
        assert!(!settings.guards.directory_sync && settings.limits.settle_s == 2);
        assert!(with_current_keys(&current, "s.toml").notes.is_empty());
    }

    #[test]
    fn what_is_wrong_elsewhere_is_found_in_its_place() {
        for (text, error) in [
            ("[guards]\nfolder_sync = 3\n", "s.toml:2:18: invalid type"),
            ("guards.folder_sync = true\n[train]\nsave_evry = 1\n", "s.toml:3:1: unknown key `save_evry`"),
            ("[limits]\nsettle_ms = 'x'\n", "s.toml:2:12: invalid type"),
            (
                "[guards]\nfolder_sync = true\ndirectory_sync = true\n",
                "s.toml:2:1: unknown key `folder_sync`; it is called `directory_sync` now",
            ),
        ] {
            let found = Settings::parse(text, "s.toml").unwrap_err().to_string();
            assert!(found.starts_with(error), "{found}");
        }
    }

    #[test]
    fn a_former_key_is_no_key_of_today_and_leads_to_one() {
        let known = toml::Table::try_from(Settings::default()).unwrap();
        for FormerKey { section, name, now, .. } in FORMER_KEYS {
            assert!(
                known[section].get(name).is_none() && known[section].get(now).is_some(),
                "{section}.{name}"
            );
        }
    }
}
