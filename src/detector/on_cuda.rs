//! What a GPU replays beside what it launches, and beside the CPU; by hand: see docs/building.md.

use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::Distribution;

use super::*;
use crate::bundle::weights::{TensorFile, encode_module};
use crate::device;
use crate::inspection::anomaly::Pooling;
use crate::inspection::frame::Rectangle;
use crate::inspection::roi::Transform;
use crate::model::network::MapWeights;
use crate::model::profile::Profile;

/// All that is zero before training is something.
struct Moved;

impl ModuleMapper for Moved {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| value.clone() + value.random_like(Distribution::Normal(0.0, 0.05)))
    }
}

struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp(0)
    }

    fn wall_nanos(&self) -> u64 {
        0
    }
}

fn frame(side: usize, seed: usize) -> Prepared {
    let pixel = |k: usize| ((k / 40 + k % side / 9 + seed) * 37 % 200) as f32 / 100.0 - 1.0;
    Prepared {
        width: side,
        height: side,
        tiles: None,
        image: Arc::new((0..3 * side * side).map(pixel).collect()),
        sketch: None,
        light: 0.5,
        transform: Transform { offset_x: 0.0, offset_y: 0.0, scale_x: 1.0, scale_y: 1.0 },
        inside: Rectangle { left: 0, top: 0, width: side, height: side },
        rois: None,
    }
}

/// Part by part of the map: with the whole in one queue burn's fusion once gave a map whose cells were in another order, where each
/// part alone was right, and the mean of its highest cells hardly told.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_replay_is_what_the_cpu_says() {
    let cpu = device::open(DeviceChoice::Cpu).expect("a CPU").device;
    let gpu = device::open(DeviceChoice::Cuda(0)).expect("a GPU").device;
    cpu.seed(7);
    let model = ModelConfig::of(Profile::EdgeSmall, 2);
    let network = model.init(&cpu).materialize().valid().map(&mut Moved);
    let weights = encode_module(&network, NumberFormat::F32, Path::new("weights")).expect("weights");
    let none = MapWeights {
        features: 0.0,
        features_floor: 0.0,
        latent: 0.0,
        refine: 0.0,
        refine_power: 1.0,
        prototypes: 0.0,
        prototypes_floor: 0.0,
    };
    let of = |part: &str| match part {
        "features" => MapWeights { features: 1.0, ..none },
        "latent" => MapWeights { latent: 1.0, ..none },
        "refine" => MapWeights { refine: 1.0, ..none },
        "refine, to a power" => MapWeights { refine: 1.0, refine_power: 2.5, ..none },
        "prototypes" => MapWeights { prototypes: 1.0, ..none },
        _ => MapWeights { prototypes: 1.0, prototypes_floor: 0.5, ..none },
    };
    let mut wrong = Vec::new();
    for part in ["features", "latent", "refine", "refine, to a power", "prototypes", "prototypes above a floor"] {
        let make = |device: &Device, recorded: bool| {
            let file = TensorFile::from_bytes(weights.clone(), Path::new("weights")).expect("weights");
            let network = file.load_into(model.init(device), NumberFormat::F32).expect("weights");
            let map = MapSpec { weights: of(part), sigma: 2.5, pooling: Pooling::TopFraction { fraction: 0.005 } };
            let spec = DetectorSpec {
                classes: vec![ClassId("a".into()), ClassId("b".into())],
                map,
                seed: 0,
                latent_channels: model.autoencoder.latent_channels,
                normalisation: Normalisation::SymmetricOne,
            };
            let detector = DiffusionDetector::new(network, spec, device, NumberFormat::F32, Arc::new(Still));
            if recorded { detector.recorded() } else { detector }
        };
        let [mut here, mut launched, mut recorded] = [make(&cpu, false), make(&gpu, false), make(&gpu, true)];
        for class in [None, Some(ClassId("b".into()))] {
            let plan = Plan::new(StepPlan::Fixed(Steps(2)), class.clone());
            for seed in 0..3 {
                let map = |detector: &mut DiffusionDetector| {
                    detector.detect(&[frame(128, seed)], &plan).expect("a map").remove(0).map.values
                };
                let (expected, launched, recorded) = (map(&mut here), map(&mut launched), map(&mut recorded));
                let most = expected.iter().copied().fold(0.0, f32::max);
                for (kind, found) in [("launched", launched), ("recorded", recorded)] {
                    let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    if worst.is_nan() || worst > 0.01 * most {
                        wrong.push(format!("{part}, {class:?}, frame {seed}, {kind}: {worst} of {most}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
