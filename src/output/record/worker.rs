//! The worker behind the queue: from inspections to rows, from rows to commits, and what is told after them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};

use super::{Entry, Places, Queue, RecordHealth};
use crate::inspection::conditions::Conditions;
use crate::inspection::event::Event;
use crate::inspection::time::{Clock, Timestamp};
use crate::inspection::verdict::{Inspection, Verdict};
use crate::output::archive;
use crate::output::store::Row;
use crate::output::store::read::Filter;

/// A commit waits so long for company; failures and faults do not wait.
const COMPANY_MS: f64 = 20.0;
/// Rows of one commit.
const COMMIT: usize = 64;
/// Rows that wait for a disk that refuses: more than an hour at one part a second, about 8 MiB.
const BACKLOG: usize = 4_096;
/// How often a refusing disk is tried again.
const RETRY: Duration = Duration::from_millis(250);
/// How often old rows are deleted.
const SWEEP_MS: f64 = 60_000.0;
/// How long the record stays for destinations that have not told everything when the station stops, milliseconds.
const LINGER_MS: f64 = 6_000.0;
/// Overruns that a late result may still come for.
const OVERRUNS: usize = 256;

/// What the worker needs; it ends when the recording is dropped.
pub struct RecordWorker {
    entries: Receiver<Entry>,
    places: Places,
    synced: Box<dyn Fn() -> bool + Send>,
    conditions: Arc<Conditions>,
    clock: Arc<dyn Clock>,
    health: Arc<RecordHealth>,
    /// Made, and not committed yet.
    pending: VecDeque<Pending>,
    /// The last overruns, for what may be said of them later.
    overruns: VecDeque<Event>,
    /// The number of the last event in the file of lines; `None`: there is no database to number them, or the file does not take any.
    written: Option<i64>,
    lines_fail: bool,
}

/// A row that waits for its commit, and what was seen of an event.
struct Pending {
    row: Row,
    seen: Option<(String, Box<Inspection>)>,
}

impl Queue {
    /// The worker that writes to these places, and what it reports. `synced` says whether the clock of the wall is set by others,
    /// `conditions` how the machine is.
    pub fn worker(
        self,
        places: Places,
        synced: Box<dyn Fn() -> bool + Send>,
        conditions: Arc<Conditions>,
    ) -> (RecordWorker, Arc<RecordHealth>) {
        let health = Arc::clone(&self.health);
        let worker = RecordWorker {
            entries: self.entries,
            places,
            synced,
            conditions,
            clock: self.clock,
            health: self.health,
            pending: VecDeque::new(),
            overruns: VecDeque::new(),
            written: None,
            lines_fail: false,
        };
        (worker, health)
    }
}

impl RecordWorker {
    /// Keeps everything until the recording is gone, then what is left.
    pub fn run(mut self) {
        self.catch_up_at_start();
        let mut swept = self.clock.now();
        let mut open = true;
        while open {
            open = self.gather();
            let done = self.commit();
            if !done {
                self.bound();
            }
            if self.clock.now().millis_since(swept) >= SWEEP_MS {
                swept = self.clock.now();
                self.sweep();
            }
        }
        if !self.commit() {
            let lost = self.pending.iter().filter(|pending| matches!(pending.row, Row::Event(..))).count() as u64;
            self.health.lost.fetch_add(lost, Ordering::Relaxed);
            log::error!("record: {lost} events could not be kept and are lost");
        }
        if let Err(error) = self.places.lines.sync() {
            log::error!("{}: cannot be made durable: {error}", self.places.lines.path().display());
        }
        self.health.closed.store(true, Ordering::Release);
        // What is still to be drawn is drawn, and gets its row.
        self.places.archive = None;
        self.linger();
    }

    /// Hears what destinations and the archive have done in the end, for a while: it is not told again then at the next start.
    fn linger(&mut self) {
        let since = self.clock.now();
        loop {
            // Before the queue is looked at: who left has said everything.
            let gone = self.health.listeners.load(Ordering::Acquire) == 0;
            match self.entries.recv_timeout(Duration::from_millis(10)) {
                Ok(entry) => drop(self.take(entry)),
                Err(RecvTimeoutError::Timeout) if !gone => {}
                Err(_) => break,
            }
            if !self.commit() || self.clock.now().millis_since(since) > LINGER_MS {
                break;
            }
        }
    }

    /// Takes what came, for as long as a commit may wait for it; false when nothing more will come.
    fn gather(&mut self) -> bool {
        let failing = self.health.failing.load(Ordering::Relaxed);
        let mut since: Option<Timestamp> = None;
        loop {
            let wait = match since {
                Some(since) => {
                    Duration::from_secs_f64((COMPANY_MS - self.clock.now().millis_since(since)).max(0.0) / 1e3)
                }
                None if failing => RETRY,
                None => Duration::from_millis(SWEEP_MS as u64),
            };
            let entry = match self.entries.recv_timeout(wait) {
                Ok(Entry::End) | Err(RecvTimeoutError::Disconnected) => {
                    // Deeds and acknowledgements that came in between.
                    while let Ok(entry) = self.entries.try_recv() {
                        self.take(entry);
                    }
                    return false;
                }
                Err(RecvTimeoutError::Timeout) => return true,
                Ok(entry) => entry,
            };
            let urgent = self.take(entry);
            since.get_or_insert_with(|| self.clock.now());
            if urgent || self.pending.len() >= COMMIT {
                // What is there already goes with it.
                while self.pending.len() < COMMIT {
                    match self.entries.try_recv() {
                        Ok(Entry::End) => return false,
                        Ok(entry) => drop(self.take(entry)),
                        Err(_) => break,
                    }
                }
                return true;
            }
        }
    }

    /// Makes a row of what came; says whether it must not wait for company.
    fn take(&mut self, entry: Entry) -> bool {
        let (row, seen, urgent) = match entry {
            Entry::Inspection(envelope, inspection) => {
                let failing = self.health.failing.load(Ordering::Relaxed);
                let archive = self.places.archive.as_ref().filter(|_| !failing);
                let stem = archive.and_then(|archive| archive::stem(&archive.limits.get(), &inspection, &envelope));
                let kind = if inspection.detection.is_some() { "jpg" } else { "png" };
                let image = stem.as_ref().zip(archive);
                let image = image.map(|(stem, archive)| format!("{}.{kind}", archive.folder.join(stem).display()));
                let mut event = Event::new(&inspection, &envelope, image);
                event.time_synced = (self.synced)();
                event.flags = self.conditions.words();
                if event.reason == Some("overrun") {
                    self.overruns.push_back(event.clone());
                    self.overruns.drain(..self.overruns.len().saturating_sub(OVERRUNS));
                }
                let urgent = inspection.decision.verdict != Verdict::Pass;
                let seen = stem.map(|stem| (stem, inspection));
                let json = json(&event);
                (Row::Event(Box::new(event), json, envelope.wall_nanos), seen, urgent)
            }
            Entry::Late(envelope, inspection) => {
                let id = envelope.event_id.to_string();
                let Some(event) = self.overruns.iter_mut().find(|event| event.event_id == id) else {
                    log::warn!("record: a result came too late even for its overrun, event {id}");
                    return false;
                };
                event.amend(&inspection);
                let json = json(event);
                (Row::Late(Box::new(event.clone()), json), None, false)
            }
            Entry::Row(row) => {
                let urgent = matches!(row, Row::Deed(..) | Row::Message(..));
                (row, None, urgent)
            }
            Entry::End => return false,
        };
        self.pending.push_back(Pending { row, seen });
        urgent
    }

    /// Commits what is pending, and tells of it; false if the disk refuses.
    fn commit(&mut self) -> bool {
        while !self.pending.is_empty() {
            let (count, refused) = self.write();
            let committed: Vec<Pending> = self.pending.drain(..count).collect();
            if count > 0 {
                self.health.commits.fetch_add(1, Ordering::Release);
                if self.health.failing.swap(false, Ordering::Relaxed) {
                    log::info!("record: events are kept again");
                }
                self.tell(committed);
            }
            if let Some(error) = refused {
                self.refused(&error);
                return false;
            }
        }
        self.health.backlog.store(0, Ordering::Relaxed);
        true
    }

    /// Writes the first rows: says how many, and what kept it from more. Without a database the lines are the record.
    fn write(&mut self) -> (usize, Option<String>) {
        let count = self.pending.len().min(COMMIT);
        let Some((store, _)) = &mut self.places.store else {
            for (number, pending) in self.pending.iter().take(count).enumerate() {
                if let Row::Event(_, json, _) | Row::Late(_, json) = &pending.row
                    && let Err(error) = self.places.lines.append(json)
                {
                    return (number, Some(error.to_string()));
                }
            }
            return (count, None);
        };
        match store.commit(self.pending.iter().take(count).map(|pending| &pending.row)) {
            Ok(done) => {
                self.health.given_up.fetch_add(done.given_up, Ordering::Relaxed);
                self.health.outbox.store(store.waiting(), Ordering::Relaxed);
                (count, None)
            }
            Err(error) => (0, Some(error.to_string())),
        }
    }

    fn refused(&self, error: &str) {
        self.health.backlog.store(self.pending.len() as u64, Ordering::Relaxed);
        if !self.health.failing.swap(true, Ordering::Relaxed) {
            let path = match &self.places.store {
                Some((store, _)) => store.path(),
                None => self.places.lines.path(),
            };
            log::error!(
                "{}: events cannot be written: {error}; make space or check permissions; they wait in memory",
                path.display()
            );
        }
    }

    /// What is committed goes to those who may hear of it now.
    fn tell(&mut self, committed: Vec<Pending>) {
        let numbered = self.places.store.is_some();
        for Pending { row, seen } in committed {
            match row {
                Row::Event(event, json, wall_nanos) => {
                    self.health.kept.fetch_add(1, Ordering::Relaxed);
                    if numbered {
                        self.line(&json, true);
                    }
                    if let Some(shown) = &self.places.shown {
                        // Whoever is shown events may have left.
                        let _ = shown.send((*event).clone());
                    }
                    if let Some(((stem, inspection), archive)) = seen.zip(self.places.archive.as_ref()) {
                        archive.offer(archive::Job { event, json, stem, wall_nanos, inspection });
                    }
                }
                Row::Late(_, json) if numbered => self.line(&json, false),
                _ => {}
            }
        }
        if numbered && self.lines_fail {
            self.catch_up();
        }
    }

    /// Appends a line of what the database has; `new` is one that it numbered.
    fn line(&mut self, json: &str, new: bool) {
        if self.lines_fail {
            // It is taken from the database when the file can be written again.
            return;
        }
        match self.places.lines.append(json) {
            Ok(()) => {
                if new {
                    self.written = self.written.map(|number| number + 1);
                }
            }
            Err(error) => self.lines_failed(&error.to_string()),
        }
    }

    fn lines_failed(&mut self, error: &str) {
        if !std::mem::replace(&mut self.lines_fail, true) {
            let path = self.places.lines.path().display();
            log::error!("{path}: lines cannot be written: {error}; the database has them, they are written later");
        }
    }

    /// Finds out up to where the lines have come, and writes those that a crash left out.
    fn catch_up_at_start(&mut self) {
        let Some((_, reader)) = &self.places.store else { return };
        let last = match self.places.lines.last() {
            Ok(last) => last,
            Err(error) => return self.lines_failed(&error.to_string()),
        };
        let id = last.and_then(|line| serde_json::from_str::<serde_json::Value>(&line).ok());
        let number = id.and_then(|event| reader.number(event["event_id"].as_str()?).ok().flatten());
        // A file that was moved away, or is of another database, begins anew.
        self.written = number.or_else(|| reader.last_number().ok());
        self.catch_up();
    }

    /// Writes the lines that are missing.
    fn catch_up(&mut self) {
        let (Some((_, reader)), Some(mut written)) = (&self.places.store, self.written) else { return };
        let mut refused = None;
        let read = reader.events(&Filter { after: written, ..Filter::default() }, |number, json| {
            match self.places.lines.append(json) {
                Ok(()) => written = number,
                Err(error) => refused = Some(error.to_string()),
            }
            refused.is_none()
        });
        self.written = Some(written);
        match refused.or(read.err().map(|error| error.to_string())) {
            Some(error) => self.lines_failed(&error),
            None => {
                if std::mem::replace(&mut self.lines_fail, false) {
                    log::info!("{}: lines are written again", self.places.lines.path().display());
                }
            }
        }
    }

    /// Too much waits for a disk that refuses: passes are given up first.
    fn bound(&mut self) {
        // Pictures would take all memory.
        self.pending.iter_mut().for_each(|pending| pending.seen = None);
        while self.pending.len() > BACKLOG {
            let is_pass = |pending: &Pending| matches!(&pending.row, Row::Event(event, ..) if event.verdict == "pass");
            let at = self.pending.iter().position(is_pass).unwrap_or(0);
            match self.pending.remove(at).map(|pending| pending.row) {
                Some(Row::Event(event, ..)) if event.verdict == "pass" => {
                    self.health.lost_passes.fetch_add(1, Ordering::Relaxed);
                }
                // What was acknowledged is told again: no loss.
                Some(Row::Sent(_) | Row::Images(_) | Row::ImagesGone(_) | Row::Late(..)) | None => {}
                Some(Row::Event(..) | Row::Deed(..) | Row::Message(..)) => {
                    self.health.lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn sweep(&mut self) {
        let Some((store, _)) = &mut self.places.store else { return };
        // By a clock that nobody set everything may look old.
        let now = (self.synced)().then(|| self.clock.wall_nanos());
        match store.sweep(now) {
            Ok(done) => drop(self.health.given_up.fetch_add(done.given_up, Ordering::Relaxed)),
            Err(error) => log::warn!("{}: old rows could not be deleted: {error}", store.path().display()),
        }
    }
}

fn json(event: &Event) -> String {
    // A struct of numbers and texts always has a JSON.
    serde_json::to_string(event).unwrap_or_default()
}
