//! Kernels that were compiled for a GPU: kept between starts, and taken from one station to others in a file.
//!
//! ```text
//! one line of JSON    what they are good for, how many, how many bytes follow, and the blake3 of both
//! bytes               the kernels in cubecl's form
//! ```
//!
//! Kernels are never needed: whatever is wrong with them is said, and they are compiled.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::config::device::DeviceChoice;
use crate::device::{Compute, KernelOrigin, KernelStore, kernel_damage, kernel_database};
use crate::platform::attempts::Attempt;
use crate::platform::preflight::Machine;

/// The first word of the file.
const FORMAT: &str = "dsad kernels 1";
/// Bytes of the first line at most, and of the kernels.
const HEADER_LIMIT: u64 = 64 << 10;
const KERNELS_LIMIT: u64 = 1 << 30;
/// Starts in a row that may fail before kept kernels are suspected.
const SUSPECT_AFTER: u32 = 2;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    origin: KernelOrigin,
    kernels: u64,
    bytes: u64,
    blake3: String,
}

/// What became of kernels that were offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Offered {
    /// So many were taken in; others were there.
    Taken(u64),
    /// None is used, and why.
    Ignored(String),
}

/// What the kernels of this device are good for, and those that are kept.
fn store(compute: &Compute) -> Option<(KernelStore, KernelOrigin)> {
    let store = compute.kernels()?;
    let origin = KernelOrigin { driver: Machine::at("/").gpu_driver(), ..store.origin().clone() };
    Some((store, origin))
}

/// Writes the kernels that are kept for a device into a file, and says how many; nothing where none are kept.
///
/// # Errors
/// The file cannot be written.
pub fn export(compute: &Compute, file: &Path) -> anyhow::Result<Option<u64>> {
    let Some((store, origin)) = store(compute) else { return Ok(None) };
    let partial = beside(file, "cubecl");
    let written = store.export(&partial).map_err(anyhow::Error::msg).and_then(|()| Ok(fs::read(&partial)?));
    // Nobody needs it; what is wrong with it was said by the read.
    let _ = fs::remove_file(&partial);
    let kernels = store.count();
    write(file, origin, kernels, &written?).with_context(|| file.display().to_string())?;
    Ok(Some(kernels))
}

/// Takes in the kernels of a file, if they were compiled by this very program for such a GPU and driver.
///
/// # Errors
/// The file cannot be read at all. Anything else that is wrong with it is a reason to ignore it.
pub fn take(compute: &Compute, file: &Path) -> anyhow::Result<Offered> {
    let offered = match read(file)? {
        Err(damage) => Offered::Ignored(damage),
        Ok((header, kernels)) => match store(compute) {
            None => Offered::Ignored(format!("on {} this program keeps no kernels", compute.choice)),
            Some((store, here)) => match unlike(&header.origin, &here) {
                Some(reason) => Offered::Ignored(reason),
                None => store.import(kernels).map_or_else(Offered::Ignored, Offered::Taken),
            },
        },
    };
    match &offered {
        Offered::Taken(count) => log::info!("{}: {count} kernels are taken in", file.display()),
        Offered::Ignored(reason) => log::warn!("{}: ignored, kernels are compiled: {reason}", file.display()),
    }
    Ok(offered)
}

/// Where kernels of another origin do not fit.
fn unlike(theirs: &KernelOrigin, here: &KernelOrigin) -> Option<String> {
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".into());
    let parts = [
        ("version of cubecl", theirs.cubecl.clone(), here.cubecl.clone()),
        ("build of the program", theirs.build.clone(), here.build.clone()),
        ("GPU", theirs.device.clone(), here.device.clone()),
        ("architecture", theirs.architecture.clone(), here.architecture.clone()),
        ("driver", text(&theirs.driver), text(&here.driver)),
    ];
    let others: Vec<String> = parts
        .into_iter()
        .filter(|(_, theirs, here)| theirs != here)
        .map(|(what, theirs, here)| format!("{what} '{theirs}', here '{here}'"))
        .collect();
    (!others.is_empty()).then(|| format!("made elsewhere: {}", others.join("; ")))
}

fn beside(file: &Path, end: &str) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.{end}", std::process::id()));
    file.with_file_name(name)
}

fn write(file: &Path, origin: KernelOrigin, kernels: u64, bytes: &[u8]) -> anyhow::Result<()> {
    let unsummed = Header { format: FORMAT.into(), origin, kernels, bytes: bytes.len() as u64, blake3: String::new() };
    let header = Header { blake3: sum(&unsummed, bytes)?, ..unsummed };
    let partial = beside(file, "partial");
    let mut out = File::create(&partial)?;
    out.write_all(serde_json::to_string(&header)?.as_bytes())?;
    out.write_all(b"\n")?;
    out.write_all(bytes)?;
    out.sync_all()?;
    Ok(fs::rename(&partial, file)?)
}

/// The checksum of a file: of its header without one, and of its kernels.
fn sum(header: &Header, bytes: &[u8]) -> anyhow::Result<String> {
    let unsummed = Header { blake3: String::new(), ..header.clone() };
    let mut hasher = blake3::Hasher::new();
    hasher.update(&serde_json::to_vec(&unsummed)?).update(bytes);
    Ok(hasher.finalize().to_hex().to_string())
}

/// Header and kernels, or what is wrong with the contents.
fn read(file: &Path) -> anyhow::Result<Result<(Header, Vec<u8>), String>> {
    let opened = File::open(file).with_context(|| format!("{}: cannot be read", file.display()))?;
    ensure!(opened.metadata()?.is_file(), "{}: is no file", file.display());
    let mut from = BufReader::new(opened);
    let mut line = Vec::new();
    from.by_ref().take(HEADER_LIMIT).read_until(b'\n', &mut line)?;
    let header: Header = match serde_json::from_slice(&line) {
        Ok(header) => header,
        Err(error) => return Ok(Err(format!("it is no file of kernels, or damaged: {error}"))),
    };
    if header.format != FORMAT {
        return Ok(Err(format!("its format is '{}', not '{FORMAT}'", header.format)));
    }
    let mut bytes = Vec::new();
    from.take(KERNELS_LIMIT).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != header.bytes {
        return Ok(Err(format!("it is damaged: {} bytes of {} are there", bytes.len(), header.bytes)));
    }
    if sum(&header, &bytes)? != header.blake3 {
        return Ok(Err("it is damaged: the checksum is another".into()));
    }
    Ok(Ok((header, bytes)))
}

/// Before a device is opened: kernels that cannot be read any more are put aside, so that those that are compiled are kept again.
pub fn heal(choice: DeviceChoice) {
    let Some(database) = database(choice) else { return };
    let copy = beside(&database, "check");
    let damage = kernel_damage(&database, &copy);
    // A sound one is copied whole to be read whole.
    let _ = fs::remove_file(&copy);
    if let Some(reason) = damage {
        put_aside(&database, &format!("it is damaged: {reason}"));
    }
}

/// Before a start on a GPU: as [`heal`], and puts those kernels aside with which two starts in a row never became ready.
pub fn before_start(choice: DeviceChoice) -> Option<Attempt> {
    let database = database(choice)?;
    let attempt = match Attempt::begin(database.parent()?) {
        Ok(attempt) => attempt,
        Err(error) => {
            log::warn!("{}: {error}; every start compiles all kernels", database.display());
            return None;
        }
    };
    if attempt.failed_before >= SUSPECT_AFTER && database.exists() {
        put_aside(&database, &format!("{SUSPECT_AFTER} starts with it never became ready"));
    }
    heal(choice);
    Some(attempt)
}

fn database(choice: DeviceChoice) -> Option<PathBuf> {
    match choice {
        DeviceChoice::Cpu => None,
        DeviceChoice::Cuda(_) => kernel_database(),
    }
}

/// After a start that became ready.
pub fn after_start(attempt: Option<&Attempt>) {
    if let Some(Err(error)) = attempt.map(Attempt::ended_well) {
        log::warn!("the next start will count this one as failed: {error}");
    }
}

/// Takes the kept kernels out of the way, with what the database keeps beside itself.
fn put_aside(database: &Path, reason: &str) {
    let named = |end: &str| {
        let mut name = database.as_os_str().to_owned();
        name.push(end);
        PathBuf::from(name)
    };
    // What SQLite calls its shared memory, and what Turso does. The database goes last: a new one must find no log of the old one.
    for end in ["-wal", "-shm", "-tshm", ""] {
        let (file, aside) = (named(end), named(&format!("{end}.suspect")));
        match fs::rename(&file, &aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::error!("{}: cannot be put aside: {error}; remove it: {reason}", file.display());
                return;
            }
            _ => {}
        }
    }
    log::warn!("{}: put aside as .suspect, kernels are compiled anew: {reason}", database.display());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> KernelOrigin {
        KernelOrigin {
            cubecl: "0.11.3".into(),
            build: "4dfcc6e9".into(),
            device: "Orin".into(),
            architecture: "ptx_sm87".into(),
            driver: Some("540.4.0".into()),
        }
    }

    fn made(dir: &Path) -> PathBuf {
        let file = dir.join("line.kernels");
        write(&file, origin(), 3, &[7; 5000]).expect("writes");
        file
    }

    #[test]
    fn a_file_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().expect("directory");
        let file = made(dir.path());
        let (header, bytes) = read(&file).expect("can be read").expect("is whole");
        assert_eq!((header.origin, header.kernels, bytes), (origin(), 3, vec![7; 5000]));
        assert_eq!(fs::read_dir(dir.path()).expect("folder").count(), 1, "nothing is left over");
    }

    #[test]
    fn any_damage_is_seen_and_is_no_error() {
        let dir = tempfile::tempdir().expect("directory");
        let file = made(dir.path());
        let whole = fs::read(&file).expect("reads");
        let start = whole.iter().position(|byte| *byte == b'\n').expect("a line") + 1;
        for length in [0, 1, start - 2, start - 1, start, start + 1, whole.len() - 1] {
            fs::write(&file, &whole[..length]).expect("writes");
            assert!(read(&file).expect("can be read").is_err(), "{length} bytes");
        }
        for at in (0..start).chain((start..whole.len()).step_by(101)) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&file, &bytes).expect("writes");
            assert!(read(&file).expect("can be read").is_err(), "byte {at}");
        }
        let longer = [&whole[..], b"x"].concat();
        fs::write(&file, longer).expect("writes");
        assert!(read(&file).expect("can be read").is_err());
        assert!(read(&dir.path().join("none")).is_err(), "a file that is not there is an error");
        assert!(read(dir.path()).is_err(), "a folder is an error");
    }

    #[test]
    fn only_the_same_origin_fits() {
        assert_eq!(unlike(&origin(), &origin()), None);
        type Change = fn(&mut KernelOrigin);
        let others: [(&str, Change); 5] = [
            ("cubecl", |of| of.cubecl = "0.11.4".into()),
            ("build", |of| of.build = "00".into()),
            ("GPU", |of| of.device = "Xavier".into()),
            ("architecture", |of| of.architecture = "ptx_sm72".into()),
            ("driver", |of| of.driver = None),
        ];
        for (word, change) in others {
            let mut theirs = origin();
            change(&mut theirs);
            let reason = unlike(&theirs, &origin()).expect("does not fit");
            assert!(reason.contains(word) && !reason.contains(';'), "{reason}");
        }
    }

    #[test]
    fn on_the_cpu_nothing_is_taken_and_nothing_is_kept() {
        let dir = tempfile::tempdir().expect("directory");
        let file = made(dir.path());
        let compute = crate::device::open(DeviceChoice::Cpu).expect("a processor");
        let Offered::Ignored(reason) = take(&compute, &file).expect("can be read") else { panic!("taken") };
        assert!(reason.contains("keeps no kernels"), "{reason}");
        fs::write(&file, "damaged").expect("writes");
        let Offered::Ignored(reason) = take(&compute, &file).expect("can be read") else { panic!("taken") };
        assert!(reason.contains("damaged"), "{reason}");
        assert_eq!(export(&compute, &file).expect("nothing to do"), None);
        assert!(before_start(DeviceChoice::Cpu).is_none());
    }

    #[test]
    fn suspects_are_put_aside_with_what_belongs_to_them() {
        let dir = tempfile::tempdir().expect("directory");
        for name in ["dsad-1.db", "dsad-1.db-tshm", "dsad-1.db-wal", "dsad-2.db"] {
            fs::write(dir.path().join(name), name).expect("writes");
        }
        put_aside(&dir.path().join("dsad-1.db"), "why");
        let mut left: Vec<String> = fs::read_dir(dir.path())
            .expect("folder")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        left.sort();
        let expected = ["dsad-1.db-tshm.suspect", "dsad-1.db-wal.suspect", "dsad-1.db.suspect", "dsad-2.db"];
        assert_eq!(left, expected);
    }
}
