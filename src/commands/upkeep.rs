//! What `dsad run` does beside its stages: reads its configuration again when it is told to, and looks at the machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam::channel::{Receiver, bounded};
use log::LevelFilter;

use super::swap::Swaps;
use crate::config::change::{Change, Setting, adopt, changes};
use crate::config::file::LogLevel;
use crate::config::record::ArchiveLimits;
use crate::config::station::{Station, load};
use crate::daemon::job::Job;
use crate::daemon::upkeep::{AskReload, Running, Upkeep};
use crate::inspection::audit::{Audit, Deed};
use crate::inspection::command::Source;
use crate::inspection::conditions::Conditions;
use crate::inspection::time::Timestamp;
use crate::inspection::trigger::{RefusalCode, Refused};
use crate::platform::thermal::Thermal;
use crate::platform::{logger, service_manager};
use crate::service::metrics::Reading;

/// Time from one look at the machine to the next, milliseconds.
const LOOK_MS: f64 = 5_000.0;

/// Requests that wait: whoever asks more often than it is read gets no more by it.
const REQUESTS: usize = 4;

/// What came of the configurations that were read again.
#[derive(Debug, Default)]
pub struct Reloads {
    taken: AtomicU64,
    refused: AtomicU64,
    restart_needed: AtomicU64,
}

impl Reloads {
    /// Adds it to what the station tells.
    pub fn tell(&self, reading: &mut Reading) {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        reading.reloads = vec![("taken", get(&self.taken)), ("refused", get(&self.refused))];
        reading.restart_needed = get(&self.restart_needed);
    }
}

/// Reads the configuration again.
pub struct Reload {
    /// The station as it runs.
    pub running: Station,
    /// Hears of every key that changes, and of every refusal.
    pub audit: Audit,
    /// Takes bundles that were put in force.
    pub swaps: Swaps,
    /// Which pictures are kept, where there is an archive.
    pub limits: Option<Arc<Setting<ArchiveLimits>>>,
    /// What the service manager shows while the station is ready.
    pub status: String,
    /// What came of it.
    pub told: Arc<Reloads>,
}

/// Who asked for a reload: the account, and where from.
type Asked = (String, String);

/// How commands ask for a reload, and where those who asked come out.
pub fn requests() -> (AskReload, Receiver<Asked>) {
    let (sender, asked) = bounded(REQUESTS);
    let ask = move |source: &Source| {
        let full = |_| Refused::new(RefusalCode::NotReady, format!("{REQUESTS} reloads wait already"));
        sender.try_send((source.who.clone(), source.from.clone())).map_err(full)
    };
    (Arc::new(ask), asked)
}

/// Obeys SIGHUP, which sets `hangup`, and those who `asked`, and keeps `conditions` as the machine is.
pub fn upkeep(
    mut reload: Reload,
    hangup: Arc<AtomicBool>,
    asked: Receiver<Asked>,
    mut thermal: Thermal,
    conditions: Arc<Conditions>,
) -> Upkeep {
    let mut looked: Option<Timestamp> = None;
    Box::new(move |running| {
        if hangup.swap(false, Ordering::Relaxed) {
            reload.run("system", "signal", running);
        }
        for (who, from) in asked.try_iter() {
            reload.run(&who, &from, running);
        }
        reload.swaps.retire(running);
        let now = running.clock.now();
        if looked.is_none_or(|looked| now.millis_since(looked) >= LOOK_MS) {
            conditions.set(thermal.read());
            looked = Some(now);
        }
    })
}

impl Reload {
    /// Reads the configuration again, for whoever asked, and takes all of it that a running station can take, or nothing.
    pub fn run(&mut self, who: &str, from: &str, running: &Running) {
        service_manager::reloading();
        let deed = Deed { who: who.into(), from: from.into(), what: "reload".into(), ..Deed::default() };
        match self.take(&deed, running) {
            Ok(found) => {
                let waiting = found.iter().filter(|change| !change.live).count();
                self.told.taken.fetch_add(1, Ordering::Relaxed);
                self.told.restart_needed.store(waiting as u64, Ordering::Relaxed);
                log::info!(
                    "configuration read again: {} key(s) changed, {waiting} need a restart",
                    found.len() - waiting
                );
            }
            Err(problems) => {
                self.told.refused.fetch_add(1, Ordering::Relaxed);
                log::error!("configuration refused, the station goes on as it was:\n{problems}");
                let of = self.running.path.display().to_string();
                if let Err(error) = (self.audit)(Deed { of, refused: Some(problems), ..deed }) {
                    log::error!("the audit trail does not know of a refused configuration: {error}");
                }
            }
        }
        service_manager::ready(&self.status);
    }

    fn take(&mut self, deed: &Deed, running: &Running) -> Result<Vec<Change>, String> {
        let written = load(&self.running.path).map_err(|error| error.to_string())?;
        // A configuration with a slip exchanges no bundle either. Bundles first: what a recipe says may need the new one.
        self.swaps.take(deed, &self.running, running)?;
        let found = changes(&self.running, &written);
        let mut next = self.running.clone();
        adopt(&mut next, &written, &found);
        let mut renewed: Vec<Vec<Job>> = Vec::new();
        for (camera, (_, recipes)) in next.cameras.iter().zip(&running.cameras) {
            let all = recipes.all();
            let jobs = all.iter().zip(&camera.recipes).map(|(job, (recipe, _))| job.with(recipe.clone()));
            renewed.push(jobs.collect::<Result<_, _>>()?);
        }
        for change in &found {
            let Change { file, key, old, new, live } = change;
            let of = format!("{}: {key}", file.display());
            let arrow = format!("{} -> {}", word(old.as_deref()), word(new.as_deref()));
            let refused = (!live).then(|| "needs a restart".to_owned());
            let deed = Deed { of: of.clone(), old: old.clone(), new: new.clone(), refused, ..deed.clone() };
            (self.audit)(deed).map_err(|error| format!("{of}: the audit trail does not take it: {error}"))?;
            if *live {
                log::info!("{of}: {arrow}, from the next part on");
            } else {
                log::warn!("{of}: {arrow} needs a restart: until then it stays as it is");
            }
        }
        let now = running.clock.now();
        for (jobs, (_, recipes)) in renewed.into_iter().zip(&running.cameras) {
            recipes.renew(jobs, now);
        }
        if let (Some(limits), Some(archive)) = (&self.limits, &next.archive) {
            limits.set(archive.limits);
        }
        logger::set_level(level(next.log));
        self.running = next;
        Ok(found)
    }
}

fn word(value: Option<&str>) -> &str {
    value.unwrap_or("nothing")
}

/// The level by its word in the configuration.
pub fn level(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    }
}
