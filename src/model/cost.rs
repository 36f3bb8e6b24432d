//! What a configuration costs: parameters, and floating-point operations of one frame, part by part.
//!
//! Nothing is computed or allocated: the shapes of a network that was never initialised are walked, and each layer's
//! place in the network says how many cells it works on. A multiplication and its addition count as two operations;
//! norms, activations and resizing are left out (they are bound by memory, not by arithmetic).

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};

use super::blocks::stage::BlockKind;
use super::features::efficientnet::BLOCKS;
use super::profile::ModelConfig;

/// One part of the model.
#[derive(Debug, Clone, PartialEq)]
pub struct PartCost {
    /// `encoder`, `decoder`, `denoiser`, `guidance`, `refine`, `prototypes` or `features`.
    pub part: &'static str,
    /// Parameters.
    pub parameters: usize,
    /// Operations of one call, in 1e9.
    pub gflop: f64,
    /// Calls per frame.
    pub calls: u32,
}

/// Costs of a frame of `width x height` at a number of steps.
pub fn cost(config: &ModelConfig, steps: u32, width: usize, height: usize) -> Vec<PartCost> {
    // Encoded once; the reconstruction and the autoencoder's own view are decoded; features of picture and both.
    let calls = [
        ("encoder", 1),
        ("decoder", 2),
        ("denoiser", steps),
        ("guidance", 1),
        ("refine", u32::from(config.refine.is_some())),
        ("prototypes", u32::from(config.prototypes.is_some())),
        ("features", 3),
    ];
    let parts = calls.map(|(part, calls)| PartCost { part, parameters: 0, gflop: 0.0, calls });
    let mut walk = Walk { config, pixels: width * height, path: Vec::new(), parts };
    config.init(&Device::flex()).visit(&mut walk);
    walk.parts.into_iter().filter(|part| part.calls > 0).collect()
}

/// Operations of a whole frame, in 1e9.
pub fn frame_gflop(parts: &[PartCost]) -> f64 {
    parts.iter().map(|part| part.gflop * f64::from(part.calls)).sum()
}

struct Walk<'a> {
    config: &'a ModelConfig,
    pixels: usize,
    path: Vec<String>,
    parts: [PartCost; 7],
}

impl ModuleVisitor for Walk<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let shape = param.lazy_shape();
        let (part, stride) = place(&path, self.config);
        let weights: usize = shape.iter().product();
        let cells = match D {
            // Of all classes' prototypes, a frame meets those of its own.
            3 => self.pixels / (stride * stride * shape[0]),
            4 => self.pixels / (stride * stride),
            2 => 1,
            _ => 0,
        };
        // Besides its four projections, attention multiplies all cells with all cells, twice.
        let pairs = if path.contains(&"query") && D == 4 { 2 * cells * cells * shape[0] } else { 0 };
        let entry = self.parts.iter_mut().find(|entry| entry.part == part).expect("every place is a part");
        entry.parameters += weights;
        entry.gflop += 2.0 * (weights * cells + pairs) as f64 / 1e9;
    }
}

/// The part that a layer belongs to, and the pixels per side of one cell of its output.
fn place(path: &[&str], config: &ModelConfig) -> (&'static str, usize) {
    let has = |name: &str| path.contains(&name);
    // The number behind a name: `levels.1` is 1.
    let index = |name: &str| {
        let at = path.iter().position(|part| *part == name);
        at.and_then(|at| path.get(at + 1)?.parse::<usize>().ok()).unwrap_or(0)
    };
    let residual = |kind: BlockKind| usize::from(kind == BlockKind::Residual);
    let first = path.first().copied().unwrap_or_default();
    match first {
        "autoencoder" => {
            let autoencoder = &config.autoencoder;
            let coarsest = autoencoder.encoder_channels.len() - 1;
            let at = |level: usize| autoencoder.patch << level;
            if has("decoder") {
                // Levels run from the coarsest on; a smoothing upsampling works on the doubled map.
                let level = coarsest - index("levels").min(coarsest);
                let stride = match () {
                    () if has("conv_out") => at(0),
                    () if has("up") => at(level) >> residual(autoencoder.style.kind),
                    () if has("levels") => at(level),
                    () => at(coarsest),
                };
                return ("decoder", stride);
            }
            let stride = match () {
                () if has("conv_in") => at(0),
                () if has("levels") => at(index("levels") + usize::from(has("down"))),
                () => at(coarsest),
            };
            (if has("post_quant") { "decoder" } else { "encoder" }, stride)
        }
        "denoiser" => {
            let levels = config.denoiser.channels.len();
            let at = |level: usize| 8usize << level;
            // `down.1.units.0.block` is a block of level 1, `down.1.down` leads to the next level.
            let resamples = path.get(1) == path.get(3);
            let stride = match path.get(1).copied().unwrap_or_default() {
                "down" => at(index("down") + usize::from(resamples)),
                "up" if resamples => at(levels - 1 - index("up")) >> residual(config.denoiser.style.kind),
                "up" => at(levels - 1 - index("up")),
                "conv_in" | "conv_out" => at(0),
                _ => at(levels - 1),
            };
            ("denoiser", stride)
        }
        "guidance" => {
            let at = |level: usize| 8usize << level;
            let stride = match () {
                () if has("convs") => config.guidance.patch << (index("convs") + 1),
                () if has("trunk") => at(index("trunk")),
                () if has("laterals") => at(index("laterals")),
                () if has("downs") => at(index("downs") + 1),
                () if has("direct") || has("fused") => at(config.guidance.channels.len() - 1),
                () => at(0),
            };
            ("guidance", stride)
        }
        "refine" => {
            let stride = match path.get(1).copied().unwrap_or_default() {
                "coarse_features" => 16,
                "down" | "coarse" | "middle_features" | "up" => 8,
                _ => 4,
            };
            ("refine", stride)
        }
        "prototypes" => ("prototypes", 16),
        _ => {
            let stride = if has("blocks") {
                let block = index("blocks");
                // The expansion works before the block's own stride.
                let passed = if has("expand") { block } else { block + 1 };
                BLOCKS[..passed].iter().map(|block| block.3).product::<usize>() * 2
            } else {
                2
            };
            ("features", stride)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::profile::Profile;

    #[test]
    fn edge_small_stays_within_its_budget() {
        let parts = cost(&ModelConfig::of(Profile::EdgeSmall, 3), 2, 256, 256);
        let gflop = frame_gflop(&parts);
        assert!(gflop < 5.0, "{gflop:.3} GFLOP: {parts:?}");
        assert!(parts.iter().map(|part| part.parameters).sum::<usize>() <= 5_000_000, "{parts:?}");
    }

    #[test]
    fn steps_cost_the_denoiser_alone() {
        let config = ModelConfig::of(Profile::EdgeSmall, 0);
        let gflop = |steps| frame_gflop(&cost(&config, steps, 256, 256));
        let denoiser = cost(&config, 1, 256, 256).into_iter().find(|part| part.part == "denoiser").expect("part");
        assert!((gflop(3) - gflop(1) - 2.0 * denoiser.gflop).abs() < 1e-9);
    }

    #[test]
    fn the_backbone_costs_what_its_paper_says() {
        // 407 million multiply-adds at 224x224 for the whole network; to stride 16, without the stages that follow and
        // the head, 0.243 by torch's counter on timm's tf_efficientnet_lite0.
        let config = ModelConfig::of(Profile::EdgeSmall, 0);
        let parts = cost(&config, 1, 224, 224);
        let features = parts.iter().find(|part| part.part == "features").expect("part");
        assert!((features.gflop / 2.0 - 0.243).abs() < 0.005, "{}", features.gflop);
    }
}
