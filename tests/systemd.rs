//! What ships for systemd, and the daemon in safe mode as systemd sees it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{DSAD, run, tiny_bundle};

/// Keys that came after systemd 249, that of JetPack 6.
const TOO_NEW: [&str; 8] = [
    "Type=notify-reload",
    "ExitType=",
    "RestartSteps=",
    "RestartMaxDelaySec=",
    "RestrictFileSystems=",
    "OpenFile=",
    "MemoryPressureWatch=",
    "ReloadSignal=",
];

fn shipped(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)).expect("ships")
}

/// Says why where `systemd-analyze` is too old (before 250 it judges no file), or is not there.
fn analyze() -> Option<Command> {
    let version = Command::new("systemd-analyze").arg("--version").output().ok().and_then(|output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace().nth(1)?.parse::<u32>().ok()
    });
    if version.is_none_or(|version| version < 250) {
        println!("NOT RUN: systemd-analyze 250 or newer is needed, found {version:?} (apt-get install systemd)");
        return None;
    }
    Some(Command::new("systemd-analyze"))
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

#[test]
fn the_unit_is_verified_and_its_exposure_is_low() {
    let unit = shipped("dsad.service");
    for key in TOO_NEW {
        assert!(!unit.contains(key) && !shipped("hardened.conf").contains(key), "{key} is not known by systemd 249");
    }
    let dir = tempfile::tempdir().expect("directory");
    let stub = unit.replace("/usr/bin/dsad", "/bin/true");
    // Highest exposure, in tenths.
    for (name, text_of, most) in
        [("dsad.service", stub.clone(), 20), ("hardened.service", stub + &shipped("hardened.conf"), 10)]
    {
        let path = dir.path().join(name);
        std::fs::write(&path, text_of).expect("writes");
        let Some(mut verify) = analyze() else { return };
        let output = verify.args(["verify", "--man=no", "--recursive-errors=no"]).arg(&path).output().expect("runs");
        assert!(output.status.success() && text(&output).is_empty(), "{}", text(&output));
        let threshold = format!("--threshold={most}");
        let mut security = analyze().expect("as before");
        let output = security.args(["security", "--offline=yes", &threshold]).arg(&path).output().expect("runs");
        assert!(output.status.success(), "{}", text(&output));
        println!("{name}: {}", text(&output).lines().last().unwrap_or_default());
    }
}

#[test]
fn an_unknown_key_would_be_seen() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("dsad.service");
    let wrong = shipped("dsad.service").replace("/usr/bin/dsad", "/bin/true").replace("UMask=", "UMsak=");
    std::fs::write(&path, wrong).expect("writes");
    let Some(mut verify) = analyze() else { return };
    let output = verify.args(["verify", "--man=no", "--recursive-errors=no"]).arg(&path).output().expect("runs");
    assert!(text(&output).contains("UMsak"), "{}", text(&output));
}

/// The configuration that the package installs, with its places moved into `dir`.
fn installed(dir: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let etc = dir.join("etc");
    std::fs::create_dir_all(etc.join("recipes")).expect("directories");
    let moved = |text: String| {
        text.replace("/usr/share/dsad/bundles", &root.join("configs/bundles").display().to_string())
            .replace("/var/lib/dsad", &dir.join("var").display().to_string())
    };
    std::fs::write(etc.join("dsad.toml"), moved(shipped("packaging/dsad.toml"))).expect("writes");
    std::fs::write(etc.join("recipes/washer.toml"), moved(shipped("packaging/washer.toml"))).expect("writes");
    std::fs::create_dir(etc.join("keys")).expect("directory");
    std::fs::copy(root.join("configs/keys/dsad-demo.pub"), etc.join("keys/dsad-demo.pub")).expect("copies");
    etc.join("dsad.toml")
}

#[test]
fn the_installed_configuration_is_in_order_and_preflight_says_so() {
    let dir = tempfile::tempdir().expect("directory");
    let config = installed(dir.path());
    let (code, out, error) = run(DSAD, &["check", "--config", config.to_str().expect("path")], dir.path());
    assert_eq!(code, 0, "{error}");
    assert!(!out.contains("NOT CALIBRATED"), "{out}");

    let machine = dir.path().join("machine");
    std::fs::create_dir_all(machine.join("run/systemd/timesync")).expect("directories");
    std::fs::write(machine.join("run/systemd/timesync/synchronized"), "").expect("writes");
    std::fs::create_dir_all(machine.join("proc/self")).expect("directories");
    std::fs::write(machine.join("proc/self/status"), "Uid:\t990\t990\t990\t990\n").expect("writes");
    let preflight = |config: &Path| {
        let arguments = ["preflight", "--json", "--root", machine.to_str().expect("path"), "--config"];
        let (code, out, error) = run(DSAD, &[&arguments[..], &[config.to_str().expect("path")]].concat(), dir.path());
        assert_eq!(error, "");
        (code, crate::cli::lines(&out))
    };
    let of = |lines: &[Value], subject: &str| -> Vec<Value> {
        lines.iter().filter(|line| line["subject"] == subject).cloned().collect()
    };
    let (code, lines) = preflight(&config);
    assert_eq!(code, 0, "{lines:?}");
    for subject in ["user", "clock", "thermals", "configuration", "device", "signatures", "camera top"] {
        assert_eq!(of(&lines, subject)[0]["grade"], "ok", "{subject}: {lines:?}");
    }
    assert_ne!(of(&lines, "disk of state")[0]["grade"], "problem");

    // Everything at once: a GPU that this build knows nothing of, a camera and a line that are not there, a folder below a file.
    let text = std::fs::read_to_string(&config).expect("reads");
    let text = text.replace("device = \"cpu\"", "device = \"cuda\"").replace("keys = \"keys\"\n", "");
    let text = text.replace("{ kind = \"synthetic\", product = \"washer\", fps = 1.0, defect_rate = 0.1 }", {
        "{ kind = \"v4l2\", device = \"/dev/video77\" }"
    });
    let images = format!("folder = \"{}\"", dir.path().join("var/images").display());
    let text = text.replace(&images, &format!("folder = \"{}/below\"", config.display()));
    let hold = "[[outputs.gpio]]\nsignal = \"hold\"\npin = { chip = \"/dev/gpiochip77\", line = 1 }\n";
    std::fs::write(&config, format!("{text}{hold}")).expect("writes");
    let (code, lines) = preflight(&config);
    assert_eq!(code, 1);
    for subject in ["device", "camera top", "gpio hold", "disk of pictures"] {
        let found = &of(&lines, subject)[0];
        assert_eq!(found["grade"], "problem", "{subject}: {lines:?}");
        assert!(found["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()));
    }
    assert_eq!(of(&lines, "signatures")[0]["grade"], "warning");
    assert_eq!(lines.last().expect("summary")["problems"], 4, "{lines:?}");

    // A refused configuration, every problem of it.
    std::fs::write(&config, text.replace("station = \"station\"", "station = \"\"").replace("fps = 1.0", "fps = 0.0"))
        .expect("writes");
    let (code, lines) = preflight(&config);
    assert_eq!((code, of(&lines, "configuration").len()), (1, 1), "{lines:?}");
    assert!(of(&lines, "configuration")[0]["found"].as_str().expect("text").contains("station: is empty"));
}

#[test]
fn the_version_says_what_was_built() {
    let dir = tempfile::tempdir().expect("directory");
    let (code, out, _) = run(DSAD, &["--version"], dir.path());
    assert_eq!(code, 0);
    let lines: Vec<(&str, &str)> = out.lines().skip(1).filter_map(|line| line.split_once(": ")).collect();
    let keys: Vec<&str> = lines.iter().map(|(key, _)| *key).collect();
    assert_eq!(keys, ["revision", "features", "CUDA binding"], "{out}");
    assert!(lines[1].1.split(',').any(|feature| feature == "station"), "{out}");
    assert!(out.starts_with(&format!("dsad {}\n", env!("CARGO_PKG_VERSION"))), "{out}");
}

#[test]
fn man_pages_and_completions_are_made() {
    let dir = tempfile::tempdir().expect("directory");
    let (code, _, error) = run(DSAD, &["generate", "made"], dir.path());
    assert_eq!(code, 0, "{error}");
    for (file, word) in [
        ("dsad.1", "preflight"),
        ("dsad-preflight.1", "root"),
        ("dsad-bundle-verify.1", "keys"),
        ("dsad.bash", "preflight"),
        ("_dsad", "preflight"),
        ("dsad.fish", "preflight"),
    ] {
        let text = std::fs::read_to_string(dir.path().join("made").join(file)).unwrap_or_else(|_| panic!("no {file}"));
        assert!(text.contains(word), "{file}");
    }
}

/// A daemon with a service manager that listens.
struct Managed {
    program: Child,
    manager: UnixDatagram,
}

impl Managed {
    fn start(dir: &Path, arguments: &[&str]) -> Self {
        let socket = dir.join("notify");
        let _ = std::fs::remove_file(&socket);
        let manager = UnixDatagram::bind(&socket).expect("binds");
        let program = Command::new(DSAD)
            .args(arguments)
            .current_dir(dir)
            .env("NOTIFY_SOCKET", &socket)
            .env("WATCHDOG_USEC", "10000000")
            .env("RUST_LOG", "info")
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        Self { program, manager }
    }

    /// The next message, if there is one within this time.
    fn hear(&self, within: Duration) -> Option<String> {
        self.manager.set_read_timeout(Some(within)).expect("timeout");
        let mut bytes = [0; 4096];
        let length = self.manager.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    /// The first message with this word, within a minute; those before it are dropped.
    fn hear_of(&self, word: &str) -> String {
        let until = Instant::now() + Duration::from_secs(60);
        while Instant::now() < until {
            if let Some(message) = self.hear(Duration::from_secs(1)).filter(|message| message.contains(word)) {
                return message;
            }
        }
        panic!("no {word}");
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.program.id().to_string()]).status().expect("kills").success());
    }

    fn ends(mut self) -> i32 {
        self.program.wait().expect("ends").code().unwrap_or(-1)
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("connects");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("asks");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answers");
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, answer.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned()))
}

#[test]
fn a_refused_configuration_is_told_in_safe_mode_until_it_is_mended() {
    let (bundle, _) = tiny_bundle();
    let dir = tempfile::tempdir().expect("directory");
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("address");
    crate::cli::config(dir.path(), bundle, "{ kind = 'synthetic', product = 'washer', fps = 20.0 }", "events.ndjson");
    let path = dir.path().join("dsad.toml");
    let good = format!("{}[http]\nlisten = '{address}'\n", std::fs::read_to_string(&path).expect("reads"));
    let wrong = good.replace("station = 's'", "station = ''").replace("fps = 20.0", "fps = -1.0");
    std::fs::write(&path, &wrong).expect("writes");

    // Without a service manager nobody would see it: it ends.
    let (code, _, error) = run(DSAD, &["run", "--config", "dsad.toml"], dir.path());
    assert_eq!(code, 78, "{error}");

    let daemon = Managed::start(dir.path(), &["run", "--config", "dsad.toml"]);
    let ready = daemon.hear_of("READY=1");
    assert!(ready.contains("STATUS=safe mode, outputs off: dsad.toml: station: is empty"), "{ready}");
    assert!(ready.contains("(and 1 more)"), "{ready}");
    daemon.hear_of("WATCHDOG=1");
    assert_eq!(get(address, "/livez").0, 200);
    let (code, body) = get(address, "/readyz");
    assert_eq!(code, 503);
    let body: Value = serde_json::from_str(&body).expect("JSON");
    let reasons = body["reasons"].as_array().expect("reasons");
    assert!(reasons[1].as_str().expect("text").contains("station: is empty"), "{body}");
    assert!(reasons[2].as_str().expect("text").contains("source.fps: -1"), "{body}");
    assert!(!dir.path().join("events.ndjson").exists(), "nothing is judged");

    // Read again: less is wrong, and it is said.
    std::fs::write(&path, wrong.replace("station = ''", "station = 's'")).expect("writes");
    daemon.signal("-HUP");
    let status = daemon.hear_of("STATUS=");
    assert!(status.contains("source.fps: -1") && !status.contains("more"), "{status}");
    let (_, body) = get(address, "/readyz");
    assert!(!body.contains("station: is empty") && body.contains("source.fps"), "{body}");

    // Mended: it ends, to be started anew.
    std::fs::write(&path, &good).expect("writes");
    daemon.signal("-HUP");
    daemon.hear_of("STOPPING=1");
    assert_eq!(daemon.ends(), 0);
    let daemon = Managed::start(dir.path(), &["run", "--config", "dsad.toml"]);
    assert!(daemon.hear_of("READY=1").contains("STATUS=judging"));
    daemon.signal("-TERM");
    assert_eq!(daemon.ends(), 0);
}

#[test]
fn a_bundle_that_is_refused_is_told_in_safe_mode() {
    let dir = tempfile::tempdir().expect("directory");
    let address = TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("address");
    crate::cli::config(dir.path(), Path::new("nowhere"), "{ kind = 'synthetic', product = 'washer' }", "events.ndjson");
    let path = dir.path().join("dsad.toml");
    let text = std::fs::read_to_string(&path).expect("reads");
    std::fs::write(&path, format!("{text}[http]\nlisten = '{address}'\n")).expect("writes");
    // The address of the daemon is taken over.
    let daemon = Managed::start(dir.path(), &["run", "--config", "dsad.toml"]);
    assert!(daemon.hear_of("READY=1").contains("STATUS=safe mode, outputs off: nowhere"));
    assert!(get(address, "/readyz").1.contains("nowhere"));
    daemon.signal("-TERM");
    daemon.hear_of("STOPPING=1");
    assert_eq!(daemon.ends(), 0);
}

#[test]
fn the_watchdog_is_fed_while_every_stage_progresses_and_no_longer() {
    let (bundle, parts) = tiny_bundle();
    let dir = tempfile::tempdir().expect("directory");
    // A folder of pictures, and one of pipes by the same names.
    let (line, pipes, pipe) = (dir.path().join("line"), dir.path().join("pipes"), dir.path().join("pipe"));
    let mut good = std::fs::read_dir(parts.join("washer/train/good")).expect("parts");
    std::fs::copy(good.next().expect("one").expect("one").path(), dir.path().join("good.png")).expect("copies");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("makes").success());
    for (folder, file) in [(&line, dir.path().join("good.png")), (&pipes, pipe)] {
        std::fs::create_dir(folder).expect("directory");
        for number in 0..1000 {
            std::fs::hard_link(&file, folder.join(format!("{number}.png"))).expect("links");
        }
    }
    let source = format!("{{ kind = 'replay', folder = '{}', fps = 10.0 }}", line.display());
    crate::cli::config(dir.path(), bundle, &source, "events.ndjson");
    let daemon = Managed::start(dir.path(), &["run", "--config", "dsad.toml"]);
    // Nothing is fed before it is ready.
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        assert!(Instant::now() < until, "never ready");
        let Some(message) = daemon.hear(Duration::from_secs(1)) else { continue };
        assert!(!message.contains("WATCHDOG=1"), "{message}");
        if message.contains("READY=1") {
            break;
        }
    }
    for _ in 0..10 {
        daemon.hear_of("WATCHDOG=1");
    }
    // From now on a picture is a pipe that nobody writes into: the capture stage hangs in its read, and nothing else does.
    std::fs::rename(&line, dir.path().join("read")).expect("renames");
    std::fs::rename(&pipes, &line).expect("renames");
    let until = Instant::now() + Duration::from_secs(60);
    // Far longer than the time between two words of a daemon that is well, a tenth of a second.
    while daemon.hear(Duration::from_secs(4)).is_some() {
        assert!(Instant::now() < until, "the watchdog is still fed");
    }
}
