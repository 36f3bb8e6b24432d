//! Bundles in two places that are exchanged while the station runs: loaded beside the old one, proven, and taken from the next part on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::load::{Bundles, prove, way_back};
use crate::bundle::signature::KeyList;
use crate::bundle::slots::{self, Slots};
use crate::bundle::{Bundle, WEIGHTS};
use crate::config::station::Station;
use crate::daemon::exchange::{Exchange, add};
use crate::daemon::job::Job;
use crate::daemon::upkeep::Running;
use crate::inspection::audit::{Audit, Deed};
use crate::inspection::time::Timestamp;
use crate::platform::memory;
use crate::service::metrics::{Family, Reading};

/// A frame that was taken under the old bundle is out by then, milliseconds.
const UNDER_WAY_MS: f64 = 30_000.0;
/// Memory that loading takes, in sizes of the weights' file: read, decoded to twice the size, and worked with.
const SIZES: u64 = 6;

/// What came of exchanges.
#[derive(Debug, Default)]
pub struct SwapHealth {
    /// Bundles that were taken while the station ran.
    pub taken: AtomicU64,
    /// Bundles that did not prove themselves: the ones before them are in force.
    pub back: AtomicU64,
}

impl SwapHealth {
    /// Adds it to what the station tells.
    pub fn tell(&self, reading: &mut Reading) {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let rows = [("taken", get(&self.taken)), ("back", get(&self.back))];
        reading.families.push(Family {
            name: "bundle_exchanges",
            help: "Bundles that were taken while the station ran, and those that did not prove themselves.",
            counter: true,
            rows: rows.map(|(what, count)| (vec![("what", what.to_owned())], count)).to_vec(),
        });
    }
}

/// Exchanges bundles.
pub struct Swaps {
    /// Whose signature counts.
    pub keys: KeyList,
    /// Hears of every exchange before it happens, and of every way back.
    pub audit: Audit,
    /// What came of it.
    pub health: Arc<SwapHealth>,
    /// Detectors that judge nothing any more, and since when.
    retiring: Vec<(Timestamp, usize)>,
}

impl Swaps {
    /// Nothing has been exchanged yet.
    pub fn new(keys: KeyList, audit: Audit, health: Arc<SwapHealth>) -> Self {
        Self { keys, audit, health, retiring: Vec::new() }
    }

    /// Takes every bundle of the station that is not in force any more in its place.
    ///
    /// # Errors
    /// What could not be taken; the ones before judge on.
    pub fn take(&mut self, deed: &Deed, station: &Station, running: &Running) -> Result<(), String> {
        let mut places: Vec<&PathBuf> = Vec::new();
        for (_, place) in station.cameras.iter().flat_map(|camera| &camera.recipes) {
            if !places.contains(&place) && Slots::are_in(place) {
                places.push(place);
            }
        }
        let mut problems = Vec::new();
        for place in places {
            if let Err(problem) = self.take_one(deed, place, station, running) {
                problems.push(problem);
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(problems.join("\n")) }
    }

    fn take_one(&mut self, deed: &Deed, place: &Path, station: &Station, running: &Running) -> Result<(), String> {
        let jobs = || {
            station.cameras.iter().zip(&running.cameras).flat_map(|(camera, (_, recipes))| {
                camera.recipes.iter().zip(recipes.all()).filter(|((_, of), _)| of == place).map(|(_, job)| job)
            })
        };
        let Some(old) = jobs().next() else { return Ok(()) };
        let dir = slots::in_force(place).map_err(|error| error.to_string())?;
        let opened = Bundle::open(&dir, &self.keys);
        if opened.as_ref().is_ok_and(|bundle| bundle.model_hash == old.model_hash) {
            return Ok(());
        }
        let loaded =
            opened.map_err(|error| error.to_string()).and_then(|bundle| self.load(&bundle, place, station, running));
        let (number, jobs) = match loaded {
            Ok(loaded) => loaded,
            Err(problem) => {
                let back = way_back(place, &problem, Some(&self.audit), deed);
                self.health.back.fetch_add(u64::from(back.is_some()), Ordering::Relaxed);
                return Err(back.map_or(problem.clone(), |text| format!("{problem}\n{text}")));
            }
        };
        let new = jobs.iter().flatten().find(|job| job.detector == number).map(|job| job.model_hash.clone());
        let of = place.display().to_string();
        let deed =
            Deed { what: "bundle".into(), of: of.clone(), old: Some(old.model_hash.clone()), new, ..deed.clone() };
        if let Err(error) = (self.audit)(deed) {
            let _ = running.exchanges.send(Exchange::Retire(number));
            return Err(format!("{of}: the audit trail does not take it: {error}"));
        }
        let now = running.clock.now();
        for (jobs, (_, recipes)) in jobs.into_iter().zip(&running.cameras) {
            recipes.renew(jobs, now);
        }
        self.retiring.push((now, old.detector));
        self.health.taken.fetch_add(1, Ordering::Relaxed);
        log::info!("{of}: another bundle judges, from the next part on");
        prove(place);
        Ok(())
    }

    /// Loads a bundle beside the others; gives its detector's number, and the jobs of all cameras with it in the place of the old one.
    fn load(
        &self,
        bundle: &Bundle,
        place: &Path,
        station: &Station,
        running: &Running,
    ) -> Result<(usize, Vec<Vec<Job>>), String> {
        let size = std::fs::metadata(bundle.dir.join(WEIGHTS)).map_or(0, |file| file.len());
        if let Some(free) = memory::available().filter(|free| *free < SIZES * size) {
            return Err(format!(
                "{}: {} MiB are free and loading it beside the old one takes {}: restart the station to take it",
                bundle.dir.display(),
                free >> 20,
                (SIZES * size) >> 20
            ));
        }
        let calibrations = station.calibrations.as_deref();
        let mut bundles = Bundles::default();
        let index = bundles.insert(bundle.clone());
        let mut jobs = Vec::new();
        for (camera, (_, recipes)) in station.cameras.iter().zip(&running.cameras) {
            let mut renewed = Vec::new();
            for ((recipe, of), job) in camera.recipes.iter().zip(recipes.all()) {
                let job = if of == place {
                    bundles
                        .job(index, recipe.clone(), station.device, calibrations)
                        .map_err(|error| format!("{error:#}"))?
                } else {
                    job.with(recipe.clone())?
                };
                renewed.push((job, of == place));
            }
            jobs.push(renewed);
        }
        let old = station.cameras.iter().zip(&running.cameras).flat_map(|(_, (_, recipes))| recipes.all());
        let lost =
            jobs.iter().flatten().zip(old).find(|((new, of), old)| *of && old.is_calibrated() && !new.is_calibrated());
        if let Some(((new, _), _)) = lost {
            return Err(format!("{}: {}", bundle.dir.display(), new.uncalibrated()));
        }
        let golden = match station.challenge_min {
            Some(_) => bundles.golden_parts(calibrations).map_err(|error| format!("{error:#}"))?,
            None => Vec::new(),
        };
        let cameras: Vec<Vec<Job>> = jobs
            .iter()
            .map(|jobs| {
                jobs.iter().filter(|(_, of)| *of).filter_map(|(job, _)| job.with(job.recipe.clone()).ok()).collect()
            })
            .collect();
        let make = bundles.detector(station.device, Arc::clone(&running.clock), cameras.iter().map(|jobs| &jobs[..]));
        let number = add(&running.exchanges, make, golden)?;
        let numbered = |(job, of): (Job, bool)| if of { Job { detector: number, ..job } } else { job };
        Ok((number, jobs.into_iter().map(|jobs| jobs.into_iter().map(numbered).collect()).collect()))
    }

    /// Lets go of detectors whose last frames are out.
    pub fn retire(&mut self, running: &Running) {
        let now = running.clock.now();
        self.retiring.retain(|(since, number)| {
            let over = now.millis_since(*since) >= UNDER_WAY_MS;
            if over {
                // Gone with the station, if it stops.
                let _ = running.exchanges.send(Exchange::Retire(*number));
            }
            !over
        });
    }
}
