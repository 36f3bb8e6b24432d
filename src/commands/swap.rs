//! Bundles in two places that are exchanged while the station runs: loaded beside the old one, or after it where memory is short, proven, and taken
//! from the next part on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::load::{Bundles, prove, way_back};
use crate::bundle::signature::KeyList;
use crate::bundle::slots::{self, Slots};
use crate::bundle::{Bundle, WEIGHTS};
use crate::config::station::Station;
use crate::daemon::exchange::{Exchange, Makes, add, replace};
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

/// A bundle that can be loaded.
struct Next {
    bundle: Bundle,
    makes: Makes,
    /// The jobs of all cameras with it, and which of them are its own.
    jobs: Vec<Vec<(Job, bool)>>,
}

/// Exchanges bundles.
pub struct Swaps {
    /// Whose signature counts.
    pub keys: KeyList,
    /// Hears of every exchange before it happens, and of every way back.
    pub audit: Audit,
    /// What came of it.
    pub health: Arc<SwapHealth>,
    /// Tells how many bytes are free; `None` where nobody knows.
    pub available: Box<dyn FnMut() -> Option<u64> + Send>,
    /// Detectors that judge nothing any more, and since when.
    retiring: Vec<(Timestamp, usize)>,
}

impl Swaps {
    /// Nothing has been exchanged yet.
    pub fn new(keys: KeyList, audit: Audit, health: Arc<SwapHealth>) -> Self {
        Self { keys, audit, health, available: Box::new(memory::available), retiring: Vec::new() }
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
        let next =
            opened.map_err(|error| error.to_string()).and_then(|bundle| self.next(bundle, place, station, running));
        let next = match next {
            Ok(next) => next,
            Err(problem) => return Err(self.back(place, problem, deed)),
        };
        let of = place.display().to_string();
        let (before, hash) = (old.model_hash.clone(), next.bundle.model_hash.clone());
        let told = Deed { what: "bundle".into(), of: of.clone(), old: Some(before), new: Some(hash), ..deed.clone() };
        let not_told = |error| format!("{of}: the audit trail does not take it: {error}");
        let number = if self.is_tight(&next.bundle) {
            // What judges goes for good if it cannot be loaded again: that is known before.
            let back = self.old(&old, place, station, running)?;
            (self.audit)(told).map_err(not_told)?;
            log::info!("{of}: memory is short; what judges is let go before another bundle is loaded");
            let number = replace(&running.exchanges, old.detector, next.makes, back);
            number.map_err(|problem| self.back(place, problem, deed))?
        } else {
            let number = add(&running.exchanges, next.makes.make, next.makes.golden);
            let number = number.map_err(|problem| self.back(place, problem, deed))?;
            if let Err(error) = (self.audit)(told) {
                let _ = running.exchanges.send(Exchange::Retire(number));
                return Err(not_told(error));
            }
            number
        };
        let now = running.clock.now();
        let numbered = |(job, of): (Job, bool)| if of { Job { detector: number, ..job } } else { job };
        for (jobs, (_, recipes)) in next.jobs.into_iter().zip(&running.cameras) {
            recipes.renew(jobs.into_iter().map(numbered).collect(), now);
        }
        self.retiring.push((now, old.detector));
        self.health.taken.fetch_add(1, Ordering::Relaxed);
        log::info!("{of}: another bundle judges, from the next part on");
        prove(place);
        Ok(())
    }

    /// Puts the bundle before in force again; gives what to say.
    fn back(&self, place: &Path, problem: String, deed: &Deed) -> String {
        let back = way_back(place, &problem, Some(&self.audit), deed);
        self.health.back.fetch_add(u64::from(back.is_some()), Ordering::Relaxed);
        back.map_or(problem.clone(), |text| format!("{problem}\n{text}"))
    }

    /// Whether there is too little memory to load a bundle beside the one that judges.
    fn is_tight(&mut self, bundle: &Bundle) -> bool {
        let size = std::fs::metadata(bundle.dir.join(WEIGHTS)).map_or(0, |file| file.len());
        (self.available)().is_some_and(|free| free < SIZES * size)
    }

    /// What judges now, from the place that it lies in.
    fn old(&self, old: &Job, place: &Path, station: &Station, running: &Running) -> Result<Makes, String> {
        let found = Slots::open(place).and_then(|slots| Ok(slots.place(slots.before()?)));
        let bundle = found.and_then(|dir| Bundle::open(&dir, &self.keys)).map_err(|error| error.to_string());
        let bundle = bundle.and_then(|bundle| match bundle.model_hash == old.model_hash {
            true => Ok(bundle),
            false => Err(format!("{}: is another one than judges", bundle.dir.display())),
        });
        let problem = |error| {
            let place = place.display();
            format!(
                "{place}: memory is short, and there would be no way back: {error}; restart the station to take the new bundle"
            )
        };
        Ok(self.next(bundle.map_err(problem)?, place, station, running).map_err(problem)?.makes)
    }

    /// What a bundle would be in the place of the one that judges.
    fn next(&self, bundle: Bundle, place: &Path, station: &Station, running: &Running) -> Result<Next, String> {
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
        Ok(Next { bundle, makes: Makes { make, golden }, jobs })
    }

    /// Lets go of detectors whose last frames are out.
    pub fn retire(&mut self, running: &Running) {
        let now = running.clock.now();
        self.retiring.retain(|(since, number)| {
            let over = now.millis_since(*since) >= UNDER_WAY_MS;
            if over {
                // Gone with the station, if it stops.
                let _ = running.exchanges.send(Exchange::Retire(*number));
                running.cameras.iter().for_each(|(_, recipes)| recipes.forget(*number));
            }
            !over
        });
    }
}
