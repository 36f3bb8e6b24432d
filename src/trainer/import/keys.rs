//! What every layer is called in each public layout: one table per network.
//!
//! A row leads from one of our layers to one of theirs; below the layer, `weight` and `bias` have the same names (a
//! norm's `gamma` and `beta` are their `weight` and `bias`).
//!
//! | network | layout | prefix | example |
//! |---|---|---|---|
//! | denoiser | CompVis (`v1-5-pruned`) | `model.diffusion_model.` | `input_blocks.1.0.in_layers.2` |
//! | denoiser | diffusers | none | `down_blocks.0.resnets.0.conv1` |
//! | control network | DiAD | `control_model.` | `input_blocks.1.0.in_layers.2`, `zero_convs.3.0`, `down21.0` |
//! | autoencoder | CompVis (kl-f8, `first_stage_model.`) | none or `first_stage_model.` | `encoder.down.1.block.0.nin_shortcut` |
//! | autoencoder | diffusers | none | `encoder.down_blocks.1.resnets.0.conv_shortcut` |
//! | text encoder | transformers | `cond_stage_model.transformer.text_model.` | `encoder.layers.0.self_attn.q_proj` |
//! | VGG16 (LPIPS) | torchvision | none | `features.0` |
//! | heads of LPIPS | `vgg.pth` of its authors | none | `lin0.model.1` |
//! | ResNet50 | torchvision, timm | none | `layer2.0.conv2` with `layer2.0.bn2` folded in |
//!
//! Upsampling in CompVis' U-Net stands behind the block and, where there is one, the transformer of its level:
//! `output_blocks.2.1.conv`, but `output_blocks.5.2.conv` and `output_blocks.8.2.conv`.

use std::collections::BTreeMap;

use crate::model::autoencoder::AutoencoderConfig;
use crate::model::features::resnet::BLOCKS;
use crate::model::unet::DenoiserConfig;

/// Keys of a DiAD or Stable Diffusion checkpoint that no network here has a use for: the text encoder after its context
/// has been taken, the copy of moving averages (non-EMA weights are the published ones), schedule buffers, which are
/// computed, and the autoencoder's training losses.
pub const SKIPS: [&str; 19] = [
    "model_ema.",
    "cond_stage_model.",
    "loss.",
    "first_stage_model.loss.",
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "logvar",
    "scale_factor",
    "lvlb_weights",
];

/// Where a walk over a module stands.
#[derive(Debug, Default)]
pub struct Place {
    path: Vec<String>,
    kind: String,
}

impl Place {
    /// Goes into a part.
    pub fn enter(&mut self, name: &str, kind: &str) {
        kind.clone_into(&mut self.kind);
        // A variant of an enum is no name of its own.
        self.path.push(if kind.starts_with("Enum:") { String::new() } else { name.to_owned() });
    }

    /// Leaves it.
    pub fn exit(&mut self) {
        self.path.pop();
    }

    /// Name of the layer that stands here, and of its parameter.
    pub fn parameter(&self) -> Option<(String, &str)> {
        let path: Vec<&str> = self.path.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
        let (leaf, layer) = path.split_last()?;
        Some((layer.join("."), leaf))
    }

    /// Whether the layer is linear: its input stands first here and its output first there.
    pub fn is_linear(&self) -> bool {
        self.kind == "Struct:Linear"
    }
}

/// What a parameter is called there.
pub fn their_parameter(ours: &str) -> &str {
    match ours {
        "gamma" => "weight",
        "beta" => "bias",
        ours => ours,
    }
}

/// Where a layer comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its name in the checkpoint.
    pub theirs: String,
    /// The BatchNorm behind it, which is folded in.
    pub folded: Option<String>,
}

/// Our layers by name.
pub type Table = BTreeMap<String, Row>;

/// Layers within a block, ours and theirs.
type Names = [(&'static str, &'static str)];

const LDM_RESIDUAL: &Names = &[
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("embedding", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("shortcut", "skip_connection"),
];
const LDM_AUTOENCODER_RESIDUAL: &Names =
    &[("norm1", "norm1"), ("conv1", "conv1"), ("norm2", "norm2"), ("conv2", "conv2"), ("shortcut", "nin_shortcut")];
const DIFFUSERS_RESIDUAL: &Names = &[
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("embedding", "time_emb_proj"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("shortcut", "conv_shortcut"),
];
const LDM_ATTENTION: &Names = &[("norm", "norm"), ("query", "q"), ("key", "k"), ("value", "v"), ("output", "proj_out")];
const DIFFUSERS_ATTENTION: &Names =
    &[("norm", "group_norm"), ("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("output", "to_out.0")];
/// The same in CompVis and diffusers.
const TRANSFORMER: &Names = &[
    ("norm", "norm"),
    ("project_in", "proj_in"),
    ("norm1", "transformer_blocks.0.norm1"),
    ("own.query", "transformer_blocks.0.attn1.to_q"),
    ("own.key", "transformer_blocks.0.attn1.to_k"),
    ("own.value", "transformer_blocks.0.attn1.to_v"),
    ("own.output", "transformer_blocks.0.attn1.to_out.0"),
    ("norm2", "transformer_blocks.0.norm2"),
    ("context.query", "transformer_blocks.0.attn2.to_q"),
    ("context.key", "transformer_blocks.0.attn2.to_k"),
    ("context.value", "transformer_blocks.0.attn2.to_v"),
    ("context.output", "transformer_blocks.0.attn2.to_out.0"),
    ("norm3", "transformer_blocks.0.norm3"),
    ("gate", "transformer_blocks.0.ff.net.0.proj"),
    ("shrink", "transformer_blocks.0.ff.net.2"),
    ("project_out", "proj_out"),
];

const TEXT_LAYER: &Names = &[
    ("norm1", "layer_norm1"),
    ("query", "self_attn.q_proj"),
    ("key", "self_attn.k_proj"),
    ("value", "self_attn.v_proj"),
    ("output", "self_attn.out_proj"),
    ("norm2", "layer_norm2"),
    ("expand", "mlp.fc1"),
    ("shrink", "mlp.fc2"),
];

/// Collects the rows of a table; `prefix` stands before all of their names.
struct Rows<'a> {
    prefix: &'a str,
    table: Table,
}

impl<'a> Rows<'a> {
    fn new(prefix: &'a str) -> Self {
        Self { prefix, table: Table::new() }
    }

    fn one(&mut self, ours: &str, theirs: &str) {
        let theirs = format!("{}{theirs}", self.prefix);
        self.table.insert(ours.to_owned(), Row { theirs, folded: None });
    }

    fn many(&mut self, ours: &str, theirs: &str, names: &Names) {
        for (inner, outer) in names {
            self.one(&format!("{ours}.{inner}"), &format!("{theirs}.{outer}"));
        }
    }

    fn folded(&mut self, ours: &str, conv: &str, norm: &str) {
        let named = |name: &str| format!("{}{name}", self.prefix);
        self.table.insert(ours.to_owned(), Row { theirs: named(conv), folded: Some(named(norm)) });
    }

    /// The reading half of CompVis' U-Net.
    fn ldm_reader(&mut self, config: &DenoiserConfig) {
        self.one("time.linear1", "time_embed.0");
        self.one("time.linear2", "time_embed.2");
        self.one("conv_in", "input_blocks.0.0");
        let mut block = 1;
        for level in 0..config.channels.len() {
            for unit in 0..config.blocks {
                self.many(
                    &format!("down.{level}.units.{unit}.block"),
                    &format!("input_blocks.{block}.0"),
                    LDM_RESIDUAL,
                );
                let ours = format!("down.{level}.units.{unit}.transformer");
                self.many(&ours, &format!("input_blocks.{block}.1"), TRANSFORMER);
                block += 1;
            }
            if level + 1 < config.channels.len() {
                self.one(&format!("down.{level}.down.conv"), &format!("input_blocks.{block}.0.op"));
                block += 1;
            }
        }
        self.many("middle_in.block", "middle_block.0", LDM_RESIDUAL);
        self.many("middle_in.transformer", "middle_block.1", TRANSFORMER);
        self.many("middle_out", "middle_block.2", LDM_RESIDUAL);
    }
}

/// The denoiser in CompVis' layout, below `prefix`.
pub fn ldm_denoiser(config: &DenoiserConfig, prefix: &str) -> Table {
    let mut rows = Rows::new(prefix);
    rows.ldm_reader(config);
    let levels = config.channels.len();
    let mut block = 0;
    for k in 0..levels {
        for unit in 0..=config.blocks {
            rows.many(&format!("up.{k}.units.{unit}.block"), &format!("output_blocks.{block}.0"), LDM_RESIDUAL);
            rows.many(&format!("up.{k}.units.{unit}.transformer"), &format!("output_blocks.{block}.1"), TRANSFORMER);
            block += 1;
        }
        let behind = 1 + usize::from(config.attention[levels - 1 - k]);
        rows.one(&format!("up.{k}.up.conv"), &format!("output_blocks.{}.{behind}.conv", block - 1));
    }
    rows.one("norm", "out.0");
    rows.one("conv_out", "out.2");
    rows.table
}

/// The denoiser in diffusers' layout.
pub fn diffusers_denoiser(config: &DenoiserConfig) -> Table {
    let mut rows = Rows::new("");
    rows.one("time.linear1", "time_embedding.linear_1");
    rows.one("time.linear2", "time_embedding.linear_2");
    rows.one("conv_in", "conv_in");
    for (half, units) in [("down", config.blocks), ("up", config.blocks + 1)] {
        for k in 0..config.channels.len() {
            for unit in 0..units {
                let ours = format!("{half}.{k}.units.{unit}");
                let theirs = |part: &str| format!("{half}_blocks.{k}.{part}.{unit}");
                rows.many(&format!("{ours}.block"), &theirs("resnets"), DIFFUSERS_RESIDUAL);
                rows.many(&format!("{ours}.transformer"), &theirs("attentions"), TRANSFORMER);
            }
            rows.one(&format!("{half}.{k}.{half}.conv"), &format!("{half}_blocks.{k}.{half}samplers.0.conv"));
        }
    }
    rows.many("middle_in.block", "mid_block.resnets.0", DIFFUSERS_RESIDUAL);
    rows.many("middle_in.transformer", "mid_block.attentions.0", TRANSFORMER);
    rows.many("middle_out", "mid_block.resnets.1", DIFFUSERS_RESIDUAL);
    rows.one("norm", "conv_norm_out");
    rows.one("conv_out", "conv_out");
    rows.table
}

/// DiAD's control network: what is its own stands in `control_model.`; a control network that starts from a published
/// denoiser takes the reading half from there (`prefix` `model.diffusion_model.`), and the rest keeps its initial value.
pub fn diad_control(config: &DenoiserConfig, prefix: &str) -> Table {
    let mut rows = Rows::new(prefix);
    rows.ldm_reader(config);
    for k in 0..7 {
        rows.one(&format!("hint.{k}"), &format!("input_hint_block.{}", 2 * k));
    }
    rows.one("hint_out", "input_hint_block.14");
    for k in 0..config.channels.len() * (config.blocks + 1) {
        rows.one(&format!("zeros.{k}"), &format!("zero_convs.{k}.0"));
    }
    rows.one("zero_middle", "middle_block_out.0");
    for source in 0..3 {
        for target in 0..3 {
            let ours = format!("spatial_fusion.branches.{}", 3 * source + target);
            rows.one(&ours, &format!("down{}{}.0", source + 1, target + 1));
        }
    }
    rows.table
}

/// The autoencoder in CompVis' layout, below `prefix`.
pub fn ldm_autoencoder(config: &AutoencoderConfig, prefix: &str) -> Table {
    let mut rows = Rows::new(prefix);
    let levels = config.encoder_channels.len();
    for (half, blocks) in [("encoder", config.blocks), ("decoder", config.blocks + 1)] {
        let decoder = half == "decoder";
        rows.one(&format!("{half}.conv_in"), &format!("{half}.conv_in"));
        for k in 0..levels {
            // Their index is the level, coarsest last; ours is the order of execution.
            let level = if decoder { levels - 1 - k } else { k };
            let theirs = format!("{half}.{}.{level}", if decoder { "up" } else { "down" });
            for block in 0..blocks {
                let ours = format!("{half}.levels.{k}.blocks.{block}");
                rows.many(&ours, &format!("{theirs}.block.{block}"), LDM_AUTOENCODER_RESIDUAL);
            }
            let (ours, resample) = if decoder { ("up", "upsample") } else { ("down", "downsample") };
            rows.one(&format!("{half}.levels.{k}.{ours}.conv"), &format!("{theirs}.{resample}.conv"));
        }
        for k in 1..=2 {
            let ours = format!("{half}.middle.block{k}");
            rows.many(&ours, &format!("{half}.mid.block_{k}"), LDM_AUTOENCODER_RESIDUAL);
        }
        rows.many(&format!("{half}.middle.attention"), &format!("{half}.mid.attn_1"), LDM_ATTENTION);
        rows.one(&format!("{half}.norm"), &format!("{half}.norm_out"));
        rows.one(&format!("{half}.conv_out"), &format!("{half}.conv_out"));
    }
    rows.one("quant", "quant_conv");
    rows.one("post_quant", "post_quant_conv");
    rows.table
}

/// The autoencoder in diffusers' layout.
pub fn diffusers_autoencoder(config: &AutoencoderConfig) -> Table {
    let mut rows = Rows::new("");
    for (half, side, blocks) in [("encoder", "down", config.blocks), ("decoder", "up", config.blocks + 1)] {
        rows.one(&format!("{half}.conv_in"), &format!("{half}.conv_in"));
        for k in 0..config.encoder_channels.len() {
            let theirs = format!("{half}.{side}_blocks.{k}");
            for block in 0..blocks {
                let ours = format!("{half}.levels.{k}.blocks.{block}");
                rows.many(&ours, &format!("{theirs}.resnets.{block}"), DIFFUSERS_RESIDUAL);
            }
            rows.one(&format!("{half}.levels.{k}.{side}.conv"), &format!("{theirs}.{side}samplers.0.conv"));
        }
        for k in 1..=2 {
            let theirs = format!("{half}.mid_block.resnets.{}", k - 1);
            rows.many(&format!("{half}.middle.block{k}"), &theirs, DIFFUSERS_RESIDUAL);
        }
        rows.many(&format!("{half}.middle.attention"), &format!("{half}.mid_block.attentions.0"), DIFFUSERS_ATTENTION);
        rows.one(&format!("{half}.norm"), &format!("{half}.conv_norm_out"));
        rows.one(&format!("{half}.conv_out"), &format!("{half}.conv_out"));
    }
    rows.one("quant", "quant_conv");
    rows.one("post_quant", "post_quant_conv");
    rows.table
}

/// CLIP's text encoder as `transformers` calls it, below `prefix`; in CompVis' checkpoints that is
/// `cond_stage_model.transformer.text_model.`.
pub fn text_encoder(layers: usize, prefix: &str) -> Table {
    let mut rows = Rows::new(prefix);
    rows.one("tokens", "embeddings.token_embedding");
    rows.one("positions", "embeddings.position_embedding");
    for layer in 0..layers {
        rows.many(&format!("layers.{layer}"), &format!("encoder.layers.{layer}"), TEXT_LAYER);
    }
    rows.one("norm", "final_layer_norm");
    rows.table
}

/// VGG16's convolutions as torchvision calls them, `slices` of so many; its classifier judges classes and is left.
pub fn vgg16(slices: &[usize]) -> Table {
    let mut rows = Rows::new("");
    let mut index = 0;
    for (slice, &count) in slices.iter().enumerate() {
        for k in 0..count {
            rows.one(&format!("slices.{slice}.{k}"), &format!("features.{index}"));
            // A convolution and its activation.
            index += 2;
        }
        // The maximum behind a slice.
        index += 1;
    }
    rows.table
}

/// The linear heads of LPIPS.
pub fn lpips_heads() -> Table {
    let mut rows = Rows::new("");
    (0..5).for_each(|k| rows.one(&format!("heads.{k}"), &format!("lin{k}.model.1")));
    rows.table
}

/// ResNet50 to layer 3, as torchvision and timm call it.
pub fn resnet50() -> Table {
    let mut rows = Rows::new("");
    rows.folded("conv1", "conv1", "bn1");
    for (layer, &blocks) in BLOCKS.iter().enumerate() {
        for block in 0..blocks {
            let (ours, theirs) = (format!("layers.{layer}.{block}"), format!("layer{}.{block}", layer + 1));
            for k in 1..=3 {
                rows.folded(&format!("{ours}.conv{k}"), &format!("{theirs}.conv{k}"), &format!("{theirs}.bn{k}"));
            }
            let shortcut = format!("{theirs}.downsample");
            rows.folded(&format!("{ours}.shortcut"), &format!("{shortcut}.0"), &format!("{shortcut}.1"));
        }
    }
    rows.table
}

/// Keys of VGG16 that LPIPS has no use for.
pub const VGG16_SKIPS: [&str; 1] = ["classifier."];

/// Keys of a ResNet50 that stride 16 does not need, and counters.
pub const RESNET_SKIPS: [&str; 3] = ["layer4.", "fc.", ".num_batches_tracked"];
