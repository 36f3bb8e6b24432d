//! One step of training: the loss of a batch, its gradients, AdamW and the moving average.
//!
//! All parameters of a stage are one vector, and so are their moments and their average: what follows a loss is a handful of
//! operations, and not a dozen for each of hundreds of tensors. The step is a function of these vectors and of the batch, so a GPU
//! records it once and replays it: of the step that the denoiser's stage was, the GPU was busy for a sixth.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};

use super::objective::{Inputs, Objective};
use crate::detector::recording::Recordings;
use crate::kernels::{Descent, descend};
use crate::model::network::Network;

/// Weights of the moments, and what is added to the root of the second (burn's AdamW).
const MOMENTS: [f64; 2] = [0.9, 0.999];
const EPSILON: f64 = 1e-5;
/// Largest norm of all gradients together.
const CLIP: f64 = 1.0;
/// Computations that are recorded at most, each with the memory of a whole step: of the third stage's step counts the two that are met
/// first, most of the draws. Others are launched.
const RECORDED: usize = 2;

/// Parameters, their average, and the moments of their gradients, each `[1, 1, 1, n]`.
type Rows = [Tensor<4>; 4];

/// How parameters follow their gradients.
#[derive(Debug, Clone, Copy)]
pub struct LearnerSettings {
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Weight of the moving average.
    pub ema_decay: f64,
}

/// A part of a network that learns.
pub struct Learner<O: Objective> {
    objective: O,
    network: Network,
    /// Shapes and order of the parameters, off the gradient graph; its values are those of the beginning.
    layout: O::Trained,
    rows: Rows,
    /// Steps that the rows have taken.
    taken: usize,
    settings: LearnerSettings,
    device: Device,
    /// What a step was recorded as, by the steps of its reconstruction.
    recordings: Option<Recordings<u32, (Rows, Tensor<1>)>>,
}

/// The state of a [`Learner`] at one time.
#[derive(Clone)]
pub struct Learned(Rows, usize);

impl<O: Objective> Learner<O> {
    /// Begins with what `network` holds. A step is recorded on a device that can.
    pub fn new(objective: &O, network: &Network, settings: LearnerSettings, device: &Device) -> Self {
        let layout = objective.extract(network).valid();
        let parameters = flatten(&layout);
        let zeros = Tensor::zeros_like(&parameters);
        let rows = [parameters.clone(), parameters, zeros.clone(), zeros];
        let recordings = (*device != Device::flex()).then(Recordings::default);
        let (objective, network, device) = (objective.clone(), network.clone(), device.clone());
        Self { objective, network, layout, rows, taken: 0, settings, device, recordings }
    }

    /// One step down the gradient of the loss of `inputs`; the loss, `[1]`.
    pub fn step(&mut self, inputs: Inputs, rate: f64) -> Tensor<1> {
        let Inputs { steps, arrays } = inputs;
        let upload = |data: TensorData| Tensor::<4>::from_data(data, (&self.device, DType::F32));
        let mut slots = self.rows.to_vec();
        slots.push(upload(self.course(rate)));
        slots.extend(arrays.into_iter().map(upload));
        let work = || {
            let (objective, network, layout) = (self.objective.clone(), self.network.clone(), self.layout.clone());
            let weight_decay = self.settings.weight_decay;
            let descent = Descent { moments: MOMENTS, epsilon: EPSILON, weight_decay, clip: CLIP };
            move |slots: &[Tensor<4>]| {
                let rows = std::array::from_fn(|k| slots[k].clone());
                let trained = unflatten(&layout, slots[0].clone(), true);
                let loss = objective.loss(&network, &trained, &slots[5..], steps);
                let gradient = gradients(loss.backward(), &trained);
                (descend(rows, gradient, slots[4].clone(), descent), loss.inner())
            }
        };
        let (rows, loss) = match &mut self.recordings {
            Some(recordings) if recordings.has(&steps) || recordings.len() < RECORDED => {
                recordings.run(steps, slots, &self.device, work)
            }
            _ => work()(&slots),
        };
        self.rows = rows;
        self.taken += 1;
        // A replay writes where the last one did.
        loss * 1.0
    }

    /// How many computations were recorded so far.
    pub fn recorded(&self) -> usize {
        self.recordings.as_ref().map_or(0, Recordings::len)
    }

    /// Learning rate, what corrects the moments for their beginning at zero, and the average's weight.
    fn course(&self, rate: f64) -> TensorData {
        let step = self.taken;
        let [first, second] = MOMENTS.map(|weight| 1.0 / (1.0 - weight.powi(step as i32 + 1)));
        // Early steps move the average faster, so that the start is forgotten.
        let decay = self.settings.ema_decay.min((1.0 + step as f64) / (10.0 + step as f64));
        TensorData::new([rate, first, second, decay].map(|value| value as f32).to_vec(), [4, 1, 1, 1])
    }

    /// The state as it is now, which later steps leave alone.
    pub fn learned(&self) -> Learned {
        // A clone would be the buffers that a replay writes.
        Learned(self.rows.clone().map(|row| row * 1.0), self.taken)
    }

    /// Goes back to a state.
    pub fn go_back(&mut self, learned: &Learned) {
        (self.rows, self.taken) = (learned.0.clone(), learned.1);
    }

    /// The moving average of the part, off the gradient graph: smoother than the last step, and what is kept as the result. Until the
    /// next step, which may write where it is.
    pub fn average(&self) -> O::Trained {
        unflatten(&self.layout, self.rows[1].clone(), false)
    }

    /// What a checkpoint keeps: the part with its parameters, their average and moments in the places of its parameters. Until the
    /// next step.
    pub fn parts(&self) -> [(&'static str, O::Trained); 4] {
        let part = |k: usize| unflatten(&self.layout, self.rows[k].clone(), false);
        [("trained.bpk", part(0)), ("average.bpk", part(1)), ("first.bpk", part(2)), ("second.bpk", part(3))]
    }

    /// Goes on from [`Self::parts`] in the same order, which have taken so many steps.
    pub fn restore(&mut self, parts: [O::Trained; 4], taken: usize) {
        (self.rows, self.taken) = (parts.map(|part| flatten(&part)), taken);
    }
}

struct Flat {
    parts: Vec<Tensor<1>>,
    gradients: Option<Gradients>,
}

impl Flat {
    fn of<M: Module>(module: &M, gradients: Option<Gradients>) -> Tensor<4> {
        let mut flat = Self { parts: Vec::new(), gradients };
        module.visit(&mut flat);
        Tensor::cat(flat.parts, 0).unsqueeze_dims(&[0, 0, 0])
    }
}

impl ModuleVisitor for Flat {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        let count = value.dims().iter().product::<usize>();
        let part = match &mut self.gradients {
            // What a loss does not depend on has no gradient; it decays, and its moments move it on.
            Some(gradients) => value.grad_remove(gradients).unwrap_or_else(|| value.inner().zeros_like()),
            None => value,
        };
        self.parts.push(part.reshape([count]));
    }
}

/// All parameters of a module, one behind the other.
fn flatten<M: Module>(module: &M) -> Tensor<4> {
    Flat::of(module, None)
}

/// The gradients of all parameters of a module, one behind the other.
fn gradients<M: Module>(gradients: Gradients, module: &M) -> Tensor<4> {
    Flat::of(module, Some(gradients))
}

struct Laid {
    flat: Tensor<1>,
    at: usize,
    learns: bool,
}

impl ModuleMapper for Laid {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| {
            let dims = value.dims();
            let count = dims.iter().product::<usize>();
            let part = self.flat.clone().narrow(0, self.at, count).reshape(dims);
            self.at += count;
            if self.learns { Tensor::from_inner(part).require_grad() } else { part }
        })
    }
}

/// The module of `layout` with these parameters, on the gradient graph if it `learns`.
fn unflatten<M: Module>(layout: &M, flat: Tensor<4>, learns: bool) -> M {
    layout.clone().map(&mut Laid { flat: flat.flatten(0, 3), at: 0, learns })
}

#[cfg(test)]
mod tests {
    use burn::optim::{AdamWConfig, GradientsParams};

    use super::*;
    use crate::config::device::DeviceChoice;
    use crate::device;
    use crate::model::profile::{ModelConfig, Profile};
    use crate::synthetic::corrupt::CorruptionFamily;
    use crate::trainer::augment::Augmentation;
    use crate::trainer::batches::{BatchSpec, make};
    use crate::trainer::config::TrainConfig;
    use crate::trainer::objective::{AutoencoderObjective, DenoiserObjective, RefineObjective};
    use crate::trainer::pictures::Picture;

    const SETTINGS: LearnerSettings = LearnerSettings { weight_decay: 1e-2, ema_decay: 0.9 };
    const RATE: f64 = 1e-3;

    fn network(device: &Device) -> Network {
        device.seed(3);
        ModelConfig::of(Profile::EdgeSmall, 1).init(device).materialize().valid()
    }

    /// The inputs of some steps.
    fn inputs<O: Objective>(objective: &O, network: &Network, count: usize) -> Vec<Inputs> {
        let side = 64;
        let pictures =
            [Picture { path: "x".into(), rgb: (0..side * side * 3).map(|k| (k * 7) as u8).collect(), set: 0 }];
        let spec = BatchSpec {
            width: side,
            height: side,
            size: 2,
            // So that there is something to learn in every step.
            defect_share: 1.0,
            families: CorruptionFamily::TRAINING.to_vec(),
            latent_share: 0.3,
            latent_channels: 8,
            seed: 5,
            augmentations: vec![Augmentation::LEAST],
        };
        (0..count).map(|step| objective.inputs(network, make(&pictures, &spec, step))).collect()
    }

    fn values(tensor: &Tensor<4>) -> Vec<f32> {
        tensor.clone().try_into_vec_as::<f32>().expect("values")
    }

    fn worst(found: &[f32], expected: &[f32]) -> f32 {
        assert_eq!(found.len(), expected.len());
        // `max` takes a NaN for nothing.
        assert!(found.iter().all(|value| value.is_finite()));
        found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    /// The norm of the differences, as a share of what is expected.
    fn apart(found: &[f32], expected: &[f32]) -> f64 {
        assert_eq!(found.len(), expected.len());
        let norm = |squares: &mut dyn Iterator<Item = f32>| squares.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        norm(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied())
    }

    /// Burn's optimiser beside the learner, given the gradients at the parameters that the learner has. With gradients at its own they
    /// would part: AdamW divides a gradient by its size, and of what is next to nothing a rounding is a large part.
    #[test]
    fn a_step_is_that_of_burns_adamw() {
        let device = Device::flex();
        let network = network(&device);
        let objective = AutoencoderObjective { config: TrainConfig::of(Profile::EdgeSmall).expect("is shipped") };
        let mut learner = Learner::new(&objective, &network, SETTINGS, &device);
        let mut trained = objective.extract(&network).to_device(&device.clone().autodiff()).train();
        let mut optimizer = AdamWConfig::new().with_weight_decay(SETTINGS.weight_decay as f32).init();
        let mut average = values(&learner.rows[1]);
        for (step, inputs) in inputs(&objective, &network, 3).into_iter().enumerate() {
            let arrays: Vec<Tensor<4>> =
                inputs.arrays.iter().map(|array| Tensor::from_data(array.clone(), &device)).collect();
            let part = unflatten(&learner.layout, learner.rows[0].clone(), true);
            let loss = objective.loss(&network, &part, &arrays, 0);
            let gradient = gradients(loss.clone().backward(), &part);
            // The same of the module that was not laid out from a vector.
            let own = objective.loss(&network, &trained, &arrays, 0);
            let off = apart(&values(&gradients(own.clone().backward(), &trained)), &values(&gradient));
            assert!(off < 1e-2, "step {step}: gradients {off} apart");
            let own = own.inner().into_scalar::<f32>();
            let norm = values(&gradient).iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
            let clipped = gradient * (CLIP / norm).min(1.0);
            // A sum whose gradient is this one.
            let sum = (flatten(&trained) * Tensor::from_inner(clipped)).sum().backward();
            let handed = GradientsParams::from_grads(sum, &trained);
            trained = optimizer.step(RATE, trained, handed);
            let found = learner.step(inputs, RATE).into_scalar::<f32>();
            assert_eq!(found, loss.inner().into_scalar::<f32>(), "step {step}");
            assert!((found - own).abs() < 1e-4 * own, "step {step}: {found} is not {own}");
            let parameters = values(&flatten(&trained.valid()));
            let off = worst(&values(&learner.rows[0]), &parameters);
            assert!(off < 2e-6, "step {step}: {off}");
            let decay = [0.1, 2.0 / 11.0, 0.25][step];
            average.iter_mut().zip(&parameters).for_each(|(a, p)| *a = *a * decay + p * (1.0 - decay));
            let off = worst(&values(&learner.rows[1]), &average);
            assert!(off < 2e-6, "average of step {step}: {off}");
        }
        let moved = worst(&values(&flatten(&learner.average())), &values(&flatten(&objective.extract(&network))));
        assert!(moved > RATE as f32 / 2.0, "nothing was learned: {moved}");
    }

    #[test]
    fn a_state_is_left_alone_and_comes_back() {
        let device = Device::flex();
        let network = network(&device);
        let objective = DenoiserObjective { classes: true };
        let mut learner = Learner::new(&objective, &network, SETTINGS, &device);
        let mut inputs = inputs(&objective, &network, 3).into_iter();
        let mut step = |learner: &mut Learner<DenoiserObjective>| {
            learner.step(inputs.next().expect("three"), RATE);
        };
        step(&mut learner);
        let (kept, parameters) = (learner.learned(), learner.rows.clone().map(|row| values(&row)));
        step(&mut learner);
        assert!(worst(&values(&learner.rows[0]), &parameters[0]) > 1e-5);
        learner.go_back(&kept);
        assert_eq!(learner.rows.clone().map(|row| values(&row)), parameters);
        step(&mut learner);
        // As a checkpoint keeps it.
        let rows = learner.rows.clone().map(|row| values(&row));
        let parts = learner.parts().map(|(_, part)| part);
        let mut other = Learner::new(&objective, &network, SETTINGS, &device);
        other.restore(parts, learner.taken);
        assert_eq!((learner.taken, other.taken), (2, 2));
        assert_eq!(other.rows.map(|row| values(&row)), rows);
    }

    #[test]
    #[ignore = "needs an NVIDIA GPU"]
    fn on_cuda_recorded_steps_are_the_steps() {
        fn compared<O: Objective>(objective: &O) {
            let device = device::open(DeviceChoice::Cuda(0)).expect("a GPU").device;
            let network = network(&device);
            let [mut recorded, mut launched] = [(); 2].map(|()| Learner::new(objective, &network, SETTINGS, &device));
            launched.recordings = None;
            let (name, mut kept) = (objective.name(), None);
            // The same weights on the CPU.
            let cpu = Device::flex();
            let mut here = Learner::new(objective, &network.clone().to_device(&cpu), SETTINGS, &cpu);
            for (step, inputs) in inputs(objective, &network, 12).into_iter().enumerate() {
                let copy = Inputs { steps: inputs.steps, arrays: inputs.arrays.clone() };
                if step == 0 {
                    here.step(Inputs { steps: inputs.steps, arrays: inputs.arrays.clone() }, RATE);
                }
                let found = recorded.step(inputs, RATE).into_scalar::<f32>();
                let expected = launched.step(copy, RATE).into_scalar::<f32>();
                assert!((found - expected).abs() <= 0.02 * expected.abs(), "{name}, step {step}: {found}, {expected}");
                if step == 0 {
                    let off = apart(&values(&recorded.rows[2]), &values(&here.rows[2]));
                    assert!(off <= 0.05, "{name}: gradients {off} apart");
                }
                // A state of before, which the replays in between have left alone.
                if step == 4 {
                    kept = Some(((recorded.learned(), launched.learned()), values(&recorded.rows[0])));
                }
                if step == 8
                    && let Some(((of_recorded, of_launched), parameters)) = kept.take()
                {
                    assert_eq!(values(&of_recorded.0[0]), parameters, "{name}");
                    recorded.go_back(&of_recorded);
                    launched.go_back(&of_launched);
                }
            }
            let steps = worst(&values(&recorded.rows[0]), &values(&flatten(&objective.extract(&network))));
            let apart = values(&recorded.rows[0]).into_iter().zip(values(&launched.rows[0]));
            let count = values(&recorded.rows[0]).len() as f64;
            let apart = apart.map(|(a, b)| f64::from((a - b).abs())).sum::<f64>() / count;
            assert!(apart < RATE && f64::from(steps) > 5.0 * RATE, "{name}: apart by {apart}, moved by {steps}");
            assert_eq!(recorded.recordings.expect("it records").in_hardware(), Some(true), "{name}");
        }
        let config = TrainConfig::of(Profile::EdgeSmall).expect("is shipped");
        compared(&AutoencoderObjective { config: config.clone() });
        compared(&DenoiserObjective { classes: true });
        compared(&RefineObjective { config, classes: true });
    }
}
