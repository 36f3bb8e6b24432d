//! `dsad events`: what the station keeps, beside the daemon that writes it.

use std::io::{BufWriter, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::config::station::load;
use crate::inspection::time::parse_rfc3339;
use crate::output::store::read::{Filter, Reader};

/// Arguments of `dsad events`.
#[derive(Debug, clap::Args)]
pub struct EventsArgs {
    #[command(subcommand)]
    verb: EventsVerb,
}

#[derive(Debug, clap::Subcommand)]
enum EventsVerb {
    /// Write events, the oldest first
    Export(ExportArgs),
    /// Write the audit trail and follow its chain; status 1 where a row was changed or is missing
    Audit(AuditArgs),
}

#[derive(Debug, clap::Args)]
struct ExportArgs {
    /// The station's configuration
    #[arg(long)]
    config: PathBuf,
    /// How they are written
    #[arg(long, value_enum, default_value_t = Format::Ndjson)]
    format: Format,
    /// Made at or after this time, as 2026-11-26 or 2026-11-26T06:00:00Z
    #[arg(long)]
    from: Option<String>,
    /// Made before this time
    #[arg(long)]
    until: Option<String>,
    /// Of this part
    #[arg(long)]
    part: Option<String>,
    /// With this verdict
    #[arg(long, value_parser = ["pass", "fail", "fault"])]
    verdict: Option<String>,
    /// Of this camera
    #[arg(long)]
    camera: Option<String>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    /// One JSON object a line
    Ndjson,
    /// A table with a head; regions and latencies are JSON
    Csv,
}

#[derive(Debug, clap::Args)]
struct AuditArgs {
    /// The station's configuration
    #[arg(long)]
    config: PathBuf,
}

/// Runs the verb.
///
/// # Errors
/// No database, or a time that is none.
pub fn run(args: &EventsArgs) -> anyhow::Result<ExitCode> {
    let config = match &args.verb {
        EventsVerb::Export(ExportArgs { config, .. }) | EventsVerb::Audit(AuditArgs { config }) => config,
    };
    let state = load(config)?.state;
    let reader = Reader::open(&state)
        .with_context(|| format!("{}: no database; the daemon makes it when it runs", state.display()))?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let done = match &args.verb {
        EventsVerb::Export(args) => export(args, &reader, &mut out).map(|()| ExitCode::SUCCESS),
        EventsVerb::Audit(_) => audit(&reader, &mut out),
    };
    match done.and_then(|code| Ok(out.flush().map(|()| code)?)) {
        // Whoever reads has enough, as `head` does.
        Err(error) if error.downcast_ref().is_some_and(|io: &std::io::Error| io.kind() == ErrorKind::BrokenPipe) => {
            Ok(ExitCode::SUCCESS)
        }
        done => done,
    }
}

fn export(args: &ExportArgs, reader: &Reader, out: &mut impl Write) -> anyhow::Result<()> {
    let time = |name: &str, text: &Option<String>| match text {
        Some(text) => parse_rfc3339(text)
            .map(Some)
            .with_context(|| format!("--{name} {text}: write a time of UTC as 2026-11-26 or 2026-11-26T06:00:00Z")),
        None => Ok(None),
    };
    let filter = Filter {
        from: time("from", &args.from)?,
        until: time("until", &args.until)?,
        part: args.part.clone(),
        verdict: args.verdict.clone(),
        camera: args.camera.clone(),
        after: 0,
    };
    let mut result = Ok(());
    let mut head = false;
    reader.events(&filter, |_, json| {
        result = match args.format {
            Format::Ndjson => writeln!(out, "{json}").map_err(Into::into),
            Format::Csv => row(json, std::mem::replace(&mut head, true), out),
        };
        result.is_ok()
    })?;
    result
}

/// An event as a row, after the head if it was not written yet.
fn row(json: &str, headed: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let event: serde_json::Map<String, Value> = serde_json::from_str(json)?;
    if !headed {
        writeln!(out, "{}", event.keys().map(|key| cell(key)).collect::<Vec<_>>().join(","))?;
    }
    let text = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    writeln!(out, "{}", event.values().map(|value| cell(&text(value))).collect::<Vec<_>>().join(","))?;
    Ok(())
}

/// A cell, quoted where RFC 4180 asks for it.
fn cell(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

fn audit(reader: &Reader, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let mut result = Ok(());
    reader.audit(|row| {
        if result.is_ok() {
            result = writeln!(out, "{row}");
        }
    })?;
    result?;
    let found = reader.examine_audit()?;
    if let Some(id) = found.broken {
        out.flush()?;
        bail!("the audit trail is broken at row {id}: it, or the row before it, was changed or deleted");
    }
    eprintln!("{} rows, whole; the last hash is {}", found.rows, found.last);
    Ok(ExitCode::SUCCESS)
}
