use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dsad::inspection::time::{Clock, Timestamp};
use rustix::time::{ClockId, clock_gettime};

/// Lines of every chip.
const LINES: usize = 8;

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
            if !name.is_empty() {
                fs::write(line.join("name"), name).unwrap();
            }
        }
        fs::write(config.join("b0/num_lines"), LINES.to_string()).unwrap();
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

/// The kernel's own record of what was driven, to the microsecond. Looking at the lines again and again misses short pulses on a
/// machine that is emulated.
pub struct Trace(());

impl Trace {
    pub fn start() -> Self {
        // Switched on by whoever starts the machine: it patches the kernel, which an emulated one should do once.
        let tracing = Path::new("/sys/kernel/tracing");
        let on = fs::read_to_string(tracing.join("events/gpio/gpio_value/enable"));
        assert_eq!(on.as_deref().map(str::trim).ok(), Some("1"), "the kernel's trace of GPIO values is off");
        fs::write(tracing.join("trace"), "").unwrap();
        Self(())
    }

    /// What happened to the first lines of the one chip that had outputs: they were inactive before.
    pub fn stop(self, lines: usize, clock: &dyn Clock) -> Vec<Changes> {
        let text = fs::read_to_string("/sys/kernel/tracing/trace").unwrap();
        let kernel = clock_gettime(ClockId::Monotonic);
        let origin = kernel.tv_sec as f64 * 1e9 + kernel.tv_nsec as f64 - clock.now().0 as f64;
        let mut found: Vec<Changes> = vec![Vec::new(); lines];
        for (head, event) in text.lines().filter_map(|line| line.split_once(": gpio_value: ")) {
            let seconds: f64 = head.split_whitespace().next_back().unwrap().parse().unwrap();
            let [line, "set", level] = event.split_whitespace().collect::<Vec<_>>()[..] else { continue };
            // Chips have eight lines, numbered through.
            let line = line.parse::<usize>().unwrap() % LINES;
            let level = level == "1";
            if line < lines && found[line].last().is_some_and(|(_, before)| *before) != level {
                found[line].push((Timestamp((seconds * 1e9 - origin).max(0.0) as u64), level));
            }
        }
        found
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
