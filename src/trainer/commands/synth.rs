//! `trainer synth`: pictures of a procedural product line, in MVTec layout.
//!
//! ```text
//! OUT/<product>/train/good/00000.png
//! OUT/<product>/test/good/00000.png
//! OUT/<product>/test/<family>/00000.png
//! OUT/<product>/ground_truth/<family>/00000_mask.png
//! OUT/.synth.json                                      what was asked for
//! ```
//! A product is written under `OUT/.<product>.partial` and moved into place when it is whole: what has its name can be
//! trusted, an interrupted run leaves no half set that looks like one, and the same command again makes what is missing.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::render::encode;
use crate::synthetic::{DefectFamily, Product, defective_part, good_part};

/// What was asked for, in the directory that it made.
const REQUEST: &str = ".synth.json";

/// Arguments of `trainer synth`.
#[derive(Debug, clap::Args)]
pub struct SynthArgs {
    /// Good training parts per product; unless said otherwise the test split gets half as many good and half as many
    /// defective parts
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub count: u32,
    /// Good test parts per product
    #[arg(long)]
    pub test_good: Option<u32>,
    /// Defective test parts per product, spread evenly over the defect families
    #[arg(long)]
    pub test_defective: Option<u32>,
    /// Seed; the same seed makes the same pictures
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..1 << 30))]
    pub seed: u32,
    /// Pixels per side
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(32..=2048))]
    pub size: u32,
    /// Directory to make; the same command on it again makes what is missing
    #[arg(long)]
    pub out: PathBuf,
    /// Remove what an earlier run made and start again
    #[arg(long)]
    pub fresh: bool,
    /// One JSON object a product on stdout, then the summary
    #[arg(long)]
    pub json: bool,
}

/// What a part is made for. Training and test parts come from seed spaces that cannot meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Split {
    Train,
    TestGood,
    TestDefective,
}

/// One picture to make.
#[derive(Debug, Clone, Copy)]
struct Job {
    split: Split,
    index: u32,
}

impl Job {
    /// Seed 30 bits, split 2 bits, index 32 bits: no two jobs of any two runs with different seeds share a part.
    fn seed(self, seed: u32) -> u64 {
        (u64::from(seed) << 34) | ((self.split as u64) << 32) | u64::from(self.index)
    }

    fn family(self) -> Option<DefectFamily> {
        (self.split == Split::TestDefective).then(|| DefectFamily::ALL[self.index as usize % DefectFamily::ALL.len()])
    }
}

/// Runs the verb.
///
/// # Errors
/// A directory that is not empty, or a disk that refuses.
pub fn run(args: &SynthArgs) -> anyhow::Result<()> {
    let test_good = args.test_good.unwrap_or(args.count / 2);
    let test_defective = args.test_defective.unwrap_or(args.count / 2);
    let jobs: Vec<Job> =
        [(Split::Train, args.count), (Split::TestGood, test_good), (Split::TestDefective, test_defective)]
            .into_iter()
            .flat_map(|(split, count)| (0..count).map(move |index| Job { split, index }))
            .collect();
    let total = jobs.len() * Product::ALL.len();
    let request = json!({"count": args.count, "test_good": test_good, "test_defective": test_defective,
                         "seed": args.seed, "size": args.size, "version": env!("CARGO_PKG_VERSION")});
    open(&args.out, &request, args.fresh)?;
    let progress = ProgressBar::new(total as u64)
        .with_style(ProgressStyle::with_template("{msg:8} {wide_bar} {pos}/{len} pictures, {eta} left")?);
    for product in Product::ALL {
        progress.set_message(product.name());
        let done = args.out.join(product.name());
        if done.exists() {
            progress.inc(jobs.len() as u64);
            continue;
        }
        let partial = args.out.join(format!(".{}.partial", product.name()));
        if partial.exists() {
            std::fs::remove_dir_all(&partial).with_context(|| format!("{}: cannot be removed", partial.display()))?;
        }
        make_folders(&partial)?;
        draw_all(product, args, &partial, &jobs, &progress)?;
        std::fs::rename(&partial, &done).with_context(|| format!("{}: cannot be put in place", done.display()))?;
        if args.json {
            println!(
                "{}",
                json!({"product": product.name(), "train": args.count, "test_good": test_good,
                       "test_defective": test_defective})
            );
        }
    }
    progress.finish_and_clear();
    if args.json {
        println!("{}", json!({"out": args.out, "products": Product::ALL.len(), "pictures": total, "seed": args.seed}));
    } else {
        println!("{total} pictures of {} products in {}", Product::ALL.len(), args.out.display());
    }
    Ok(())
}

/// Makes the directory, or takes up the run of the same request that is in it.
fn open(out: &Path, request: &serde_json::Value, fresh: bool) -> anyhow::Result<()> {
    let path = out.join(REQUEST);
    if fresh && path.exists() {
        for product in Product::ALL {
            for folder in [out.join(product.name()), out.join(format!(".{}.partial", product.name()))] {
                if folder.exists() {
                    std::fs::remove_dir_all(&folder)
                        .with_context(|| format!("{}: cannot be removed", folder.display()))?;
                }
            }
        }
        std::fs::remove_file(&path).with_context(|| format!("{}: cannot be removed", path.display()))?;
    }
    if let Ok(text) = std::fs::read(&path) {
        let earlier: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        ensure!(
            earlier == *request,
            "{}: made with other settings ({earlier} instead of {request}); choose another --out, or start again with \
             --fresh",
            path.display()
        );
        return Ok(());
    }
    let empty = std::fs::read_dir(out).map_or(true, |mut entries| entries.next().is_none());
    ensure!(empty, "{}: the directory is not empty; choose another --out or remove it", out.display());
    std::fs::create_dir_all(out).with_context(|| format!("{}: cannot be made", out.display()))?;
    store(&path, format!("{request}\n").as_bytes())
}

fn make_folders(root: &Path) -> anyhow::Result<()> {
    let mut folders = vec![root.join("train/good"), root.join("test/good")];
    for family in DefectFamily::ALL {
        folders.push(root.join("test").join(family.name()));
        folders.push(root.join("ground_truth").join(family.name()));
    }
    for folder in folders {
        std::fs::create_dir_all(&folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
    }
    Ok(())
}

/// Draws and writes all pictures of a product on all cores; the first failure stops the others.
fn draw_all(product: Product, args: &SynthArgs, root: &Path, jobs: &[Job], bar: &ProgressBar) -> anyhow::Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> anyhow::Result<()> {
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = draw(product, args, root, *job) {
                next.store(jobs.len(), Ordering::Relaxed);
                return Err(error);
            }
            bar.inc(1);
        }
        Ok(())
    };
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let outcomes: Vec<_> = handles.into_iter().map(|handle| handle.join()).collect();
        outcomes.into_iter().try_for_each(|outcome| outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn draw(product: Product, args: &SynthArgs, root: &Path, job: Job) -> anyhow::Result<()> {
    let (seed, side, index) = (job.seed(args.seed), args.size as usize, job.index);
    let Some(family) = job.family() else {
        let split = if job.split == Split::Train { "train" } else { "test" };
        let part = good_part(product, seed, args.size);
        return store(
            &root.join(split).join("good").join(format!("{index:05}.png")),
            &encode::png(&part.rgb, side, side)?,
        );
    };
    let part = defective_part(product, family, seed, args.size);
    let picture = root.join("test").join(family.name()).join(format!("{index:05}.png"));
    let mask = root.join("ground_truth").join(family.name()).join(format!("{index:05}_mask.png"));
    store(&picture, &encode::png(&part.rgb, side, side)?)?;
    store(&mask, &encode::png_grey(&part.mask, side, side)?)
}

fn store(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("{}: cannot be written", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn args(out: PathBuf) -> SynthArgs {
        SynthArgs {
            count: 4,
            test_good: None,
            test_defective: Some(9),
            seed: 3,
            size: 32,
            out,
            fresh: false,
            json: false,
        }
    }

    fn files(folder: &Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn writes_a_whole_tree_and_masks_beside_every_defect() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("line");
        run(&args(out.clone())).unwrap();
        assert_eq!(files(&out), Product::ALL.len() + 1, "no partial folder stays");
        for product in Product::ALL {
            let root = out.join(product.name());
            assert_eq!(files(&root.join("train/good")), 4);
            assert_eq!(files(&root.join("test/good")), 2);
            let mut defects = 0;
            for family in DefectFamily::ALL {
                let pictures = files(&root.join("test").join(family.name()));
                assert_eq!(pictures, files(&root.join("ground_truth").join(family.name())));
                defects += pictures;
            }
            assert_eq!(defects, 9);
        }
        let mask = image::open(out.join("board/ground_truth/scratch/00008_mask.png")).unwrap().into_luma8();
        assert!(mask.pixels().any(|p| p.0 == [255]) && mask.pixels().all(|p| matches!(p.0, [0] | [255])));
    }

    #[test]
    fn a_directory_with_something_in_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("mine.txt"), "keep").unwrap();
        let message = run(&args(dir.path().to_path_buf())).unwrap_err().to_string();
        assert!(message.contains("not empty") && message.contains("--out"), "{message}");
        assert_eq!(files(dir.path()), 1);
    }

    #[test]
    fn the_same_command_makes_what_is_missing_and_another_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("line");
        run(&args(out.clone())).unwrap();
        let first = std::fs::read(out.join("board/train/good/00002.png")).unwrap();
        // As a kill leaves it: one product half written.
        std::fs::rename(out.join("board"), out.join(".board.partial")).unwrap();
        std::fs::write(out.join(".board.partial/train/good/00002.png"), b"half").unwrap();
        run(&args(out.clone())).unwrap();
        assert_eq!(std::fs::read(out.join("board/train/good/00002.png")).unwrap(), first);
        assert_eq!(files(&out), Product::ALL.len() + 1);
        let other = SynthArgs { seed: 4, ..args(out.clone()) };
        assert!(run(&other).unwrap_err().to_string().contains("--fresh"));
        run(&SynthArgs { fresh: true, ..other }).unwrap();
        assert_ne!(std::fs::read(out.join("board/train/good/00002.png")).unwrap(), first);
    }

    #[test]
    fn no_two_splits_share_a_seed() {
        let mut seen = HashSet::new();
        for seed in [0, 1, 77] {
            for split in [Split::Train, Split::TestGood, Split::TestDefective] {
                for index in [0, 1, 2, u32::MAX] {
                    assert!(seen.insert(Job { split, index }.seed(seed)), "{seed} {split:?} {index}");
                }
            }
        }
    }
}
