//! The active plan, and which of its rules may match each function. Must not know what a rule injects, or
//! where plans come from.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use simgpu_plan::{PlanDirectory, ShimPlan};

use crate::locks::{MutexExt, RwLockExt};
use crate::symbols::{FUNCTION_COUNT, NAMES};

use super::compiled_plan::CompiledPlan;

/// The active plan, and the functions that its rules may match.
pub(super) struct ActiveRules {
    compiled: RwLock<Arc<CompiledPlan>>,
    /// Generation of the compiled plan.
    generation: AtomicU64,
    reload_lock: Mutex<()>,
    /// Names of the functions, by number.
    function_names: RwLock<Vec<&'static str>>,
    /// For each function, the armed rules that may match its calls, one bit per rule.
    by_function: Vec<AtomicU64>,
    /// Whether the plan says that the GPU is lost.
    gpu_is_lost: AtomicBool,
}

impl ActiveRules {
    pub(super) fn new(plan: ShimPlan, generation: u64) -> ActiveRules {
        let rules = ActiveRules {
            compiled: RwLock::new(Arc::new(CompiledPlan::new(plan))),
            generation: AtomicU64::new(generation),
            reload_lock: Mutex::new(()),
            function_names: RwLock::new(NAMES.to_vec()),
            by_function: (0..FUNCTION_COUNT).map(|_| AtomicU64::new(0)).collect(),
            gpu_is_lost: AtomicBool::new(false),
        };
        rules.index();
        rules
    }

    pub(super) fn plan(&self) -> Arc<CompiledPlan> {
        self.compiled.read_locked().clone()
    }

    /// Returns whether the harness has replaced the plan.
    #[inline]
    pub(super) fn is_stale(&self, directory: &PlanDirectory) -> bool {
        directory.control().generation() != self.generation.load(Ordering::Acquire)
    }

    /// Reads the plan again. If it cannot be read, the old one stays active until the next call.
    pub(super) fn reload(&self, directory: &PlanDirectory) {
        let _guard = self.reload_lock.locked();
        let generation = directory.control().generation();
        if let Ok(plan) = directory.read_plan() {
            *self.compiled.write_locked() = Arc::new(CompiledPlan::new(plan));
            self.generation.store(generation, Ordering::Release);
            self.index();
        }
    }

    /// Adds a function that the list of symbols does not contain. Returns its number, or `None` if all are in
    /// use.
    pub(super) fn add_function(&self, name: &'static str) -> Option<usize> {
        let index = {
            let mut names = self.function_names.write_locked();
            if names.len() == self.by_function.len() {
                return None;
            }
            names.push(name);
            names.len() - 1
        };
        self.index();
        Some(index)
    }

    pub(super) fn function_name(&self, index: usize) -> &'static str {
        self.function_names.read_locked()[index]
    }

    /// Returns the armed rules that may match calls of a function, one bit per rule.
    #[inline]
    pub(super) fn of_function(&self, index: usize, ordering: Ordering) -> u64 {
        self.by_function[index].load(ordering)
    }

    /// Returns whether the plan says that the GPU is lost.
    pub(super) fn gpu_is_lost(&self) -> bool {
        self.gpu_is_lost.load(Ordering::Acquire)
    }

    /// Updates the rules of each function after a change of the plan or of the functions.
    fn index(&self) {
        let compiled = self.plan();
        self.gpu_is_lost.store(compiled.plan.health.lost, Ordering::Release);
        let names = self.function_names.read_locked();
        for (name, rules) in names.iter().zip(&self.by_function) {
            rules.store(compiled.rules_for(name), Ordering::Release);
        }
    }
}
