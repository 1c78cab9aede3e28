//! What the kernel's file handles stand for.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fuser::FileHandle;
use parking_lot::RwLock;

/// Enough that threads which open and close files rarely meet; reads share a lock anyway.
const SHARDS: usize = 16;

/// A table of open things. A number is never used twice, so a handle that is late finds nothing
/// rather than somebody else's file.
pub(crate) struct Handles<T> {
    next: AtomicU64,
    shards: [RwLock<HashMap<u64, Arc<T>>>; SHARDS],
}

impl<T> Handles<T> {
    pub(crate) fn new() -> Self {
        Self { next: AtomicU64::new(1), shards: std::array::from_fn(|_| RwLock::default()) }
    }

    fn shard(&self, fh: u64) -> &RwLock<HashMap<u64, Arc<T>>> {
        &self.shards[fh as usize % SHARDS]
    }

    pub(crate) fn insert(&self, value: T) -> FileHandle {
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        self.shard(fh).write().insert(fh, Arc::new(value));
        FileHandle(fh)
    }

    pub(crate) fn get(&self, fh: FileHandle) -> Option<Arc<T>> {
        self.shard(fh.0).read().get(&fh.0).cloned()
    }

    pub(crate) fn remove(&self, fh: FileHandle) -> Option<Arc<T>> {
        self.shard(fh.0).write().remove(&fh.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_handle_finds_nothing_and_its_number_is_not_reused() {
        let handles = Handles::new();
        let (a, b) = (handles.insert('a'), handles.insert('b'));
        assert_eq!(handles.remove(a).as_deref(), Some(&'a'));
        assert!(handles.get(a).is_none() && handles.remove(a).is_none());
        assert_ne!(handles.insert('c').0, a.0);
        assert_eq!(handles.get(b).as_deref(), Some(&'b'));
    }
}
