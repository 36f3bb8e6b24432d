//! What `dsad --version` says of the build: revision, features, CUDA binding. Works without git.

use std::env;
use std::process::Command;

fn main() {
    for variable in ["CUDARC_CUDA_VERSION", "DSAD_REVISION"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    let features = env::vars().filter_map(|(name, _)| Some(name.strip_prefix("CARGO_FEATURE_")?.to_owned()));
    let mut features: Vec<String> = features.map(|name| name.to_lowercase().replace('_', "-")).collect();
    features.retain(|name| name != "default");
    features.sort();
    println!("cargo:rustc-env=DSAD_FEATURES={}", features.join(","));
    let binding = match env::var("CUDARC_CUDA_VERSION") {
        _ if !features.iter().any(|name| name == "cuda") => "none".to_owned(),
        Ok(version) => version,
        Err(_) => "not chosen".to_owned(),
    };
    println!("cargo:rustc-env=DSAD_CUDA_BINDING={binding}");
    println!("cargo:rustc-env=DSAD_REVISION={}", revision());
}

/// The revision that was asked for, or that of git. Only a release asks git: every commit would compile a debug build anew.
fn revision() -> String {
    if let Some(given) = env::var("DSAD_REVISION").ok().filter(|given| !given.is_empty()) {
        return given;
    }
    if env::var("PROFILE").as_deref() != Ok("release") {
        return "debug".into();
    }
    // Whatever changes the sources or the revision, so that `-changed` is true.
    for path in ["src", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={path}");
    }
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo:rerun-if-changed={log}");
    }
    let Some(revision) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".into() };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| !changes.is_empty());
    if changed { format!("{revision}-changed") } else { revision }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
