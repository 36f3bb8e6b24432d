//! `dsad`: judges parts.

use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, Parser, Subcommand};
use dsad::commands::{
    accounts, bundle, calibrate, cameras, check, config_schema, demo, events, generate, gpio, inspect, preflight, run,
    version, warm_up,
};
use dsad::platform::clock::SystemClock;
use dsad::platform::logger;

/// Judges parts on a factory line with a guided diffusion model
#[derive(Parser)]
#[command(version, long_version = version::VERSION)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// A synthetic line, judged live: needs no camera, no GPU and no data
    Demo(demo::DemoArgs),
    /// Judge picture files
    Inspect(inspect::InspectArgs),
    /// The daemon
    Run(run::RunArgs),
    /// Check a configuration and start nothing
    Check(check::CheckArgs),
    /// What may be written in the configuration, as a JSON schema for editors
    ConfigSchema(config_schema::ConfigSchemaArgs),
    /// What this machine lacks for a station, with remedies
    Preflight(preflight::PreflightArgs),
    /// Judge once as the station will: compile kernels for its GPU and keep them, before the first part
    WarmUp(warm_up::WarmUpArgs),
    /// Set thresholds on this station from good parts, the signed bundle untouched
    Calibrate(calibrate::CalibrateArgs),
    /// Cameras that are plugged in, and what they can do
    Cameras(cameras::CamerasArgs),
    /// GPIO lines: which there are, what an input sees, whether an output moves
    Gpio(gpio::GpioArgs),
    /// Events and the audit trail that the station keeps
    Events(events::EventsArgs),
    /// Who may command a station over HTTP
    Accounts(accounts::AccountsArgs),
    /// Bundles
    Bundle(bundle::BundleArgs),
    /// Man pages and shell completions
    #[command(hide = true)]
    Generate(generate::GenerateArgs),
}

fn main() -> ExitCode {
    let clock = Arc::new(SystemClock::start());
    logger::install();
    let result = match Arguments::parse().verb {
        Verb::Demo(args) => demo::run(&args, clock),
        Verb::Inspect(args) => inspect::run(&args),
        Verb::Run(args) => run::run(&args),
        Verb::Check(args) => check::run(&args),
        Verb::ConfigSchema(args) => config_schema::run(&args),
        Verb::Preflight(args) => preflight::run(&args, clock.as_ref()),
        Verb::WarmUp(args) => warm_up::run(&args, clock),
        Verb::Calibrate(args) => calibrate::run(&args),
        Verb::Cameras(args) => cameras::run(&args, clock),
        Verb::Gpio(args) => gpio::run(&args, clock),
        Verb::Events(args) => events::run(&args),
        Verb::Accounts(args) => accounts::run(&args),
        Verb::Bundle(args) => bundle::run(&args, clock),
        Verb::Generate(args) => generate::run(&args, Arguments::command()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("dsad: {error:#}");
        ExitCode::from(inspect::FAULT)
    })
}
