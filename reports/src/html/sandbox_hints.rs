//! The list of what a target met in the sandbox. Knows nothing of the page around it.

use maud::{Markup, html};
use scenarios::SandboxHint;

use crate::clean::clean;

/// Largest number of hints that are shown. The rest are counted.
const MAX_HINTS: usize = 40;

/// The list, or nothing if it is empty.
pub(super) fn sandbox_hints(hints: &[SandboxHint]) -> Markup {
    html! {
        @if !hints.is_empty() {
            details open[hints.iter().any(SandboxHint::may_explain_failure)] {
                summary { "What the target met in the sandbox: " (hints.len()) }
                ol.ops { @for hint in hints.iter().take(MAX_HINTS) { li { (clean(&hint.to_string())) } } }
                @if hints.len() > MAX_HINTS { p.soft { "and " (hints.len() - MAX_HINTS) " more" } }
            }
        }
    }
}
