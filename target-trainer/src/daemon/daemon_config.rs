//! What a daemon needs to run.

use jiff::civil::DateTime;

use crate::settings::Settings;
use crate::store::RootLayout;

/// What a daemon needs to run.
pub struct DaemonConfig<'a> {
    /// The root that the daemon owns.
    pub layout: RootLayout,
    /// The root's settings.
    pub settings: Settings,
    /// Exit when the inbox and the queue are empty.
    pub drain: bool,
    /// The local date and time of day.
    pub local_now: &'a dyn Fn() -> DateTime,
    /// Prints a line on standard output.
    pub print_line: &'a dyn Fn(&str),
    /// Whether a signal has requested a stop.
    pub stop_requested: &'a dyn Fn() -> bool,
}
