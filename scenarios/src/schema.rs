//! JSON schemas of scenario and target files, generated from the draft types. Editors use them for completion
//! and help.

use crate::check::{ScenarioDraft, TargetDraft};

/// The schema of scenario files, pretty-printed, with a final newline.
pub fn scenario() -> String {
    pretty(&schemars::schema_for!(ScenarioDraft))
}

/// The schema of target files, pretty-printed, with a final newline.
pub fn target() -> String {
    pretty(&schemars::schema_for!(TargetDraft))
}

fn pretty(schema: &schemars::Schema) -> String {
    let mut text = serde_json::to_string_pretty(schema).unwrap_or_default();
    text.push('\n');
    text
}
