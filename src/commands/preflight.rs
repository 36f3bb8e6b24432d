//! `dsad preflight`: what this machine lacks for this station, with remedies. Changes nothing and starts nothing.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use super::problems::examine;
use super::version;
use crate::camera::v4l2::list::{Listed, cameras};
use crate::config::camera::{CameraKind, V4l2Settings};
use crate::config::device::DeviceChoice;
use crate::config::station::{Station, load};
use crate::device::{kernel_database, kernel_folder};
use crate::gpio::chips::find;
use crate::inspection::time::Clock;
use crate::platform::preflight::{Finding, Grade, Machine, folder, kernel_cache};

/// Where the packages put it.
const CONFIG: &str = "/etc/dsad/dsad.toml";
/// Who the service runs as.
const USER: &str = "inspect";

/// Arguments of `dsad preflight`.
#[derive(Debug, clap::Args)]
pub struct PreflightArgs {
    /// The station's configuration
    #[arg(long, default_value = CONFIG)]
    config: PathBuf,
    /// One JSON object a finding, the summary last
    #[arg(long)]
    json: bool,
    /// Folder in which the machine's /proc, /sys, /dev, /etc, /run and /usr/bin are: another machine's file system
    #[arg(long, default_value = "/")]
    root: PathBuf,
}

/// Runs the verb: 0 where nothing is in the way, 1 where something is.
///
/// # Errors
/// None: whatever is wrong is a finding.
pub fn run(args: &PreflightArgs, clock: &dyn Clock) -> anyhow::Result<ExitCode> {
    let machine = Machine::at(&args.root);
    let mut findings = vec![machine.user(USER), machine.clock(clock.wall_nanos())];
    findings.extend(machine.thermals());
    match examine(&args.config) {
        Ok(station) => findings.push(Finding::ok(
            "configuration",
            format!("{}: in order, with {} camera(s)", args.config.display(), station.cameras.len()),
        )),
        Err(problems) => findings.extend(problems.into_iter().map(|problem| {
            let remedy = "mend it; `dsad check` reads it again";
            Finding::problem("configuration", problem, remedy)
        })),
    }
    // What can be read of the station is looked at, even where a bundle is refused.
    if let Ok(station) = load(&args.config) {
        findings.extend(of_station(&machine, &station));
    }
    report(&findings, args.json);
    let problems = findings.iter().any(|finding| finding.grade == Grade::Problem);
    Ok(if problems { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// What a start says in the log: all of a station that is not as it should be.
pub fn before_start(station: &Station) {
    for Finding { subject, grade, found, remedy } in of_station(&Machine::at("/"), station) {
        if grade != Grade::Ok {
            log::warn!("preflight: {subject}: {found}; {}", remedy.unwrap_or_default());
        }
    }
}

fn of_station(machine: &Machine, station: &Station) -> Vec<Finding> {
    let mut findings = device(machine, station.device);
    findings.push(match &station.keys {
        Some(_) => Finding::ok("signatures", "bundles are refused unless one of the keys signed them"),
        None => Finding::warning(
            "signatures",
            "no keys: whoever can write a bundle decides what is judged",
            "put public keys into a folder and name it: keys = \"keys\"",
        ),
    });
    findings.extend(station.cameras.iter().map(|camera| {
        let subject = format!("camera {}", camera.name);
        match &camera.kind {
            CameraKind::V4l2(settings) => v4l2(machine, subject, settings),
            CameraKind::Nokhwa(settings) => {
                node(machine, &subject, Path::new(&format!("/dev/video{}", settings.index)))
                    .unwrap_or_else(|| Finding::ok(subject, format!("/dev/video{}", settings.index)))
            }
            CameraKind::Replay { folder, .. } => Finding::ok(subject, format!("pictures of {}", folder.display())),
            CameraKind::Synthetic(_) => Finding::ok(subject, "a synthetic line: no camera is used"),
        }
    }));
    let outputs = station.outputs.gpio.iter().map(|output| (output.word(), output.pin().clone()));
    let inputs = station.cameras.iter().filter_map(|camera| camera.trigger_line.as_ref());
    findings.extend(outputs.chain(inputs.map(|input| ("trigger", input.pin()))).map(|(signal, pin)| {
        let subject = format!("gpio {signal}");
        match find(&pin) {
            Ok((chip, line)) => Finding::ok(subject, format!("{pin}: line {line} of {}", chip.display())),
            Err(problem) => {
                let remedy =
                    format!("check wiring and rules of udev (99-dsad.rules), and that {USER} is in the chip's group");
                Finding::problem(subject, problem, remedy)
            }
        }
    }));
    findings.push(folder("disk of state", &station.state));
    let events = station.outputs.events.parent().unwrap_or(Path::new("."));
    findings.push(folder("disk of events", if events == Path::new("") { Path::new(".") } else { events }));
    findings.extend(station.archive.iter().map(|archive| folder("disk of pictures", &archive.folder)));
    findings
}

fn device(machine: &Machine, choice: DeviceChoice) -> Vec<Finding> {
    let DeviceChoice::Cuda(index) = choice else {
        return vec![Finding::ok("device", "cpu: no GPU is used")];
    };
    if !version::has("cuda") {
        let remedy = "install the package with CUDA, or build with --features cuda; or set device = \"cpu\"";
        return vec![Finding::problem("device", format!("{choice}: this program was built without CUDA"), remedy)];
    }
    let mut findings = machine.gpu(index, version::cuda_binding());
    findings.push(if version::has("kernel-cache") {
        kernel_cache(kernel_folder().as_deref(), kernel_database().as_deref())
    } else {
        let remedy = "build with --features kernel-cache to keep them";
        Finding::warning("kernel cache", "none in this build: every start compiles all kernels", remedy)
    });
    findings
}

/// What is wrong with a camera's node, if something is.
fn node(machine: &Machine, subject: &str, device: &Path) -> Option<Finding> {
    match std::fs::OpenOptions::new().read(true).write(true).open(machine.path(device)) {
        Ok(_) => None,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(Finding::problem(
            subject,
            format!("{}: is not there", device.display()),
            "plug it in; `dsad cameras` lists those that are there, with paths that stay",
        )),
        Err(error) => Some(Finding::problem(
            subject,
            format!("{}: {error}", device.display()),
            format!("put the user into the group of the device, as `usermod -aG video {USER}`"),
        )),
    }
}

fn v4l2(machine: &Machine, subject: String, settings: &V4l2Settings) -> Finding {
    if let Some(problem) = node(machine, &subject, &settings.device) {
        return problem;
    }
    let path = machine.path(&settings.device).canonicalize().unwrap_or_else(|_| settings.device.clone());
    match cameras().into_iter().find(|listed| listed.device == path) {
        Some(listed) => offered(subject, settings, &listed),
        None => Finding::problem(
            subject,
            format!("{}: gives no pictures by V4L2", settings.device.display()),
            "take the node that `dsad cameras` lists: a camera has others for its metadata",
        ),
    }
}

/// Does the camera offer what is asked of it?
fn offered(subject: String, settings: &V4l2Settings, listed: &Listed) -> Finding {
    let device = settings.device.display();
    if let Some(problem) = &listed.problem {
        return Finding::problem(
            subject,
            format!("{device}: {problem}"),
            "unplug it and plug it in again; end who has it",
        );
    }
    let remedy = "take what `dsad cameras` lists for it";
    let formats: Vec<_> = listed
        .formats
        .iter()
        .filter(|format| settings.format.as_ref().map_or(format.read, |asked| format.code == asked.to_string()))
        .collect();
    if formats.is_empty() {
        let asked = settings.format.as_ref().map_or("any that is read".into(), ToString::to_string);
        return Finding::problem(subject, format!("{device}: does not offer {asked}"), remedy);
    }
    if let Some([width, height]) = settings.size {
        // Two sizes are the ends of a range.
        let fits = formats.iter().any(|format| {
            let sizes = &format.sizes;
            let within = |pick: fn(&crate::camera::v4l2::list::Size) -> u32, value: u32| {
                sizes.iter().map(pick).min().is_some_and(|least| least <= value)
                    && sizes.iter().map(pick).max().is_some_and(|most| value <= most)
            };
            sizes.is_empty() || (within(|size| size.width, width) && within(|size| size.height, height))
        });
        if !fits {
            return Finding::problem(subject, format!("{device}: does not offer {width}x{height}"), remedy);
        }
    }
    let found = format!("{device}: {} ({})", listed.name, listed.bus);
    if settings.device.starts_with("/dev/v4l") || listed.stable.is_empty() {
        return Finding::ok(subject, found);
    }
    let remedy = format!("take the path that stays: {}", listed.stable[0].display());
    Finding::warning(subject, format!("{found}; its number may change when it is plugged in again"), remedy)
}

fn report(findings: &[Finding], as_json: bool) {
    let count = |grade| findings.iter().filter(|finding| finding.grade == grade).count();
    let (warnings, problems) = (count(Grade::Warning), count(Grade::Problem));
    if as_json {
        findings.iter().for_each(|finding| println!("{}", json!(finding)));
        println!("{}", json!({"ok": problems == 0, "warnings": warnings, "problems": problems}));
        return;
    }
    for Finding { subject, grade, found, remedy } in findings {
        let word = match grade {
            Grade::Ok => "ok",
            Grade::Warning => "WARNING",
            Grade::Problem => "PROBLEM",
        };
        println!("{word:<8} {subject}: {found}");
        if let Some(remedy) = remedy {
            println!("         remedy: {remedy}");
        }
    }
    println!("{problems} problem(s), {warnings} warning(s)");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::camera::v4l2::list::{Format, Size};
    use crate::inspection::layout::FourCc;

    fn listed(stable: Vec<PathBuf>) -> Listed {
        let sizes = [(640, 480), (1280, 1024)].map(|(width, height)| Size { width, height, fps: vec![30.0] });
        let format =
            |code: &str, read| Format { code: code.into(), description: String::new(), read, sizes: sizes.to_vec() };
        Listed {
            name: "A camera".into(),
            driver: "uvcvideo".into(),
            bus: "usb-1".into(),
            device: "/dev/video0".into(),
            stable,
            formats: vec![format("GREY", true), format("H264", false)],
            controls: Vec::new(),
            problem: None,
        }
    }

    fn asked(device: &str, format: Option<&[u8; 4]>, size: Option<[u32; 2]>) -> V4l2Settings {
        let format = format.map(|code| FourCc(*code));
        V4l2Settings { device: device.into(), format, size, fps: None, controls: BTreeMap::new(), silence_s: 5.0 }
    }

    #[test]
    fn a_camera_is_held_against_what_is_asked_of_it() {
        let stable = || vec![PathBuf::from("/dev/v4l/by-id/usb-A")];
        for (settings, stable, grade, words) in [
            (asked("/dev/v4l/by-id/usb-A", Some(b"GREY"), Some([640, 480])), stable(), Grade::Ok, "A camera"),
            (asked("/dev/video0", None, None), stable(), Grade::Warning, "may change"),
            (asked("/dev/video0", None, None), Vec::new(), Grade::Ok, "A camera"),
            (asked("/dev/video0", Some(b"YUYV"), None), stable(), Grade::Problem, "does not offer YUYV"),
            (asked("/dev/video0", None, Some([1920, 1080])), stable(), Grade::Problem, "does not offer 1920x1080"),
        ] {
            let finding = offered("camera top".into(), &settings, &listed(stable));
            assert_eq!(finding.grade, grade, "{finding:?}");
            assert!(finding.found.contains(words), "{finding:?}");
            assert_eq!(finding.remedy.is_some(), grade != Grade::Ok);
        }
    }

    #[test]
    fn a_node_that_is_not_there_is_a_problem() {
        let dir = tempfile::tempdir().expect("directory");
        let finding = node(&Machine::at(dir.path()), "camera top", Path::new("/dev/video7")).expect("a problem");
        assert_eq!((finding.grade, finding.found.as_str()), (Grade::Problem, "/dev/video7: is not there"));
    }
}
