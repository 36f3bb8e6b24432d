//! The record of a station, put together: database, lines, archive, and what they report.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;

use crate::config::change::Setting;
use crate::config::record::ArchiveLimits;
use crate::config::station::Station;
use crate::daemon::pipeline::{Watch, Worker};
use crate::inspection::conditions::Conditions;
use crate::inspection::station_state::{Fault, FaultKind};
use crate::inspection::time::Clock;
use crate::output::archive::{self, ArchiveHealth};
use crate::output::ndjson::Lines;
use crate::output::record::{self, Clerk, Places, RecordHealth, Recording};
use crate::output::store::Store;
use crate::output::store::outbox::Outlet;
use crate::output::store::read::Reader;
use crate::platform::clock::synchronised;
use crate::service::Recent;
use crate::service::metrics::{Family, Reading};

/// The record of a station.
pub struct Kept {
    /// For the publish stage.
    pub recording: Recording,
    /// For commands and for those that tell.
    pub clerk: Clerk,
    /// What works behind them.
    pub workers: Vec<Worker>,
    /// The last events, for the service.
    pub recent: Recent,
    /// What it reports.
    pub health: Arc<RecordHealth>,
    /// What the archive reports, if there is one.
    pub archive: Option<Arc<ArchiveHealth>>,
    /// Which pictures it keeps.
    pub limits: Option<Arc<Setting<ArchiveLimits>>>,
}

/// Opens the record of a station; what is kept is also put out to `outlets`. `conditions` say how the machine is.
///
/// # Errors
/// The database cannot be used.
pub fn open(
    station: &Station,
    outlets: Vec<Outlet>,
    conditions: Arc<Conditions>,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Kept> {
    let store = Store::open(&station.state, outlets, station.store)?;
    let reader = || Reader::open(&station.state).with_context(|| store.path().display().to_string());
    let (of_record, of_archive, of_service) = (reader()?, reader()?, reader()?);
    let lines = Lines::new(&station.outputs.events, station.outputs.events_max_bytes);
    let (recording, clerk, queue) = record::queue(Arc::clone(clock));
    let mut workers: Vec<Worker> = Vec::new();
    let (mut archive, mut archive_health, mut limits) = (None, None, None);
    if let Some(settings) = station.archive.clone() {
        let (opened, worker, health) = archive::open(settings, Some((of_archive, clerk.clone())));
        workers.push(("archive", Box::new(move || worker.run())));
        limits = Some(Arc::clone(&opened.limits));
        (archive, archive_health) = (Some(opened), Some(health));
    }
    let places = Places { store: Some((store, of_record)), lines, archive, shown: None };
    let (worker, health) = queue.worker(places, synchronised(Arc::clone(clock)), conditions);
    workers.push(("record", Box::new(move || worker.run())));
    let recent = recent(of_service);
    Ok(Kept { recording, clerk, workers, recent, health, archive: archive_health, limits })
}

/// Events for the service, which asks from one thread.
fn recent(reader: Reader) -> Recent {
    let reader = Mutex::new(reader);
    Arc::new(move |after, limit| {
        let reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
        reader.recent(after, limit).map_err(|error| error.to_string())
    })
}

/// Failures and faults that could not be kept: nobody can tell any more what happened to the parts.
pub fn watch(health: Arc<RecordHealth>) -> Watch {
    let mut known = 0;
    Box::new(move || {
        let lost = health.lost.load(Ordering::Relaxed);
        let more = lost - std::mem::replace(&mut known, lost);
        let text = format!("{more} failures or faults could not be kept; make space on the disk");
        (more > 0).then(|| Fault { kind: FaultKind::Store, of: "record".into(), text })
    })
}

/// Adds to a reading what the record and the archive report.
pub fn tell(record: &RecordHealth, archive: Option<&ArchiveHealth>, reading: &mut Reading) {
    let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let is = |flag: &AtomicBool| u64::from(flag.load(Ordering::Relaxed));
    let lost = Family {
        name: "record_lost",
        help: "Events that could not be kept, and pictures that were given up because the record did not keep up.",
        counter: true,
        rows: [("bad", &record.lost), ("pass", &record.lost_passes), ("pictures", &record.lost_pictures)]
            .map(|(what, count)| (vec![("what", what.to_owned())], get(count)))
            .to_vec(),
    };
    reading.families.extend([
        Family::counter("record_kept", "Events that are committed.", get(&record.kept)),
        lost,
        Family::gauge("record_backlog", "Rows that wait for a disk that refuses.", get(&record.backlog)),
        Family::gauge("record_failing", "1 while the disk refuses.", is(&record.failing)),
        Family::gauge("outbox_bytes", "What destinations have not acknowledged.", get(&record.outbox)),
        Family::counter("outbox_given_up", "Messages that a destination did not take in time.", get(&record.given_up)),
    ]);
    let Some(archive) = archive else { return };
    reading.families.extend([
        Family::counter("archive_written", "Events whose pictures were written.", get(&archive.written)),
        Family::counter("archive_lost", "Events whose pictures were given up.", get(&archive.lost)),
        Family::counter(
            "archive_deleted",
            "Events whose pictures were deleted, to keep to the limits.",
            get(&archive.deleted),
        ),
        Family::gauge("archive_bytes", "Size of all pictures.", get(&archive.bytes)),
        Family::gauge("archive_failing", "1 while pictures cannot be written.", is(&archive.failing)),
    ]);
}
