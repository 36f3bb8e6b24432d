//! Data sets whose split is a file: MVTec-AD's `train.json` and `test.json`, VisA's `visa.csv`.
//!
//! | data set | index | pictures |
//! |---|---|---|
//! | MVTec-AD as DiAD and the seed lay it | `train.json`, `test.json`: one object a line | `mvtec_anomaly_detection/` |
//! | VisA as DiAD and the seed lay it | `visa.csv` | `visa/` |
//! | VisA as published | `split_csv/1cls.csv` | beside `split_csv/` |
//!
//! An MVTec-AD folder without an index is walked like any folder of sets.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::discover::DatasetError;
use super::{Sample, Set};

/// One line of `train.json` or `test.json`.
#[derive(Deserialize)]
struct MvtecLine {
    filename: String,
    label: u8,
    maskname: Option<String>,
    clsname: String,
}

/// One row of VisA's table.
#[derive(Deserialize)]
struct VisaRow {
    object: String,
    split: String,
    label: String,
    image: String,
    mask: String,
}

/// A picture that an index names.
struct Entry {
    class: String,
    train: bool,
    sample: Sample,
}

/// The sets of an indexed data folder, by name; nothing if the folder has no index.
///
/// # Errors
/// An index that cannot be read or understood; a defective picture in the training split.
pub fn read(data: &Path) -> Result<Option<Vec<Set>>, DatasetError> {
    let (entries, index) = if data.join("train.json").is_file() && data.join("test.json").is_file() {
        let root = data.join("mvtec_anomaly_detection");
        let root = if root.is_dir() { root } else { data.to_path_buf() };
        let mut entries = mvtec(&data.join("train.json"), &root, true)?;
        entries.extend(mvtec(&data.join("test.json"), &root, false)?);
        (entries, data.join("train.json"))
    } else if data.join("visa.csv").is_file() {
        let root = data.join("visa");
        let root = if root.is_dir() { root } else { data.to_path_buf() };
        (visa(&data.join("visa.csv"), &root)?, data.join("visa.csv"))
    } else if data.join("split_csv/1cls.csv").is_file() {
        (visa(&data.join("split_csv/1cls.csv"), data)?, data.join("split_csv/1cls.csv"))
    } else {
        return Ok(None);
    };
    let mut sets: BTreeMap<String, Set> = BTreeMap::new();
    for Entry { class, train, sample } in entries {
        let set = sets.entry(class.clone()).or_insert_with(|| Set { name: class, train: Vec::new(), test: Vec::new() });
        match (train, &sample.defect) {
            (true, None) => set.train.push(sample.path),
            (true, Some(_)) => {
                let reason = format!("{} is defective and in the training split", sample.path.display());
                return Err(DatasetError::Index { path: index, line: None, reason });
            }
            (false, _) => set.test.push(sample),
        }
    }
    Ok(Some(sets.into_values().collect()))
}

fn mvtec(path: &Path, root: &Path, train: bool) -> Result<Vec<Entry>, DatasetError> {
    let text = std::fs::read_to_string(path).map_err(|reason| unreadable(path, reason))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            let fault = |reason: String| wrong(path, number + 1, reason);
            let line: MvtecLine = serde_json::from_str(line).map_err(|error| fault(error.to_string()))?;
            let picture = inside(root, &line.filename).map_err(fault)?;
            let mask = line.maskname.filter(|name| !name.is_empty());
            let mask = mask.map(|name| inside(root, &name)).transpose().map_err(fault)?;
            let defect = (line.label != 0).then(|| {
                let folder = picture.parent().and_then(Path::file_name);
                folder.map_or_else(|| "defective".into(), |name| name.to_string_lossy().into_owned())
            });
            Ok(Entry { class: line.clsname, train, sample: Sample { path: picture, mask, defect } })
        })
        .collect()
}

fn visa(path: &Path, root: &Path) -> Result<Vec<Entry>, DatasetError> {
    let file = std::fs::File::open(path).map_err(|reason| unreadable(path, reason))?;
    let mut table = csv::Reader::from_reader(file);
    let mut entries = Vec::new();
    for (row, line) in table.deserialize::<VisaRow>().zip(2..) {
        let fault = |reason: String| wrong(path, line, reason);
        let row = row.map_err(|error| fault(error.to_string()))?;
        let train = match row.split.as_str() {
            "train" => true,
            "test" => false,
            other => return Err(fault(format!("split '{other}': must be train or test"))),
        };
        let defect = match row.label.as_str() {
            "normal" => None,
            "anomaly" => Some("anomaly".to_owned()),
            other => return Err(fault(format!("label '{other}': must be normal or anomaly"))),
        };
        let picture = inside(root, &row.image).map_err(fault)?;
        let mask = (!row.mask.is_empty()).then(|| inside(root, &row.mask)).transpose().map_err(fault)?;
        entries.push(Entry { class: row.object, train, sample: Sample { path: picture, mask, defect } });
    }
    Ok(entries)
}

/// A path of an index below its root: an index leads nowhere else.
fn inside(root: &Path, name: &str) -> Result<PathBuf, String> {
    let path = Path::new(name);
    if path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        Ok(root.join(path))
    } else {
        Err(format!("'{name}' leads out of the data folder"))
    }
}

fn unreadable(path: &Path, reason: std::io::Error) -> DatasetError {
    DatasetError::Unreadable { path: path.to_path_buf(), reason }
}

fn wrong(path: &Path, line: usize, reason: String) -> DatasetError {
    DatasetError::Index { path: path.to_path_buf(), line: Some(line), reason }
}

#[cfg(test)]
mod tests {
    use super::super::discover::discover;
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("directory");
        for (file, text) in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("makes folders");
            std::fs::write(path, text).expect("writes");
        }
        dir
    }

    const TRAIN: &str = r#"{"filename": "bottle/train/good/000.png", "label": 0, "label_name": "good", "clsname": "bottle"}
{"filename": "cable/train/good/000.png", "label": 0, "label_name": "good", "clsname": "cable"}
"#;
    const TEST: &str = r#"{"filename": "bottle/test/good/000.png", "label": 0, "label_name": "good", "clsname": "bottle"}
{"filename": "bottle/test/broken_large/002.png", "label": 1, "label_name": "defective", "maskname": "bottle/ground_truth/broken_large/002_mask.png", "clsname": "bottle"}
"#;

    #[test]
    fn mvtec_is_split_by_its_index() {
        let dir = tree(&[("train.json", TRAIN), ("test.json", TEST), ("mvtec_anomaly_detection/bottle/x", "")]);
        let sets = discover(dir.path()).expect("sets").sets;
        assert_eq!(
            sets.iter().map(|set| (&set.name[..], set.train.len())).collect::<Vec<_>>(),
            [("bottle", 1), ("cable", 1)]
        );
        let broken = &sets[0].test[1];
        let root = dir.path().join("mvtec_anomaly_detection");
        assert_eq!(broken.path, root.join("bottle/test/broken_large/002.png"));
        assert_eq!(broken.mask, Some(root.join("bottle/ground_truth/broken_large/002_mask.png")));
        assert_eq!(broken.defect.as_deref(), Some("broken_large"));
        assert_eq!(sets[0].test[0].defect, None);
    }

    #[test]
    fn visa_is_split_by_its_table() {
        let table = "object,split,label,image,mask\n\
            candle,train,normal,candle/Data/Images/Normal/0.JPG,\n\
            candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png\n";
        for (index, root) in [("visa.csv", "visa"), ("split_csv/1cls.csv", "")] {
            let picture = Path::new(root).join("candle/Data/Images/Normal/0.JPG");
            let dir = tree(&[(index, table), (picture.to_str().expect("text"), "")]);
            let sets = discover(dir.path()).expect("sets").sets;
            assert_eq!(sets[0].train, [dir.path().join(&picture)]);
            let sample = &sets[0].test[0];
            assert_eq!(sample.defect.as_deref(), Some("anomaly"));
            let mask = dir.path().join(root).join("candle/Data/Masks/Anomaly/000.png");
            assert_eq!(sample.mask, Some(mask));
        }
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let refused = |train: &str, test: &str| {
            let dir = tree(&[("train.json", train), ("test.json", test)]);
            discover(dir.path()).expect_err("refused").to_string()
        };
        let error = refused(TRAIN, &TEST.replace("bottle/test/good", "../bottle/test/good"));
        assert!(error.contains("test.json line 1") && error.contains("leads out of the data folder"), "{error}");
        let error = refused(&TRAIN.replace("\"label\": 0", "\"label\": 1"), TEST);
        assert!(error.contains("defective and in the training split"), "{error}");
        let error = refused("{\"filename\": 3}", TEST);
        assert!(error.contains("train.json line 1"), "{error}");

        let table = "object,split,label,image,mask\ncandle,val,normal,0.JPG,\n";
        let dir = tree(&[("visa.csv", table)]);
        let error = discover(dir.path()).expect_err("refused").to_string();
        assert!(error.contains("visa.csv line 2") && error.contains("split 'val'"), "{error}");
    }
}
