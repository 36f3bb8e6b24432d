use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use dsad::inspection::time::{Clock, Timestamp};

/// A simulated chip, with named lines from 0 on.
pub struct Chip {
    config: PathBuf,
    lines: usize,
}

impl Chip {
    pub fn new(name: &str, lines: &[&str]) -> Self {
        let config = Path::new("/sys/kernel/config/gpio-sim").join(name);
        for (line, name) in lines.iter().enumerate() {
            let line = config.join(format!("b0/line{line}"));
            fs::create_dir_all(&line).expect("gpio-sim is loaded and configfs is mounted");
            fs::write(line.join("name"), name).unwrap();
        }
        fs::write(config.join("b0/num_lines"), "8").unwrap();
        let chip = Self { config, lines: lines.len() };
        chip.live(true);
        chip
    }

    /// Plugs it in, or pulls it out.
    pub fn live(&self, live: bool) {
        fs::write(self.config.join("live"), if live { "1" } else { "0" }).unwrap();
    }

    fn line(&self, line: usize, what: &str) -> PathBuf {
        let read = |name: &str| fs::read_to_string(self.config.join(name)).unwrap().trim().to_owned();
        let device = Path::new("/sys/devices/platform").join(read("dev_name")).join(read("b0/chip_name"));
        device.join(format!("sim_gpio{line}/{what}"))
    }

    /// Puts voltage on a line, or takes it away.
    pub fn pull(&self, line: usize, up: bool) {
        fs::write(self.line(line, "pull"), if up { "pull-up" } else { "pull-down" }).unwrap();
    }
}

impl Drop for Chip {
    fn drop(&mut self) {
        // What is left of it fails the next chip of this name, and says so there.
        let _ = fs::write(self.config.join("live"), "0");
        for line in 0..self.lines {
            let _ = fs::remove_dir(self.config.join(format!("b0/line{line}")));
        }
        let _ = fs::remove_dir(self.config.join("b0"));
        let _ = fs::remove_dir(&self.config);
    }
}

/// Changes of a line.
pub type Changes = Vec<(Timestamp, bool)>;

/// Looks at the first lines of a chip again and again, from outside of what drives them.
pub struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Changes>>,
}

impl Sampler {
    pub fn start(chip: &Chip, lines: usize, clock: Arc<dyn Clock>) -> Self {
        let files: Vec<File> = (0..lines).map(|line| File::open(chip.line(line, "value")).unwrap()).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut found: Vec<Changes> = vec![Vec::new(); lines];
            let mut levels: Vec<Option<bool>> = vec![None; lines];
            while !stopping.load(Ordering::Relaxed) {
                for (line, file) in files.iter().enumerate() {
                    let mut value = [0];
                    file.read_at(&mut value, 0).unwrap();
                    let level = value[0] == b'1';
                    if levels[line].replace(level).is_some_and(|before| before != level) {
                        found[line].push((clock.now(), level));
                    }
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            found
        });
        Self { stop, thread }
    }

    pub fn stop(self) -> Vec<Changes> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Does something in a rhythm that does not drift.
pub fn pace(clock: &dyn Clock, every: Duration, times: u64, mut what: impl FnMut(u64)) {
    let start = clock.now();
    for time in 0..times {
        let due = Timestamp(start.0 + every.as_nanos() as u64 * time);
        std::thread::sleep(Duration::from_nanos(due.0.saturating_sub(clock.now().0)));
        what(time);
    }
}
