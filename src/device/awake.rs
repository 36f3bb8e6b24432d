//! A thread of the pool that does not sleep while a frame is computed on the CPU. A frame is hundreds of kernels, one after the other;
//! many take less time than it takes to wake a thread, so that a second one would come when the first has done it alone.
//!
//! One frame at a time, as in a station: a thread that waits within a part of another frame may stay awake for this one, and that other
//! frame waits as long.

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
            // Others run on this core between two looks.
            thread::yield_now();
        }
    }
    ENGAGED.set(false);
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_frame_ends_and_leaves_nobody_engaged() {
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
            pool.install(|| {
                assert_eq!(during(|| during(|| rayon::join(|| 1, || 2))), (1, 2));
                assert!(!ENGAGED.get());
                assert!(catch_unwind(|| during(|| panic!("broken"))).is_err());
                assert!(!ENGAGED.get());
                let done = Done(Arc::default());
                let seen = Arc::clone(&done.0);
                let broken = move || {
                    let _done = done;
                    panic!("broken")
                };
                assert!(catch_unwind(AssertUnwindSafe(broken)).is_err());
                assert!(seen.load(Ordering::Acquire));
            });
        }
    }
}
