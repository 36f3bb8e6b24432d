//! `trainer sweep`: variants on several sets, side by side, and one table.

use std::path::PathBuf;

use anyhow::ensure;
use serde_json::json;

use crate::trainer::export::{revision, timestamp};
use crate::trainer::sweep::plan::SweepFile;
use crate::trainer::sweep::row::Row;
use crate::trainer::sweep::run::Sweep;
use crate::trainer::sweep::table::{Header, Table};

/// Arguments of `trainer sweep`.
#[derive(Debug, clap::Args)]
pub struct SweepArgs {
    /// What to compare: see configs/sweeps
    file: PathBuf,
    /// Folder for the table and all rows; a sweep that was killed goes on with the same command
    #[arg(long)]
    out: PathBuf,
    /// A set, or a folder of sets, instead of `data` in the file
    #[arg(long)]
    data: Option<PathBuf>,
    /// One JSON object a line: the lines of the table, the summary last
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
///
/// # Errors
/// A file that makes no sense, a disk that refuses, or rows that failed, after all others have run.
pub fn run(args: &SweepArgs) -> anyhow::Result<()> {
    let plan = SweepFile::read(&args.file)?.plan(&args.file, args.data.as_deref())?;
    let devices: Vec<String> = plan.devices.iter().map(ToString::to_string).collect();
    let table = |rows: &[&Row]| {
        let header = Header {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: revision(),
            device: format!("{}, {} side by side", devices.join(", "), plan.parallel),
            date: timestamp(),
            command: std::env::args().collect::<Vec<_>>().join(" "),
        };
        Table::new(header, plan.jobs.len(), rows)
    };
    let sweep = Sweep::open(&args.out)?;
    let rows = sweep.run(&plan, |rows| table(rows).write(&args.out))?;
    let table = table(&rows.iter().collect::<Vec<_>>());
    if args.json {
        for line in &table.lines {
            println!("{}", serde_json::to_string(line)?);
        }
        let summary = json!({
            "header": table.header, "rows": rows.len(), "failed": table.failed, "means": table.means,
            "table": args.out.join("table.md"),
        });
        println!("{summary}");
    } else {
        print!("{}", table.markdown());
    }
    ensure!(
        table.failed == 0,
        "{} of {} rows failed, see {}; the same command tries them again",
        table.failed,
        rows.len(),
        args.out.join("table.md").display()
    );
    Ok(())
}
