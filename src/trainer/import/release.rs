//! A model in DiAD's key layout, for PyTorch: the tables of [`keys`] read backwards.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{FloatDType, Tensor};
use safetensors::tensor::{Dtype, TensorView};

use super::build::{AUTOENCODER, Built, CONTROL, DENOISER, TEXT};
use super::keys::{self, Place, Table, their_parameter};
use crate::model::autoencoder::{Autoencoder, AutoencoderConfig};
use crate::model::control::ControlForm;
use crate::model::profile::ModelConfig;
use crate::model::schedule::NoiseSchedule;

/// Shape and values of a tensor.
type Stored = (Vec<usize>, Vec<f32>);

/// Writes the denoiser, DiAD's control network, the autoencoder, the text encoder and the schedule's buffers as one flat
/// safetensors file: what `load_state_dict` of the released code wants, strictly.
///
/// # Errors
/// A model without DiAD's control network, or a disk that refuses.
pub fn write_diad(built: &Built, config: &ModelConfig, path: &Path) -> anyhow::Result<()> {
    ensure!(!path.exists(), "{}: exists already; choose another name, or remove it", path.display());
    let released = config.control.as_ref().is_some_and(|c| matches!(c.form, ControlForm::Diad { .. }));
    let control = built.network.control.as_ref().filter(|_| released);
    let control = control.context("only a model built with --diad-compat has DiAD's layout")?;
    let unet = &config.denoiser;
    let mut tensors = BTreeMap::new();
    collect(&built.network.denoiser, &keys::ldm_denoiser(unet, DENOISER), &mut tensors)?;
    collect(control, &keys::diad_control(unet, CONTROL), &mut tensors)?;
    let table = keys::ldm_autoencoder(&config.autoencoder, AUTOENCODER);
    collect(&built.network.autoencoder, &table, &mut tensors)?;
    collect(&built.text, &keys::text_encoder(built.text.layers(), TEXT), &mut tensors)?;
    for (name, values) in buffers(&built.network.sampler().schedule()) {
        tensors.insert(name.to_owned(), (vec![values.len()], values));
    }
    store(tensors, path)
}

/// Writes an autoencoder as CompVis' code names it: what `build-model --first-stage` reads.
///
/// # Errors
/// A disk that refuses.
pub fn write_autoencoder(autoencoder: &Autoencoder, config: &AutoencoderConfig, path: &Path) -> anyhow::Result<()> {
    let mut tensors = BTreeMap::new();
    collect(autoencoder, &keys::ldm_autoencoder(config, ""), &mut tensors)?;
    store(tensors, path)
}

fn store(tensors: BTreeMap<String, Stored>, path: &Path) -> anyhow::Result<()> {
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, (shape, values))| (name, shape, values.into_iter().flat_map(f32::to_le_bytes).collect()))
        .collect();
    let views = bytes
        .iter()
        .map(|(name, shape, data)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), data)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let partial = path.with_extension("partial");
    safetensors::serialize_to_file(views, None, &partial).with_context(|| partial.display().to_string())?;
    std::fs::File::open(&partial)?.sync_all()?;
    std::fs::rename(&partial, path).with_context(|| format!("{}: cannot be made", path.display()))
}

fn collect<M: Module>(module: &M, table: &Table, tensors: &mut BTreeMap<String, Stored>) -> anyhow::Result<()> {
    let mut collector = Collector { table, tensors, place: Place::default(), error: None };
    module.visit(&mut collector);
    collector.error.map_or(Ok(()), Err)
}

struct Collector<'a> {
    table: &'a Table,
    tensors: &'a mut BTreeMap<String, Stored>,
    place: Place,
    error: Option<anyhow::Error>,
}

impl ModuleVisitor for Collector<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.place.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.place.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some((layer, leaf)) = self.place.parameter() else { return };
        match self.stored(leaf, &layer, param) {
            Ok((name, stored)) => drop(self.tensors.insert(name, stored)),
            Err(error) => self.error = self.error.take().or(Some(error)),
        }
    }
}

impl Collector<'_> {
    /// Name and values of a parameter there.
    fn stored<const D: usize>(
        &self,
        leaf: &str,
        layer: &str,
        param: &Param<Tensor<D>>,
    ) -> anyhow::Result<(String, Stored)> {
        let row = self.table.get(layer).with_context(|| format!("'{layer}' has no name in this layout"))?;
        let value = param.val().cast(FloatDType::F32);
        let value = if D == 2 && self.place.is_linear() { value.swap_dims(0, 1) } else { value };
        let shape = value.dims().to_vec();
        Ok((format!("{}.{}", row.theirs, their_parameter(leaf)), (shape, value.try_into_vec_as::<f32>()?)))
    }
}

/// The buffers that the released code registers beside its parameters (Ho et al., arXiv 2006.11239, in f64).
fn buffers(schedule: &NoiseSchedule) -> [(&'static str, Vec<f32>); 13] {
    let bar: Vec<f64> = (0..schedule.timesteps()).map(|t| schedule.alpha_bar(t)).collect();
    let before = |t: usize| if t == 0 { 1.0 } else { bar[t - 1] };
    let over = |value: &dyn Fn(usize) -> f64| (0..bar.len()).map(|t| value(t) as f32).collect::<Vec<_>>();
    let beta = |t: usize| 1.0 - bar[t] / before(t);
    let variance = |t: usize| beta(t) * (1.0 - before(t)) / (1.0 - bar[t]);
    [
        ("betas", over(&beta)),
        ("alphas_cumprod", over(&|t| bar[t])),
        ("alphas_cumprod_prev", over(&before)),
        ("sqrt_alphas_cumprod", over(&|t| bar[t].sqrt())),
        ("sqrt_one_minus_alphas_cumprod", over(&|t| (1.0 - bar[t]).sqrt())),
        ("log_one_minus_alphas_cumprod", over(&|t| (1.0 - bar[t]).ln())),
        ("sqrt_recip_alphas_cumprod", over(&|t| bar[t].recip().sqrt())),
        ("sqrt_recipm1_alphas_cumprod", over(&|t| (bar[t].recip() - 1.0).sqrt())),
        ("posterior_variance", over(&variance)),
        ("posterior_log_variance_clipped", over(&|t| variance(t).max(1e-20).ln())),
        ("posterior_mean_coef1", over(&|t| beta(t) * before(t).sqrt() / (1.0 - bar[t]))),
        ("posterior_mean_coef2", over(&|t| (1.0 - before(t)) * (bar[t] / before(t)).sqrt() / (1.0 - bar[t]))),
        ("logvar", over(&|_| 0.0)),
    ]
}
