//! Counts the different sets of whole pages that the masks of one file are. Pure.

use std::collections::HashSet;

use super::file_mask::FileMask;
use super::tear::Tear;
use super::write_pages::WritePages;

/// With more pages than this that can be missing, there are too many sets to be counted.
const MAX_MISSABLE_PAGES: u64 = 29;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PageState {
    New,
    Missing,
    Lost,
}

/// Pages in a row.
#[derive(Debug, Clone, Copy)]
struct PageRun {
    count: u64,
    state: PageState,
    write: usize,
}

/// A set of pages, in one form for all masks that lead to it.
#[derive(Debug, PartialEq, Eq, Hash)]
struct PageSet {
    /// The page from which on all are lost.
    end: u64,
    /// Runs of missing pages before that: where they begin and end, in turn.
    missing: Vec<u64>,
}

/// How many different sets of pages the masks are. Masks that lose nothing, or cut a page, do not count.
pub(super) fn distinct_sets<'m>(writes: &[WritePages], masks: impl Iterator<Item = &'m FileMask>) -> u64 {
    let missable: u64 = writes.iter().filter(|write| write.is_missable).map(WritePages::count).sum();
    if missable > MAX_MISSABLE_PAGES {
        return 0;
    }
    let all: u64 = writes.iter().map(WritePages::count).sum();
    let sets: HashSet<PageSet> = masks.filter_map(|mask| page_set(writes, *mask)).collect();
    sets.iter().filter(|set| set.end < all || !set.missing.is_empty()).count() as u64
}

fn page_set(writes: &[WritePages], mask: FileMask) -> Option<PageSet> {
    let mut runs = Vec::new();
    for (index, write) in writes.iter().enumerate() {
        let mut push = |count: u64, state: PageState| runs.push(PageRun { count, state, write: index });
        let all = write.count();
        let missing = if write.loses_length { PageState::Lost } else { PageState::Missing };
        let at_full_length = if write.is_missable { PageState::Missing } else { PageState::Lost };
        match mask {
            FileMask::Before(first) if index >= first => push(all, PageState::Lost),
            FileMask::BeforeAtFullLength(first) if index >= first => push(all, at_full_length),
            FileMask::AllBut(hole) if index == hole => push(all, missing),
            FileMask::Only(only) if index != only => push(all, missing),
            FileMask::Torn { write: torn, tear: Tear::Prefix(_) } if index > torn => {
                push(all, PageState::Lost)
            }
            FileMask::Torn { write: torn, tear } if index == torn => {
                let (from, to, state) = match tear {
                    Tear::Prefix(cut) => (cut, write.len_bytes, PageState::Lost),
                    Tear::ZeroTail(cut) => (cut, write.len_bytes, PageState::Missing),
                    Tear::Hole(to) => (0, to, PageState::Missing),
                    Tear::Gap { from, to } => (from, to, PageState::Missing),
                    Tear::GarbageTail(_) => return None,
                };
                let (from, to) = (write.pages_before(from)?, write.pages_before(to)?);
                push(from, PageState::New);
                push(to - from, state);
                push(all - to, PageState::New);
            }
            _ => push(all, PageState::New),
        }
    }
    canonical(writes, runs)
}

/// Where nothing later reached the disk, pages are lost. Where something did, they are missing.
fn canonical(writes: &[WritePages], mut runs: Vec<PageRun>) -> Option<PageSet> {
    runs.retain(|run| run.count > 0);
    let (mut has_length, mut has_new) = (false, false);
    for run in runs.iter_mut().rev() {
        let write = &writes[run.write];
        if run.state == PageState::Lost && (write.is_overwritable() || has_length) {
            if !write.is_missable {
                return None;
            }
            run.state = PageState::Missing;
        }
        match run.state {
            // Later bytes are there, but the length of these is not.
            PageState::Lost if has_new => return None,
            PageState::Lost => {}
            PageState::New => (has_new, has_length) = (true, has_length || write.appends),
            PageState::Missing => has_length |= write.appends,
        }
    }
    let mut set = PageSet { end: 0, missing: Vec::new() };
    for run in runs {
        match run.state {
            PageState::Lost => return Some(set),
            PageState::Missing if set.missing.last() == Some(&set.end) => {
                set.missing.pop();
                set.missing.push(set.end + run.count);
            }
            PageState::Missing => set.missing.extend([set.end, set.end + run.count]),
            PageState::New => {}
        }
        set.end += run.count;
    }
    Some(set)
}
