//! Prints a scenario as YAML, parses it, and compares the values. The printer below shares no code with the
//! parser. Random bytes are rarely valid YAML; these texts always are.
//!
//! Shared by the fuzz target and by `scenarios/tests/scenario_value.rs`.

use std::time::Duration;

use arbitrary::{Arbitrary, Result, Unstructured};
use scenarios::{
    CallKind, CallTrigger, Effect, Fact, Fault, FileDamage, FilePart, Modality, NewestCount, Occurrence,
    Persistence, ResourceLimit, Scenario, Severity, SignalRecipient, SubmittedFile, Trigger, Until,
};

/// Maximum number of items of a list.
const MAX_ITEMS: usize = 4;

/// One line of text with any characters that YAML allows in a file.
#[derive(Debug)]
struct Text(String);

impl<'a> Arbitrary<'a> for Text {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Text> {
        let count = input.int_in_range(1..=12)?;
        let letter = |input: &mut Unstructured<'a>| -> Result<char> {
            let letter: char = input.arbitrary()?;
            let is_allowed = !letter.is_control()
                && !matches!(letter, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}');
            Ok(if is_allowed { letter } else { 'x' })
        };
        let text = (0..count).map(|_| letter(input)).collect::<Result<String>>()?;
        // The parser rejects a title of white space alone.
        Ok(Text(if text.trim().is_empty() { "x".into() } else { text }))
    }
}

impl Text {
    /// The text in single quotes, the only quoted style of YAML without escape sequences.
    fn quoted(&self) -> String {
        format!("'{}'", self.0.replace('\'', "''"))
    }
}

#[derive(Debug, Arbitrary)]
pub(crate) struct ScenarioValue {
    domain: u8,
    number: u8,
    title: Text,
    severity: u8,
    target: Text,
    settings: Vec<(u8, Text)>,
    submit: Vec<(Text, u16, Option<u32>)>,
    first_fault: FaultValue,
    first_expectation: ExpectationValue,
    more_faults: Vec<FaultValue>,
    more_expectations: Vec<ExpectationValue>,
    guards: Vec<Text>,
}

#[derive(Debug, Arbitrary)]
struct FaultValue {
    effect: EffectValue,
    trigger: TriggerValue,
    persistent: bool,
    until: UntilValue,
    max_trials: Option<u16>,
}

#[derive(Debug, Arbitrary)]
enum EffectValue {
    Crash,
    Signal { which: u8, every_process: bool, seconds: u8 },
    ReadOnly { place: Text },
    DamageFiles { how: u8, part: u8, newest: Option<u8>, each: bool },
    MemoryLimit { percent: u8 },
    Limits { open_files: u16 },
    FailCall { errno: u8, performed: bool },
    ShortCall { bytes: u16 },
    DelayCall { milliseconds: u16 },
    SweepErrno,
}

#[derive(Debug, Arbitrary)]
enum TriggerValue {
    Start,
    Restart,
    Step(u32),
    EveryStep,
    Output(Text),
    After(u16),
    Call { kinds: Vec<u8>, phase: Option<Text>, nth: Option<u16> },
}

#[derive(Debug, Arbitrary)]
enum UntilValue {
    Missing,
    Never,
    After(u16),
    Output(Text),
}

#[derive(Debug, Arbitrary)]
struct ExpectationValue {
    modality: u8,
    fact: FactValue,
}

#[derive(Debug, Arbitrary)]
enum FactValue {
    LostSteps(u32),
    SameAsBaseline,
    Restarts(u16),
    RecoveryTime(u16),
    PeakMemory(u16),
    OpenFiles(u16),
    Threads(u16),
    ZombieTime(u16),
    Verifies,
    EndsWith(u8),
    Output(Text),
}

const SIGNALS: [&str; 4] = ["TERM", "INT", "HUP", "USR1"];
const ERRNOS: [&str; 4] = ["EIO", "ENOSPC", "EROFS", "EACCES"];
const DAMAGES: [(&str, FileDamage); 3] =
    [("flip", FileDamage::Flip), ("truncate", FileDamage::Truncate), ("zero", FileDamage::Zero)];
const PARTS: [(&str, FilePart); 3] =
    [("start", FilePart::Start), ("middle", FilePart::Middle), ("end", FilePart::End)];
const SEVERITIES: [(&str, Severity); 4] = [
    ("critical", Severity::Critical),
    ("medium", Severity::Medium),
    ("low", Severity::Low),
    ("extra", Severity::Extra),
];

fn pick<T: Copy>(list: &[T], index: u8) -> T {
    list[usize::from(index) % list.len()]
}

/// A pattern that matches only this text.
fn pattern(text: &Text) -> Text {
    Text(regex_escape(&text.0))
}

/// Does the same as `regex::escape`, so that the fuzz target does not depend on the crate `regex`.
fn regex_escape(text: &str) -> String {
    let mut escaped = String::new();
    for letter in text.chars() {
        if matches!(
            letter,
            '\\' | '.'
                | '+'
                | '*'
                | '?'
                | '('
                | ')'
                | '|'
                | '['
                | ']'
                | '{'
                | '}'
                | '^'
                | '$'
                | '#'
                | '&'
                | '-'
                | '~'
        ) {
            escaped.push('\\');
        }
        escaped.push(letter);
    }
    escaped
}

impl TriggerValue {
    fn print(&self, needs_call: bool) -> String {
        match self {
            TriggerValue::Call { kinds, phase, nth } => {
                let kinds: Vec<&str> = kinds
                    .iter()
                    .take(MAX_ITEMS)
                    .map(|kind| pick(&CallKind::MUTATING, *kind).name())
                    .collect();
                let to =
                    if kinds.is_empty() { String::new() } else { format!("to: [{}], ", kinds.join(", ")) };
                let during =
                    phase.as_ref().map(|phase| format!("during: {}, ", phase.quoted())).unwrap_or_default();
                let occurrence = nth.map_or_else(|| "every".into(), |nth| (u32::from(nth) + 1).to_string());
                format!("when: {{call: {{{to}{during}at: {occurrence}}}}}")
            }
            _ if needs_call => "when: {call: {to: [write], at: 1}}".into(),
            TriggerValue::Start => "when: start".into(),
            TriggerValue::Restart => "when: restart".into(),
            TriggerValue::Step(step) => format!("when: {{step: {step}}}"),
            TriggerValue::EveryStep => "when: {step: every}".into(),
            TriggerValue::Output(text) => format!("when: {{output: {}}}", pattern(text).quoted()),
            TriggerValue::After(milliseconds) => format!("when: {{after: {milliseconds} ms}}"),
        }
    }

    fn check(&self, needs_call: bool, trigger: &Trigger) {
        match (self, trigger) {
            (TriggerValue::Call { kinds, phase, nth }, Trigger::Call(call)) => {
                let expected: Vec<CallKind> =
                    kinds.iter().take(MAX_ITEMS).map(|kind| pick(&CallKind::MUTATING, *kind)).collect();
                let expected = if expected.is_empty() { CallKind::MUTATING.to_vec() } else { expected };
                let CallTrigger { kinds, phase: found, occurrence, .. } = call;
                assert_eq!(
                    (kinds, found.as_deref()),
                    (&expected, phase.as_ref().map(|phase| phase.0.as_str()))
                );
                let expected = nth.map_or(Occurrence::Every, |nth| Occurrence::Nth(u32::from(nth) + 1));
                assert_eq!(*occurrence, expected);
            }
            (_, Trigger::Call(_)) if needs_call => {}
            (TriggerValue::Start, Trigger::Start) | (TriggerValue::Restart, Trigger::Restart) => {}
            (TriggerValue::EveryStep, Trigger::EveryStep) => {}
            (TriggerValue::Step(step), Trigger::Step(found)) => assert_eq!(u64::from(*step), *found),
            (TriggerValue::Output(text), Trigger::Output(found)) => {
                assert_eq!(found.as_str(), pattern(text).0)
            }
            (TriggerValue::After(milliseconds), Trigger::After(found)) => {
                assert_eq!(*found, Duration::from_millis(u64::from(*milliseconds)));
            }
            other => panic!("{other:?}"),
        }
    }
}

impl FaultValue {
    /// Whether this is a signal or a kill while no process runs, which the parser rejects. `print` then uses
    /// another trigger.
    fn has_no_process(&self) -> bool {
        matches!(self.effect, EffectValue::Signal { .. } | EffectValue::Crash)
            && matches!(self.trigger, TriggerValue::Start | TriggerValue::Restart)
    }

    /// The parser rejects persistent damage.
    fn is_persistent(&self) -> bool {
        self.persistent && !matches!(self.effect, EffectValue::DamageFiles { .. })
    }

    /// The parser rejects an end of what does not last.
    fn until(&self) -> &UntilValue {
        let is_momentary = matches!(
            self.effect,
            EffectValue::DamageFiles { .. }
                | EffectValue::FailCall { .. }
                | EffectValue::ShortCall { .. }
                | EffectValue::DelayCall { .. }
        );
        match self.effect {
            EffectValue::Crash | EffectValue::Signal { .. } => &UntilValue::Missing,
            _ if is_momentary && !self.is_persistent() => &UntilValue::Missing,
            _ => &self.until,
        }
    }

    fn needs_call(&self) -> bool {
        matches!(
            self.effect,
            EffectValue::FailCall { .. }
                | EffectValue::ShortCall { .. }
                | EffectValue::DelayCall { .. }
                | EffectValue::SweepErrno
        )
    }

    fn print(&self) -> String {
        let (name, own) = match &self.effect {
            EffectValue::Crash => ("crash", String::new()),
            EffectValue::Signal { which, every_process, seconds } => {
                let to = if *every_process { "every-process" } else { "main" };
                (
                    "signal",
                    format!(
                        "which: [{}], to: {to}, for: {} s, ",
                        pick(&SIGNALS, *which),
                        u16::from(*seconds) + 1
                    ),
                )
            }
            EffectValue::ReadOnly { place } => ("read-only", format!("place: {}, ", place.quoted())),
            EffectValue::DamageFiles { how, part, newest, each } => {
                let newest =
                    newest.map_or_else(|| "every".into(), |count| (u16::from(count) + 1).to_string());
                let (how, part) = (pick(&DAMAGES, *how).0, pick(&PARTS, *part).0);
                let own =
                    format!("of: 'c/*', newest: {newest}, how: [{how}], part: [{part}], each: {each}, ");
                ("damage-files", own)
            }
            EffectValue::Limits { open_files } => {
                ("limits", format!("open-files: {}, ", u32::from(*open_files) + 3))
            }
            EffectValue::MemoryLimit { percent } => {
                ("memory-limit", format!("max: {} % of baseline peak, ", percent % 99 + 1))
            }
            EffectValue::FailCall { errno, performed } => {
                ("fail-call", format!("errno: [{}], performed: {performed}, ", pick(&ERRNOS, *errno)))
            }
            // `short-call` accepts only reads and writes, but the trigger may name other calls. So `print`
            // replaces it.
            EffectValue::ShortCall { bytes } => ("short-call", format!("bytes: {}, ", u32::from(*bytes) + 1)),
            EffectValue::DelayCall { milliseconds } => ("delay-call", format!("time: {milliseconds} ms, ")),
            EffectValue::SweepErrno => ("sweep-errno", String::new()),
        };
        let when = match &self.effect {
            EffectValue::ShortCall { .. } => "when: {call: {to: [write], at: 1}}".into(),
            _ if self.has_no_process() => "when: {step: 4}".into(),
            _ => self.trigger.print(self.needs_call()),
        };
        let persistence = if self.is_persistent() { "persistent" } else { "transient" };
        let until = match self.until() {
            UntilValue::Missing => String::new(),
            UntilValue::Never => ", until: never".into(),
            UntilValue::After(milliseconds) => format!(", until: {{after: {milliseconds} ms}}"),
            UntilValue::Output(text) => format!(", until: {{output: {}}}", pattern(text).quoted()),
        };
        let max_trials =
            self.max_trials.map(|max| format!(", max-trials: {}", u32::from(max) + 1)).unwrap_or_default();
        format!("  - {name}: {{{own}{when}, persistence: {persistence}{until}{max_trials}}}\n")
    }

    fn check(&self, fault: &Fault) {
        match (&self.effect, &fault.effect) {
            (EffectValue::Crash, Effect::Crash(crash)) => assert_eq!(crash.point, None),
            (EffectValue::Signal { which, every_process, seconds }, Effect::Signal(signal)) => {
                let signals = &signal.signals;
                assert_eq!(signals.len(), 1);
                assert_eq!(signals[0].signal.name(), pick(&SIGNALS, *which));
                let to = if *every_process { SignalRecipient::EveryProcess } else { SignalRecipient::Main };
                assert_eq!(signals[0].to, to);
                assert_eq!(signals[0].duration, Some(Duration::from_secs(u64::from(*seconds) + 1)));
            }
            (EffectValue::ReadOnly { place }, Effect::ReadOnly(found)) => assert_eq!(place.0, found.place),
            (EffectValue::DamageFiles { how, part, newest, each }, Effect::DamageFiles(found)) => {
                assert_eq!(found.damages, [pick(&DAMAGES, *how).1]);
                assert_eq!(found.parts, [pick(&PARTS, *part).1]);
                let expected =
                    newest.map_or(NewestCount::Every, |count| NewestCount::Of(u32::from(count) + 1));
                assert_eq!((found.newest, found.one_at_a_time), (expected, *each));
            }
            (EffectValue::Limits { open_files }, Effect::Limits(limits)) => {
                assert_eq!(limits.limit, ResourceLimit::OpenFiles(u32::from(*open_files) + 3));
            }
            (EffectValue::MemoryLimit { .. }, Effect::MemoryLimit(_)) => {}
            (EffectValue::FailCall { errno, performed }, Effect::FailCall(found)) => {
                assert_eq!((found.errnos.len(), found.errnos[0].name), (1, pick(&ERRNOS, *errno)));
                assert_eq!(*performed, found.performed);
            }
            (EffectValue::ShortCall { bytes }, Effect::ShortCall(found)) => {
                assert_eq!(u32::from(*bytes) + 1, found.bytes);
            }
            (EffectValue::DelayCall { milliseconds }, Effect::DelayCall(found)) => {
                assert_eq!(Duration::from_millis(u64::from(*milliseconds)), found.delay);
            }
            (EffectValue::SweepErrno, Effect::SweepErrno(_)) => {}
            other => panic!("{other:?}"),
        }
        if !matches!(self.effect, EffectValue::ShortCall { .. }) && !self.has_no_process() {
            self.trigger.check(self.needs_call(), &fault.when);
        }
        let persistence = if self.is_persistent() { Persistence::Persistent } else { Persistence::Transient };
        assert_eq!(fault.persistence, persistence);
        match (self.until(), &fault.until) {
            (UntilValue::Missing | UntilValue::Never, Until::Never) => {}
            (UntilValue::After(milliseconds), Until::After(found)) => {
                assert_eq!(Duration::from_millis(u64::from(*milliseconds)), *found);
            }
            (UntilValue::Output(text), Until::Output(found)) => assert_eq!(found.as_str(), pattern(text).0),
            other => panic!("{other:?}"),
        }
        if let Some(max) = self.max_trials {
            assert_eq!(fault.max_trials, u32::from(max) + 1);
        }
    }
}

impl ExpectationValue {
    fn print(&self) -> String {
        let modality = pick(&["always", "sometimes", "reached"], self.modality);
        let fact = match &self.fact {
            FactValue::LostSteps(max) => format!("{{lost-steps: {{max: {max}}}}}"),
            FactValue::SameAsBaseline => "same-as-baseline".into(),
            FactValue::Restarts(max) => format!("{{restarts: {{max: {max}}}}}"),
            FactValue::RecoveryTime(seconds) => format!("{{recovery-time: {{max: {seconds} s}}}}"),
            FactValue::PeakMemory(mebibytes) => format!("{{peak-memory: {{max: {mebibytes} MiB}}}}"),
            FactValue::OpenFiles(max) => format!("{{open-files: {{max: {max}}}}}"),
            FactValue::Threads(max) => format!("{{threads: {{max: {max}}}}}"),
            FactValue::ZombieTime(max) => format!("{{zombie-time: {{max: {max} ms}}}}"),
            FactValue::Verifies => "verifies".into(),
            FactValue::EndsWith(code) => format!("{{ends-with: [{code}]}}"),
            FactValue::Output(text) => format!("{{output: {}}}", pattern(text).quoted()),
        };
        format!("  - {modality}: {fact}\n")
    }

    fn check(&self, modality: Modality, fact: &Fact) {
        assert_eq!(
            modality,
            pick(&[Modality::Always, Modality::Sometimes, Modality::Reached], self.modality)
        );
        match (&self.fact, fact) {
            (FactValue::LostSteps(max), Fact::LostSteps { max: found }) => {
                assert_eq!(u64::from(*max), *found)
            }
            (FactValue::SameAsBaseline, Fact::SameAsBaseline) | (FactValue::Verifies, Fact::Verifies) => {}
            (FactValue::Restarts(max), Fact::Restarts { max: found }) => assert_eq!(u32::from(*max), *found),
            (FactValue::RecoveryTime(seconds), Fact::RecoveryTime { max }) => {
                assert_eq!(Duration::from_secs(u64::from(*seconds)), *max);
            }
            (FactValue::PeakMemory(mebibytes), Fact::PeakMemory { max }) => {
                assert_eq!(u64::from(*mebibytes) << 20, max.0);
            }
            (FactValue::OpenFiles(max), Fact::OpenFiles { max: found })
            | (FactValue::Threads(max), Fact::Threads { max: found }) => {
                assert_eq!(u64::from(*max), *found)
            }
            (FactValue::ZombieTime(max_ms), Fact::ZombieTime { max }) => {
                assert_eq!(Duration::from_millis(u64::from(*max_ms)), *max);
            }
            (FactValue::EndsWith(code), Fact::EndsWith(codes)) => assert_eq!(*codes, [i32::from(*code)]),
            (FactValue::Output(text), Fact::Output(found)) => assert_eq!(found.as_str(), pattern(text).0),
            other => panic!("{other:?}"),
        }
    }
}

impl ScenarioValue {
    /// At least one fault, because the parser rejects a scenario without a fault.
    fn faults(&self) -> impl Iterator<Item = &FaultValue> {
        std::iter::once(&self.first_fault).chain(self.more_faults.iter().take(MAX_ITEMS))
    }

    /// At least one expectation, because the parser rejects a scenario without an expectation.
    fn expectations(&self) -> impl Iterator<Item = &ExpectationValue> {
        std::iter::once(&self.first_expectation).chain(self.more_expectations.iter().take(MAX_ITEMS))
    }

    /// The parser rejects `ends-with` without a signal that asks the target to exit.
    fn expects_exit(&self) -> bool {
        self.expectations().any(|expectation| matches!(expectation.fact, FactValue::EndsWith(_)))
    }

    fn id(&self) -> String {
        format!("{}-{:02}", pick(&["fs", "proc", "dur"], self.domain), self.number % 100)
    }

    /// The settings by name. A map, because the parser rejects a name that occurs twice.
    fn settings(&self) -> std::collections::BTreeMap<String, &str> {
        self.settings
            .iter()
            .take(MAX_ITEMS)
            .map(|(key, value)| (format!("s{key}"), value.0.as_str()))
            .collect()
    }

    fn print(&self) -> String {
        let settings = self.settings();
        let settings =
            settings.iter().map(|(key, value)| format!("{key}: {}", Text((*value).into()).quoted()));
        let submit = self.submit.iter().take(MAX_ITEMS).map(|(kind, samples, length)| {
            let length = length.map(|length| format!(", length: {length}")).unwrap_or_default();
            format!("{{generate: {{kind: {}, samples: {}{length}}}}}", kind.quoted(), u32::from(*samples) + 1)
        });
        let mut text = format!(
            "version: 1\nid: {}\ntitle: {}\nseverity: {}\n\
             target: {{use: {}, settings: {{{}}}, submit: [{}]}}\nmethod:\n",
            self.id(),
            self.title.quoted(),
            pick(&SEVERITIES, self.severity).0,
            self.target.quoted(),
            settings.collect::<Vec<_>>().join(", "),
            submit.collect::<Vec<_>>().join(", "),
        );
        self.faults().for_each(|fault| text += &fault.print());
        if self.expects_exit() {
            text += "  - signal: {which: [TERM], when: {step: 1}}\n";
        }
        text += "expect:\n";
        self.expectations().for_each(|expectation| text += &expectation.print());
        let guards: Vec<String> = self.guards.iter().take(MAX_ITEMS).map(Text::quoted).collect();
        text + &format!("guards: [{}]\n", guards.join(", "))
    }

    fn check(&self, scenario: &Scenario) {
        assert_eq!((scenario.id(), scenario.title()), (self.id().as_str(), self.title.0.as_str()));
        assert_eq!(scenario.severity(), pick(&SEVERITIES, self.severity).1);
        assert_eq!(scenario.target(), self.target.0);
        let settings: Vec<(&str, &str)> =
            scenario.settings().iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let expected = self.settings();
        assert_eq!(settings, expected.iter().map(|(key, value)| (key.as_str(), *value)).collect::<Vec<_>>());
        for ((kind, samples, length), found) in self.submit.iter().take(MAX_ITEMS).zip(scenario.submit()) {
            let (kind, samples) = (kind.0.clone(), u32::from(*samples) + 1);
            assert_eq!(*found, SubmittedFile::Generated { kind, samples, length: *length });
        }
        assert_eq!(scenario.submit().len(), self.submit.len().min(MAX_ITEMS));
        let faults = self.faults().count() + usize::from(self.expects_exit());
        assert_eq!(scenario.method().len(), faults);
        self.faults().zip(scenario.method()).for_each(|(value, fault)| value.check(fault));
        assert_eq!(scenario.expect().len(), self.expectations().count());
        for (value, found) in self.expectations().zip(scenario.expect()) {
            value.check(found.modality, &found.fact);
        }
        let guards: Vec<&str> = self.guards.iter().take(MAX_ITEMS).map(|guard| guard.0.as_str()).collect();
        assert_eq!(scenario.guards(), guards);
    }
}

/// Checks one value: prints it, parses the text, and compares the result with the value.
pub(crate) fn check(value: &ScenarioValue) {
    let text = value.print();
    match Scenario::parse(&text, "fuzz") {
        Ok(scenario) => value.check(&scenario),
        Err(error) => panic!("{error}\n{text}"),
    }
}
