//! A bounded hand-off that keeps the newest items: a camera is never blocked.
//!
//! One slot queue per camera and one wake channel for all. Whoever is evicted has an id; the reader sees the gap.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use crossbeam::queue::ArrayQueue;

/// The camera's end.
pub struct Producer<T> {
    slots: Arc<ArrayQueue<T>>,
    wake: Sender<()>,
}

/// The reader's end: all cameras, round-robin.
pub struct Consumer<T> {
    slots: Vec<Arc<ArrayQueue<T>>>,
    wake: Receiver<()>,
    next: usize,
}

/// What a reader got.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken<T> {
    /// An item.
    Item(T),
    /// Nothing in time.
    Nothing,
    /// Nothing, and every producer is gone.
    Closed,
}

/// A mailbox for cameras with this many items each.
pub fn mailbox<T>(capacities: impl IntoIterator<Item = usize>) -> (Vec<Producer<T>>, Consumer<T>) {
    let (wake, woken) = bounded(1);
    let slots: Vec<_> = capacities.into_iter().map(|capacity| Arc::new(ArrayQueue::new(capacity))).collect();
    let ends = slots.iter().map(|slots| Producer { slots: Arc::clone(slots), wake: wake.clone() }).collect();
    (ends, Consumer { slots, wake: woken, next: 0 })
}

impl<T> Producer<T> {
    /// Puts an item in; the oldest leaves if there is no room. Returns what left, or nothing.
    pub fn push(&self, item: T) -> Option<T> {
        let evicted = self.slots.force_push(item);
        // Full means that the reader has a wake-up waiting already.
        let _ = self.wake.try_send(());
        evicted
    }

    /// Tells how many items wait.
    pub fn depth(&self) -> impl Fn() -> usize + Send + Sync + use<T>
    where
        T: Send,
    {
        let slots = Arc::clone(&self.slots);
        move || slots.len()
    }

    /// Puts an item in if there is room, else gives it back.
    ///
    /// # Errors
    /// The item, if there is no room.
    pub fn offer(&self, item: T) -> Result<(), T> {
        self.slots.push(item)?;
        let _ = self.wake.try_send(());
        Ok(())
    }
}

impl<T> Consumer<T> {
    /// The next item, waiting at most `timeout`.
    pub fn take(&mut self, timeout: Duration) -> Taken<T> {
        if let Some(item) = self.scan() {
            return Taken::Item(item);
        }
        let closed = match self.wake.recv_timeout(timeout) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => true,
        };
        // A producer pushes before it wakes, and before it goes: one more look settles it.
        match self.scan() {
            Some(item) => Taken::Item(item),
            None if closed => Taken::Closed,
            None => Taken::Nothing,
        }
    }

    fn scan(&mut self) -> Option<T> {
        let count = self.slots.len();
        for offset in 0..count {
            let index = (self.next + offset) % count;
            if let Some(item) = self.slots[index].pop() {
                self.next = (index + 1) % count;
                return Some(item);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_survive_and_nothing_is_lost_uncounted() {
        for round in 0..50 {
            let (mut producers, mut consumer) = mailbox::<u64>([2]);
            let producer = producers.remove(0);
            let sent = 200;
            let evicted = std::thread::scope(|scope| {
                let sender = scope.spawn(move || (0..sent).filter(|&item| producer.push(item).is_some()).count());
                let mut taken = Vec::new();
                loop {
                    match consumer.take(Duration::from_millis(50)) {
                        Taken::Item(item) => taken.push(item),
                        Taken::Nothing => {}
                        Taken::Closed => break,
                    }
                }
                assert!(taken.windows(2).all(|pair| pair[0] < pair[1]), "round {round}: order");
                assert_eq!(taken.last(), Some(&(sent - 1)), "round {round}: newest");
                let evicted = sender.join().expect("sender");
                assert_eq!(taken.len() + evicted, sent as usize, "round {round}: count");
                evicted
            });
            assert!(evicted <= 200);
        }
    }

    #[test]
    fn how_many_wait_is_told() {
        let (producers, mut consumer) = mailbox::<u32>([3]);
        let depth = producers[0].depth();
        assert_eq!(depth(), 0);
        let evicted = (0..5).filter_map(|item| producers[0].push(item)).count();
        assert_eq!(evicted, 2);
        assert_eq!(depth(), 3);
        consumer.take(Duration::ZERO);
        assert_eq!(depth(), 2);
    }

    #[test]
    fn cameras_take_turns() {
        let (producers, mut consumer) = mailbox::<(usize, u32)>([2, 2]);
        for (camera, producer) in producers.iter().enumerate() {
            producer.push((camera, 0));
            producer.push((camera, 1));
        }
        let order: Vec<_> = (0..4)
            .map(|_| match consumer.take(Duration::from_millis(1)) {
                Taken::Item(item) => item,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(order, [(0, 0), (1, 0), (0, 1), (1, 1)]);
    }
}
