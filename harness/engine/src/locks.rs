//! Access to a mutex whose holder may have panicked. The harness goes on with the value: it must still revert
//! its faults and remove its sandboxes.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex, also if a thread panicked while it held the lock.
pub trait LockExt<T> {
    /// Waits for the lock and takes it.
    fn locked(&self) -> MutexGuard<'_, T>;
    /// The value of a mutex that nobody else can use.
    fn locked_mut(&mut self) -> &mut T;
    /// Takes the value out of the mutex.
    fn into_unlocked(self) -> T;
}

impl<T> LockExt<T> for Mutex<T> {
    fn locked(&self) -> MutexGuard<'_, T> {
        self.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn locked_mut(&mut self) -> &mut T {
        self.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    fn into_unlocked(self) -> T {
        self.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}
