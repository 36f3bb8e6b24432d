//! The way to ready of a whole daemon, as systemd and the log see it.

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::cli::config;
use crate::support::{DSAD, tiny_bundle};

#[test]
fn systemd_is_asked_for_time_before_every_step_of_the_start() {
    let (bundle, _) = tiny_bundle();
    let dir = tempfile::tempdir().expect("directory");
    config(dir.path(), bundle, "{ kind = 'synthetic', product = 'washer', fps = 20.0 }", "events.ndjson");
    let socket = dir.path().join("notify");
    let manager = UnixDatagram::bind(&socket).expect("binds");
    manager.set_read_timeout(Some(Duration::from_secs(60))).expect("timeout");
    let program = Command::new(DSAD)
        .args(["run", "--config", "dsad.toml"])
        .current_dir(dir.path())
        .env("NOTIFY_SOCKET", &socket)
        .env_remove("WATCHDOG_USEC")
        .env("RUST_LOG", "info")
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut bytes = [0; 4096];
    let mut next = || {
        let length = manager.recv(&mut bytes).expect("a message");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let mut steps = Vec::new();
    let ready = loop {
        let message = next();
        if message.contains("READY=1") {
            break message;
        }
        assert!(message.contains("EXTEND_TIMEOUT_USEC=600000000\n"), "{message}");
        steps.push(message.split_once("STATUS=").expect("a status").1.trim_end().to_owned());
    };
    assert!(ready.contains("STATUS=judging 1 camera(s) on cpu"), "{ready}");
    let words = ["opening the device cpu", "loading the bundle", "self-test", "warming up for the recipe 'r'"];
    assert_eq!(steps.len(), words.len(), "{steps:?}");
    for (step, word) in steps.iter().zip(words) {
        assert!(step.contains(word), "{steps:?}");
    }
    assert!(Command::new("kill").args(["-TERM", &program.id().to_string()]).status().expect("kills").success());
    while !next().contains("STOPPING=1") {}
    let output = program.wait_with_output().expect("ends");
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{log}");
    // The same in the log, each with the time since the start.
    for step in steps {
        assert!(log.lines().any(|line| line.contains("start, ") && line.ends_with(&step)), "no '{step}': {log}");
    }
    assert!(log.contains("ready after "), "{log}");
}
