//! Events as lines of a file, written by a worker.
//!
//! A line is written whole or not at all: after a failed write the file is cut back to its last whole line, and the line
//! is tried again until the disk takes it or the process ends. Lines wait in memory meanwhile, a bounded number of them.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};

use crate::inspection::event::Event;
use crate::inspection::verdict::{Inspection, SinkError, VerdictSink};

/// Lines between the publish stage and the worker: a burst of a second at 100 parts a second.
const QUEUE: usize = 128;
/// Lines that wait for a disk that refuses: an hour at one part a second, about 4 MiB.
const BACKLOG: usize = 4_096;
/// How often a refusing disk is tried again.
const RETRY: Duration = Duration::from_millis(250);

/// What the worker reports.
#[derive(Debug, Default)]
pub struct NdjsonHealth {
    /// Lines in the file.
    pub written: AtomicU64,
    /// Lines given up.
    pub lost: AtomicU64,
    /// Whether the last write failed.
    pub failing: AtomicBool,
}

/// The sink.
pub struct NdjsonSink {
    lines: Sender<String>,
    health: Arc<NdjsonHealth>,
}

/// What the worker needs; it ends when the sink is dropped.
pub struct NdjsonWorker {
    path: PathBuf,
    max_bytes: u64,
    lines: Receiver<String>,
    health: Arc<NdjsonHealth>,
}

/// A sink and its worker for `path`, rotated to `path.1` at `max_bytes`.
pub fn open(path: &Path, max_bytes: u64) -> (NdjsonSink, NdjsonWorker, Arc<NdjsonHealth>) {
    let (sender, receiver) = bounded(QUEUE);
    let health = Arc::new(NdjsonHealth::default());
    let sink = NdjsonSink { lines: sender, health: Arc::clone(&health) };
    let worker = NdjsonWorker { path: path.to_path_buf(), max_bytes, lines: receiver, health: Arc::clone(&health) };
    (sink, worker, health)
}

impl VerdictSink for NdjsonSink {
    fn name(&self) -> &str {
        "events"
    }

    fn publish(&mut self, _: &Inspection, event: &Event) -> Result<(), SinkError> {
        self.write(event)
    }

    fn amend(&mut self, event: &Event) -> Result<(), SinkError> {
        self.write(event)
    }
}

impl NdjsonSink {
    fn write(&mut self, event: &Event) -> Result<(), SinkError> {
        let mut line = serde_json::to_string(event).map_err(|error| SinkError(error.to_string()))?;
        line.push('\n');
        self.lines.try_send(line).map_err(|error| {
            self.health.lost.fetch_add(1, Ordering::Relaxed);
            SinkError(match error {
                TrySendError::Full(_) => format!("the queue of {QUEUE} events is full: the disk does not keep up"),
                TrySendError::Disconnected(_) => "the worker has ended".into(),
            })
        })
    }
}

impl NdjsonWorker {
    /// Writes until the sink is gone, then what is left.
    pub fn run(self) {
        let mut backlog: VecDeque<String> = VecDeque::new();
        let mut file: Option<File> = None;
        loop {
            let wait = if backlog.is_empty() { Duration::from_secs(3600) } else { RETRY };
            let open = match self.lines.recv_timeout(wait) {
                Ok(line) => {
                    backlog.push_back(line);
                    true
                }
                Err(RecvTimeoutError::Timeout) => true,
                Err(RecvTimeoutError::Disconnected) => false,
            };
            backlog.extend(self.lines.try_iter());
            self.drain(&mut backlog, &mut file);
            while backlog.len() > BACKLOG {
                backlog.pop_front();
                self.health.lost.fetch_add(1, Ordering::Relaxed);
            }
            if !open {
                break;
            }
        }
        if !backlog.is_empty() {
            self.health.lost.fetch_add(backlog.len() as u64, Ordering::Relaxed);
            log::error!("{}: {} events could not be written and are lost", self.path.display(), backlog.len());
        }
        if let Some(file) = file
            && let Err(error) = file.sync_all()
        {
            log::error!("{}: cannot be made durable: {error}", self.path.display());
        }
    }

    fn drain(&self, backlog: &mut VecDeque<String>, file: &mut Option<File>) {
        while let Some(line) = backlog.front() {
            match self.write(line, file) {
                Ok(()) => {
                    backlog.pop_front();
                    self.health.written.fetch_add(1, Ordering::Relaxed);
                    if self.health.failing.swap(false, Ordering::Relaxed) {
                        log::info!("{}: events are written again", self.path.display());
                    }
                }
                Err(error) => {
                    *file = None;
                    if !self.health.failing.swap(true, Ordering::Relaxed) {
                        log::error!(
                            "{}: events cannot be written: {error}; make space or check permissions; they wait in memory",
                            self.path.display()
                        );
                    }
                    return;
                }
            }
        }
    }

    fn write(&self, line: &str, file: &mut Option<File>) -> std::io::Result<()> {
        if file.is_none() {
            if let Some(parent) = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                std::fs::create_dir_all(parent)?;
            }
            *file = Some(OpenOptions::new().create(true).append(true).open(&self.path)?);
        }
        let Some(open) = file.as_mut() else { return Ok(()) };
        let whole = open.seek(std::io::SeekFrom::End(0)).unwrap_or(0);
        if whole > 0 && whole + line.len() as u64 > self.max_bytes {
            let mut older = self.path.clone().into_os_string();
            older.push(".1");
            std::fs::rename(&self.path, older)?;
            *file = None;
            return self.write(line, file);
        }
        open.write_all(line.as_bytes()).inspect_err(|_| {
            // Part of a line may have reached a full disk: cutting it off needs no space.
            let _ = open.set_len(whole);
        })
    }
}
