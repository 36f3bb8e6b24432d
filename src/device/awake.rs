//! A thread of the pool that does not sleep while a frame is computed on the CPU. A frame is hundreds of kernels, one after the other;
//! many take less time than it takes to wake a thread, so that a second one would come when the first has done it alone.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

thread_local! {
    /// Whether this thread computes a frame or is awake for one: it stays awake for no other.
    static ENGAGED: Cell<bool> = const { Cell::new(false) };
}

/// Tells whoever is awake for it that a frame is done, also where it panics.
struct Done(Arc<AtomicBool>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
        ENGAGED.set(false);
    }
}

/// Runs `work`, which is on a thread of the pool, with another thread of it awake, if one is free.
pub(super) fn during<T>(work: impl FnOnce() -> T) -> T {
    if ENGAGED.replace(true) {
        return work();
    }
    let done = Done(Arc::default());
    let seen = Arc::clone(&done.0);
    // Nobody waits for it: it may just compute a part of another frame when this one is done.
    rayon::spawn(move || stay(&seen));
    work()
}

/// Computes what there is to compute until the frame is done.
fn stay(done: &AtomicBool) {
    if ENGAGED.replace(true) {
        return;
    }
    while !done.load(Ordering::Acquire) {
        if rayon::yield_now() != Some(rayon::Yield::Executed) {
            // Whoever captures or serves on this core goes first.
            thread::yield_now();
        }
    }
    ENGAGED.set(false);
}
