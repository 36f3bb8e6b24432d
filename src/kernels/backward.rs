//! The gradients of [`Kernels`], for burn's automatic differentiation.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients as Collected;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Slice, TensorMetadata};
use burn::tensor::Shape;

use super::{Gradients, Kernels, Window};

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
}
