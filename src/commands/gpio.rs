//! `dsad gpio`: which lines there are, what an input sees, and whether an output moves what it should.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{anyhow, bail, ensure};
use serde::Serialize;
use serde_json::json;

use crate::config::gpio::{Bias, EdgeKind, GpioInput, Pin, PinLine};
use crate::gpio::chips::{ListedChip, ListedLine, chips};
use crate::gpio::input::Edges;
use crate::gpio::output::{drive, inactive};
use crate::inspection::time::{Clock, Timestamp};
use crate::inspection::trigger::{EdgeError, EdgeSource};
use crate::platform::signals;

/// Arguments of `dsad gpio`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct GpioArgs {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// One JSON object a chip
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Print the edges of an input for a while, and what was missed: for a new sensor, cable or debounce time
    Watch(WatchArgs),
    /// Pulse an output: for a new wire. What hangs on the line moves
    Pulse(PulseArgs),
}

/// Which line.
#[derive(Debug, clap::Args)]
struct Chosen {
    /// The line: its name, or with --chip its number
    line: String,
    /// Path, name or label of its chip
    #[arg(long)]
    chip: Option<String>,
    /// The line is active while its voltage is low
    #[arg(long)]
    active_low: bool,
}

impl Chosen {
    fn pin(&self) -> anyhow::Result<Pin> {
        let number = self.chip.as_ref().and_then(|_| self.line.parse().ok());
        let line = number.map_or_else(|| PinLine::Name(self.line.clone()), PinLine::Number);
        let pin = Pin { chip: self.chip.clone(), line, active_low: self.active_low };
        if self.chip.is_none() && self.line.parse::<u32>().is_ok() {
            log::info!("{pin} is looked for by its name; for a number give --chip");
        }
        pin.problem().map_or(Ok(pin), |(key, message)| Err(anyhow!("{key} {message}")))
    }
}

/// Arguments of `dsad gpio watch`.
#[derive(Debug, clap::Args)]
struct WatchArgs {
    #[command(flatten)]
    chosen: Chosen,
    /// Edges from active to inactive, in place of those to active
    #[arg(long)]
    falling: bool,
    /// How long the line must stay as it is before the change counts, microseconds
    #[arg(long, default_value_t = 0)]
    debounce_us: u32,
    /// Draw the line to high voltage while nothing drives it
    #[arg(long, conflicts_with = "pull_down")]
    pull_up: bool,
    /// Draw the line to low voltage while nothing drives it
    #[arg(long)]
    pull_down: bool,
    /// For so long, seconds
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Until so many edges came, if that is before
    #[arg(long)]
    edges: Option<u64>,
    /// The summary alone, as one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `dsad gpio pulse`.
#[derive(Debug, clap::Args)]
struct PulseArgs {
    #[command(flatten)]
    chosen: Chosen,
    /// Milliseconds that the line is active
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    ms: u64,
    /// How often
    #[arg(long, default_value_t = 1)]
    times: u32,
    /// Milliseconds between two
    #[arg(long, default_value_t = 500)]
    gap_ms: u64,
}

/// Runs the verb.
///
/// # Errors
/// A line that is not there, that somebody has, or that cannot do what is asked.
pub fn run(args: &GpioArgs, clock: Arc<dyn Clock>) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Some(Verb::Watch(args)) => watch(args, clock),
        Some(Verb::Pulse(args)) => pulse(args),
        None => {
            let found = chips();
            for chip in &found {
                if args.json { println!("{}", json!(chip)) } else { print(chip) }
            }
            if found.is_empty() && !args.json {
                println!("no GPIO chip: no /dev/gpiochip* that this user sees");
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn print(chip: &ListedChip) {
    let ListedChip { path, name, label, lines, problem } = chip;
    if let Some(problem) = problem {
        println!("{}: {problem}", path.display());
        return;
    }
    println!("{}: {name} ({label}), {} lines", path.display(), lines.len());
    let told = |line: &&ListedLine| line.used || !line.name.is_empty();
    for ListedLine { line, name, used, consumer, direction, bias } in lines.iter().filter(told) {
        let bias = bias.map_or(String::new(), |bias| format!(", {bias}"));
        let user = if *used { format!(", '{consumer}' has it") } else { String::new() };
        println!("  {line:>3} {name:<24} {direction}{bias}{user}");
    }
    let silent = lines.iter().filter(|line| !told(line)).count();
    if silent > 0 {
        println!("  and {silent} lines without a name that nobody has (--json lists them)");
    }
}

/// What came and what did not.
#[derive(Debug, Default, Serialize)]
struct Watched {
    /// Edges that came.
    edges: u64,
    /// Edges that the kernel counted and gave nobody.
    missed: u64,
    /// How often the line was gone.
    lost: u64,
    /// How often it came back.
    recovered: u64,
    /// Shortest, mean and longest time between two edges, milliseconds, while the line was there.
    interval_ms: [f64; 3],
    /// Longest time from the kernel's stamp to this program, milliseconds.
    longest_delay_ms: f64,
}

/// Wait before a line that is gone is tried again.
const RETRY: Duration = Duration::from_millis(100);

fn watch(args: &WatchArgs, clock: Arc<dyn Clock>) -> anyhow::Result<ExitCode> {
    let Pin { chip, line, active_low } = args.chosen.pin()?;
    let settings = GpioInput {
        chip,
        line,
        active_low,
        edge: if args.falling { EdgeKind::Falling } else { EdgeKind::Rising },
        debounce_us: args.debounce_us,
        bias: args.pull_up.then_some(Bias::PullUp).or(args.pull_down.then_some(Bias::PullDown)),
    };
    if let Some((key, message)) = settings.problem() {
        bail!("{key} {message}");
    }
    let stop = signals::stop_flag()?;
    let mut edges = Edges::new(settings, Arc::clone(&clock));
    let mut seen = Watched { interval_ms: [f64::INFINITY, 0.0, 0.0], ..Watched::default() };
    let (started, mut last, mut gone) = (clock.now(), None::<Timestamp>, false);
    let (mut apart, mut intervals) = (0.0, 0u32);
    let mut opened = false;
    while !stop.load(Ordering::Relaxed)
        && clock.now().millis_since(started) < args.seconds * 1e3
        && args.edges.is_none_or(|most| seen.edges < most)
    {
        match edges.next_edge() {
            Ok(edge) => {
                seen.edges += 1;
                seen.missed += edge.missed;
                seen.longest_delay_ms = seen.longest_delay_ms.max(clock.now().millis_since(edge.at));
                let interval = last.replace(edge.at).map(|last| edge.at.millis_since(last));
                if let Some(interval) = interval {
                    let [least, _, most] = &mut seen.interval_ms;
                    (*least, *most) = (least.min(interval), most.max(interval));
                    apart += interval;
                    intervals += 1;
                }
                if !args.json {
                    let missed =
                        if edge.missed > 0 { format!(", {} missed before", edge.missed) } else { String::new() };
                    let interval =
                        interval.map_or(String::new(), |interval| format!(", {interval:.3} ms after the last"));
                    println!("{:.6} s{interval}{missed}", edge.at.0 as f64 / 1e9);
                }
            }
            Err(EdgeError::Timeout) => {}
            Err(EdgeError::Lost { reason }) => {
                // A wrong name is an error, a pulled plug is not.
                ensure!(opened, "{reason}");
                if !gone {
                    seen.lost += 1;
                    log::warn!("{reason}");
                }
                (gone, last) = (true, None);
                std::thread::sleep(RETRY);
                continue;
            }
        }
        opened = true;
        if std::mem::take(&mut gone) {
            seen.recovered += 1;
            log::info!("the line is back");
        }
    }
    let [least, mean, _] = &mut seen.interval_ms;
    (*least, *mean) = if intervals > 0 { (*least, apart / f64::from(intervals)) } else { (0.0, 0.0) };
    if args.json {
        println!("{}", json!(seen));
    } else {
        let Watched { edges, missed, lost, recovered, interval_ms: [least, mean, most], longest_delay_ms } = &seen;
        println!("{edges} edges, {missed} missed; {least:.3} / {mean:.3} / {most:.3} ms apart (least, mean, most)");
        println!(
            "heard {longest_delay_ms:.3} ms after the kernel at most; gone {lost} times, came back {recovered} times"
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn pulse(args: &PulseArgs) -> anyhow::Result<ExitCode> {
    let pin = args.chosen.pin()?;
    let stop = signals::stop_flag()?;
    let line = inactive(&pin).map_err(anyhow::Error::msg)?;
    for time in 0..args.times {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if time > 0 {
            std::thread::sleep(Duration::from_millis(args.gap_ms));
        }
        drive(&line, true).map_err(|reason| anyhow!("{pin}: {reason}"))?;
        std::thread::sleep(Duration::from_millis(args.ms));
        drive(&line, false).map_err(|reason| anyhow!("{pin}: {reason}"))?;
    }
    println!("{pin}: {} pulses of {} ms; inactive, and nobody has it any more", args.times, args.ms);
    Ok(ExitCode::SUCCESS)
}
