//! The threads of the running block: which of them may run, and which wait for others. Must not know fibers,
//! or what a kernel does.

use super::grid_launch::LaunchFailure;

/// Threads of a warp.
pub(super) const WARP_LANES: usize = 32;

/// State of a thread.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ThreadState {
    Unstarted,
    Ready,
    /// Waits for its warp.
    AtWarp,
    /// Waits for its block.
    AtBlock,
    Finished,
}

/// What a thread does once it has arrived where threads meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It was the last one, so all go on.
    Last,
    /// It waits for the others.
    Waits,
}

/// The lanes of a warp that have arrived at its current collective.
#[derive(Debug, Clone, Copy, Default)]
struct WarpArrivals {
    count: usize,
    /// Kind of the collective at which the last of them has arrived.
    kind: u32,
}

/// The threads of the running block.
#[derive(Default)]
pub(super) struct ThreadBlock {
    dims: [u32; 3],
    thread_count: usize,
    descending: bool,
    started: usize,
    finished: usize,
    at_block: usize,
    /// Whether lanes of one warp arrived at different collectives.
    has_mixed_collectives: bool,
    current_thread: usize,
    /// By thread.
    states: Vec<ThreadState>,
    /// By warp.
    arrivals: Vec<WarpArrivals>,
}

impl ThreadBlock {
    /// Sets the dimensions of the next blocks.
    pub(super) fn prepare(&mut self, dims: [u32; 3]) {
        self.dims = dims;
        self.thread_count = dims.iter().map(|size| *size as usize).product();
        self.states.resize(self.thread_count, ThreadState::Unstarted);
        self.arrivals.resize(self.warp_count(), WarpArrivals::default());
    }

    /// Begins a block, none of whose threads has started.
    pub(super) fn begin(&mut self, descending: bool) {
        self.descending = descending;
        (self.started, self.finished, self.at_block, self.has_mixed_collectives) = (0, 0, 0, false);
        self.states.fill(ThreadState::Unstarted);
        self.arrivals.fill(WarpArrivals::default());
    }

    pub(super) fn thread_count(&self) -> usize {
        self.thread_count
    }

    pub(super) fn warp_count(&self) -> usize {
        self.thread_count.div_ceil(WARP_LANES)
    }

    /// Returns how many threads a warp has. The last one may have fewer than the others.
    pub(super) fn warp_size(&self, warp: usize) -> usize {
        (self.thread_count - warp * WARP_LANES).min(WARP_LANES)
    }

    pub(super) fn has_unstarted(&self) -> bool {
        self.started < self.thread_count
    }

    pub(super) fn has_unfinished(&self) -> bool {
        self.finished < self.thread_count
    }

    /// Takes the next thread that has not started, or `None` if all have.
    pub(super) fn start_next(&mut self) -> Option<usize> {
        if !self.has_unstarted() {
            return None;
        }
        let thread = self.thread_at(self.started);
        self.started += 1;
        Some(thread)
    }

    /// Returns the thread at an index of the block's order if it may go on.
    pub(super) fn ready_thread_at(&self, index: usize) -> Option<usize> {
        let thread = self.thread_at(index);
        (self.states[thread] == ThreadState::Ready).then_some(thread)
    }

    fn thread_at(&self, index: usize) -> usize {
        if self.descending { self.thread_count - 1 - index } else { index }
    }

    pub(super) fn current_thread(&self) -> usize {
        self.current_thread
    }

    /// Makes a thread the current one. Returns its position in the block.
    pub(super) fn switch_to(&mut self, thread: usize) -> [u32; 3] {
        self.current_thread = thread;
        let [width, height, _] = self.dims.map(|size| size as usize);
        match (width == self.thread_count, width * height) {
            (true, _) => [thread as u32, 0, 0],
            (false, plane) => {
                [(thread % width) as u32, (thread / width % height) as u32, (thread / plane) as u32]
            }
        }
    }

    /// Marks the current thread as finished.
    pub(super) fn finish_current(&mut self) {
        self.states[self.current_thread] = ThreadState::Finished;
        self.finished += 1;
    }

    /// The current thread has arrived at a barrier of its block.
    pub(super) fn arrive_at_block(&mut self) -> Arrival {
        self.at_block += 1;
        if self.at_block == self.thread_count {
            self.at_block = 0;
            self.states.fill(ThreadState::Ready);
            return Arrival::Last;
        }
        self.states[self.current_thread] = ThreadState::AtBlock;
        Arrival::Waits
    }

    /// The current thread has arrived at a collective of its warp.
    pub(super) fn arrive_at_warp(&mut self, kind: u32) -> Arrival {
        let warp = self.current_thread / WARP_LANES;
        let size = self.warp_size(warp);
        let arrivals = &mut self.arrivals[warp];
        self.has_mixed_collectives |= arrivals.count > 0 && arrivals.kind != kind;
        arrivals.kind = kind;
        arrivals.count += 1;
        if arrivals.count == size {
            arrivals.count = 0;
            let first = warp * WARP_LANES;
            self.states[first..first + size].fill(ThreadState::Ready);
            return Arrival::Last;
        }
        self.states[self.current_thread] = ThreadState::AtWarp;
        Arrival::Waits
    }

    /// Returns whether the current thread is the last of its warp to arrive at a collective of this kind.
    pub(super) fn is_last_of_warp(&self, kind: u32) -> bool {
        let warp = self.current_thread / WARP_LANES;
        let arrivals = self.arrivals[warp];
        arrivals.count + 1 == self.warp_size(warp) && arrivals.kind == kind
    }

    /// Returns why a block in which no thread can go on is wrong, or `None` if all is well.
    pub(super) fn divergence(&self, block: [u32; 3]) -> Option<LaunchFailure> {
        if !self.has_unfinished() && !self.has_mixed_collectives {
            return None;
        }
        let count = |state| self.states.iter().filter(|current| **current == state).count();
        Some(LaunchFailure::Divergent {
            block,
            at_block: count(ThreadState::AtBlock),
            at_warp: count(ThreadState::AtWarp),
            finished: count(ThreadState::Finished),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(dims: [u32; 3], descending: bool) -> ThreadBlock {
        let mut block = ThreadBlock::default();
        block.prepare(dims);
        block.begin(descending);
        block
    }

    #[test]
    fn threads_start_in_the_order_of_the_block_and_know_their_position() {
        let mut block = block([2, 2, 2], true);
        let started: Vec<_> = std::iter::from_fn(|| block.start_next()).collect();
        assert_eq!(started, [7, 6, 5, 4, 3, 2, 1, 0]);
        assert_eq!(block.switch_to(6), [0, 1, 1]);
    }

    #[test]
    fn the_last_thread_at_a_barrier_lets_all_go_on() {
        let mut block = block([40, 1, 1], false);
        let arrive = |block: &mut ThreadBlock, thread| {
            block.switch_to(thread);
            block.arrive_at_warp(0)
        };
        assert!((32..39).all(|thread| arrive(&mut block, thread) == Arrival::Waits));
        assert!(block.ready_thread_at(32).is_none());
        assert_eq!(arrive(&mut block, 39), Arrival::Last);
        assert_eq!(block.ready_thread_at(32), Some(32));
    }

    #[test]
    fn threads_that_wait_for_a_finished_one_diverge() {
        let mut block = block([2, 1, 1], false);
        block.switch_to(0);
        block.finish_current();
        block.switch_to(1);
        assert_eq!(block.arrive_at_block(), Arrival::Waits);
        let divergence = LaunchFailure::Divergent { block: [3, 0, 0], at_block: 1, at_warp: 0, finished: 1 };
        assert_eq!(block.divergence([3, 0, 0]), Some(divergence));
    }
}
