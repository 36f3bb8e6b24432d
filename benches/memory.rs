//! What the daemon costs in time and memory, by cameras and by tiles, and with an `edge` bundle: `cargo bench --bench memory`.
//! `-- --out docs` also writes memory.json and memory.svg there.
//!
//! Every row is a process of its own, `dsad run` on pictures of a folder, on the CPU; its peak is what Linux counts as VmHWM, from the
//! start on. `round_ms` is the time from one picture of every camera to the next, without the first one's.

use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dsad::config::device::DeviceChoice;
use dsad::device;
use dsad::model::profile::Profile;
use dsad::synthetic::{Product, good_part};
use dsad::trainer::bench::untrained;
use dsad::trainer::report::svg::{Fit, panel};
use serde_json::{Value, json};

/// Side of the demo's model grid.
const SIDE: u32 = 256;
/// Pictures that a camera gives.
const ROUNDS: usize = 8;
const CAMERAS: [usize; 4] = [1, 2, 4, 8];
/// Tiles in a row, and rows.
const TILES: [usize; 4] = [1, 2, 4, 8];

/// A folder that is gone when this is.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover among temporary files is harmless.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Good parts, each pixel `enlarged` times to each side.
fn pictures(folder: &Path, enlarged: usize) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(folder)?;
    for round in 0..ROUNDS {
        let part = good_part(Product::Washer, round as u64, SIDE);
        let side = SIDE as usize * enlarged;
        let cells = (0..side * side).map(|i| i / side / enlarged * SIDE as usize + i % side / enlarged);
        let rgb: Vec<u8> = cells.flat_map(|cell| part.rgb[3 * cell..][..3].to_vec()).collect();
        let (file, side) = (folder.join(format!("{round}.png")), side as u32);
        image::save_buffer(file, &rgb, side, side, image::ExtendedColorType::Rgb8)?;
    }
    Ok(())
}

/// Runs the daemon on the pictures of `folder` for every camera, and says the time of a round and the peak.
fn measure(
    home: &Path,
    bundle: &Path,
    class: Option<&str>,
    cameras: usize,
    tiles: usize,
) -> Result<(f64, f64), Box<dyn Error>> {
    let station = home.join("station");
    std::fs::create_dir_all(&station)?;
    let class = class.map_or(String::new(), |class| format!("class = '{class}'\n"));
    let grid = match tiles {
        1 => String::new(),
        side => format!("[tiles]\ncolumns = {side}\nrows = {side}\noverlap_percent = 20\n"),
    };
    let recipe = format!("id = 'r'\nbundle = '{}'\nsteps = 2\n{class}{grid}", bundle.display());
    std::fs::write(station.join("r.toml"), recipe)?;
    let mut config =
        String::from("station = 'bench'\nline = 'bench'\ndevice = 'cpu'\n[outputs]\nevents = 'events.ndjson'\n");
    for camera in 0..cameras {
        let folder = home.join(format!("pictures-{tiles}"));
        let source = format!("{{ kind = 'replay', folder = '{}' }}", folder.display());
        write!(config, "[[cameras]]\nname = 'c{camera}'\nrecipe = 'r.toml'\nsource = {source}\n")?;
    }
    std::fs::write(station.join("dsad.toml"), config)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_dsad"));
    command.args(["run", "--json", "--config", "dsad.toml"]).current_dir(&station).env("RUST_LOG", "error");
    let output = command.stderr(Stdio::inherit()).output()?;
    let told = String::from_utf8_lossy(&output.stdout).lines().last().map(serde_json::from_str::<Value>);
    let told = told.ok_or("the daemon said nothing")??;
    let peak = told["peak_rss_mb"].as_f64().ok_or("this system tells no VmHWM")?;
    let events = std::fs::read_to_string(station.join("events.ndjson"))?;
    let at = |line: &str| serde_json::from_str::<Value>(line).ok().and_then(|event| event["t_mono_ns"].as_u64());
    let mut times = events.lines().map(at).collect::<Option<Vec<u64>>>().ok_or("an event without its time")?;
    if !output.status.success() || times.len() != cameras * ROUNDS {
        return Err(format!("{}: {} events: {told}", output.status, times.len()).into());
    }
    times.sort_unstable();
    let since = times[times.len() - 1] - times[cameras - 1];
    std::fs::remove_dir_all(&station)?;
    Ok((since as f64 / 1e6 / (ROUNDS - 1) as f64, peak))
}

/// Rows by a number of `what`, their lines, and the panels that show them.
fn series(
    what: &str,
    across: &str,
    rows: &[(f64, (f64, f64))],
    top: f64,
    drawn: &mut String,
) -> Result<Value, Box<dyn Error>> {
    let points = |of: fn(&(f64, f64)) -> f64| rows.iter().map(|(count, row)| (*count, of(row))).collect::<Vec<_>>();
    let (times, peaks) = (points(|row| row.0), points(|row| row.1));
    let (time, memory) = (Fit::of(&times), Fit::of(&peaks));
    for (left, title, points, fit) in [(0.0, "ms a round", &times, time), (330.0, "peak MB", &peaks, memory)] {
        drawn.push_str(&panel(&format!("{title}, by {what}"), across, points, &fit, (left, top), (320.0, 210.0)));
    }
    let row = |(count, (ms, peak)): &(f64, (f64, f64))| json!({what: count, "round_ms": ms, "peak_rss_mb": peak});
    let fits = json!({"round_ms": time, "peak_rss_mb": memory});
    println!("{}", json!({"by": what, "fit": fits}));
    Ok(json!({"rows": rows.iter().map(row).collect::<Vec<_>>(), "fit": fits}))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut given = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let out = match (given.next().as_deref(), given.next()) {
        (None, _) => None,
        (Some("--out"), Some(folder)) => Some(PathBuf::from(folder)),
        _ => return Err("known is --out FOLDER".into()),
    };
    let home = Scratch(std::env::temp_dir().join(format!("dsad-memory-{}", std::process::id())));
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/bundles/demo");
    for side in TILES {
        pictures(&home.0.join(format!("pictures-{side}")), side)?;
    }
    let (mut by_cameras, mut by_tiles) = (Vec::new(), Vec::new());
    let say = |what: &str, count: usize, (ms, peak): (f64, f64)| {
        println!("{}", json!({what: count, "round_ms": ms, "peak_rss_mb": peak}));
        (count as f64, (ms, peak))
    };
    for cameras in CAMERAS {
        by_cameras.push(say("cameras", cameras, measure(&home.0, &demo, Some("washer"), cameras, 1)?));
    }
    for side in TILES {
        by_tiles.push(say("tiles", side * side, measure(&home.0, &demo, Some("washer"), 1, side)?));
    }
    let mut drawn = String::new();
    let cameras = series("cameras", "cameras", &by_cameras, 0.0, &mut drawn)?;
    let tiles = series("tiles", "tiles", &by_tiles, 220.0, &mut drawn)?;
    let edge = home.0.join("edge");
    untrained(Profile::Edge, (SIDE as usize, SIDE as usize), &device::open(DeviceChoice::Cpu)?, &edge)?;
    let (ms, peak) = measure(&home.0, &edge, None, 1, 1)?;
    let edge = json!({"profile": "edge", "round_ms": ms, "peak_rss_mb": peak});
    println!("{edge}");
    if let Some(out) = out {
        let all = json!({"cameras": cameras, "tiles": tiles, "edge": edge});
        std::fs::write(out.join("memory.json"), format!("{all:#}\n"))?;
        let svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"660\" height=\"440\" font-family=\"sans-serif\" font-size=\"12\">\
             <rect width=\"660\" height=\"440\" fill=\"#fff\"/>{drawn}</svg>\n"
        );
        std::fs::write(out.join("memory.svg"), svg)?;
    }
    Ok(())
}
