//! Prototypes: how far is a patch from every kind of patch that good parts show?
//!
//! The reconstruction answers what a part should look like *here*; but a defect that the latent does not hold is redrawn
//! faithfully in neither picture, and leaves no difference. The nearest of a few hundred typical patch features
//! (PatchCore, arXiv 2106.08265, with a memory of fixed size instead of a tenth of the data) sees those.

use burn::module::{Module, Param};
use burn::tensor::{Device, FloatDType, Tensor, assert_shape};
use serde::{Deserialize, Serialize};

use super::features::Stages;
use super::score::resize;
use crate::kernels::{self, Epilogue, Window, depthwise};

/// Configuration of [`Prototypes`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrototypesConfig {
    /// Prototypes of each class.
    pub per_class: usize,
    /// Cells beyond the border count as zeros in a neighbourhood's mean, as in PatchCore: borders fade, and what varies
    /// there (a part that is cut off, a shadow) is no alarm. Bundles of versions before it could be chosen do without.
    #[serde(default)]
    pub border_counts: bool,
    /// Stride of the compared patches, 8 or 16. Bundles of versions before it could be chosen compare at 16.
    #[serde(default = "coarse")]
    pub stride: usize,
    /// Distances are measured by how good patches of the class vary. Bundles of versions before it could be chosen compare
    /// plain features.
    #[serde(default)]
    pub metric: bool,
}

fn coarse() -> usize {
    16
}

/// Typical patch features of good parts: not trained by gradient, but chosen from the pictures.
#[derive(Module, Debug)]
pub struct Prototypes {
    /// `[max(classes, 1), per_class, channels]`, projected by the metric where there is one
    rows: Param<Tensor<3>>,
    metric: Option<Metric>,
    border_counts: bool,
    stride: usize,
}

/// How distances between the patches of a class are measured: `|(a - b) factor|`, so what seldom varies counts for more.
#[derive(Module, Debug)]
pub struct Metric {
    /// Mean patch of each class, `[max(classes, 1), 1, channels]`: keeps projected values small enough for 16 bits.
    center: Param<Tensor<3>>,
    /// `[max(classes, 1), channels, channels]`
    factor: Param<Tensor<3>>,
}

impl Metric {
    /// From the chosen values.
    ///
    /// # Shapes
    /// - center `[max(classes, 1), 1, channels]`, factor `[max(classes, 1), channels, channels]`
    pub fn new(center: Tensor<3>, factor: Tensor<3>) -> Self {
        let [groups, channels, _] = factor.dims();
        assert_shape!(factor, [groups, channels, channels]);
        assert_shape!(center, [groups, 1, channels]);
        Self { center: Param::from_tensor(center), factor: Param::from_tensor(factor) }
    }

    /// Patches `[n, channels]` in the coordinates of a class's prototypes.
    fn project(&self, found: Tensor<2>, group: usize) -> Tensor<2> {
        // In f32 whatever the network computes in, and nothing rounded: the nearest of rows that are close together is asked for.
        let of = |param: &Param<Tensor<3>>| param.val().narrow(0, group, 1).squeeze_dim::<2>(0).cast(FloatDType::F32);
        kernels::product(found.cast(FloatDType::F32) - of(&self.center), of(&self.factor))
    }
}

/// The mean of what a window sees, with zeros beyond the border, or without what is beyond it: a filter, as burn's pooling is slow on
/// the CPU.
fn mean(stage: Tensor<4>, window: Window, border_counts: bool) -> Tensor<4> {
    let [_, channels, height, width] = stage.dims();
    let (kind, cells) = ((&stage.device(), stage.dtype()), window.kernel * window.kernel);
    let sums = |stage: Tensor<4>, channels: usize| {
        let taps = Tensor::ones([channels, 1, window.kernel, window.kernel], kind);
        depthwise(stage, taps, Tensor::zeros([channels], kind), window, Epilogue::None)
    };
    // Divided at last: a ninth has no exact half-precision form, and sums of features have room in one.
    if border_counts {
        return sums(stage, channels) / cells as f64;
    }
    sums(stage, channels) / sums(Tensor::ones([1, 1, height, width], kind), 1)
}

fn patches(stages: &Stages, stride: usize, border_counts: bool) -> Tensor<3> {
    let pool = |stage: &Tensor<4>, kernel: usize, stride: usize| {
        mean(stage.clone(), Window { kernel, stride, before: 1, after: 1 }, border_counts)
    };
    let [_, fine, coarse] = stages;
    let coarse = pool(coarse, 3, 1);
    let parts = if stride == 8 {
        let [_, _, height, width] = fine.dims();
        vec![pool(fine, 3, 1), kernels::resize_cells(coarse, height, width)]
    } else {
        // 4x4 cells at stride 8 have the same centre as one at stride 16.
        vec![pool(fine, 4, 2), coarse]
    };
    let joined = Tensor::cat(parts, 1);
    let [batch, channels, height, width] = joined.dims();
    joined.permute([0, 2, 3, 1]).reshape([batch, height * width, channels])
}

impl PrototypesConfig {
    /// Patch features of pictures: the stages at strides 8 and 16, averaged over the neighbourhood and joined at the
    /// configuration's stride.
    ///
    /// # Shapes
    /// - stages of `[b, 3, h, w]`
    /// - output `[b, h/s w/s, channels]` for the stride `s`
    pub fn patches(&self, stages: &Stages) -> Tensor<3> {
        patches(stages, self.stride, self.border_counts)
    }

    /// What is wrong, if anything.
    pub fn problem(&self) -> Option<String> {
        (![8, 16].contains(&self.stride)).then(|| format!("stride {} is neither 8 nor 16", self.stride))
    }

    /// Makes a place for the prototypes of a backbone with these stage channels; all are zero until they are chosen.
    pub fn init(&self, stage_channels: [usize; 3], classes: usize, device: &Device) -> Prototypes {
        let (groups, channels) = (classes.max(1), stage_channels[1] + stage_channels[2]);
        let zeros = |rows| Tensor::zeros([groups, rows, channels], device);
        Prototypes {
            rows: Param::from_tensor(zeros(self.per_class)),
            metric: self.metric.then(|| Metric::new(zeros(1), zeros(channels))),
            border_counts: self.border_counts,
            stride: self.stride,
        }
    }
}

impl Prototypes {
    /// The chosen prototypes `[max(classes, 1), per_class, channels]`, and by what their distances are measured.
    pub fn with_rows(self, rows: Tensor<3>, metric: Option<Metric>) -> Self {
        let [classes, count, channels] = self.rows.val().dims();
        assert_shape!(rows, [classes, count, channels]);
        Self { rows: Param::from_tensor(rows), metric, ..self }
    }

    /// Distance of each patch to its nearest prototype.
    ///
    /// # Shapes
    /// - stages of `[b, 3, h, w]`; `classes` has `b` indices. The null class (0) compares with those of all classes
    /// - output `[b, 1, h, w]`
    pub fn distance(&self, stages: &Stages, classes: &[usize], height: usize, width: usize) -> Tensor<4> {
        let rows = self.rows.val();
        let [groups, _, _] = rows.dims();
        let [_, _, cell_rows, cell_columns] = stages[if self.stride == 8 { 1 } else { 2 }].dims();
        let found = patches(stages, self.stride, self.border_counts);
        let near = |found: Tensor<2>, class: usize| {
            let compared = if class == 0 { 0..groups } else { class - 1..class };
            let to_group = |group| {
                let rows = rows.clone().narrow(0, group, 1).squeeze_dim::<2>(0);
                let projected = self.metric.as_ref().map(|metric| metric.project(found.clone(), group));
                nearest(projected.unwrap_or_else(|| found.clone()), rows)
            };
            let of_groups: Vec<Tensor<2>> = compared.map(to_group).collect();
            Tensor::cat(of_groups, 1).min_dim(1).cast(found.dtype())
        };
        let near: Vec<Tensor<2>> = match classes {
            // One product for all pictures.
            [first, rest @ ..] if rest.iter().all(|class| class == first) => vec![near(found.flatten(0, 1), *first)],
            _ => {
                let of = |(picture, class): (usize, &usize)| {
                    near(found.clone().narrow(0, picture, 1).squeeze_dim::<2>(0), *class)
                };
                classes.iter().enumerate().map(of).collect()
            }
        };
        let near = Tensor::cat(near, 0).reshape([classes.len(), 1, cell_rows, cell_columns]);
        resize(near, height, width)
    }
}

/// Euclidean distance of each row of `found` to the nearest of `rows`: `[n, c]` and `[m, c]` to `[n, 1]`.
pub fn nearest(found: Tensor<2>, rows: Tensor<2>) -> Tensor<2> {
    // In f32 whatever the network computes in: squares of features have no room in 16 bits.
    let dtype = found.dtype();
    kernels::nearest(found.cast(FloatDType::F32), rows.cast(FloatDType::F32)).sqrt().cast(dtype)
}

#[cfg(test)]
mod tests {
    use burn::tensor::module::avg_pool2d;
    use burn::tensor::ops::AvgPoolOptions;
    use burn::tensor::{Distribution, TensorData, Tolerance};

    use super::*;

    #[test]
    fn a_mean_is_that_of_pooling() {
        let device = Device::flex();
        for (side, stride, [height, width]) in [(3, 1, [8, 20]), (4, 2, [8, 20]), (3, 1, [7, 5]), (4, 2, [9, 7])] {
            let stage = Tensor::<4>::random([2, 3, height, width], Distribution::Default, &device);
            for counts in [true, false] {
                let options = AvgPoolOptions::<2>::new([side, side]).with_stride([stride, stride]);
                let options = options.with_padding([1, 1]).with_count_include_pad(counts);
                let expected = avg_pool2d(stage.clone(), options).into_data();
                let window = Window { kernel: side, stride, before: 1, after: 1 };
                let found = mean(stage.clone(), window, counts).into_data();
                found.assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-6));
            }
        }
    }

    #[test]
    fn the_nearest_row_counts() {
        let device = Device::flex();
        let found = Tensor::<2>::from_floats([[0.0, 0.0], [3.0, 4.0]], &device);
        let rows = Tensor::<2>::from_floats([[0.0, 1.0], [3.0, 4.0], [9.0, 9.0]], &device);
        let expected = TensorData::from([[1.0f32], [0.0]]);
        nearest(found, rows).into_data().assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-3));
    }

    #[test]
    fn a_class_is_compared_with_its_own_prototypes() {
        let device = Device::flex();
        let config = PrototypesConfig { per_class: 2, border_counts: false, stride: 16, metric: false };
        let rows = Tensor::<1>::from_floats([1.0, 1.0, 1.0, 1.0, 5.0, 5.0, 5.0, 5.0], &device).reshape([2, 2, 2]);
        let prototypes = config.init([1, 1, 1], 2, &device).with_rows(rows, None);
        let stages = [16, 8, 4].map(|side| Tensor::<4>::ones([3, 1, side, side], &device));
        let distance = prototypes.distance(&stages, &[1, 2, 0], 64, 64);
        let means = distance.mean_dim(3).mean_dim(2).into_data();
        let expected = TensorData::from([[[[0.0f32]]], [[[32.0f32.sqrt()]]], [[[0.0]]]]);
        means.assert_approx_eq::<f32>(&expected, Tolerance::absolute(2e-3));
    }

    #[test]
    fn a_class_is_measured_by_its_own_metric() {
        let device = Device::flex();
        let config = PrototypesConfig { per_class: 1, border_counts: false, stride: 16, metric: true };
        let center = Tensor::<1>::from_floats([1.0, 1.0, 0.0, 0.0], &device).reshape([2, 1, 2]);
        let factor = Tensor::<1>::from_floats([1.0, 0.0, 0.0, 1.0, 3.0, 0.0, 0.0, 4.0], &device).reshape([2, 2, 2]);
        // Of the first class the mean itself, of the second the origin.
        let rows = Tensor::zeros([2, 1, 2], &device);
        let prototypes = config.init([1, 1, 1], 2, &device).with_rows(rows, Some(Metric::new(center, factor)));
        let stages = [16, 8, 4].map(|side| Tensor::<4>::ones([3, 1, side, side], &device) * 2.0);
        let distance = prototypes.distance(&stages, &[1, 2, 0], 64, 64);
        let means = distance.mean_dim(3).mean_dim(2).into_data();
        let expected = TensorData::from([[[[2.0f32.sqrt()]]], [[[10.0]]], [[[2.0f32.sqrt()]]]]);
        means.assert_approx_eq::<f32>(&expected, Tolerance::absolute(2e-3));
    }
}
