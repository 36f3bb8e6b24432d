//! The gradients of [`Kernels`], for burn's automatic differentiation.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients as Collected;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Slice, TensorMetadata};
use burn::tensor::Shape;
use burn::tensor::ops::{ConvOptions, PadMode};

use super::{Epilogue, Gradients, Kernels, Window};

#[derive(Debug)]
struct Depthwise;

impl<B: Kernels + Gradients> Backward<B, 3> for Depthwise {
    type State = (NodeId, NodeId, Window);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Collected, checkpointer: &mut Checkpointer) {
        let [of_input, of_weight, of_bias] = ops.parents;
        let gradient = grads.consume::<B>(&ops.node);
        let (input, weight, window) = ops.state;
        let input = checkpointer.retrieve_node_output::<FloatTensor<B>>(input);
        let weight = checkpointer.retrieve_node_output::<FloatTensor<B>>(weight);
        let [_, channels, height, width] = input.shape().dims();
        if let Some(node) = of_input {
            grads.register::<B>(node.id, B::depthwise_input(gradient.clone(), weight, window, height, width));
        }
        if of_weight.is_none() && of_bias.is_none() {
            return;
        }
        let taps = window.kernel * window.kernel;
        let sums = B::float_sum_dim(B::depthwise_parameters(gradient, input, window), 0);
        let part = |from: usize, to: usize, shape: Shape| {
            let slices = [Slice::full(), Slice::full(), Slice::from(from..to)];
            B::float_reshape(B::float_slice(sums.clone(), &slices), shape)
        };
        if let Some(node) = of_weight {
            grads.register::<B>(node.id, part(0, taps, Shape::new([channels, 1, window.kernel, window.kernel])));
        }
        if let Some(node) = of_bias {
            grads.register::<B>(node.id, part(taps, taps + 1, Shape::new([channels])));
        }
    }
}

#[derive(Debug)]
struct GroupNorm;

impl<B: Kernels + Gradients> Backward<B, 3> for GroupNorm {
    type State = (NodeId, NodeId, usize, f64);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Collected, checkpointer: &mut Checkpointer) {
        let [of_input, of_gamma, of_beta] = ops.parents;
        let gradient = grads.consume::<B>(&ops.node);
        let (input, gamma, groups, epsilon) = ops.state;
        let input = checkpointer.retrieve_node_output::<FloatTensor<B>>(input);
        let gamma = checkpointer.retrieve_node_output::<FloatTensor<B>>(gamma);
        let [_, channels, _, _] = input.shape().dims();
        let (inner, sums) = B::group_norm_gradients(gradient, input, gamma, groups, epsilon);
        if let Some(node) = of_input {
            grads.register::<B>(node.id, inner);
        }
        if of_gamma.is_none() && of_beta.is_none() {
            return;
        }
        let sums = B::float_sum_dim(sums, 1);
        let row = |k: usize| {
            let slices = [Slice::from(k..k + 1), Slice::full(), Slice::full()];
            B::float_reshape(B::float_slice(sums.clone(), &slices), Shape::new([channels]))
        };
        if let Some(node) = of_beta {
            grads.register::<B>(node.id, row(0));
        }
        if let Some(node) = of_gamma {
            grads.register::<B>(node.id, row(1));
        }
    }
}

#[derive(Debug)]
struct Convolve;

impl<B: Kernels + Gradients> Backward<B, 3> for Convolve {
    type State = (NodeId, NodeId, Window);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Collected, checkpointer: &mut Checkpointer) {
        let [of_input, of_weight, of_bias] = ops.parents;
        let gradient = grads.consume::<B>(&ops.node);
        let (input, weight, window) = ops.state;
        let input = checkpointer.retrieve_node_output::<FloatTensor<B>>(input);
        let weight = checkpointer.retrieve_node_output::<FloatTensor<B>>(weight);
        if let Some(node) = of_input {
            let padding = (window.before, window.after);
            let options = ConvOptions::new_with_padding([window.stride; 2], [padding; 2], [1, 1], 1);
            let inner = B::conv2d_x_backward(input.clone(), weight, gradient.clone(), options);
            grads.register::<B>(node.id, inner);
        }
        if let Some(node) = of_bias {
            let [batch, outputs, rows, columns] = gradient.shape().dims();
            let cells = B::float_reshape(gradient.clone(), Shape::new([batch, outputs, rows * columns]));
            let sums = B::float_sum_dim(B::float_sum_dim(cells, 2), 0);
            grads.register::<B>(node.id, B::float_reshape(sums, Shape::new([outputs])));
        }
        if let Some(node) = of_weight {
            grads.register::<B>(node.id, convolve_weight::<B>(gradient, input, window));
        }
    }
}

/// Gradient of the weight of [`Kernels::convolve`]: for every tap, the gradient of what comes out times what the tap sees.
///
/// Not burn's: without its autotuning that is, in burn 0.22.1, a convolution with a kernel as large as the picture, on every device
/// (burn-backend, ops/modules/conv.rs; burn-cubecl, kernel/conv/backward_weight/fallback.rs).
///
/// Rows are as long in the gradient as in the input, with zeros at their end: so what a tap sees is the input from its place on, on
/// the CPU a view. A stride of `s` first sorts the input into `s s` pictures of every `s`th cell. All taps joined for a single
/// product are `k k` copies of the input, and on the CPU copies take longer than products: 16 pictures of 64 x 64 cells, 48 to 40
/// channels, took 55 to 92 ms like this, 300 to 460 ms joined, and 190 to 220 ms in burn's way.
fn convolve_weight<B: Backend>(gradient: FloatTensor<B>, input: FloatTensor<B>, window: Window) -> FloatTensor<B> {
    let Window { kernel, stride, before, .. } = window;
    let [_, outputs, rows, columns] = gradient.shape().dims();
    let [batch, channels, height, width] = input.shape().dims();
    let reach = (kernel - 1) / stride;
    let (high, wide) = (rows + reach, columns + reach);
    let cells = (rows - 1) * wide + columns;

    let gradient = padded::<B>(gradient, (0, 0), (0, reach));
    let gradient = B::float_reshape(gradient, Shape::new([batch, 1, 1, outputs, rows * wide]));
    let mut seen = [Slice::full(); 5];
    seen[4] = Slice::from(0..cells);
    let gradient = B::float_slice(gradient, &seen);

    let behind = |cells: usize, needed: usize| (before, (needed * stride).saturating_sub(before + cells));
    let input = padded::<B>(input, behind(height, high), behind(width, wide));
    let seen = [Slice::full(), Slice::full(), Slice::from(0..high * stride), Slice::from(0..wide * stride)];
    let input = B::float_slice(input, &seen);
    let input = B::float_reshape(input, Shape::new([batch, channels, high, stride, wide, stride]));
    let input = B::float_permute(input, &[0, 3, 5, 1, 2, 4]);
    let input = B::float_reshape(input, Shape::new([batch, stride, stride, channels, high * wide]));

    let tap = |tap: usize| {
        let (row, column) = (tap / kernel, tap % kernel);
        let (part, first) = ([row % stride, column % stride], row / stride * wide + column / stride);
        let slices = [
            Slice::full(),
            Slice::from(part[0]..part[0] + 1),
            Slice::from(part[1]..part[1] + 1),
            Slice::full(),
            Slice::from(first..first + cells),
        ];
        let seen = B::float_swap_dims(B::float_slice(input.clone(), &slices), 3, 4);
        let product = B::float_sum_dim(B::float_matmul(gradient.clone(), seen), 0);
        B::float_reshape(product, Shape::new([outputs, channels, 1]))
    };
    let sums = B::float_cat((0..kernel * kernel).map(tap).collect(), 2);
    B::float_reshape(sums, Shape::new([outputs, channels, kernel, kernel]))
}

/// Zeros around the rows and around the columns.
fn padded<B: Backend>(input: FloatTensor<B>, rows: (usize, usize), columns: (usize, usize)) -> FloatTensor<B> {
    match (rows, columns) {
        ((0, 0), (0, 0)) => input,
        _ => B::float_pad(input, &[(0, 0), (0, 0), rows, columns], PadMode::Constant(0.0)),
    }
}

impl<B: Kernels + Gradients, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    fn depthwise(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        let prepared = Depthwise.prepare::<C>([input.node(), weight.node(), bias.node()]).compute_bound().stateful();
        let output = B::depthwise(input.primitive().clone(), weight.primitive().clone(), bias.into_primitive(), window);
        match prepared {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&input), prep.checkpoint(&weight), window);
                prep.finish(state, output)
            }
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn group_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        groups: usize,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        let prepared = GroupNorm.prepare::<C>([input.node(), gamma.node(), beta.node()]).compute_bound().stateful();
        let output =
            B::group_norm(input.primitive().clone(), gamma.primitive().clone(), beta.into_primitive(), groups, epsilon);
        match prepared {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&input), prep.checkpoint(&gamma), groups, epsilon);
                prep.finish(state, output)
            }
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn convolve(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        window: Window,
        epilogue: Epilogue,
    ) -> FloatTensor<Self> {
        let prepared = Convolve.prepare::<C>([input.node(), weight.node(), bias.node()]).compute_bound().stateful();
        let (x, w, b) = (input.primitive().clone(), weight.primitive().clone(), bias.into_primitive());
        match prepared {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&input), prep.checkpoint(&weight), window);
                let sums = prep.finish(state, B::convolve(x, w, b, window, Epilogue::None));
                epilogue.apply::<Self>(sums)
            }
            // In one pass: nothing asks what the sums were.
            OpsKind::UnTracked(prep) => prep.finish(B::convolve(x, w, b, window, epilogue)),
        }
    }
}
