//! The same network with less in it: what inference never reads is removed, and what never changes is stored.

use super::network::Network;
use super::profile::ModelConfig;

/// Removes the context's projections (its keys and values are stored instead), and of DiAD's control network what nobody
/// reads. Exact: only the order of sums may round otherwise.
pub fn lighten(mut network: Network, config: &ModelConfig) -> (Network, ModelConfig) {
    let mut config = config.clone();
    if let Some(context) = network.context.take().map(|context| context.val()) {
        network.denoiser = network.denoiser.store_context(&context);
        network.control = network.control.map(|control| control.store_context(&context));
        config.denoiser.context.iter_mut().for_each(|context| context.stored = true);
    }
    if let (Some(control), Some(sizes)) = (network.control.take(), &mut config.control) {
        let (control, form) = control.prune(&sizes.form);
        network.control = Some(control);
        sizes.form = form;
    }
    (network, config)
}
