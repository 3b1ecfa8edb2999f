//! JSON Schemas of the files, made from the drafts: what an editor completes and explains.

use crate::draft::ScenarioDraft;
use crate::target_draft::TargetDraft;

/// Schema of scenario files, pretty-printed, with a line end.
pub fn scenario() -> String {
    pretty(&schemars::schema_for!(ScenarioDraft))
}

/// Schema of target files, pretty-printed, with a line end.
pub fn target() -> String {
    pretty(&schemars::schema_for!(TargetDraft))
}

fn pretty(schema: &schemars::Schema) -> String {
    let mut text = serde_json::to_string_pretty(schema).unwrap_or_default();
    text.push('\n');
    text
}
