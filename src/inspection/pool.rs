//! Buffers for pixels that are used again, so that a camera allocates nothing after its first frames.

use std::sync::Arc;

use super::frame::FrameBuf;

/// Buffers that one camera fills. A buffer is free again when the last [`FrameBuf`] of it is gone, whoever held it.
#[derive(Debug, Default)]
pub struct FramePool {
    buffers: Vec<Arc<Vec<u8>>>,
}

impl FramePool {
    /// Buffers that are kept: two wait in the mailbox, one is prepared, one is filled, and as many again for whoever holds
    /// a frame for longer. More at a time are allocated and let go.
    pub const KEPT: usize = 8;

    /// Lets `fill` write into a free buffer; what is in it is that of an older frame.
    ///
    /// # Errors
    /// What `fill` says; the buffer is free again.
    pub fn fill<T, E>(&mut self, fill: impl FnOnce(&mut Vec<u8>) -> Result<T, E>) -> Result<(T, FrameBuf), E> {
        // Nobody but the pool can share a buffer that it alone holds: a free one stays free while it is looked at.
        if let Some(free) = self.buffers.iter_mut().find(|buffer| Arc::strong_count(buffer) == 1)
            && let Some(bytes) = Arc::get_mut(free)
        {
            let told = fill(bytes)?;
            return Ok((told, FrameBuf(Arc::clone(free))));
        }
        let mut bytes = Vec::new();
        let told = fill(&mut bytes)?;
        let new = Arc::new(bytes);
        if self.buffers.len() < Self::KEPT {
            self.buffers.push(Arc::clone(&new));
        }
        Ok((told, FrameBuf(new)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(pool: &mut FramePool, value: u8) -> FrameBuf {
        let fill = |bytes: &mut Vec<u8>| {
            bytes.clear();
            bytes.resize(1000, value);
            Ok::<(), ()>(())
        };
        pool.fill(fill).expect("fills").1
    }

    #[test]
    fn a_buffer_is_used_again_when_its_last_holder_is_gone_and_never_before() {
        let mut pool = FramePool::default();
        let first = filled(&mut pool, 1);
        let (address, held) = (first.as_ptr(), first.clone());
        drop(first);
        let second = filled(&mut pool, 2);
        assert!(held.iter().all(|value| *value == 1) && second.as_ptr() != address);
        drop(held);
        let third = filled(&mut pool, 3);
        assert_eq!(third.as_ptr(), address);
        assert!(second.iter().all(|value| *value == 2) && third.iter().all(|value| *value == 3));
    }

    #[test]
    fn no_more_are_kept_than_are_said() {
        let mut pool = FramePool::default();
        let held: Vec<FrameBuf> = (0..3 * FramePool::KEPT).map(|value| filled(&mut pool, value as u8)).collect();
        assert!(held.iter().enumerate().all(|(value, buffer)| buffer[0] == value as u8));
        assert_eq!(pool.buffers.len(), FramePool::KEPT);
    }

    #[test]
    fn a_buffer_that_could_not_be_filled_is_free() {
        let mut pool = FramePool::default();
        let address = filled(&mut pool, 1).as_ptr();
        assert_eq!(pool.fill(|_| Err::<(), _>("damaged")), Err("damaged"));
        assert_eq!(filled(&mut pool, 2).as_ptr(), address);
    }
}
