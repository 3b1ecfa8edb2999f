//! The names of crash states, which `--state` takes. Pure text; does not know which states a recording has.

use std::fmt;

use super::crash_candidate::CrashCandidate;
use super::crash_state::CrashKind;
use super::fs_model::FsModel;

/// The word for a recovery from undamaged files in the name of a state.
const CONTROL: &str = "control";

/// The name of a crash state: `MODEL:CRASH-POINT-LOST..~TORN@FILES.RECORDING`, as in
/// `ext4:12-3-9.1~7p4096@4f1c2a7b90d3e511.0c31bd77`. The part from `@` on finds the state in another recording, in
/// which its operations have other numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateName {
    /// What ends the target. `None`: nothing does, and the files are undamaged.
    pub crash: Option<CrashKind>,
    /// The crash point and the persisted set.
    pub candidate: CrashCandidate,
    /// What the state consists of. `None`: only its place in the recording is given.
    pub contents: Option<StateContents>,
}

/// What a state consists of, as digests that do not depend on the numbers of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateContents {
    /// Of the names, bytes and permissions of the files; the last byte is of the step that was acknowledged at the
    /// crash point.
    pub files: [u8; 8],
    /// Of all operations of the recording.
    pub recording: [u8; 4],
}

impl StateName {
    /// Parses a name. `None`: it is not the name of a crash state.
    pub fn parse(text: &str) -> Option<StateName> {
        let (crash, rest) = text.split_once(':')?;
        let crash = match crash {
            CONTROL => None,
            "process" => Some(CrashKind::Process),
            model => Some(CrashKind::PowerLoss(FsModel::from_name(model)?)),
        };
        let (position, contents) = match rest.split_once('@') {
            None => (rest, None),
            Some((position, contents)) => {
                let (files, recording) = contents.split_once('.')?;
                let contents = StateContents { files: from_hex(files)?, recording: from_hex(recording)? };
                (position, Some(contents))
            }
        };
        let candidate = CrashCandidate::parse(position)?;
        let is_undamaged = crash.is_some() || candidate.lost_nothing();
        is_undamaged.then_some(StateName { crash, candidate, contents })
    }
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let crash = self.crash.map_or(CONTROL, |crash| crash.crash_model().name());
        write!(f, "{crash}:{}", self.candidate.name())?;
        match &self.contents {
            Some(contents) => write!(f, "@{}.{}", to_hex(&contents.files), to_hex(&contents.recording)),
            None => Ok(()),
        }
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex<const LEN: usize>(text: &str) -> Option<[u8; LEN]> {
    let is_hex = text.len() == 2 * LEN && text.bytes().all(|letter| letter.is_ascii_hexdigit());
    is_hex.then_some(())?;
    let mut bytes = [0; LEN];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parsed_name_gives_the_same_text() {
        for text in [
            "process:0",
            "control:17@00000000000000ff.0a0b0c0d",
            "ext4:12-3-9.1~7p4096@4f1c2a7b90d3e511.0c31bd77",
            "lying:9-3..7",
            "posix:9-3.1",
        ] {
            assert_eq!(StateName::parse(text).map(|name| name.to_string()).as_deref(), Some(text));
        }
        for text in [
            "12-3",
            "ntfs:12",
            "ext4:",
            ":12",
            "control:12-3",
            "process:4@",
            "process:4@4f1c2a7b90d3e511",
            "process:4@4f1c2a7b90d3e51.0c31bd77",
            "process:4@4f1c2a7b90d3e5+1.0c31bd77",
            "process:4@\u{e9}f1c2a7b90d3e51.0c31bd77",
        ] {
            assert_eq!(StateName::parse(text), None, "{text}");
        }
    }
}
