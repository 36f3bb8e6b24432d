//! What is asked for: the file as written, and the rows that it means.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use super::row::{Budget, Fit, Job, Request};
use crate::config::device::DeviceChoice;
use crate::config::problem::did_you_mean;
use crate::inspection::detect::Steps;
use crate::model::profile::Profile;
use crate::trainer::config::TrainConfig;
use crate::trainer::dataset::discover::discover;

/// Name of the yardstick's rows.
pub const BASELINE: &str = "baseline";

/// A sweep as it is written.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepFile {
    /// The folder of sets, from the working directory; `--data` wins over it.
    pub data: Option<PathBuf>,
    /// Names of the sets; empty: all that have a test split.
    #[serde(default)]
    pub sets: Vec<String>,
    /// Size of the networks.
    pub profile: Profile,
    /// Where it runs.
    #[serde(default)]
    pub device: Devices,
    /// Rows side by side on each device.
    #[serde(default = "one")]
    pub parallel: usize,
    /// Minutes of training of a fit.
    pub minutes: Option<f64>,
    /// Steps per stage of a fit instead.
    pub stage_steps: Option<usize>,
    /// One fit each.
    #[serde(default = "first_seed")]
    pub seeds: Vec<u64>,
    /// Other seeds for some sets.
    #[serde(default)]
    pub seeds_of: BTreeMap<String, Vec<u64>>,
    /// Step counts to test; the bundle must list them (`steps` of the training configuration).
    #[serde(default = "two_steps")]
    pub steps: Vec<Steps>,
    /// Whether the yardstick is judged, too.
    #[serde(default)]
    pub baseline: bool,
    /// Whether every bundle is also tested with reconstructions that start from noise.
    #[serde(default)]
    pub from_noise: bool,
    /// Networks to start from, or `none`; absent: those that ship.
    pub base: Option<String>,
    /// The backbone's weights; absent: those that ship.
    pub backbone: Option<PathBuf>,
    /// What is compared.
    #[serde(default, rename = "variant")]
    pub variants: Vec<Variant>,
}

/// One thing to compare.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Its name in the table and on disk.
    pub name: String,
    /// Keys of configs/train/PROFILE.toml that have another value.
    #[serde(default)]
    pub train: toml::Table,
    /// As in the sweep, for this variant alone.
    pub sets: Option<Vec<String>>,
    /// As in the sweep, for this variant alone; wins over `seeds_of`.
    pub seeds: Option<Vec<u64>>,
    /// As in the sweep, for this variant alone.
    pub base: Option<String>,
    /// As in the sweep, for this variant alone.
    pub from_noise: Option<bool>,
    /// One bundle of all its sets, each a class, instead of one bundle per set.
    #[serde(default)]
    pub together: bool,
}

/// One device, or several that are used in turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "device: must be cpu, cuda or cuda:N, or a list of these")]
pub enum Devices {
    /// One.
    One(DeviceChoice),
    /// Several.
    Several(Vec<DeviceChoice>),
}

impl Default for Devices {
    fn default() -> Self {
        Self::One(DeviceChoice::default())
    }
}

impl Devices {
    /// All of them.
    pub fn all(&self) -> Vec<DeviceChoice> {
        match self {
            Self::One(device) => vec![*device],
            Self::Several(devices) => devices.clone(),
        }
    }
}

fn one() -> usize {
    1
}

fn first_seed() -> Vec<u64> {
    vec![0]
}

fn two_steps() -> Vec<Steps> {
    vec![Steps(2)]
}

/// A set of the data as far as a plan needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownSet {
    /// Its name.
    pub name: String,
    /// Whether it has test pictures.
    pub tested: bool,
}

/// A sweep that makes sense: its rows, and where they run.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// One row each, in the order of the table.
    pub jobs: Vec<Job>,
    /// Where they run.
    pub devices: Vec<DeviceChoice>,
    /// Rows side by side on each device.
    pub parallel: usize,
}

impl SweepFile {
    /// Reads a sweep.
    ///
    /// # Errors
    /// An unreadable file, or an unknown, missing or mistyped key.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
        toml::from_str(&text).with_context(|| path.display().to_string())
    }

    /// The rows that it means for the data that there is.
    ///
    /// # Errors
    /// A key whose value makes no sense, named with the value and what to do.
    pub fn plan(&self, path: &Path, data: Option<&Path>) -> anyhow::Result<Plan> {
        let place = || path.display().to_string();
        let data =
            data.or(self.data.as_deref()).with_context(place).context("data is missing: name the folder of sets")?;
        let sets = discover(data)?.sets;
        let sets = sets.into_iter().map(|set| KnownSet { tested: !set.test.is_empty(), name: set.name });
        self.rows(data, &sets.collect::<Vec<_>>()).with_context(place)
    }

    fn rows(&self, data: &Path, sets: &[KnownSet]) -> anyhow::Result<Plan> {
        let devices = self.device.all();
        ensure!(!devices.is_empty(), "device = []: name at least one, as \"cpu\" or \"cuda:0\"");
        let on_cpu = devices.iter().filter(|device| **device == DeviceChoice::Cpu).count();
        ensure!(
            on_cpu == 0 || on_cpu == devices.len(),
            "device: cpu and cuda together give rows that cannot be compared; use one kind"
        );
        ensure!(self.parallel > 0, "parallel = 0: must be at least 1");
        ensure!(!self.steps.is_empty(), "steps = []: name the step counts to test, as [2]");
        ensure!(self.baseline || !self.variants.is_empty(), "nothing to do: add a [[variant]], or set baseline = true");
        for (set, seeds) in &self.seeds_of {
            self::known(sets, set).context("seeds_of")?;
            ensure!(!seeds.is_empty(), "seeds_of.{set} = []: name at least one seed");
        }
        let mut jobs: Vec<Job> = Vec::new();
        let mut names = BTreeSet::new();
        for variant in &self.variants {
            let name = &variant.name;
            ensure!(
                !name.is_empty()
                    && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                    && name != "..",
                "variant.name = '{name}': it becomes a folder; use letters, digits, - and _"
            );
            ensure!(name != BASELINE, "variant.name = '{BASELINE}': the yardstick is called that; choose another name");
            ensure!(names.insert(name), "variant.name = '{name}': is there twice; choose another name");
            jobs.extend(self.rows_of(variant, data, sets).with_context(|| format!("variant '{name}'"))?);
        }
        if self.baseline {
            let mut pairs: BTreeSet<(String, u64)> = jobs
                .iter()
                .flat_map(|job| job.request.sets.iter().map(|set| (set.clone(), job.request.seed)))
                .collect();
            if jobs.is_empty() {
                for set in self.chosen(None, sets)? {
                    pairs.extend(self.seeds(None, &set).iter().map(|seed| (set.clone(), *seed)));
                }
            }
            jobs.extend(pairs.into_iter().map(|(set, seed)| Job {
                request: self.request(BASELINE, data, vec![set], seed, None),
                steps: Vec::new(),
                from_noise: false,
            }));
        }
        let mut folders = BTreeSet::new();
        for folder in jobs.iter().map(Job::folder) {
            ensure!(
                folders.insert(folder.clone()),
                "{}: the same set and seed are asked for twice; name each once",
                folder.display()
            );
        }
        Ok(Plan { jobs, devices, parallel: self.parallel })
    }

    fn budget(&self) -> anyhow::Result<Budget> {
        match (self.minutes, self.stage_steps) {
            (Some(minutes), None) => {
                ensure!(minutes > 0.0 && minutes.is_finite(), "minutes = {minutes}: must be above 0");
                Ok(Budget::Minutes(minutes))
            }
            (None, Some(steps)) => {
                ensure!(steps > 0, "stage_steps = 0: must be at least 1");
                Ok(Budget::StageSteps(steps))
            }
            _ => bail!("give minutes or stage_steps, one of the two: how long a fit trains"),
        }
    }

    fn request(&self, variant: &str, data: &Path, sets: Vec<String>, seed: u64, fit: Option<Fit>) -> Request {
        Request {
            variant: variant.to_owned(),
            sets,
            seed,
            data: data.to_path_buf(),
            backbone: self.backbone.clone(),
            cuda: self.device.all().iter().any(|device| *device != DeviceChoice::Cpu),
            parallel: self.parallel,
            dsad: env!("CARGO_PKG_VERSION").to_owned(),
            fit,
        }
    }

    /// The rows of one variant.
    fn rows_of(&self, variant: &Variant, data: &Path, sets: &[KnownSet]) -> anyhow::Result<Vec<Job>> {
        let config = TrainConfig::with(self.profile, &variant.train).context("train")?;
        for steps in &self.steps {
            ensure!(
                config.steps.contains(steps),
                "steps: {} is not among the steps {:?} of the training configuration; set train.steps",
                steps.0,
                config.steps.iter().map(|steps| steps.0).collect::<Vec<_>>()
            );
        }
        let base = variant.base.clone().or_else(|| self.base.clone());
        if let Some(file) = base.as_deref().filter(|base| *base != "none") {
            ensure!(
                Path::new(file).is_file(),
                "base = '{file}': no such file; make it with `trainer pretrain`, or use none"
            );
        }
        let fit = Fit { profile: self.profile, config, budget: self.budget()?, base };
        let job = |sets: Vec<String>, seed: u64| Job {
            request: self.request(&variant.name, data, sets, seed, Some(fit.clone())),
            steps: self.steps.clone(),
            from_noise: variant.from_noise.unwrap_or(self.from_noise),
        };
        let chosen = self.chosen(variant.sets.as_deref(), sets)?;
        if variant.together {
            ensure!(chosen.len() > 1, "together = true: needs two sets at least, here is {}", chosen.join(", "));
            let seeds = variant.seeds.as_ref().unwrap_or(&self.seeds);
            ensure!(!seeds.is_empty(), "seeds = []: name at least one seed");
            return Ok(seeds.iter().map(|seed| job(chosen.clone(), *seed)).collect());
        }
        let mut jobs = Vec::new();
        for set in chosen {
            let seeds = self.seeds(Some(variant), &set);
            ensure!(!seeds.is_empty(), "seeds = []: name at least one seed");
            jobs.extend(seeds.iter().map(|seed| job(vec![set.clone()], *seed)));
        }
        Ok(jobs)
    }

    fn seeds<'a>(&'a self, variant: Option<&'a Variant>, set: &str) -> &'a [u64] {
        let own = variant.and_then(|variant| variant.seeds.as_ref());
        own.or_else(|| self.seeds_of.get(set)).unwrap_or(&self.seeds)
    }

    /// Names of the sets that are asked for: all of them can be tested.
    fn chosen(&self, own: Option<&[String]>, sets: &[KnownSet]) -> anyhow::Result<Vec<String>> {
        let asked = own.unwrap_or(&self.sets);
        if asked.is_empty() {
            let tested: Vec<String> = sets.iter().filter(|set| set.tested).map(|set| set.name.clone()).collect();
            ensure!(!tested.is_empty(), "no set of the data has a test split (test/good, test/DEFECT)");
            return Ok(tested);
        }
        for name in asked {
            let set = known(sets, name).context("sets")?;
            ensure!(set.tested, "sets: '{name}' has no test split (test/good, test/DEFECT); leave it out");
        }
        Ok(asked.to_vec())
    }
}

fn known<'a>(sets: &'a [KnownSet], name: &str) -> anyhow::Result<&'a KnownSet> {
    sets.iter().find(|set| set.name == name).with_context(|| {
        let names: Vec<&str> = sets.iter().map(|set| set.name.as_str()).collect();
        format!(
            "'{name}' is no set of the data{}; it has {}",
            did_you_mean(name, names.iter().copied()),
            names.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "profile = 'edge-small'\nminutes = 2\nbaseline = true\n\
                        [[variant]]\nname = 'whole'\n\
                        [[variant]]\nname = 'no-sketch'\nsets = ['a']\nbase = 'none'\n[variant.train]\nsketch = false\n\
                        [[variant]]\nname = 'one-bundle'\ntogether = true\nfrom_noise = true\n";

    fn planned(text: &str) -> anyhow::Result<Plan> {
        let set = |name: &str, tested| KnownSet { name: name.into(), tested };
        let file: SweepFile = toml::from_str(text)?;
        file.rows(Path::new("data"), &[set("a", true), set("b", true), set("flat", false)])
    }

    #[test]
    fn variants_and_sets_become_rows() {
        let plan = planned(FILE).expect("makes sense");
        let rows: Vec<String> = plan.jobs.iter().map(|job| job.folder().display().to_string()).collect();
        let expected = [
            "whole/a-seed0",
            "whole/b-seed0",
            "no-sketch/a-seed0",
            "one-bundle/together-seed0",
            "baseline/a-seed0",
            "baseline/b-seed0",
        ];
        assert_eq!(rows, expected);
        let fit = |row: usize| plan.jobs[row].request.fit.as_ref().expect("is fitted");
        assert!(fit(0).config.sketch && !fit(2).config.sketch);
        assert_eq!((fit(0).base.as_deref(), fit(2).base.as_deref()), (None, Some("none")));
        assert_eq!(plan.jobs[3].request.sets, ["a", "b"]);
        assert_eq!(plan.jobs.iter().map(|job| job.from_noise).filter(|from_noise| *from_noise).count(), 1);
        assert_eq!((plan.devices, plan.parallel), (vec![DeviceChoice::Cpu], 1));
    }

    #[test]
    fn seeds_go_by_variant_then_set_then_sweep() {
        let text = "profile = 'edge'\nstage_steps = 1\nseeds = [3]\nseeds_of = { b = [4, 5] }\ndevice = ['cuda:1', 'cuda']\n\
                    [[variant]]\nname = 'x'\n[[variant]]\nname = 'y'\nseeds = [6]\n";
        let plan = planned(text).expect("makes sense");
        let rows: Vec<String> = plan.jobs.iter().map(|job| job.folder().display().to_string()).collect();
        assert_eq!(rows, ["x/a-seed3", "x/b-seed4", "x/b-seed5", "y/a-seed6", "y/b-seed6"]);
        assert_eq!(plan.devices, [DeviceChoice::Cuda(1), DeviceChoice::Cuda(0)]);
        assert!(plan.jobs[0].request.cuda);
    }

    #[test]
    fn mistakes_are_named_with_key_value_and_remedy() {
        let error = |from: &str, to: &str| {
            let text = FILE.replacen(from, to, 1);
            assert_ne!(text, FILE, "{from}");
            format!("{:#}", planned(&text).expect_err("is refused"))
        };
        for (from, to, words) in [
            ("minutes = 2", "minuts = 2", &["minuts"][..]),
            ("minutes = 2", "minutes = 0", &["variant 'whole'", "minutes = 0", "above 0"]),
            ("minutes = 2", "minutes = 2\nstage_steps = 3", &["minutes or stage_steps"]),
            ("minutes = 2", "minutes = 2\nparallel = 0", &["parallel = 0"]),
            ("minutes = 2", "minutes = 2\ndevice = 'gpu'", &["device", "cpu, cuda or cuda:N"]),
            ("minutes = 2", "minutes = 2\ndevice = ['cpu', 'cuda']", &["device", "one kind"]),
            ("minutes = 2", "minutes = 2\nsteps = [8]", &["variant 'whole'", "8", "[1, 2, 4]", "train.steps"]),
            ("minutes = 2", "minutes = 2\nsets = ['flat']", &["'flat'", "test split"]),
            ("minutes = 2", "minutes = 2\nseeds_of = { c = [1] }", &["seeds_of", "'c'", "a, b, flat"]),
            ("'edge-small'", "'sd15'", &["sd15", "edge-small"]),
            ("sets = ['a']", "sets = ['aa']", &["variant 'no-sketch'", "'aa'", "did you mean 'a'"]),
            ("sets = ['a']", "seeds = []", &["seeds = []"]),
            ("sets = ['a']", "seeds = [1, 1]", &["no-sketch/a-seed1", "twice"]),
            ("'none'", "'gone.safetensors'", &["base = 'gone.safetensors'", "trainer pretrain"]),
            (
                "sketch = false",
                "sketsh = false",
                &["variant 'no-sketch'", "train", "sketsh = false", "did you mean 'sketch'"],
            ),
            ("sketch = false", "sketch = 3", &["variant 'no-sketch'", "sketch"]),
            ("together = true", "together = true\nsets = ['a']", &["together = true", "two sets"]),
            ("'one-bundle'", "'whole'", &["variant.name = 'whole'", "twice"]),
            ("'one-bundle'", "'a/b'", &["variant.name = 'a/b'", "folder"]),
            ("'one-bundle'", "'baseline'", &["variant.name = 'baseline'"]),
            ("together", "togther", &["togther"]),
        ] {
            let error = error(from, to);
            assert!(words.iter().all(|word| error.contains(word)), "{to}: {error}");
        }
    }
}
