//! `trainer synth`: pictures of a procedural product line, in MVTec layout.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use indicatif::ProgressBar;
use serde_json::json;

use crate::render::encode;
use crate::synthetic::{DefectFamily, Part, Product, defective_part, good_part};

/// Arguments of `trainer synth`.
#[derive(Debug, clap::Args)]
pub struct SynthArgs {
    /// Good training parts per product; the test split gets half as many good and half as many defective ones
    #[arg(long, default_value_t = 200)]
    count: u64,
    /// Good test parts per product
    #[arg(long)]
    test_good: Option<u64>,
    /// Defective test parts per product, spread over the defect families
    #[arg(long)]
    test_defective: Option<u64>,
    /// Seed; the same seed makes the same pictures
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Pixels per side
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(32..=2048))]
    size: u32,
    /// Directory to make
    #[arg(long)]
    out: PathBuf,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// Streams of seeds that never meet: a test part is none that was trained on.
const STREAMS: u64 = 4;

/// Runs the verb.
///
/// # Errors
/// A directory that is not empty, or a disk that refuses.
pub fn run(args: &SynthArgs) -> anyhow::Result<()> {
    if let Ok(mut entries) = std::fs::read_dir(&args.out) {
        ensure!(entries.next().is_none(), "{}: is not empty; choose another --out", args.out.display());
    }
    let test_good = args.test_good.unwrap_or(args.count / 2);
    let test_defective = args.test_defective.unwrap_or(args.count / 2);
    let per_product = args.count + test_good + test_defective;
    let progress = ProgressBar::new(per_product * Product::ALL.len() as u64);
    let seed_of = |product: usize, stream: u64, index: u64| {
        // One seed per part: the product and the stream in the low digits.
        ((args.seed << 32) + index) * STREAMS * 8 + product as u64 * STREAMS + stream
    };
    for (number, product) in Product::ALL.into_iter().enumerate() {
        let root = args.out.join(product.name());
        let good = |stream, split: &str, count| -> anyhow::Result<()> {
            for index in 0..count {
                let part = good_part(product, seed_of(number, stream, index), args.size);
                write(&root.join(split).join("good"), index, &part)?;
                progress.inc(1);
            }
            Ok(())
        };
        good(0, "train", args.count)?;
        good(1, "test", test_good)?;
        for index in 0..test_defective {
            let family = DefectFamily::ALL[(index % DefectFamily::ALL.len() as u64) as usize];
            let part = defective_part(product, family, seed_of(number, 2, index), args.size);
            write(&root.join("test").join(family.name()), index, &part)?;
            let side = args.size as usize;
            let folder = root.join("ground_truth").join(family.name());
            store(&folder, &format!("{index:05}_mask.png"), &encode::png_grey(&part.mask, side, side)?)?;
            progress.inc(1);
        }
        if args.json {
            println!(
                "{}",
                json!({"product": product.name(), "train": args.count, "test_good": test_good,
                       "test_defective": test_defective})
            );
        }
    }
    progress.finish_and_clear();
    let total = per_product * Product::ALL.len() as u64;
    if args.json {
        println!("{}", json!({"out": args.out, "pictures": total, "seed": args.seed}));
    } else {
        println!("{total} pictures of {} products in {}", Product::ALL.len(), args.out.display());
    }
    Ok(())
}

fn write(folder: &Path, index: u64, part: &Part) -> anyhow::Result<()> {
    let bytes = encode::png(&part.rgb, part.width as usize, part.height as usize)?;
    store(folder, &format!("{index:05}.png"), &bytes)
}

fn store(folder: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
    let path = folder.join(name);
    std::fs::write(&path, bytes).with_context(|| format!("{}: cannot be written", path.display()))
}
