//! The computation of a frame, or of a step of training, as one recorded graph: hundreds of kernel launches become one.
//!
//! `unsafe`, as burn cannot know whether the buffers that a graph was recorded with are still there. Here they are, because the
//! recording owns them: its slots, the network inside its closure, and its output; what lies between the graph guards itself.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Device, Graph, Tensor, capture};

/// Recordings kept at a time. Each holds the device memory of its intermediate results.
const MOST: usize = 16;

type Work<T> = Box<dyn FnMut() -> T + Send>;

/// One recorded computation with its buffers.
struct Recording<T> {
    graph: Graph<T, Work<T>>,
    slots: Arc<Mutex<Vec<Tensor<4>>>>,
}

/// What was recorded, by what is asked for.
pub(crate) struct Recordings<K, T> {
    made: HashMap<K, Recording<T>>,
}

impl<K, T> Default for Recordings<K, T> {
    fn default() -> Self {
        Self { made: HashMap::new() }
    }
}

impl<K: Copy + Debug + Eq + Hash, T: Clone> Recordings<K, T> {
    /// Whether the device replays all of them as graphs of its own; `None` before the first.
    pub(crate) fn in_hardware(&self) -> Option<bool> {
        let mut made = self.made.values().map(|recording| recording.graph.is_hardware());
        made.next().map(|first| first && made.all(|hardware| hardware))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.made.len()
    }

    /// Whether there is one of `key`.
    pub(crate) fn has(&self, key: &K) -> bool {
        self.made.contains_key(key)
    }

    /// What `work` makes of `inputs`: recorded the first time that `key` is asked for, replayed from then on.
    ///
    /// Everything but the inputs must follow from the key: it is recorded with the value that it has then. What a replay gives is
    /// overwritten by the next one.
    #[expect(unsafe_code, reason = "burn cannot tell that the recording owns its buffers")]
    pub(crate) fn run<W>(&mut self, key: K, inputs: Vec<Tensor<4>>, device: &Device, work: impl FnOnce() -> W) -> T
    where
        W: FnMut(&[Tensor<4>]) -> T + Send + 'static,
    {
        if let Some(Recording { graph, slots }) = self.made.get_mut(&key) {
            let mut slots = slots.lock().unwrap_or_else(PoisonError::into_inner);
            for (slot, fresh) in slots.iter_mut().zip(inputs) {
                let whole = slot.dims().map(|length| 0..length);
                // Nobody else holds the slot between two frames, so burn writes into its buffer.
                slot.inplace(|slot| slot.slice_assign(whole, fresh));
            }
            drop(slots);
            // SAFETY: every buffer that was recorded is owned by this recording (slots, closure, output). `&mut self` rules
            // out a second use at the same time, and the slots were refreshed by this thread, so on the stream of this replay.
            return unsafe { graph.replay() }.clone();
        }
        if self.made.len() == MOST {
            self.made.clear();
        }
        // Buffers of its own: what others hold, too, burn would not write into.
        let slots = Arc::new(Mutex::new(inputs.into_iter().map(|input| input * 1.0).collect::<Vec<_>>()));
        let (read, mut work) = (Arc::clone(&slots), work());
        let work: Work<T> = Box::new(move || {
            // Clones end with the call: between two frames the slots are held once.
            let inputs = read.lock().unwrap_or_else(PoisonError::into_inner).clone();
            work(&inputs)
        });
        let graph = capture(device, work);
        if !graph.is_hardware() {
            log::warn!(
                "the device does not record graphs ({key:?}): everything is launched kernel by kernel, and slower"
            );
        }
        let mut recording = Recording { graph, slots };
        // What was recorded has not run yet.
        // SAFETY: as above.
        let output = unsafe { recording.graph.replay() }.clone();
        self.made.insert(key, recording);
        output
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;
    use crate::config::device::DeviceChoice;
    use crate::device;

    fn follows_its_inputs(device: &Device) {
        let mut recordings = Recordings::default();
        let weight = Tensor::<4>::ones([2, 1, 4, 4], device) * 0.5;
        for (count, class) in [(1, 0), (1, 1), (2, 0)] {
            let key = (count, class);
            for frame in 0..3 {
                let values: Vec<f32> = (0..count * 16).map(|i| (i + frame * 100) as f32).collect();
                let weight = weight.clone();
                let work = move || {
                    move |inputs: &[Tensor<4>]| (inputs[0].clone() + class as f32) * weight.clone().narrow(0, 0, count)
                };
                let inputs = vec![Tensor::from_data(TensorData::new(values.clone(), [count, 1, 4, 4]), device)];
                let found = recordings.run(key, inputs, device, work).into_data().try_into_vec::<f32>().expect("f32");
                let expected: Vec<f32> = values.iter().map(|value| (value + class as f32) * 0.5).collect();
                assert_eq!(found, expected, "{key:?}, frame {frame}");
            }
        }
        assert_eq!(recordings.made.len(), 3);
        assert!(recordings.in_hardware().is_some());
    }

    #[test]
    fn a_replay_follows_its_inputs() {
        follows_its_inputs(&Device::flex());
    }

    #[test]
    fn recordings_are_bounded() {
        let mut recordings = Recordings::default();
        assert_eq!(recordings.in_hardware(), None);
        for class in 0..MOST + 2 {
            let inputs = vec![Tensor::ones([1, 1, 1, 1], &Device::flex())];
            let work = || |inputs: &[Tensor<4>]| inputs[0].clone() * 2.0;
            let found = recordings.run(class, inputs, &Device::flex(), work).into_scalar::<f32>();
            assert_eq!(found, 2.0);
        }
        assert!(recordings.made.len() <= MOST);
        assert_eq!(recordings.in_hardware(), Some(false), "a processor records nothing");
    }

    #[test]
    #[ignore = "needs an NVIDIA GPU"]
    fn on_cuda_a_replay_follows_its_inputs() {
        follows_its_inputs(&device::open(DeviceChoice::Cuda(0)).expect("a GPU").device);
    }
}
