//! Checkpoints of a run: written whole or not at all, so that a kill at any moment leaves one that resumes.
//!
//! ```text
//! run/
//! ├── state.json          where the run stands; names the directory below
//! └── STAGE-STEP/         network, trained part, its average, two moments of its gradients
//! ```
//!
//! A checkpoint directory is written under another name, made durable and renamed; then `state.json` is replaced by a
//! rename; then older directories are removed. A kill between two of these steps leaves the older state in force.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fit::sibling;

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    /// What the run was asked for; another request must not continue it.
    pub request: Value,
    /// Stage in progress, or the number of stages when all are done.
    pub stage: usize,
    /// Steps of that stage that are done.
    pub step: usize,
    /// Steps that the stage has, once measured.
    pub total: Option<usize>,
    /// Seconds spent per stage.
    pub seconds: Vec<f64>,
    /// Mean loss per stretch of steps, per stage: `(step, loss)`.
    pub losses: Vec<Vec<(usize, f64)>>,
    /// The latents' scale, once measured.
    pub latent_scale: Option<f64>,
    /// Directory of the tensors.
    pub directory: Option<String>,
}

impl RunState {
    /// A run at its beginning.
    pub fn new(request: Value, stages: usize) -> Self {
        Self {
            request,
            stage: 0,
            step: 0,
            total: None,
            seconds: vec![0.0; stages],
            losses: vec![Vec::new(); stages],
            latent_scale: None,
            directory: None,
        }
    }
}

/// The directory of a run.
#[derive(Debug, Clone)]
pub struct RunDirectory {
    root: PathBuf,
}

impl RunDirectory {
    /// Opens the run of this request: its saved state, if there is one.
    ///
    /// # Errors
    /// A state that cannot be read, or that belongs to another request.
    pub fn open(root: &Path, request: &Value, fresh: bool) -> anyhow::Result<(Self, Option<RunState>)> {
        let run = Self { root: root.to_path_buf() };
        if fresh && root.exists() {
            std::fs::remove_dir_all(root).with_context(|| format!("{}: cannot be removed", root.display()))?;
        }
        std::fs::create_dir_all(root).with_context(|| format!("{}: cannot be made", root.display()))?;
        let path = run.state_path();
        if !path.exists() {
            return Ok((run, None));
        }
        let text = std::fs::read(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
        let state: RunState = serde_json::from_slice(&text)
            .with_context(|| format!("{}: not a run state; start again with --fresh", path.display()))?;
        if state.request != *request {
            bail!(
                "{}: this run was started with other settings ({} instead of {}); start again with --fresh, or choose \
                 another --out",
                path.display(),
                state.request,
                request
            );
        }
        Ok((run, Some(state)))
    }

    fn state_path(&self) -> PathBuf {
        self.root.join("state.json")
    }

    /// Saves a checkpoint: `write` puts the tensors into the directory it is given.
    ///
    /// # Errors
    /// Anything that the disk refuses.
    pub fn save(&self, state: &mut RunState, write: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let name = format!("{}-{}", state.stage, state.step);
        let partial = self.root.join(format!("{name}.partial"));
        let whole = self.root.join(&name);
        for stale in [&partial, &whole] {
            if stale.exists() && state.directory.as_deref() != Some(&name) {
                std::fs::remove_dir_all(stale)?;
            }
        }
        if !whole.exists() {
            std::fs::create_dir_all(&partial)?;
            write(&partial)?;
            for entry in std::fs::read_dir(&partial)? {
                std::fs::File::open(entry?.path())?.sync_all()?;
            }
            std::fs::rename(&partial, &whole)?;
        }
        state.directory = Some(name.clone());
        let temporary = self.root.join("state.json.partial");
        std::fs::write(&temporary, serde_json::to_vec_pretty(state)?)?;
        std::fs::File::open(&temporary)?.sync_all()?;
        std::fs::rename(&temporary, self.state_path())?;
        std::fs::File::open(&self.root)?.sync_all()?;
        for entry in std::fs::read_dir(&self.root)? {
            let path = entry?.path();
            if path.is_dir() && path.file_name() != Some(name.as_ref()) {
                std::fs::remove_dir_all(path)?;
            }
        }
        Ok(())
    }

    /// The directory of a state's tensors.
    pub fn tensors(&self, state: &RunState) -> Option<PathBuf> {
        state.directory.as_ref().map(|name| self.root.join(name))
    }

    /// Removes the run once its bundle stands.
    ///
    /// # Errors
    /// Anything that the disk refuses.
    pub fn remove(self) -> anyhow::Result<()> {
        std::fs::remove_dir_all(&self.root).with_context(|| format!("{}: cannot be removed", self.root.display()))
    }
}

/// Writes a file whole or not at all.
///
/// # Errors
/// Anything that the disk refuses.
pub fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let partial = sibling(path, "partial")?;
    std::fs::write(&partial, bytes)?;
    Ok(std::fs::rename(&partial, path)?)
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn a_failed_save_leaves_the_older_checkpoint_in_force() {
        let dir = tempfile::tempdir().expect("directory");
        let request = serde_json::json!({"seed": 1});
        let (run, state) = RunDirectory::open(dir.path(), &request, false).expect("opens");
        assert!(state.is_none());
        let mut state = RunState::new(request.clone(), 3);
        state.step = 10;
        run.save(&mut state, |dir| Ok(std::fs::write(dir.join("x"), "ten")?)).expect("saves");
        let mut next = state.clone();
        next.step = 20;
        run.save(&mut next, |dir| {
            std::fs::write(dir.join("x"), "half")?;
            bail!("killed")
        })
        .expect_err("killed while writing");
        let (run, state) = RunDirectory::open(dir.path(), &request, false).expect("opens");
        let state = state.expect("resumes");
        assert_eq!(state.step, 10);
        let kept = std::fs::read_to_string(run.tensors(&state).expect("tensors").join("x")).expect("reads");
        assert_eq!(kept, "ten");
    }

    #[test]
    fn measured_numbers_read_back_as_they_were() {
        let dir = tempfile::tempdir().expect("directory");
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let measured: Vec<f64> = (0..2000).map(|_| rng.random_range(-3.0..3.0)).collect();
        let request = serde_json::json!({"spread": measured});
        let (run, _) = RunDirectory::open(dir.path(), &request, false).expect("opens");
        let mut state = RunState::new(request.clone(), 1);
        (state.seconds, state.latent_scale) = (measured, Some(1.0 / 0.37));
        run.save(&mut state, |_| Ok(())).expect("saves");
        let (_, resumed) = RunDirectory::open(dir.path(), &request, false).expect("is the same request");
        assert_eq!(resumed, Some(state));
    }

    #[test]
    fn another_request_is_refused() {
        let dir = tempfile::tempdir().expect("directory");
        let request = serde_json::json!({"seed": 1});
        let (run, _) = RunDirectory::open(dir.path(), &request, false).expect("opens");
        run.save(&mut RunState::new(request, 1), |_| Ok(())).expect("saves");
        let other = RunDirectory::open(dir.path(), &serde_json::json!({"seed": 2}), false);
        assert!(other.expect_err("refused").to_string().contains("--fresh"));
    }
}
