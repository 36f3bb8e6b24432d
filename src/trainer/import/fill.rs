//! Filling a network from a checkpoint, and saying what became of every parameter.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};
use serde::Serialize;

use super::checkpoint::Checkpoint;
use super::keys::{Place, Row, Table, their_parameter};

/// Epsilon of the BatchNorms that are folded away.
const BATCH_NORM_EPSILON: f64 = 1e-5;

/// What became of the parameters of one network.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Parameters that were taken from the checkpoint.
    pub matched: Vec<String>,
    /// Parameters that keep their initial value, as they should.
    pub kept: Vec<String>,
    /// Parameters that the checkpoint lacks.
    pub missing: Vec<String>,
}

/// Fills `module` by `table`; parameters under one of `fresh` keep their initial value if the checkpoint has none.
///
/// # Errors
/// A tensor of another shape, or one that cannot be read. Missing parameters are in the report: judge it.
pub fn fill<M: Module>(
    module: M,
    table: &Table,
    fresh: &[&str],
    checkpoint: &Checkpoint,
    device: &Device,
) -> anyhow::Result<(M, Report)> {
    let mut filler =
        Filler { table, fresh, checkpoint, device, place: Place::default(), report: Report::default(), error: None };
    let module = module.map(&mut filler);
    match filler.error {
        Some(error) => Err(error),
        None => Ok((module, filler.report)),
    }
}

struct Filler<'a> {
    table: &'a Table,
    fresh: &'a [&'a str],
    checkpoint: &'a Checkpoint,
    device: &'a Device,
    place: Place,
    report: Report,
    error: Option<anyhow::Error>,
}

impl ModuleMapper for Filler<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.place.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.place.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_some() {
            return param;
        }
        let Some((layer, leaf)) = self.place.parameter() else { return param };
        let name = format!("{layer}.{leaf}").trim_start_matches('.').to_owned();
        let shape: Vec<usize> = param.lazy_shape().iter().copied().collect();
        let row = self.table.get(&layer);
        match row.map(|row| self.values(row, leaf, &shape)) {
            Some(Ok(Some(values))) => {
                self.report.matched.push(name);
                let value = Tensor::from_data(TensorData::new(values, shape), self.device);
                // Not `Param::initialized`: that one would never learn.
                Param::from_tensor(value)
            }
            Some(Err(error)) => {
                self.error = Some(error);
                param
            }
            Some(Ok(None)) | None => {
                let fresh = self.fresh.iter().any(|prefix| name.starts_with(prefix));
                if fresh { &mut self.report.kept } else { &mut self.report.missing }.push(name);
                param
            }
        }
    }
}

impl Filler<'_> {
    /// Values of a parameter in our layout, or nothing if the checkpoint does not have it.
    fn values(&self, row: &Row, leaf: &str, shape: &[usize]) -> anyhow::Result<Option<Vec<f32>>> {
        let checkpoint = self.checkpoint;
        if let Some(norm) = &row.folded {
            return self.folded(&row.theirs, norm, leaf, shape);
        }
        let name = format!("{}.{}", row.theirs, their_parameter(leaf));
        let Some(found) = checkpoint.shape(&name) else { return Ok(None) };
        match shape {
            [input, output] if self.place.is_linear() => {
                let stored = checkpoint.read(&name, &[*output, *input])?;
                let transposed = (0..input * output).map(|i| stored[(i % output) * input + i / output]);
                Ok(Some(transposed.collect()))
            }
            // A pointwise convolution here, a linear layer in some layouts: the same numbers in the same order.
            [output, input, 1, 1] if found.len() == 2 => checkpoint.read(&name, &[*output, *input]).map(Some),
            shape => checkpoint.read(&name, shape).map(Some),
        }
    }

    /// `y = gamma (W x - mean) / sqrt(variance + eps) + beta` as one convolution with a bias.
    fn folded(&self, conv: &str, norm: &str, leaf: &str, shape: &[usize]) -> anyhow::Result<Option<Vec<f32>>> {
        if !self.checkpoint.has(&format!("{conv}.weight")) {
            return Ok(None);
        }
        let channels = [shape[0]];
        let vector = |name: &str| self.checkpoint.read(&format!("{norm}.{name}"), &channels);
        let (gamma, variance) = (vector("weight")?, vector("running_var")?);
        let factor = |c: usize| f64::from(gamma[c]) / (f64::from(variance[c]) + BATCH_NORM_EPSILON).sqrt();
        if leaf == "bias" {
            let (beta, mean) = (vector("bias")?, vector("running_mean")?);
            let bias = (0..shape[0]).map(|c| (f64::from(beta[c]) - f64::from(mean[c]) * factor(c)) as f32);
            return Ok(Some(bias.collect()));
        }
        let weight = self.checkpoint.read(&format!("{conv}.weight"), shape)?;
        let per = weight.len() / shape[0];
        Ok(Some(weight.iter().enumerate().map(|(i, w)| (f64::from(*w) * factor(i / per)) as f32).collect()))
    }
}
