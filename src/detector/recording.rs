//! The computation of a frame as one recorded graph: hundreds of kernel launches become one.
//!
//! The only file of the project with `unsafe`: burn cannot know whether the buffers that a graph was recorded with are still
//! there. Here they are, because the recording owns them: its slots, the network inside its closure, and its output.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{DType, Device, Graph, Tensor, TensorData, capture};

use super::Key;

/// Recordings kept at a time. Each holds the device memory of one frame's intermediate results.
const MOST: usize = 16;

type Work = Box<dyn FnMut() -> Tensor<4> + Send>;

/// One recorded computation with its buffers.
struct Recording {
    graph: Graph<Tensor<4>, Work>,
    slots: Arc<Mutex<Vec<Tensor<4>>>>,
}

/// What was recorded, by what is asked for.
#[derive(Default)]
pub(super) struct Recordings {
    made: HashMap<Key, Recording>,
}

impl Recordings {
    /// Whether the device replays all of them as graphs of its own; `None` before the first.
    pub(super) fn in_hardware(&self) -> Option<bool> {
        let mut made = self.made.values().map(|recording| recording.graph.is_hardware());
        made.next().map(|first| first && made.all(|hardware| hardware))
    }

    /// What `work` makes of `inputs`: recorded the first time that `key` is asked for, replayed from then on.
    ///
    /// Everything but the inputs must follow from the key: it is recorded with the value that it has then.
    #[expect(unsafe_code, reason = "burn cannot tell that the recording owns its buffers")]
    pub(super) fn run<W>(
        &mut self,
        key: Key,
        inputs: Vec<TensorData>,
        device: &Device,
        work: impl FnOnce() -> W,
    ) -> Tensor<4>
    where
        W: FnMut(&[Tensor<4>]) -> Tensor<4> + Send + 'static,
    {
        let upload = |data: TensorData| Tensor::<4>::from_data(data, (device, DType::F32));
        if let Some(Recording { graph, slots }) = self.made.get_mut(&key) {
            let mut slots = slots.lock().unwrap_or_else(PoisonError::into_inner);
            for (slot, data) in slots.iter_mut().zip(inputs) {
                let whole = slot.dims().map(|length| 0..length);
                let fresh = upload(data);
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
        let slots = Arc::new(Mutex::new(inputs.into_iter().map(upload).collect::<Vec<_>>()));
        let (read, mut work) = (Arc::clone(&slots), work());
        let work: Work = Box::new(move || {
            // Clones end with the call: between two frames the slots are held once.
            let inputs = read.lock().unwrap_or_else(PoisonError::into_inner).clone();
            work(&inputs)
        });
        let graph = capture(device, work);
        if !graph.is_hardware() {
            log::warn!(
                "{key:?}: the device does not record graphs: every frame is launched kernel by kernel, and slower"
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
    use super::super::answer::Answer;
    use super::*;
    use crate::inspection::detect::Steps;

    fn follows_its_inputs(device: &Device) {
        let mut recordings = Recordings::default();
        let weight = Tensor::<4>::ones([2, 1, 4, 4], device) * 0.5;
        for (count, class) in [(1, 0), (1, 1), (2, 0)] {
            let key = Key { shape: [count, 4, 4], canny: false, steps: Steps(1), class, answer: Answer::Raw };
            for frame in 0..3 {
                let values: Vec<f32> = (0..count * 16).map(|i| (i + frame * 100) as f32).collect();
                let weight = weight.clone();
                let work = move || {
                    move |inputs: &[Tensor<4>]| (inputs[0].clone() + class as f32) * weight.clone().narrow(0, 0, count)
                };
                let inputs = vec![TensorData::new(values.clone(), [count, 1, 4, 4])];
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
            let key = Key { shape: [1, 1, 1], canny: false, steps: Steps(1), class, answer: Answer::Raw };
            let inputs = vec![TensorData::new(vec![1.0f32], [1, 1, 1, 1])];
            let work = || |inputs: &[Tensor<4>]| inputs[0].clone() * 2.0;
            let found = recordings.run(key, inputs, &Device::flex(), work).into_scalar::<f32>();
            assert_eq!(found, 2.0);
        }
        assert!(recordings.made.len() <= MOST);
        assert_eq!(recordings.in_hardware(), Some(false), "a processor records nothing");
    }

    #[cfg(feature = "cuda")]
    #[test]
    #[ignore = "needs an NVIDIA GPU"]
    fn on_cuda_a_replay_follows_its_inputs() {
        let device = Device::new(burn_cuda::CudaDevice::new(0));
        follows_its_inputs(&device);
    }
}
