//! The accounts of a station: names, levels and hashed passwords in one file of its state folder.
//!
//! | file | what |
//! |---|---|
//! | `accounts.toml` | one `[[accounts]]` each: name, level, argon2id hash |
//! | `accounts.lock` | held by whoever writes |
//! | `first-password` | the password that the station made for itself, until it is changed |
//!
//! The daemon and `dsad accounts` work on the same file: it is read again when it was changed.

mod password;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::inspection::account::Level;
use crate::platform::private_file;

/// Accounts of one station.
const MOST: usize = 64;
/// Longest name, bytes.
const NAME: usize = 32;
/// The account that a station without any makes for itself.
const FIRST: &str = "admin";

/// Why accounts could not be read or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccountsError {
    /// A file of the state folder: what is wrong with it, and what to do.
    #[error("{}: {reason}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// What was asked for cannot be done; nothing was.
    #[error("{0}")]
    Refused(String),
}

/// What is known of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub level: Level,
    /// It may do nothing but change its password.
    pub must_change: bool,
    /// Changes with the password: what was allowed by an older one is not any more.
    pub mark: [u8; 32],
}

/// A change of the file by somebody else, as by `dsad accounts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noticed {
    /// The account.
    pub name: String,
    /// What it was; nothing where it was not there.
    pub old: Option<String>,
    /// What it is now; nothing where it is gone.
    pub new: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    level: Level,
    hash: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    must_change: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AccountsFile {
    #[serde(default)]
    accounts: Vec<Row>,
}

/// What tells one version of the file from another: a new file is renamed to its name.
type Stamp = (u64, u64, i64, i64);

#[derive(Debug)]
struct Held {
    /// Nothing, where there is no file.
    stamp: Option<Stamp>,
    rows: Result<Vec<Row>, AccountsError>,
    noticed: Vec<Noticed>,
}

/// The accounts, shared by whoever asks for them.
#[derive(Debug)]
pub struct Accounts {
    folder: PathBuf,
    held: Mutex<Held>,
    /// Fits no password: an unknown name costs the time of a known one.
    decoy: String,
}

impl Accounts {
    /// The accounts in a state folder; none where there is no file yet.
    ///
    /// # Errors
    /// The file cannot be read, or is not what is asked for; or the system has no randomness.
    pub fn open(folder: &Path) -> Result<Self, AccountsError> {
        let file = folder.join("accounts.toml");
        let stamp = stamp(&file)?;
        let rows = read(&file, stamp)?;
        let held = Mutex::new(Held { stamp, rows: Ok(rows), noticed: Vec::new() });
        Ok(Self { folder: folder.to_path_buf(), held, decoy: password::hash(&password::random()?)? })
    }

    /// Makes the first account where there is none, with a random password that is written to a file and must be changed.
    /// Answers with the file while there is one.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn first(&self) -> Result<Option<PathBuf>, AccountsError> {
        let told = self.folder.join("first-password");
        self.change(|rows| {
            if rows.is_empty() {
                let password = password::random()?;
                let row = Row {
                    name: FIRST.into(),
                    level: Level::Admin,
                    hash: password::hash(&password)?,
                    must_change: true,
                };
                // Before the account: one whose password nobody knows would lock everybody out.
                write(&told, format!("{password}\n").as_bytes())?;
                rows.push(row);
            }
            Ok(())
        })?;
        Ok(told.exists().then_some(told))
    }

    /// The account, if this is its password. Takes a good part of a tenth of a second and 19 MiB, whether it is or not.
    ///
    /// # Errors
    /// The file is damaged: nobody is let in.
    pub fn prove(&self, name: &str, password: &str) -> Result<Option<Known>, AccountsError> {
        let row = self.row(name)?;
        let hash = row.as_ref().map_or(&self.decoy, |row| &row.hash);
        let right = password::fits(password, hash);
        Ok(row.filter(|_| right).map(|row| known(&row)))
    }

    /// The account as it is now.
    ///
    /// # Errors
    /// The file is damaged: nobody is let in.
    pub fn known(&self, name: &str) -> Result<Option<Known>, AccountsError> {
        Ok(self.row(name)?.map(|row| known(&row)))
    }

    /// All accounts, by name.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn list(&self) -> Result<Vec<Known>, AccountsError> {
        self.fresh().rows.clone().map(|rows| rows.iter().map(known).collect())
    }

    /// What others changed since this was asked.
    pub fn noticed(&self) -> Vec<Noticed> {
        std::mem::take(&mut self.fresh().noticed)
    }

    /// Adds an account.
    ///
    /// # Errors
    /// It is there already, name or password are not allowed, or the file cannot be written.
    pub fn add(&self, name: &str, level: Level, password: &str) -> Result<(), AccountsError> {
        check_name(name)?;
        password::check(name, password)?;
        let row = Row { name: name.into(), level, hash: password::hash(password)?, must_change: false };
        self.change(|rows| {
            if rows.iter().any(|row| row.name == name) {
                return Err(AccountsError::Refused(format!("account '{name}' is there already")));
            }
            if rows.len() >= MOST {
                return Err(AccountsError::Refused(format!("there are {MOST} accounts already; remove one")));
            }
            rows.push(row);
            Ok(())
        })
    }

    /// Gives an account another password.
    ///
    /// # Errors
    /// It is not there, the password is not allowed or the old one, or the file cannot be written.
    pub fn set_password(&self, name: &str, password: &str) -> Result<(), AccountsError> {
        password::check(name, password)?;
        if self.row(name)?.is_some_and(|row| password::fits(password, &row.hash)) {
            return Err(AccountsError::Refused("the new password is the old one; take another".into()));
        }
        let hash = password::hash(password)?;
        self.change(|rows| {
            let row = rows.iter_mut().find(|row| row.name == name).ok_or_else(|| no_account(name))?;
            (row.hash, row.must_change) = (hash, false);
            Ok(())
        })
    }

    /// Removes an account.
    ///
    /// # Errors
    /// It is not there or the last one that may give accounts, or the file cannot be written.
    pub fn remove(&self, name: &str) -> Result<(), AccountsError> {
        self.change(|rows| {
            let at = rows.iter().position(|row| row.name == name).ok_or_else(|| no_account(name))?;
            rows.remove(at);
            Ok(())
        })
    }

    fn row(&self, name: &str) -> Result<Option<Row>, AccountsError> {
        let held = self.fresh();
        let rows = held.rows.as_ref().map_err(Clone::clone)?;
        Ok(rows.iter().find(|row| row.name == name).cloned())
    }

    /// What the file says now.
    fn fresh(&self) -> MutexGuard<'_, Held> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let file = self.file();
        match stamp(&file) {
            Ok(stamp) if stamp == held.stamp && held.rows.is_ok() => {}
            Ok(stamp) => {
                let rows = read(&file, stamp);
                if let (Ok(old), Ok(new)) = (&held.rows, &rows) {
                    let seen = differences(old, new);
                    held.noticed.extend(seen);
                    // Whoever never asks must not fill the memory.
                    held.noticed.truncate(2 * MOST);
                }
                if let (Ok(_), Err(error)) = (&held.rows, &rows) {
                    log::error!("nobody can log in: {error}");
                }
                (held.stamp, held.rows) = (stamp, rows);
            }
            Err(error) => held.rows = Err(error),
        }
        held
    }

    /// Changes the file, one at a time over all processes.
    fn change(&self, change: impl FnOnce(&mut Vec<Row>) -> Result<(), AccountsError>) -> Result<(), AccountsError> {
        let lock = self.folder.join("accounts.lock");
        if !lock.exists() {
            write(&lock, b"")?;
        }
        let failed = |error: io::Error| file_error(&lock, &format!("cannot be locked: {error}"));
        let locked = File::open(&lock).map_err(failed)?;
        locked.lock().map_err(failed)?;
        let before = self.fresh().rows.clone()?;
        let mut rows = before.clone();
        change(&mut rows)?;
        if rows == before {
            return Ok(());
        }
        if !rows.iter().any(|row| row.level == Level::Admin) {
            let text = "no account of the level admin would be left; add another one before";
            return Err(AccountsError::Refused(text.into()));
        }
        let file = self.file();
        let text = toml::to_string(&AccountsFile { accounts: rows.clone() })
            .map_err(|error| file_error(&file, &format!("cannot be made: {error}")))?;
        // The lock on the folder's file is held: what is read back is what was written.
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        write(&file, text.as_bytes())?;
        (held.stamp, held.rows) = (stamp(&file)?, Ok(rows.clone()));
        drop(held);
        if !rows.iter().any(|row| row.must_change) {
            let told = self.folder.join("first-password");
            private_file::remove(&told)
                .map_err(|error| file_error(&told, &format!("cannot be removed: {error}; remove it")))?;
        }
        Ok(())
    }

    fn file(&self) -> PathBuf {
        self.folder.join("accounts.toml")
    }
}

fn known(row: &Row) -> Known {
    let mark = *blake3::hash(row.hash.as_bytes()).as_bytes();
    Known { name: row.name.clone(), level: row.level, must_change: row.must_change, mark }
}

fn differences(old: &[Row], new: &[Row]) -> Vec<Noticed> {
    let by_name =
        |rows: &[Row]| -> BTreeMap<String, Row> { rows.iter().map(|row| (row.name.clone(), row.clone())).collect() };
    let (old, new) = (by_name(old), by_name(new));
    let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let changed = names.into_iter().filter(|name| old.get(*name) != new.get(*name));
    let word = |row: Option<&Row>, other: Option<&Row>| {
        let row = row?;
        let password = other.is_some_and(|other| other.hash != row.hash);
        Some(if password { format!("{}, another password", row.level) } else { row.level.to_string() })
    };
    changed
        .map(|name| {
            let (before, after) = (old.get(name), new.get(name));
            Noticed { name: name.clone(), old: word(before, None), new: word(after, before) }
        })
        .collect()
}

fn check_name(name: &str) -> Result<(), AccountsError> {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"._-".contains(&c);
    if name.is_empty() || name.len() > NAME || !name.bytes().all(allowed) {
        let text = format!("an account's name has 1 to {NAME} of the letters a-z, 0-9, '.', '_' and '-'");
        return Err(AccountsError::Refused(text));
    }
    Ok(())
}

fn no_account(name: &str) -> AccountsError {
    AccountsError::Refused(format!("no account '{name}'"))
}

fn file_error(file: &Path, reason: &str) -> AccountsError {
    AccountsError::File { file: file.to_path_buf(), reason: reason.into() }
}

fn write(file: &Path, bytes: &[u8]) -> Result<(), AccountsError> {
    private_file::write(file, bytes).map_err(|error| {
        file_error(file, &format!("cannot be written: {error}; give the station's user the folder (key 'state')"))
    })
}

fn stamp(file: &Path) -> Result<Option<Stamp>, AccountsError> {
    match fs::metadata(file) {
        Ok(meta) => Ok(Some((meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file_error(file, &format!("cannot be looked at: {error}"))),
    }
}

fn read(file: &Path, stamp: Option<Stamp>) -> Result<Vec<Row>, AccountsError> {
    let Some(_) = stamp else { return Ok(Vec::new()) };
    let remedy = "mend it, or take it away: the station then makes a new account 'admin' when it starts";
    let damaged = |what: String| file_error(file, &format!("{what}; {remedy}"));
    let text = fs::read_to_string(file).map_err(|error| damaged(format!("cannot be read: {error}")))?;
    let AccountsFile { accounts } = toml::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    let mut names = std::collections::BTreeSet::new();
    for row in &accounts {
        check_name(&row.name).map_err(|error| damaged(error.to_string()))?;
        if !names.insert(&row.name) {
            return Err(damaged(format!("account '{}' is there twice", row.name)));
        }
        password::check_hash(&row.hash).map_err(|what| damaged(format!("account '{}': {what}", row.name)))?;
    }
    if accounts.len() > MOST {
        return Err(damaged(format!("{} accounts, at most {MOST}", accounts.len())));
    }
    Ok(accounts)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("is there").permissions().mode() & 0o777
    }

    #[test]
    fn the_first_password_is_random_told_in_a_file_and_must_be_changed() {
        let homes = [(); 2].map(|()| tempfile::tempdir().expect("directory"));
        let passwords = homes.each_ref().map(|home| {
            let accounts = Accounts::open(home.path()).expect("opens");
            let told = accounts.first().expect("makes").expect("a file");
            assert_eq!((mode(&told), mode(&home.path().join("accounts.toml"))), (0o600, 0o600));
            fs::read_to_string(&told).expect("reads").trim().to_owned()
        });
        assert!(passwords[0] != passwords[1] && passwords[0].len() >= 20);
        let accounts = Accounts::open(homes[0].path()).expect("opens");
        let known = accounts.prove("admin", &passwords[0]).expect("reads").expect("fits");
        assert!(known.must_change && known.level == Level::Admin);
        assert!(accounts.first().expect("stays").is_some());
        accounts.set_password("admin", "a better one").expect("changes");
        assert_eq!(accounts.first(), Ok(None), "the file is gone, and no other account is made");
        assert_eq!(accounts.prove("admin", &passwords[0]), Ok(None));
        let known = accounts.prove("admin", "a better one").expect("reads").expect("fits");
        assert!(!known.must_change);
    }

    #[test]
    fn what_another_process_changes_is_seen_and_told() {
        let home = tempfile::tempdir().expect("directory");
        let (daemon, tool) = (Accounts::open(home.path()).expect("opens"), Accounts::open(home.path()).expect("opens"));
        tool.add("chief", Level::Admin, "correct horse").expect("adds");
        let mark = daemon.known("chief").expect("reads").expect("is there").mark;
        daemon.add("line.1", Level::Operator, "battery staple").expect("adds to what the other wrote");
        tool.set_password("chief", "another horse").expect("changes");
        assert_ne!(daemon.known("chief").expect("reads").expect("is there").mark, mark);
        tool.remove("line.1").expect("removes");
        assert_eq!(daemon.known("line.1"), Ok(None));
        let told: Vec<String> =
            daemon.noticed().into_iter().map(|n| format!("{} {:?} {:?}", n.name, n.old, n.new)).collect();
        assert_eq!(
            told,
            [
                "chief None Some(\"admin\")",
                "chief Some(\"admin\") Some(\"admin, another password\")",
                "line.1 Some(\"operator\") None"
            ]
        );
        assert!(daemon.noticed().is_empty());
    }

    #[test]
    fn what_is_not_allowed_changes_nothing() {
        let home = tempfile::tempdir().expect("directory");
        let accounts = Accounts::open(home.path()).expect("opens");
        let refused = |result: Result<(), AccountsError>, word: &str| {
            let Err(AccountsError::Refused(text)) = result else { panic!("{result:?}") };
            assert!(text.contains(word), "{text}");
        };
        refused(accounts.add("op", Level::Operator, "long enough"), "admin");
        refused(accounts.add("Chief", Level::Admin, "long enough"), "a-z");
        refused(accounts.add("chief", Level::Admin, "short"), "characters");
        refused(accounts.add("chief-of-all", Level::Admin, "chief-of-all"), "name");
        accounts.add("chief", Level::Admin, "long enough").expect("adds");
        refused(accounts.add("chief", Level::Operator, "long enough"), "already");
        refused(accounts.remove("chief"), "admin");
        refused(accounts.remove("nobody"), "nobody");
        refused(accounts.set_password("chief", "long enough"), "old one");
        assert_eq!(accounts.list().expect("reads").len(), 1);
    }

    #[test]
    fn a_damaged_file_lets_nobody_in_until_it_is_mended() {
        let home = tempfile::tempdir().expect("directory");
        let accounts = Accounts::open(home.path()).expect("opens");
        accounts.add("chief", Level::Admin, "correct horse").expect("adds");
        let file = home.path().join("accounts.toml");
        let text = fs::read_to_string(&file).expect("reads");
        let argon2i = text.replace("argon2id", "argon2i");
        let costly = text.replace("m=19456", "m=4194304");
        for damaged in [text.replace("admin", "boss"), format!("{text}{text}"), argon2i, costly, "x".into()] {
            assert_ne!(damaged, text);
            fs::write(&file, &damaged).expect("writes");
            let error = accounts.known("chief").expect_err("refused").to_string();
            assert!(error.contains("accounts.toml") && error.contains("mend it"), "{error}");
            assert!(accounts.add("other", Level::Admin, "long enough").is_err(), "what is damaged is not written over");
            assert!(Accounts::open(home.path()).is_err());
        }
        fs::write(&file, text).expect("writes");
        assert!(accounts.prove("chief", "correct horse").expect("reads").is_some());
    }
}
