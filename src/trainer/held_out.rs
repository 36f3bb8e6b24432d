//! Which average of a stage is kept: the one that does best on pictures that the stage has not seen.
//!
//! With twenty good pictures, a stage of a thousand steps knows each by heart, and takes the next good part for a defective
//! one. The pictures are those that the map is chosen with; their defects are drawn as in training.

use std::path::Path;

use anyhow::Context;
use burn::module::Module;
use burn::store::ModuleRecord;

use super::checkpoint::RunState;
use super::objective::Objective;
use super::stage::{StageSettings, write};
use crate::model::network::Network;

/// How often in a stage the average is tried.
pub const TRIES: usize = 20;
/// Its file in a checkpoint.
const FILE: &str = "best.bpk";

/// The best average so far, if any was tried.
#[derive(Debug)]
pub struct Best<M>(Option<M>);

impl<M> Default for Best<M> {
    fn default() -> Self {
        Self(None)
    }
}

impl<M: Module + Clone> Best<M> {
    /// The one of a checkpoint, with the sizes of `like`.
    ///
    /// # Errors
    /// A file that does not fit.
    pub fn load(checkpoint: &Path, like: &M) -> anyhow::Result<Self> {
        let path = checkpoint.join(FILE);
        if !path.exists() {
            return Ok(Self(None));
        }
        let record = ModuleRecord::load(path).context(FILE)?;
        Ok(Self(Some(like.clone().try_load_record(record).context(FILE)?)))
    }

    /// Writes it into a checkpoint.
    ///
    /// # Errors
    /// Anything that the disk refuses.
    pub fn save(&self, checkpoint: &Path) -> anyhow::Result<()> {
        self.0.as_ref().map_or(Ok(()), |module| write(module.clone(), checkpoint, FILE))
    }

    /// Judges an average by its loss on the held-out batches, and keeps it if it is the best.
    ///
    /// # Errors
    /// What the device says.
    pub fn try_average<O: Objective<Trained = M>>(
        &mut self,
        objective: &O,
        network: &Network,
        average: &M,
        settings: &StageSettings<'_>,
        state: &mut RunState,
    ) -> anyhow::Result<()> {
        if settings.held_out.is_empty() {
            return Ok(());
        }
        // Losses are written for a module on the gradient graph; nothing goes back through this one.
        let on_graph = average.clone().to_device(&settings.device.clone().autodiff()).train();
        let mut sum = 0.0;
        for batch in settings.held_out {
            let loss = objective.loss(network, &on_graph, batch, settings.device).inner();
            sum += f64::from(loss.try_into_scalar::<f32>()?);
        }
        let loss = sum / settings.held_out.len() as f64;
        let tried = &mut state.held_out[settings.index];
        if self.0.is_none() || tried.iter().all(|(_, other)| loss < *other) {
            self.0 = Some(average.clone());
        }
        tried.push((state.step, loss));
        Ok(())
    }

    /// The best average.
    pub fn into_module(self) -> Option<M> {
        self.0
    }
}
