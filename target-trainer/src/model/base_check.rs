//! How strictly a base model is looked at. Checks nothing itself.

/// How a base model is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BaseCheck {
    /// What the trainer would compute wrongly is refused.
    Full,
    /// What the trainer does not know is ignored. Only for the guard `base_check`.
    Off,
}

impl BaseCheck {
    /// The check that a guard asks for.
    pub fn of_guard(is_on: bool) -> BaseCheck {
        if is_on { BaseCheck::Full } else { BaseCheck::Off }
    }
}
