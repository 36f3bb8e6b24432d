//! Finding the pictures: a data set with an index, one set (it has `train/good`), a folder of sets, or a flat folder of
//! good pictures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Discovered, Sample, Set, Skipped, index};
use crate::preprocess::decode::EXTENSIONS;

/// Why a folder is no data set.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A folder cannot be listed.
    #[error("{path}: cannot be read: {reason}; give an existing folder that this user may list")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the system says.
        reason: std::io::Error,
    },
    /// There is no good picture.
    #[error(
        "{path}: no good pictures found; give a folder of pictures (PNG, JPEG, BMP, TIFF, PNM), a set with train/good, or \
         a folder of such sets"
    )]
    Empty {
        /// The folder that was searched.
        path: PathBuf,
    },
    /// An index file that cannot be understood.
    #[error("{path}{at}: {reason}", at = .line.map_or_else(String::new, |line| format!(" line {line}")))]
    Index {
        /// Which.
        path: PathBuf,
        /// Where in it.
        line: Option<usize>,
        /// What is wrong.
        reason: String,
    },
    /// The layout of MVTec LOCO AD.
    #[error(
        "{path}: a folder of masks per picture, as in MVTec LOCO AD; one mask per picture is read. Merge them into \
         ground_truth/<defect>/<picture>_mask.png, or leave ground_truth away to test without pixel metrics"
    )]
    SeveralMasks {
        /// The folder.
        path: PathBuf,
    },
}

/// Finds the sets under `data`, sorted by name.
///
/// # Errors
/// A folder that cannot be listed, or no good picture anywhere.
pub fn discover(data: &Path) -> Result<Discovered, DatasetError> {
    let mut skipped = Vec::new();
    let mut sets = Vec::new();
    if let Some(indexed) = index::read(data)? {
        sets = indexed;
    } else if data.join("train").join("good").is_dir() {
        sets.push(read_set(data, &mut skipped)?);
    } else {
        let (folders, files) = list(data)?;
        let (found, others): (Vec<_>, Vec<_>) =
            folders.into_iter().partition(|f| f.join("train").join("good").is_dir());
        if found.is_empty() {
            let train = pictures(data, &mut skipped)?;
            sets.push(Set { name: name_of(data), train, test: Vec::new() });
        } else {
            for folder in found {
                sets.push(read_set(&folder, &mut skipped)?);
            }
            skip(others, "no set: it has no train/good", &mut skipped);
            skip(files, "beside the sets: it belongs to none", &mut skipped);
        }
    }
    let (sets, empty): (Vec<_>, Vec<_>) = sets.into_iter().partition(|set| !set.train.is_empty());
    if sets.is_empty() {
        return Err(DatasetError::Empty { path: data.to_path_buf() });
    }
    skip(empty.iter().map(|set| data.join(&set.name)).collect(), "train/good has no pictures", &mut skipped);
    Ok(Discovered { sets, skipped })
}

fn skip(paths: Vec<PathBuf>, reason: &str, skipped: &mut Vec<Skipped>) {
    skipped.extend(paths.into_iter().map(|path| Skipped { path, reason: reason.to_owned() }));
}

fn read_set(root: &Path, skipped: &mut Vec<Skipped>) -> Result<Set, DatasetError> {
    let (folders, mut others) = list(root)?;
    others.extend(folders.into_iter().filter(|f| !["train", "test", "ground_truth"].contains(&name_of(f).as_str())));
    skip(others, "no part of a set: train, test and ground_truth are read", skipped);
    let (folders, mut others) = list(&root.join("train"))?;
    others.extend(folders.into_iter().filter(|folder| name_of(folder) != "good"));
    skip(others, "training reads train/good only", skipped);
    let train = pictures(&root.join("train").join("good"), skipped)?;
    let mut test = Vec::new();
    let tests = root.join("test");
    if tests.is_dir() {
        let (folders, files) = list(&tests)?;
        skip(files, "outside of test/good and test/<defect>", skipped);
        for folder in folders {
            let defect = name_of(&folder);
            let good = defect == "good";
            // Nothing is marked on a good part, whatever lies there.
            let masks = if good { BTreeMap::new() } else { masks(&root.join("ground_truth").join(&defect), skipped)? };
            for path in pictures(&folder, skipped)? {
                let stem = stem_of(&path);
                let mask = masks.get(&format!("{stem}_mask")).or_else(|| masks.get(&stem)).cloned();
                test.push(Sample { path, mask, defect: (!good).then(|| defect.clone()) });
            }
        }
    }
    Ok(Set { name: name_of(root), train, test })
}

fn masks(folder: &Path, skipped: &mut Vec<Skipped>) -> Result<BTreeMap<String, PathBuf>, DatasetError> {
    if !folder.is_dir() {
        return Ok(BTreeMap::new());
    }
    let holds_pictures = |folder: &PathBuf| list(folder).is_ok_and(|(_, files)| files.iter().any(|f| is_picture(f)));
    if let Some(path) = list(folder)?.0.into_iter().find(holds_pictures) {
        return Err(DatasetError::SeveralMasks { path });
    }
    Ok(pictures(folder, skipped)?.into_iter().map(|path| (stem_of(&path), path)).collect())
}

fn pictures(folder: &Path, skipped: &mut Vec<Skipped>) -> Result<Vec<PathBuf>, DatasetError> {
    let (folders, files) = list(folder)?;
    let (known, unknown): (Vec<_>, Vec<_>) = files.into_iter().partition(|path| is_picture(path));
    skip(folders, "a folder among pictures: not searched", skipped);
    skip(unknown, "not a picture by its extension", skipped);
    Ok(known)
}

/// Whether a path has the extension of a picture, in any case.
pub fn is_picture(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
}

/// Folders and files of a folder, each sorted; hidden ones are left out.
fn list(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), DatasetError> {
    let unreadable = |reason| DatasetError::Unreadable { path: folder.to_path_buf(), reason };
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if !name_of(&path).starts_with('.') {
            entries.push(path);
        }
    }
    entries.sort();
    Ok(entries.into_iter().partition(|path| path.is_dir()))
}

fn name_of(path: &Path) -> String {
    // A relative path such as `.` has no name of its own.
    let named = path.file_name().map(|name| name.to_string_lossy().into_owned());
    named
        .or_else(|| path.canonicalize().ok()?.file_name().map(|n| n.to_string_lossy().into_owned()))
        .unwrap_or_default()
}

fn stem_of(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("directory");
        for file in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("makes folders");
            std::fs::write(path, b"x").expect("writes");
        }
        dir
    }

    #[test]
    fn a_set_with_masks_by_stem() {
        let dir = tree(&[
            "train/good/000.PNG",
            "train/good/readme.txt",
            "test/good/000.jpg",
            "test/hole/000.jpg",
            "test/hole/001.jpg",
            "ground_truth/hole/000_mask.png",
        ]);
        let found = discover(dir.path()).expect("a set");
        assert_eq!(found.sets.len(), 1);
        let set = &found.sets[0];
        assert_eq!((set.train.len(), set.test.len()), (1, 3));
        assert_eq!(set.test.iter().filter(|s| s.mask.is_some()).count(), 1);
        assert_eq!(set.test.iter().filter(|s| s.defect.is_none()).count(), 1);
        assert!(found.skipped[0].path.ends_with("readme.txt"));
    }

    #[test]
    fn a_folder_of_sets_skips_what_is_none() {
        let dir = tree(&["b/train/good/0.png", "a/train/good/0.bmp", "textures/0.png"]);
        let found = discover(dir.path()).expect("sets");
        let names: Vec<_> = found.sets.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(found.skipped.iter().any(|s| s.path.ends_with("textures")));
    }

    #[test]
    fn a_flat_folder_is_one_set_of_good_pictures() {
        let dir = tree(&["1.tiff", "2.pgm", ".hidden.png"]);
        let found = discover(dir.path()).expect("a set");
        assert_eq!((found.sets[0].train.len(), found.sets[0].test.len()), (2, 0));
    }

    #[test]
    fn nothing_is_left_out_without_a_word() {
        let left_out = [
            "notes.txt",
            "empty",
            "textures",
            "a/license.txt",
            "a/train/bad",
            "a/train/good/more",
            "a/test/loose.png",
            "a/ground_truth/hole/0_mask.json",
        ];
        let dir = tree(&[
            "notes.txt",
            "empty/train/good/.keep",
            "textures/0.png",
            "a/license.txt",
            "a/train/bad/0.png",
            "a/train/good/0.png",
            "a/train/good/more/1.png",
            "a/test/loose.png",
            "a/test/hole/0.png",
            "a/test/good/0.png",
            "a/ground_truth/hole/0_mask.json",
            "a/ground_truth/good/0.png",
        ]);
        let found = discover(dir.path()).expect("a set");
        let mut skipped: Vec<_> = found.skipped.iter().map(|s| s.path.clone()).collect();
        skipped.sort();
        let mut expected = left_out.map(|path| dir.path().join(path));
        expected.sort();
        assert_eq!(skipped, expected);
        // Neither a file that is no picture nor one beside a good part is a mask.
        assert!(found.sets[0].test.iter().all(|sample| sample.mask.is_none()));
        assert_eq!(discover(dir.path()).expect("a set"), found);
    }

    #[test]
    fn a_mask_of_its_own_name_is_preferred_to_the_plain_stem() {
        let dir = tree(&[
            "train/good/0.png",
            "test/hole/0.png",
            "test/hole/1.png",
            "ground_truth/hole/0.bmp",
            "ground_truth/hole/0_mask.png",
            "ground_truth/hole/1.bmp",
        ]);
        let found = discover(dir.path()).expect("a set");
        let masks: Vec<_> = found.sets[0].test.iter().map(|s| name_of(s.mask.as_ref().expect("a mask"))).collect();
        assert_eq!(masks, ["0_mask.png", "1.bmp"]);
    }

    #[test]
    fn several_masks_per_picture_are_refused() {
        let dir = tree(&["train/good/0.png", "test/logical/0.png", "ground_truth/logical/0/000.png"]);
        let error = discover(dir.path()).expect_err("refused").to_string();
        assert!(error.contains("ground_truth/logical/0") && error.contains("LOCO"), "{error}");
    }

    #[test]
    fn an_empty_folder_is_an_error_with_a_remedy() {
        let dir = tree(&["notes.txt"]);
        let error = discover(dir.path()).expect_err("refused").to_string();
        assert!(error.contains("train/good"), "{error}");
        let error = discover(&dir.path().join("missing")).expect_err("refused").to_string();
        assert!(error.contains("missing") && error.contains("existing folder"), "{error}");
    }
}
