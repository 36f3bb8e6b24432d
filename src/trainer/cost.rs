//! What a configuration costs: parameters, and floating-point operations of one frame, part by part.
//!
//! Nothing is computed or allocated: the shapes of a network that was never initialised are walked, and each layer's
//! place in the network says how many cells it works on. A multiplication and its addition count as two operations;
//! norms, activations and resizing are left out (they are bound by memory, not by arithmetic).

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};

use crate::model::blocks::stage::BlockKind;
use crate::model::features::efficientnet::BLOCKS;
use crate::model::profile::ModelConfig;

/// One part of the model.
#[derive(Debug, Clone, PartialEq)]
pub struct PartCost {
    /// `encoder`, `decoder`, `denoiser`, `guidance`, `hint`, `control`, `context`, `repair`, `refine`, `prototypes` or `features`.
    pub part: &'static str,
    /// Parameters.
    pub parameters: usize,
    /// Operations of one call, in 1e9.
    pub gflop: f64,
    /// Values that its convolutions keep of one picture when they are trained.
    pub values: usize,
    /// Calls per frame.
    pub calls: u32,
}

/// Costs of a frame of `width x height` at a number of steps.
pub fn cost(config: &ModelConfig, steps: u32, width: usize, height: usize) -> Vec<PartCost> {
    // Encoded once. The reconstruction is decoded; without repair the autoencoder's own view, too, and both have features.
    let views = if config.repair.is_some() { 1 } else { 2 };
    let calls = [
        ("encoder", 1),
        ("decoder", views),
        ("denoiser", steps),
        ("guidance", u32::from(config.guidance.is_some())),
        // Of the network that sees the latent, the picture's part runs once.
        ("hint", u32::from(config.control.is_some())),
        ("control", if config.control.is_some() { steps } else { 0 }),
        ("context", u32::from(config.denoiser.context.as_ref().is_some_and(|context| !context.stored))),
        ("repair", u32::from(config.repair.is_some())),
        ("refine", u32::from(config.refine.is_some())),
        ("prototypes", u32::from(config.prototypes.is_some())),
        ("features", 2 * views - 1),
    ];
    let parts = calls.map(|(part, calls)| PartCost { part, parameters: 0, gflop: 0.0, values: 0, calls });
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
    parts: [PartCost; 11],
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
        let has = |name: &str| path.contains(&name);
        let all = self.pixels / (stride * stride);
        let tokens = self.config.denoiser.context.as_ref().map_or(0, |context| context.tokens);
        // The layers of a transformer block work on every cell, but what they take from the context on its tokens.
        let from_context = has("context") && (has("key") || has("value"));
        let cells = match D {
            // Of all classes' prototypes, a frame meets those of its own.
            3 => all / shape[0],
            4 => all,
            2 if part == "context" || has("keys") || has("values") => 0,
            2 if from_context => tokens,
            2 if ["own", "context", "stored", "gate", "shrink"].iter().any(|name| has(name)) => all,
            2 => 1,
            _ => 0,
        };
        // Besides its four projections, attention multiplies all cells with what they attend to, twice.
        let pairs = match () {
            () if !has("query") || D == 1 => 0,
            () if has("context") || has("stored") => 2 * all * tokens * shape[0],
            () => 2 * all * all * shape[0],
        };
        let entry = self.parts.iter_mut().find(|entry| entry.part == part).expect("every place is a part");
        entry.parameters += weights;
        entry.values += match shape.iter().as_slice() {
            // Training sums a depthwise convolution over its taps and keeps what each has seen.
            [out, 1, high, wide] => out * all * (high * wide + 1),
            // A pointwise one is a product of matrices, with the weights once per picture.
            [out, _, 1, 1] => out * all + weights,
            [out, ..] if D == 4 => out * all,
            _ => 0,
        };
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
        "denoiser" | "control" => {
            let levels = config.denoiser.channels.len();
            let at = |level: usize| 8usize << level;
            // `down.1.units.0.block` is a block of level 1, `down.1.down` leads to the next level.
            let resamples = path.get(1) == path.get(3);
            let stride = match path.get(1).copied().unwrap_or_default() {
                "down" => at(index("down") + usize::from(resamples)),
                "up" if resamples => at(levels - 1 - index("up")) >> residual(config.denoiser.style.kind),
                "up" => at(levels - 1 - index("up")),
                "conv_in" | "conv_out" => at(0),
                "hint" => return ("hint", 1 << (index("hint") / 2)),
                "fusion" if has("sketch") => return ("hint", 1 << index("sketch")),
                "hint_out" | "fusion" => return ("hint", at(0)),
                "zeros" => {
                    let made = config.control.as_ref().map_or(0, |control| control.controls(&config.denoiser));
                    at((index("zeros") + config.denoiser.skips() - made) / 3)
                }
                "multi_scale" if has("laterals") => at(index("laterals")),
                "multi_scale" if has("downs") => at(index("downs") + 1),
                _ => at(levels - 1),
            };
            (if first == "control" { "control" } else { "denoiser" }, stride)
        }
        "context" => ("context", 8),
        "guidance" => {
            let guidance = config.guidance.as_ref().expect("its layers are there");
            let at = |level: usize| 8usize << level;
            let stride = match () {
                () if has("convs") => guidance.patch << (index("convs") + 1),
                () if has("trunk") => at(index("trunk")),
                () if has("laterals") => at(index("laterals")),
                () if has("downs") => at(index("downs") + 1),
                () if has("direct") || has("fused") => at(guidance.channels.len() - 1),
                () => at(0),
            };
            ("guidance", stride)
        }
        "repair" => {
            let stride = match () {
                () if has("down") => 8 << index("down"),
                // A pointwise upsampling works before it doubles.
                () if has("up") => 32 >> index("levels"),
                () if has("levels") => 16 >> index("levels"),
                () => 32,
            };
            ("repair", stride)
        }
        "refine" => {
            let stride = match () {
                () if has("latents") => 8,
                () if has("up") => 8 << index("up"),
                () if has("features") => 4 << index("features"),
                () if has("blocks") => 4 << index("blocks"),
                () => 4,
            };
            ("refine", stride)
        }
        "prototypes" => ("prototypes", config.prototypes.as_ref().map_or(16, |prototypes| prototypes.stride)),
        _ if has("layers") => {
            let stride = 4 << index("layers");
            // The stride of a layer sits in the 3x3 convolution of its first block.
            let before = has("conv1") && path.iter().rev().nth(2) == Some(&"0") && index("layers") > 0;
            ("features", if before { stride / 2 } else { stride })
        }
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
    fn the_papers_size_is_what_its_checkpoints_hold() {
        let part = |config: &ModelConfig, names: &[&str]| {
            let parts = cost(config, 1, 256, 256);
            let named = |part: &&PartCost| names.contains(&part.part);
            let parameters: usize = parts.iter().filter(named).map(|part| part.parameters).sum();
            let gflop: f64 = parts.iter().filter(named).map(|part| part.gflop).sum();
            (parameters, gflop)
        };
        let sd15 = ModelConfig::of(Profile::Sd15, 0);
        let check = |(parameters, gflop): (usize, f64), expected: usize, operations: f64| {
            assert_eq!(parameters, expected);
            assert!((gflop / operations - 1.0).abs() < 0.01, "{gflop} GFLOP, expected {operations}");
        };
        // Parameters and GFLOP by torch's counters on the published modules.
        check(part(&sd15, &["encoder"]), 34_163_592 + 72, 272.7);
        check(part(&sd15, &["decoder"]), 49_490_179 + 20, 622.2);
        check(part(&sd15, &["denoiser"]), 859_520_964, 180.1);
        check(part(&sd15, &["hint", "control"]), 362_004_486, 66.2 + 3.4 - 1.57 - 2.8);
        check(part(&sd15.diad_compat(), &["hint", "control"]), 471_871_120, 66.2);
        // BatchNorm is folded: 8,543,296 in the checkpoint.
        check(part(&ModelConfig::of(Profile::Sd15, 0), &["features"]), 8_528_000, 8.56);
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
