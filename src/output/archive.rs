//! The image archive: what a person needs to see why a part was rejected, and to teach the next bundle what was wrong.
//!
//! ```text
//! images/2026-11-26/17/top-01KB…-fail.png    the frame as the camera gave it, lossless
//!                      top-01KB…-fail.jpg    frame, reconstruction and map side by side
//!                      top-01KB…-fail.json   the event; written last: what it stands beside is whole
//! ```
//!
//! Every file is written beside its place, made durable and renamed; then its event gets a row in the index. After a crash the files of an
//! event are all there, or the next start takes them away.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam::channel::{Receiver, Sender, bounded};

use super::drawing::{QUALITY, draw};
use super::record::Clerk;
use super::store::read::Reader;
use super::store::{Images, Row, free_bytes};
use crate::config::change::Setting;
use crate::config::record::{ArchiveLimits, ArchiveSettings};
use crate::inspection::event::{Envelope, Event};
use crate::inspection::frame::{Frame, FrameMeta};
use crate::inspection::time::rfc3339;
use crate::inspection::verdict::{Inspection, Verdict};
use crate::render::encode;

/// Inspections that wait to be drawn, about 2 MiB each and as much again for a frame: beyond that pictures are given up, never a verdict.
const QUEUE: usize = 8;
/// Rows of the index that are looked at together for what may be deleted.
const OLDEST: usize = 256;
const GOLDEN: f64 = 0.618_033_988_749_894_9;
/// What is written is called so until it is whole.
const PARTIAL: &str = "partial";
/// Files of an event, the last one last.
const KINDS: [&str; 3] = ["png", "jpg", "json"];

/// Where the files of an inspection go, without what differs, if it gets any.
pub fn stem(limits: &ArchiveLimits, inspection: &Inspection, envelope: &Envelope) -> Option<String> {
    let verdict = inspection.decision.verdict;
    // The golden ratio spreads consecutive numbers evenly.
    let sampled = (envelope.seq as f64 * GOLDEN).fract() < limits.passes;
    let share = |threshold: f32, score: f32| f64::from(score) >= limits.near * f64::from(threshold);
    let score = inspection.detection.as_ref().map(|detection| detection.score.0);
    let near = inspection.decision.threshold.zip(score).is_some_and(|(threshold, score)| share(threshold, score));
    let seen = inspection.pixels.is_some() || inspection.prepared.is_some();
    let wanted = seen && (verdict != Verdict::Pass || sampled || near);
    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let camera: String = inspection.frame.camera.0.chars().map(safe).collect();
    let time = rfc3339(envelope.wall_nanos);
    let (date, hour) = (&time[..10], &time[11..13]);
    wanted.then(|| format!("{date}/{hour}/{camera}-{}-{}", envelope.event_id, verdict.word()))
}

/// What the worker reports.
#[derive(Debug, Default)]
pub struct ArchiveHealth {
    /// Events whose files were written.
    pub written: AtomicU64,
    /// Events whose files were given up.
    pub lost: AtomicU64,
    /// Events whose files were deleted, to keep to the limits.
    pub deleted: AtomicU64,
    /// Bytes of all files that the index knows.
    pub bytes: AtomicU64,
    /// Whether the last files could not be written.
    pub failing: AtomicBool,
}

/// An event whose files are to be written.
pub struct Job {
    /// The event.
    pub event: Box<Event>,
    /// Its JSON.
    pub json: String,
    /// Where its files go.
    pub stem: String,
    /// When it was made, nanoseconds since the Unix epoch.
    pub wall_nanos: u64,
    /// What was seen.
    pub inspection: Box<Inspection>,
}

/// Hands events to the worker.
pub struct Archive {
    /// Where pictures are kept.
    pub folder: PathBuf,
    /// Which.
    pub limits: Arc<Setting<ArchiveLimits>>,
    jobs: Sender<Job>,
    /// Without an index nothing may be missing: whoever offers waits.
    patient: bool,
    health: Arc<ArchiveHealth>,
}

/// What the worker needs; it ends when the archive is dropped.
pub struct ArchiveWorker {
    folder: PathBuf,
    limits: Arc<Setting<ArchiveLimits>>,
    jobs: Receiver<Job>,
    /// The index, where there is one: without, nothing is ever deleted.
    index: Option<(Reader, Clerk)>,
    health: Arc<ArchiveHealth>,
    /// What may be deleted next.
    oldest: VecDeque<Images>,
    /// Deleted, and perhaps still in the index.
    gone: VecDeque<String>,
}

/// An archive and its worker.
pub fn open(settings: ArchiveSettings, index: Option<(Reader, Clerk)>) -> (Archive, ArchiveWorker, Arc<ArchiveHealth>) {
    let (sender, receiver) = bounded(QUEUE);
    let health = Arc::new(ArchiveHealth::default());
    let patient = index.is_none();
    index.iter().for_each(|(_, clerk)| clerk.record().listens());
    let ArchiveSettings { folder, limits } = settings;
    let limits = Arc::new(Setting::from(limits));
    let worker = ArchiveWorker {
        folder: folder.clone(),
        limits: Arc::clone(&limits),
        jobs: receiver,
        index,
        health: Arc::clone(&health),
        oldest: VecDeque::new(),
        gone: VecDeque::new(),
    };
    (Archive { folder, limits, jobs: sender, patient, health: Arc::clone(&health) }, worker, health)
}

impl Archive {
    /// Gives an event to the worker, or counts that its files are lost.
    pub fn offer(&self, job: Job) {
        let taken = if self.patient { self.jobs.send(job).is_ok() } else { self.jobs.try_send(job).is_ok() };
        if !taken {
            self.health.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl ArchiveWorker {
    /// Tidies up, then writes until the archive is gone.
    pub fn run(mut self) {
        self.tidy();
        self.work();
        if let Some((_, clerk)) = &self.index {
            clerk.record().left();
        }
    }

    fn work(&mut self) {
        while let Ok(job) = self.jobs.recv() {
            match self.make_room(job.wall_nanos, job.event.time_synced).and_then(|()| self.write(&job)) {
                Ok(images) => {
                    self.health.written.fetch_add(1, Ordering::Relaxed);
                    self.health.bytes.fetch_add(images.bytes, Ordering::Relaxed);
                    if self.health.failing.swap(false, Ordering::Relaxed) {
                        log::info!("{}: pictures are written again", self.folder.display());
                    }
                    self.index(Row::Images(images));
                }
                Err(error) => {
                    self.health.lost.fetch_add(1, Ordering::Relaxed);
                    if !self.health.failing.swap(true, Ordering::Relaxed) {
                        let folder = self.folder.display();
                        log::error!("{folder}: pictures cannot be written: {error}; make space or check permissions");
                    }
                }
            }
        }
    }

    fn index(&self, row: Row) {
        if let Some((_, clerk)) = &self.index {
            // The record ends after this worker; if it failed, the next start finds the files.
            let _ = clerk.wait_for(row);
        }
    }

    fn write(&self, job: &Job) -> io::Result<Images> {
        let path = self.folder.join(&job.stem);
        let folder = path.parent().unwrap_or(&self.folder);
        std::fs::create_dir_all(folder)?;
        let encoded = |error: encode::EncodeError| io::Error::other(error.to_string());
        let inspection = &job.inspection;
        let original = inspection.pixels.as_ref().map(|(format, pixels)| {
            let meta: FrameMeta = inspection.frame.clone();
            encode::png_of(&Frame { meta, format: *format, pixels: pixels.clone() })
        });
        let drawing = draw(inspection).map(|panel| encode::jpeg(&panel.rgb, panel.width, panel.height, QUALITY));
        let files = [
            original.transpose().map_err(encoded)?,
            drawing.transpose().map_err(encoded)?,
            Some(job.json.as_bytes().to_vec()),
        ];
        let (mut bytes, mut hasher) = (0, blake3::Hasher::new());
        for (kind, contents) in KINDS.iter().zip(&files) {
            let Some(contents) = contents else { continue };
            let written = write_whole(&PathBuf::from(format!("{}.{kind}", path.display())), contents);
            if let Err(error) = written {
                remove(&path);
                return Err(error);
            }
            bytes += contents.len() as u64;
            hasher.update(contents);
        }
        File::open(folder)?.sync_all()?;
        Ok(Images {
            event_id: job.event.event_id.clone(),
            stem: job.stem.clone(),
            verdict: job.event.verdict.to_owned(),
            bytes,
            blake3: hasher.finalize().to_hex().to_string(),
            wall_nanos: job.wall_nanos,
        })
    }

    /// Deletes the oldest files until there is room for the next, passes first.
    fn make_room(&mut self, now: u64, synced: bool) -> io::Result<()> {
        if self.index.is_none() {
            return Ok(());
        }
        let ArchiveLimits { days, max_bytes, min_free_bytes, .. } = self.limits.get();
        let age = u64::from(days).saturating_mul(86_400 * 1_000_000_000);
        // A clock that nobody set may be years ahead.
        if let Some((reader, _)) = self.index.as_ref().filter(|_| synced) {
            let old = reader.images_before(now.saturating_sub(age), OLDEST).map_err(io::Error::other)?;
            for images in old {
                if !self.gone.contains(&images.event_id) {
                    self.delete(images);
                }
            }
        }
        loop {
            let free = free_bytes(&self.folder).unwrap_or(u64::MAX);
            let over = self.health.bytes.load(Ordering::Relaxed) >= max_bytes || free < min_free_bytes;
            let Some(oldest) = self.oldest()? else {
                let short = free < min_free_bytes;
                return if short { Err(io::Error::other(format!("only {} MiB are free", free >> 20))) } else { Ok(()) };
            };
            if !over {
                self.oldest.push_front(oldest);
                return Ok(());
            }
            self.delete(oldest);
        }
    }

    fn delete(&mut self, images: Images) {
        remove(&self.folder.join(&images.stem));
        self.health.bytes.fetch_sub(images.bytes, Ordering::Relaxed);
        self.health.deleted.fetch_add(1, Ordering::Relaxed);
        self.oldest.retain(|known| known.event_id != images.event_id);
        self.gone.push_back(images.event_id.clone());
        self.index(Row::ImagesGone(vec![images.event_id]));
    }

    /// What may be deleted first.
    fn oldest(&mut self) -> io::Result<Option<Images>> {
        // Passes that came since then go before the others.
        if self.oldest.front().is_some_and(|images| images.verdict == "pass") {
            return Ok(self.oldest.pop_front());
        }
        let Some((reader, _)) = &self.index else { return Ok(None) };
        let found = reader.oldest_images(OLDEST + self.gone.len()).map_err(io::Error::other)?;
        self.oldest = found.into_iter().filter(|images| !self.gone.contains(&images.event_id)).collect();
        self.gone.drain(..self.gone.len().saturating_sub(OLDEST));
        Ok(self.oldest.pop_front())
    }

    /// Takes away what a crash left behind, and finds what it left unknown.
    fn tidy(&mut self) {
        let Some((reader, _)) = &self.index else { return };
        match reader.image_bytes() {
            Ok((bytes, _)) => self.health.bytes.store(bytes, Ordering::Relaxed),
            Err(error) => log::error!("archive: the index cannot be read: {error}"),
        }
        let (mut found, mut removed) = (Vec::new(), 0u64);
        for folder in folders(&self.folder).iter().flat_map(|day| folders(day)) {
            for path in std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
                let stem = path.with_extension("");
                let partial = path.extension().is_some_and(|extension| extension == PARTIAL);
                // `stem.png.partial` has two extensions.
                let stem = if partial { stem.with_extension("") } else { stem };
                let Some(id) = event_id(&stem) else { continue };
                let known = reader.has_images(&id).unwrap_or(true);
                let whole = stem.with_extension("json").is_file();
                if partial || (!known && !whole) {
                    removed += u64::from(std::fs::remove_file(&path).is_ok());
                } else if !known && path.extension().is_some_and(|extension| extension == "json") {
                    found.extend(self.found(&stem, id));
                }
            }
        }
        if removed > 0 || !found.is_empty() {
            let folder = self.folder.display();
            log::info!("{folder}: {removed} unfinished files removed, {} events found again", found.len());
        }
        for images in found {
            self.health.bytes.fetch_add(images.bytes, Ordering::Relaxed);
            self.index(Row::Images(images));
        }
    }

    /// The row of files that are whole and that the index does not know.
    fn found(&self, stem: &Path, event_id: String) -> Option<Images> {
        let (mut bytes, mut hasher) = (0, blake3::Hasher::new());
        for kind in KINDS {
            if let Ok(contents) = std::fs::read(format!("{}.{kind}", stem.display())) {
                bytes += contents.len() as u64;
                hasher.update(&contents);
            }
        }
        let millis = std::fs::metadata(stem.with_extension("json")).and_then(|meta| meta.modified()).ok()?;
        let wall_nanos = millis.duration_since(std::time::UNIX_EPOCH).ok()?.as_nanos() as u64;
        let relative = stem.strip_prefix(&self.folder).ok()?.to_str()?.to_owned();
        let verdict = relative.rsplit('-').next()?.to_owned();
        Some(Images {
            event_id,
            stem: relative,
            verdict,
            bytes,
            blake3: hasher.finalize().to_hex().to_string(),
            wall_nanos,
        })
    }
}

/// The id in a name like `top-01KB...-fail`.
fn event_id(stem: &Path) -> Option<String> {
    let mut parts = stem.file_name()?.to_str()?.rsplit('-');
    let (_verdict, id) = (parts.next()?, parts.next()?);
    (id.len() == 26).then(|| id.to_owned())
}

fn folders(of: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(of).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// Removes the files of an event, and folders that are empty then. The last one first: what is left is not whole.
fn remove(path: &Path) {
    for kind in KINDS.iter().rev() {
        let _ = std::fs::remove_file(format!("{}.{kind}", path.display()));
        let _ = std::fs::remove_file(format!("{}.{kind}.{PARTIAL}", path.display()));
    }
    for folder in path.ancestors().skip(1).take(2) {
        let _ = std::fs::remove_dir(folder);
    }
}

/// Written beside its place and renamed: a reader never sees half a file, and neither does the next start.
fn write_whole(path: &Path, contents: &[u8]) -> io::Result<()> {
    let partial = PathBuf::from(format!("{}.{PARTIAL}", path.display()));
    let mut file = File::create(&partial)?;
    file.write_all(contents)?;
    file.sync_all()?;
    std::fs::rename(partial, path)
}
