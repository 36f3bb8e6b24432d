//! Running the rows: child processes of this same program, several side by side, so that one that fails takes no other along.

use std::fs::File;
use std::io::Write;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, bail, ensure};

use super::plan::Plan;
use super::row::{CONFIG, Command, Job, ROW, Row, is_done};
use crate::config::device::DeviceChoice;
use crate::trainer::checkpoint::write_whole;

/// Environment of a child by which rayon, and so the CPU backend, knows how many threads it has.
const THREADS: &str = "RAYON_NUM_THREADS";
/// Before the command lines in a log.
const PROMPT: &str = "$ ";

/// A sweep's folder, held while it runs.
pub struct Sweep {
    program: PathBuf,
    out: PathBuf,
    lock: File,
}

impl Sweep {
    /// Takes the folder. Waits for an earlier sweep there, and for what it left running when it was killed: the children hold
    /// the same lock, as their standard input.
    ///
    /// # Errors
    /// A folder that cannot be made or locked.
    pub fn open(out: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(out).with_context(|| format!("--out {}: cannot be made", out.display()))?;
        let path = out.join("lock");
        let lock = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let lock = lock.with_context(|| format!("{}: cannot be opened", path.display()))?;
        if lock.try_lock().is_err() {
            log::warn!("{}: waits for an earlier sweep here, or for what it left running", out.display());
            lock.lock().with_context(|| format!("{}: cannot be locked", path.display()))?;
        }
        let program = std::env::current_exe().context("this program's own path")?;
        Ok(Self { program, out: out.to_path_buf(), lock })
    }

    /// Runs what has not ended yet and returns all rows. `seen` gets the rows that have ended so far, after each.
    ///
    /// # Errors
    /// What `seen` says; a row that fails is a row.
    pub fn run(&self, plan: &Plan, seen: impl Fn(&[&Row]) -> anyhow::Result<()> + Sync) -> anyhow::Result<Vec<Row>> {
        let next = AtomicUsize::new(0);
        let ended: Mutex<Vec<Option<Row>>> = Mutex::new(vec![None; plan.jobs.len()]);
        let slots = plan.devices.iter().flat_map(|device| std::iter::repeat_n(*device, plan.parallel));
        let slots: Vec<DeviceChoice> = slots.collect();
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = (cores / slots.len().max(1)).max(1);
        let work = |device: DeviceChoice| -> anyhow::Result<()> {
            // The CPU backend takes all cores that there are; side by side each child gets its share.
            let threads = (device == DeviceChoice::Cpu && slots.len() > 1).then_some(threads);
            while let Some((index, job)) = take(&next, &plan.jobs) {
                let place = job.folder();
                log::info!("[{}/{}] {} on {device}", index + 1, plan.jobs.len(), place.display());
                let row = self.row(job, device, threads);
                if let Some(error) = &row.error {
                    log::error!("{}: {error}", place.display());
                }
                let mut ended = ended.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                ended[index] = Some(row);
                seen(&ended.iter().flatten().collect::<Vec<_>>())?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = slots.iter().map(|device| scope.spawn(|| work(*device))).collect();
            workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| bail!("a worker panicked")))
        })?;
        Ok(ended.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).into_iter().flatten().collect())
    }

    /// One row, to its end: what cannot be done is said in it.
    fn row(&self, job: &Job, device: DeviceChoice, threads: Option<usize>) -> Row {
        let dir = self.out.join(job.folder());
        let mut row = job.empty();
        let made = prepare(&dir, &row, job).and_then(|()| {
            let commands = job.commands(&dir);
            let outcome = commands.iter().try_for_each(|command| self.command(command, &dir, device, threads));
            row.commands = commands.iter().filter_map(|command| ran(&dir, &command.name)).collect();
            outcome?;
            row.lines = job.lines(&dir)?;
            Ok(())
        });
        row.error = made.err().map(|error| format!("{error:#}"));
        if let Err(error) = keep(&dir, &row) {
            row.error.get_or_insert(format!("{error:#}"));
        }
        row
    }

    /// Runs one command, unless it has been done.
    fn command(
        &self,
        command: &Command,
        dir: &Path,
        device: DeviceChoice,
        threads: Option<usize>,
    ) -> anyhow::Result<()> {
        let Command { name, args } = command;
        if is_done(dir, name) {
            return Ok(());
        }
        let mut args = args.clone();
        args.extend(["--device".into(), device.to_string()]);
        let file = |extension: &str| dir.join(format!("{name}.{extension}"));
        // Appended: a run that goes on keeps what was said before.
        let mut log = File::options().create(true).append(true).open(file("log"))?;
        let variable = threads.map(|threads| format!("{THREADS}={threads} ")).unwrap_or_default();
        let words: Vec<String> = args.iter().map(|word| quoted(word)).collect();
        writeln!(log, "{PROMPT}{variable}trainer {}", words.join(" "))?;
        let mut process = Process::new(&self.program);
        process.args(&args).stdin(Stdio::from(self.lock.try_clone()?));
        process.stdout(File::create(file("json"))?).stderr(log);
        if let Some(threads) = threads {
            process.env(THREADS, threads.to_string());
        }
        let status = process.status().with_context(|| format!("{name}: cannot be started"))?;
        let said = || std::fs::read_to_string(file("log")).unwrap_or_default();
        ensure!(status.success(), "{name}: {} ({status}); see {}", last_line(&said()), file("log").display());
        ensure!(is_done(dir, name), "{name}: ended without an answer; see {}", file("log").display());
        Ok(())
    }
}

/// The next row that nobody works on.
fn take<'a>(next: &AtomicUsize, jobs: &'a [Job]) -> Option<(usize, &'a Job)> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    Some((index, jobs.get(index)?))
}

/// A folder for the row. What another request left there goes; what the same one left is gone on from.
fn prepare(dir: &Path, row: &Row, job: &Job) -> anyhow::Result<()> {
    let kept = std::fs::read(dir.join(ROW)).ok();
    if kept.is_some_and(|kept| !same(&kept, row)) {
        std::fs::remove_dir_all(dir).with_context(|| format!("{}: cannot be cleared", dir.display()))?;
    }
    std::fs::create_dir_all(dir).with_context(|| format!("{}: cannot be made", dir.display()))?;
    if let Some(fit) = &job.request.fit {
        write_whole(&dir.join(CONFIG), toml::to_string(&fit.config)?.as_bytes())?;
    }
    keep(dir, row)
}

/// Whether a kept row was asked for the same.
fn same(kept: &[u8], row: &Row) -> bool {
    serde_json::from_slice::<Row>(kept).is_ok_and(|kept| kept.request == row.request)
}

fn keep(dir: &Path, row: &Row) -> anyhow::Result<()> {
    write_whole(&dir.join(ROW), &serde_json::to_vec_pretty(row)?)
}

/// The command line that last wrote a log.
fn ran(dir: &Path, name: &str) -> Option<String> {
    let log = std::fs::read_to_string(dir.join(format!("{name}.log"))).ok()?;
    log.lines().rev().find_map(|line| line.strip_prefix(PROMPT)).map(str::to_owned)
}

/// The last line of a log that says something.
fn last_line(log: &str) -> &str {
    let mut lines = log.lines().rev().map(str::trim);
    lines.find(|line| !line.is_empty() && !line.starts_with(PROMPT)).unwrap_or("no message")
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_by_the_last_words_of_its_log() {
        assert_eq!(last_line("$ trainer fit\nsome\ntrainer: the loss is NaN\n\n"), "trainer: the loss is NaN");
        assert_eq!(last_line("$ trainer fit\n"), "no message");
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(["a/b.toml", "", "two words", "it's"].map(quoted), ["a/b.toml", "''", "'two words'", r"'it'\''s'"]);
    }
}
