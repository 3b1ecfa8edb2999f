//! The samples of a job: in memory if they are few, else in the job's data file, of which only the places of
//! blocks are in memory. So memory follows a setting, not the data. Trains nothing.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::intake::{NextSample, ReadError, Sample, SampleReader};
use crate::model::{TokenizedSample, tokenize};
use crate::progress;
use crate::settings::{Guards, Limits};

/// Bytes after which a block of lines ends. A block is read for each of its samples.
const BLOCK_BYTES: u64 = 16 << 10;

/// A sample as it is trained on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StoredSample {
    pub(super) tokens: TokenizedSample,
    pub(super) weight: f32,
}

/// Why a sample can't be read from the data file.
#[derive(Debug, thiserror::Error)]
pub enum SampleReadError {
    /// The disk or the machine fails.
    #[error("the job's data can't be read")]
    Read(#[source] std::io::Error),
    /// Somebody has written to the file.
    #[error("the job's data has changed while it was trained on")]
    Changed,
}

/// The samples of a job.
pub struct SampleStore {
    samples: Samples,
    len: usize,
    truncated: usize,
    max_tokens: usize,
    /// The first sample with a target.
    first_with_target: Option<TokenizedSample>,
    context: usize,
}

enum Samples {
    InMemory(Vec<StoredSample>),
    InFile(SampleFile),
}

/// A data file whose samples are found by their numbers.
struct SampleFile {
    file: File,
    blocks: Vec<Block>,
    limits: Limits,
    guards: Guards,
}

/// A run of lines.
#[derive(Debug, Clone, Copy)]
struct Block {
    offset: u64,
    len_bytes: u64,
    first_sample: usize,
    /// The first bytes of its BLAKE3.
    digest: [u8; 8],
}

impl SampleStore {
    /// Keeps samples in memory.
    pub fn in_memory(samples: &[Sample], context: usize) -> SampleStore {
        let mut builder = SampleStoreBuilder::new(context, u64::MAX);
        samples.iter().for_each(|sample| builder.add_sample(sample));
        SampleStore { samples: Samples::InMemory(builder.in_memory.unwrap_or_default()), ..builder.store }
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the samples are read from the file.
    pub fn is_in_file(&self) -> bool {
        matches!(self.samples, Samples::InFile(_))
    }

    /// How many samples are longer than the context.
    pub(super) fn truncated(&self) -> usize {
        self.truncated
    }

    /// Tokens of the longest sample.
    pub(super) fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    pub(super) fn first_with_target(&self) -> Option<&TokenizedSample> {
        self.first_with_target.as_ref()
    }

    /// The samples with these numbers.
    pub(super) fn get(&self, indices: &[usize]) -> Result<Vec<Cow<'_, StoredSample>>, SampleReadError> {
        match &self.samples {
            Samples::InMemory(samples) => {
                Ok(indices.iter().map(|index| Cow::Borrowed(&samples[*index])).collect())
            }
            Samples::InFile(file) => {
                indices.iter().map(|index| Ok(Cow::Owned(file.sample(*index, self.context)?))).collect()
            }
        }
    }
}

impl SampleFile {
    fn sample(&self, index: usize, context: usize) -> Result<StoredSample, SampleReadError> {
        let after = self.blocks.partition_point(|block| block.first_sample <= index);
        let block = after.checked_sub(1).and_then(|number| self.blocks.get(number));
        let block = block.ok_or(SampleReadError::Changed)?;
        let mut bytes = vec![0; block.len_bytes as usize];
        match self.file.read_exact_at(&mut bytes, block.offset) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(SampleReadError::Changed);
            }
            read => read.map_err(SampleReadError::Read)?,
        }
        progress::advance();
        if digest(blake3::Hasher::new().update(&bytes)) != block.digest {
            return Err(SampleReadError::Changed);
        }
        let mut reader = SampleReader::new(bytes.as_slice(), &self.limits, &self.guards);
        let changed = |_: ReadError<Infallible>| SampleReadError::Changed;
        reader.skip_samples(index - block.first_sample).map_err(|_| SampleReadError::Changed)?;
        loop {
            match reader.next_sample(&mut |_: &[u8]| Ok(())).map_err(changed)? {
                NextSample::Sample(sample) => {
                    return Ok(StoredSample { tokens: tokenize(&sample, context), weight: sample.weight });
                }
                NextSample::Blank => {}
                NextSample::End => return Err(SampleReadError::Changed),
            }
        }
    }
}

fn digest(hasher: &blake3::Hasher) -> [u8; 8] {
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    first
}

/// Builds a store from the lines of a data file, in their order.
pub struct SampleStoreBuilder {
    store: SampleStore,
    /// `None` if they take more than `max_bytes`.
    in_memory: Option<Vec<StoredSample>>,
    bytes_in_memory: u64,
    max_bytes: u64,
    blocks: Vec<Block>,
    block: Block,
    hasher: blake3::Hasher,
}

impl SampleStoreBuilder {
    /// A builder for samples of at most `context` tokens, of which at most `max_bytes` are kept in memory.
    pub fn new(context: usize, max_bytes: u64) -> SampleStoreBuilder {
        SampleStoreBuilder {
            store: SampleStore {
                samples: Samples::InMemory(Vec::new()),
                len: 0,
                truncated: 0,
                max_tokens: 0,
                first_with_target: None,
                context,
            },
            in_memory: Some(Vec::new()),
            bytes_in_memory: 0,
            max_bytes,
            blocks: Vec::new(),
            block: Block { offset: 0, len_bytes: 0, first_sample: 0, digest: [0; 8] },
            hasher: blake3::Hasher::new(),
        }
    }

    /// Adds a line of the file, line end included, before its sample.
    pub fn add_line(&mut self, line: &[u8]) {
        if self.block.len_bytes >= BLOCK_BYTES {
            self.end_block();
        }
        self.hasher.update(line);
        self.block.len_bytes += line.len() as u64;
    }

    fn end_block(&mut self) {
        let block = Block { digest: digest(&self.hasher), ..self.block };
        self.blocks.push(block);
        self.block = Block {
            offset: block.offset + block.len_bytes,
            len_bytes: 0,
            first_sample: self.store.len,
            digest: [0; 8],
        };
        self.hasher.reset();
    }

    /// Adds the sample of the last line.
    pub fn add_sample(&mut self, sample: &Sample) {
        let tokens = tokenize(sample, self.store.context);
        self.store.len += 1;
        self.store.truncated += usize::from(tokens.truncated);
        self.store.max_tokens = self.store.max_tokens.max(tokens.tokens.len());
        if self.store.first_with_target.is_none() && !tokens.targets.is_empty() {
            self.store.first_with_target = Some(tokens.clone());
        }
        let bytes = size_of::<StoredSample>()
            + size_of_val(tokens.tokens.as_slice())
            + size_of_val(tokens.targets.as_slice());
        self.bytes_in_memory = self.bytes_in_memory.saturating_add(bytes as u64);
        if self.bytes_in_memory > self.max_bytes {
            self.in_memory = None;
        }
        if let Some(samples) = &mut self.in_memory {
            samples.push(StoredSample { tokens, weight: sample.weight });
        }
    }

    /// The store. `file` has the lines that were added.
    pub fn finish(mut self, file: File, limits: &Limits, guards: &Guards) -> SampleStore {
        self.end_block();
        let samples = match self.in_memory {
            Some(samples) => Samples::InMemory(samples),
            None => Samples::InFile(SampleFile {
                file,
                blocks: self.blocks,
                limits: limits.clone(),
                guards: guards.clone(),
            }),
        };
        SampleStore { samples, ..self.store }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::intake::parse_line;

    /// Lines of all lengths, some of them blank.
    fn text() -> String {
        let line = |number: usize| match number % 7 {
            3 => "\r\n".to_owned(),
            5 => format!("{{\"text\":\"{}\",\"weight\":0.5}}\r\n", "x".repeat(40_000)),
            _ => format!("{{\"prompt\":\"{number}\",\"completion\":\"{}\"}}\n", "é".repeat(number)),
        };
        let lines: String = (0..400).map(line).collect();
        format!("\u{feff}{}", lines.trim_end())
    }

    fn stores(text: &str) -> (SampleStore, SampleStore, File) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let lines = text.trim_start_matches('\u{feff}').lines().filter(|line| !line.is_empty());
        let samples: Vec<Sample> = lines.map(|line| parse_line(line.as_bytes()).unwrap()).collect();
        let (limits, guards) = (Limits::default(), Guards::default());
        let mut builder = SampleStoreBuilder::new(64, 1000);
        let mut samples_of = SampleReader::new(text.as_bytes(), &limits, &guards);
        loop {
            let mut add_line = |line: &[u8]| {
                builder.add_line(line);
                Ok::<(), Infallible>(())
            };
            match samples_of.next_sample(&mut add_line).unwrap() {
                NextSample::Sample(sample) => builder.add_sample(&sample),
                NextSample::Blank => {}
                NextSample::End => break,
            }
        }
        let in_file = builder.finish(file.try_clone().unwrap(), &limits, &guards);
        (SampleStore::in_memory(&samples, 64), in_file, file)
    }

    #[test]
    fn every_sample_is_the_same_from_the_file_and_from_memory() {
        let (in_memory, in_file, _) = stores(&text());
        assert!(in_file.is_in_file() && !in_memory.is_in_file());
        assert_eq!(in_file.len(), in_memory.len());
        assert_eq!(in_file.max_tokens(), in_memory.max_tokens());
        assert_eq!(in_file.truncated(), in_memory.truncated());
        assert_eq!(in_file.first_with_target(), in_memory.first_with_target());
        for index in (0..in_file.len()).rev() {
            assert_eq!(in_file.get(&[index]).unwrap(), in_memory.get(&[index]).unwrap(), "{index}");
        }
    }

    #[test]
    fn a_file_that_was_written_to_is_noticed_at_the_next_sample() {
        let (_, in_file, file) = stores(&text());
        assert!(in_file.get(&[0]).is_ok());
        file.write_all_at(b"z", 40).unwrap();
        assert!(matches!(in_file.get(&[0]), Err(SampleReadError::Changed)));
        let last = in_file.len() - 1;
        assert!(in_file.get(&[last]).is_ok());
        file.set_len(100).unwrap();
        assert!(matches!(in_file.get(&[last]), Err(SampleReadError::Changed)));
    }
}
