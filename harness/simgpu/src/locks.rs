//! Access to locks whose holder may have panicked. The target must not notice that, so the shim goes on with
//! the value. Must not know what a lock protects.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Locks a mutex, also if a thread panicked while it held the lock.
pub(crate) trait MutexExt<T> {
    /// Waits for the lock and takes it.
    fn locked(&self) -> MutexGuard<'_, T>;
}

impl<T> MutexExt<T> for Mutex<T> {
    fn locked(&self) -> MutexGuard<'_, T> {
        self.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Locks a readers-writer lock, also if a thread panicked while it held the lock.
pub(crate) trait RwLockExt<T> {
    /// Waits until nobody writes.
    fn read_locked(&self) -> RwLockReadGuard<'_, T>;
    /// Waits until nobody reads or writes.
    fn write_locked(&self) -> RwLockWriteGuard<'_, T>;
}

impl<T> RwLockExt<T> for RwLock<T> {
    fn read_locked(&self) -> RwLockReadGuard<'_, T> {
        self.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_locked(&self) -> RwLockWriteGuard<'_, T> {
        self.write().unwrap_or_else(PoisonError::into_inner)
    }
}
