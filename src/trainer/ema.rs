//! Moving average of a module's parameters: smoother than the last step, and what is kept as the result.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

/// The average of a module, off the gradient graph.
#[derive(Debug, Clone)]
pub struct Ema<M> {
    module: M,
    decay: f64,
}

impl<M: Module> Ema<M> {
    /// Starts from a copy of `module`.
    pub fn new(module: &M, decay: f64) -> Self {
        Self { module: module.valid(), decay }
    }

    /// Moves the average towards `module`; early steps move faster, so that the start is forgotten.
    pub fn update(&mut self, module: &M, step: usize) {
        let warm = (1.0 + step as f64) / (10.0 + step as f64);
        let decay = self.decay.min(warm);
        // A container of tensors by parameter id is what burn's gradients are.
        let mut current = Collect { tensors: GradientsParams::new() };
        module.valid().visit(&mut current);
        self.module = self.module.clone().map(&mut Mix { current: current.tensors, decay });
    }

    /// The average.
    pub fn module(&self) -> &M {
        &self.module
    }

    /// The same average with other parameters, from a checkpoint.
    pub fn restore(&mut self, module: M) {
        self.module = module;
    }
}

struct Collect {
    tensors: GradientsParams,
}

impl ModuleVisitor for Collect {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.tensors.register(param.id, param.val());
    }
}

struct Mix {
    current: GradientsParams,
    decay: f64,
}

impl ModuleMapper for Mix {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.current.remove::<D>(param.id) {
            Some(current) => param.map(|average| average * self.decay + current * (1.0 - self.decay)),
            None => param,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn average_moves_by_the_decay() {
        let device = Device::flex().autodiff();
        let layer = LinearConfig::new(1, 1).with_bias(false).init(&device);
        let at = |layer: &Linear, value: f64| {
            let mut layer = layer.clone();
            layer.weight = layer.weight.map(|w| w.zeros_like() + value);
            layer
        };
        let mut ema = Ema::new(&at(&layer, 1.0), 0.75);
        ema.update(&at(&layer, 5.0), 1_000);
        assert_eq!(ema.module().weight.val().into_scalar::<f32>(), 2.0);
    }
}
