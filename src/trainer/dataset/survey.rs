//! What is in a data set, before hours are spent on it: counts, sizes, missing masks, unreadable files, and pictures that are
//! there twice. In training and in the test they make every figure too good; within training they stand on both sides of
//! the division, and the thresholds believe that everything is familiar.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZero;
use std::path::{Path, PathBuf};

use super::{Set, Skipped};
use crate::preprocess::decode;

/// What is in one set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Its name.
    pub set: String,
    /// Good pictures for training.
    pub train: usize,
    /// Good pictures for the test.
    pub test_good: usize,
    /// Defective pictures for the test.
    pub test_defective: usize,
    /// Defective pictures without a mask.
    pub without_mask: Vec<PathBuf>,
    /// Pictures and masks that cannot be read, and why.
    pub unreadable: Vec<(PathBuf, String)>,
    /// Test pictures with the very bytes of a training picture, and which.
    pub duplicates: Vec<(PathBuf, PathBuf)>,
    /// Training pictures with the very bytes of one before them, and which.
    pub repeated: Vec<(PathBuf, PathBuf)>,
    /// Columns and rows of the training pictures, and how many have them; the most frequent first.
    pub sizes: Vec<((u32, u32), usize)>,
}

/// What one file is.
struct Look {
    hash: blake3::Hash,
    size: (u32, u32),
}

/// Looks at every file of a set once, on all cores.
pub fn survey(set: &Set) -> Survey {
    let tested = set.test.iter().flat_map(|sample| [Some(&sample.path), sample.mask.as_ref()]).flatten();
    let paths: Vec<&PathBuf> = set.train.iter().chain(tested).collect();
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
    let looks: Vec<_> = std::thread::scope(|scope| {
        let started: Vec<_> = paths
            .chunks(paths.len().div_ceil(workers).max(1))
            .map(|paths| scope.spawn(|| paths.iter().map(|path| look(path)).collect::<Vec<_>>()))
            .collect();
        started.into_iter().flat_map(|worker| worker.join().expect("a look cannot panic")).collect()
    });
    let mut seen: HashMap<&PathBuf, Look> = HashMap::new();
    let mut unreadable = Vec::new();
    for (path, look) in paths.into_iter().zip(looks) {
        match look {
            Ok(look) => drop(seen.insert(path, look)),
            Err(reason) => unreadable.push((path.clone(), reason)),
        }
    }
    let mut trained: HashMap<blake3::Hash, &PathBuf> = HashMap::new();
    let mut repeated = Vec::new();
    let mut sizes: BTreeMap<(u32, u32), usize> = BTreeMap::new();
    for (path, look) in set.train.iter().filter_map(|path| Some((path, seen.get(path)?))) {
        *sizes.entry(look.size).or_default() += 1;
        match trained.get(&look.hash) {
            Some(first) => repeated.push((path.clone(), (*first).clone())),
            None => drop(trained.insert(look.hash, path)),
        }
    }
    let mut sizes: Vec<_> = sizes.into_iter().collect();
    sizes.sort_by_key(|(size, count)| (std::cmp::Reverse(*count), *size));
    let twin = |path: &PathBuf| Some((path.clone(), (*trained.get(&seen.get(path)?.hash)?).clone()));
    let duplicates = set.test.iter().filter_map(|sample| twin(&sample.path)).collect();
    let defective = || set.test.iter().filter(|sample| sample.defect.is_some());
    Survey {
        set: set.name.clone(),
        train: set.train.len(),
        test_good: set.test.len() - defective().count(),
        test_defective: defective().count(),
        without_mask: defective().filter(|sample| sample.mask.is_none()).map(|sample| sample.path.clone()).collect(),
        unreadable,
        duplicates,
        repeated,
        sizes,
    }
}

fn look(path: &Path) -> Result<Look, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let picture = decode::decode(&bytes).map_err(|error| error.to_string())?;
    Ok(Look { hash: blake3::hash(&bytes), size: (picture.width, picture.height) })
}

/// Surveys a set, says what was found, and takes what cannot be used out of it.
pub fn survey_and_clean(set: &mut Set, skipped: &mut Vec<Skipped>) -> Survey {
    let survey = survey(set);
    survey.log();
    survey.clean(set, skipped);
    survey
}

impl Survey {
    /// Takes what cannot be read, and what is there twice, out of a set's training pictures.
    pub fn clean(&self, set: &mut Set, skipped: &mut Vec<Skipped>) {
        let unreadable = self.unreadable.iter().map(|(path, reason)| (path, reason.clone()));
        let repeated =
            self.repeated.iter().map(|(path, first)| (path, format!("the same picture as {}", first.display())));
        for (path, reason) in unreadable.chain(repeated) {
            set.train.retain(|kept| kept != path);
            skipped.push(Skipped { path: path.clone(), reason });
        }
        set.test.retain(|sample| !self.unreadable.iter().any(|(path, _)| *path == sample.path));
    }

    /// What should be known before training, each in a sentence with its remedy.
    pub fn remarks(&self) -> Vec<String> {
        let Self { set, test_defective, .. } = self;
        let mut remarks = Vec::new();
        if let [((width, height), count), others @ ..] = &self.sizes[..]
            && !others.is_empty()
        {
            remarks.push(format!(
                "{set}: {count} pictures of {width}x{height} and {} of {} other sizes: all are stretched to one grid, so cut \
                 them alike if they do not show the same field",
                others.iter().map(|(_, count)| count).sum::<usize>(),
                others.len()
            ));
        }
        for (test, twin) in &self.duplicates {
            let (test, twin) = (test.display(), twin.display());
            remarks.push(format!("{set}: {test} is in the test and, as {twin}, in training: remove one of them"));
        }
        if let Some(first) = self.without_mask.first() {
            remarks.push(format!(
                "{set}: {} of {test_defective} defective pictures have no mask and leave the pixel metrics, for one {}",
                self.without_mask.len(),
                first.display()
            ));
        }
        remarks
    }

    /// Says all of it in the log.
    pub fn log(&self) {
        let Self { set, train, test_good, test_defective, .. } = self;
        log::info!("{set}: {train} good pictures to train on; test: {test_good} good, {test_defective} defective");
        if let [((width, height), _)] = self.sizes[..] {
            log::info!("{set}: all of {width}x{height}");
        }
        self.remarks().iter().for_each(|remark| log::warn!("{remark}"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::discover::discover;
    use super::*;

    #[test]
    fn what_spoils_a_training_is_found() {
        let dir = tempfile::tempdir().expect("directory");
        let picture = |path: &str, grey: u8| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("makes folders");
            image::GrayImage::from_pixel(8, 8, image::Luma([grey])).save(path).expect("writes");
        };
        picture("train/good/0.png", 1);
        picture("train/good/1.png", 2);
        picture("train/good/3.png", 2);
        picture("test/good/7.png", 2);
        picture("test/hole/0.png", 3);
        picture("test/hole/1.png", 4);
        picture("ground_truth/hole/0_mask.png", 255);
        std::fs::write(dir.path().join("train/good/2.png"), b"\x89PNG\r\n\x1a\n, then nothing").expect("writes");
        let set = discover(dir.path()).expect("a set").sets.remove(0);
        let found = survey(&set);
        assert_eq!((found.train, found.test_good, found.test_defective), (4, 1, 2));
        assert_eq!(found.sizes, [((8, 8), 3)]);
        assert_eq!(found.repeated, [(dir.path().join("train/good/3.png"), dir.path().join("train/good/1.png"))]);
        assert_eq!(found.without_mask, [dir.path().join("test/hole/1.png")]);
        assert_eq!(found.unreadable[0].0, dir.path().join("train/good/2.png"));
        let (mut cleaned, mut skipped) = (set.clone(), Vec::new());
        found.clean(&mut cleaned, &mut skipped);
        assert_eq!((cleaned.train.len(), cleaned.test.len(), skipped.len()), (2, 3, 2));
        assert_eq!(found.duplicates, [(dir.path().join("test/good/7.png"), dir.path().join("train/good/1.png"))]);
    }
}
