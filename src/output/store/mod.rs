//! The station's database: what was judged, what is still to be told, what is kept on disk, and who did what.
//!
//! SQLite in WAL mode with `synchronous = FULL`: what a commit returned for survives a power cut. One connection writes, that of the
//! record's worker; readers have their own and never wait for it.
//!
//! | table | a row |
//! |---|---|
//! | `meta` | `schema`, the version of these tables |
//! | `events` | an event: what is searched for in columns, the rest as its JSON |
//! | `outbox` | something that one destination has not acknowledged yet: an event, or a message of the station in `body` |
//! | `images` | the files of an event that are whole on disk |
//! | `audit` | a deed, chained to the one before by its hash ([`audit`]) |
//!
//! Rows of `events` are numbered in the order in which they were published. A result that came too late changes the row of its event.

pub mod audit;
pub mod outbox;
pub mod read;

use std::path::{Path, PathBuf};

use rusqlite::{Connection, Transaction, params};

use self::outbox::{Outlet, Priority};
use crate::config::record::StoreLimits;
use crate::inspection::audit::Deed;
use crate::inspection::event::Event;

/// Version of the tables.
const SCHEMA: i64 = 1;
/// Size of a page, SQLite's own, bytes.
const PAGE: u64 = 4_096;
/// Kept on the disk so that rows can still be written when everybody else has filled it, bytes.
const RESERVE: u64 = 8 << 20;
/// The reserve is taken back when so much is free, bytes.
const PLENTY: u64 = 8 * RESERVE;

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite says so.
    #[error("{path}: {source}; {remedy}")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: rusqlite::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// Its folder cannot be made.
    #[error("{path}: cannot be made: {source}; check the path and its permissions")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Written by another version.
    #[error(
        "{path}: has tables of version {found}, this program has {SCHEMA}; move the file away to begin anew, or update"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: i64,
    },
}

/// Something that is committed.
#[derive(Debug, Clone)]
pub enum Row {
    /// An event with its JSON, and when it was made, nanoseconds since the Unix epoch.
    Event(Box<Event>, String, u64),
    /// The same event with what came too late.
    Late(Box<Event>, String),
    /// A deed, and when.
    Deed(Deed, u64),
    /// A message of the station to all destinations: topic, body, and when.
    Message(&'static str, String, u64),
    /// What a destination has acknowledged: rows of the outbox.
    Sent(Vec<i64>),
    /// Files of an event that are whole.
    Images(Images),
    /// Events whose files are gone.
    ImagesGone(Vec<String>),
}

/// The files of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// The event.
    pub event_id: String,
    /// Path without what differs: `2026-11-26/17/top-01J...-fail`.
    pub stem: String,
    /// `pass`, `fail` or `fault`.
    pub verdict: String,
    /// Size of all of them.
    pub bytes: u64,
    /// BLAKE3 over all of them in the order of their names, hexadecimal.
    pub blake3: String,
    /// When the event was made, nanoseconds since the Unix epoch.
    pub wall_nanos: u64,
}

/// The connection that writes.
pub struct Store {
    db: Connection,
    path: PathBuf,
    outlets: Vec<Outlet>,
    limits: StoreLimits,
    waiting: Vec<u64>,
}

/// What a commit did besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Committed {
    /// Rows of the outbox that were given up because the destination did not take them in time.
    pub given_up: u64,
}

impl Store {
    /// Opens or makes the database `dsad.db` of a folder. What is committed is also put out to `outlets`; what waits for others is
    /// given up.
    ///
    /// # Errors
    /// It cannot be opened, or is of another version.
    pub fn open(folder: &Path, outlets: Vec<Outlet>, limits: StoreLimits) -> Result<Self, StoreError> {
        std::fs::create_dir_all(folder).map_err(|source| StoreError::Folder { path: folder.to_path_buf(), source })?;
        let path = file(folder);
        let failed = |source| StoreError::Sqlite {
            path: path.clone(),
            source,
            remedy: "check space and permissions; if the file is damaged, move it away to begin anew",
        };
        let db = Connection::open(&path).map_err(failed)?;
        let found = prepare(&db).map_err(failed)?;
        if found != SCHEMA {
            return Err(StoreError::Version { path, found });
        }
        let names: Vec<&str> = outlets.iter().map(|outlet| outlet.to.word()).collect();
        outbox::forget_others(&db, &names).map_err(failed)?;
        let waiting =
            names.iter().map(|name| outbox::waiting_bytes(&db, name)).collect::<Result<_, _>>().map_err(failed)?;
        let store = Self { db, path, outlets, limits, waiting };
        store.reserve();
        Ok(store)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that destinations have not acknowledged.
    pub fn waiting(&self) -> u64 {
        self.waiting.iter().sum()
    }

    /// Commits all of these rows or none of them.
    ///
    /// # Errors
    /// Nothing is committed; on a full disk the reserve is free now, and another try may succeed.
    pub fn commit<'a>(&mut self, rows: impl IntoIterator<Item = &'a Row>) -> Result<Committed, rusqlite::Error> {
        let mut waiting = self.waiting.clone();
        let mut done = Committed::default();
        let result = (|| {
            let transaction = self.db.transaction()?;
            for row in rows {
                write(&transaction, row, &self.outlets, &mut waiting)?;
            }
            for (outlet, bytes) in self.outlets.iter().zip(&mut waiting) {
                let (freed, rows) = outbox::shrink(&transaction, outlet.to, *bytes, self.limits.outbox_bytes)?;
                *bytes -= freed;
                done.given_up += rows;
            }
            transaction.commit()
        })();
        match result {
            Ok(()) => {
                self.waiting = waiting;
                Ok(done)
            }
            Err(error) => {
                if is_full(&error) {
                    // Whoever filled the disk leaves this to us.
                    let _ = std::fs::remove_file(self.reserved());
                }
                Err(error)
            }
        }
    }

    /// Deletes what is older than its limits, if `wall_nanos` is of a clock that is right, and what is too much, a bounded number of rows;
    /// and takes the reserve back.
    ///
    /// # Errors
    /// Nothing is deleted.
    pub fn sweep(&mut self, wall_nanos: Option<u64>) -> Result<Committed, rusqlite::Error> {
        let transaction = self.db.transaction()?;
        let (mut freed, mut given_up) = (vec![0; self.outlets.len()], 0);
        if let Some(now) = wall_nanos {
            let before = |hours: u64| now.saturating_sub(hours * 3_600 * 1_000_000_000) as i64;
            (freed, given_up) = outbox::expire(&transaction, before(self.limits.outbox_hours.into()), &self.outlets)?;
            transaction.execute(
                "DELETE FROM events WHERE id IN (SELECT id FROM events e WHERE wall_ns < ?1 \
                 AND NOT EXISTS (SELECT 1 FROM images i WHERE i.event_id = e.event_id) \
                 AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.event = e.id) ORDER BY wall_ns LIMIT 2000)",
                [before(u64::from(self.limits.days) * 24)],
            )?;
        }
        let pages: u64 = transaction.query_row(
            "SELECT (SELECT page_count FROM pragma_page_count) - (SELECT freelist_count FROM pragma_freelist_count)",
            [],
            |row| row.get::<_, i64>(0).map(|pages| pages as u64),
        )?;
        if pages.saturating_mul(PAGE) > self.limits.max_bytes {
            // Of a camera that runs free many frames are lost by design: they and passes are missed least.
            transaction.execute(
                "DELETE FROM events WHERE id IN (SELECT id FROM events e WHERE (verdict = 'pass' OR reason = 'overrun') \
                 AND NOT EXISTS (SELECT 1 FROM images i WHERE i.event_id = e.event_id) \
                 AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.event = e.id) ORDER BY id LIMIT 10000)",
                [],
            )?;
        }
        transaction.commit()?;
        self.waiting.iter_mut().zip(freed).for_each(|(waiting, freed)| *waiting -= freed);
        self.reserve();
        Ok(Committed { given_up })
    }

    fn reserved(&self) -> PathBuf {
        self.path.with_extension("reserve")
    }

    /// Takes the reserve, if there is plenty of room and it is not there.
    fn reserve(&self) {
        let path = self.reserved();
        let free = self.path.parent().and_then(free_bytes).unwrap_or(0);
        if path.exists() || free < PLENTY {
            return;
        }
        let made = std::fs::File::create(&path).and_then(|file| {
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE).map_err(Into::into)
        });
        if let Err(error) = made {
            log::debug!("{}: no reserve: {error}", path.display());
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// The database of a station's folder.
pub fn file(folder: &Path) -> PathBuf {
    folder.join("dsad.db")
}

/// Bytes that are free on the disk of a folder, for this process.
pub fn free_bytes(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    Some(disk.f_bavail * disk.f_frsize)
}

/// Whether the disk is full.
fn is_full(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DiskFull, SystemIoFailure};
    // Writes to the index of the log fail as input and output.
    matches!(error.sqlite_error_code(), Some(DiskFull | SystemIoFailure))
}

/// Sets a connection up and makes the tables; says of which version they are.
fn prepare(db: &Connection) -> Result<i64, rusqlite::Error> {
    db.busy_timeout(std::time::Duration::from_secs(5))?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "journal_size_limit", 16 << 20)?;
    db.pragma_update(None, "foreign_keys", "ON")?;
    db.set_prepared_statement_cache_capacity(32);
    db.execute_batch(
        "BEGIN;
         CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
         CREATE TABLE IF NOT EXISTS events(
             id INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, wall_ns INTEGER NOT NULL, camera TEXT NOT NULL, part_id TEXT,
             recipe_id TEXT NOT NULL, verdict TEXT NOT NULL, reason TEXT, score REAL, json TEXT NOT NULL) STRICT;
         CREATE INDEX IF NOT EXISTS events_by_time ON events(wall_ns);
         CREATE INDEX IF NOT EXISTS events_by_part ON events(part_id) WHERE part_id IS NOT NULL;
         CREATE TABLE IF NOT EXISTS outbox(
             id INTEGER PRIMARY KEY AUTOINCREMENT, destination TEXT NOT NULL, priority INTEGER NOT NULL, topic TEXT NOT NULL,
             event INTEGER REFERENCES events(id), body TEXT, bytes INTEGER NOT NULL, wall_ns INTEGER NOT NULL) STRICT;
         CREATE INDEX IF NOT EXISTS outbox_by_turn ON outbox(destination, priority, id);
         CREATE INDEX IF NOT EXISTS outbox_by_event ON outbox(event) WHERE event IS NOT NULL;
         CREATE TABLE IF NOT EXISTS images(
             event_id TEXT PRIMARY KEY, stem TEXT NOT NULL, verdict TEXT NOT NULL, bytes INTEGER NOT NULL, blake3 TEXT NOT NULL,
             wall_ns INTEGER NOT NULL, keep INTEGER NOT NULL DEFAULT 0) STRICT;
         CREATE INDEX IF NOT EXISTS images_by_time ON images(keep, verdict, wall_ns);
         CREATE TABLE IF NOT EXISTS audit(
             id INTEGER PRIMARY KEY, wall_ns INTEGER NOT NULL, who TEXT NOT NULL, \"from\" TEXT NOT NULL, what TEXT NOT NULL,
             of TEXT NOT NULL, old TEXT, new TEXT, refused TEXT, hash BLOB NOT NULL) STRICT;
         COMMIT;",
    )?;
    db.execute("INSERT OR IGNORE INTO meta VALUES ('schema', ?1)", [SCHEMA])?;
    db.query_row("SELECT value FROM meta WHERE key = 'schema'", [], |row| row.get(0))
}

fn write(transaction: &Transaction, row: &Row, outlets: &[Outlet], waiting: &mut [u64]) -> Result<(), rusqlite::Error> {
    match row {
        Row::Event(event, json, wall_nanos) => {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO events(event_id, wall_ns, camera, part_id, recipe_id, verdict, reason, score, json) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?;
            insert.execute(params![
                event.event_id,
                *wall_nanos as i64,
                event.camera,
                event.part_id,
                event.recipe_id,
                event.verdict,
                event.reason,
                event.score,
                json
            ])?;
            let id = transaction.last_insert_rowid();
            outbox::put_event(transaction, id, Priority::of(event.verdict), json.len(), *wall_nanos, outlets, waiting)
        }
        Row::Late(event, json) => {
            transaction
                .prepare_cached("UPDATE events SET json = ?2, score = ?3 WHERE event_id = ?1")?
                .execute(params![event.event_id, json, event.score])?;
            Ok(())
        }
        Row::Deed(deed, wall_nanos) => audit::append(transaction, deed, *wall_nanos),
        Row::Message(topic, body, wall_nanos) => {
            outbox::put_message(transaction, topic, body, *wall_nanos, outlets, waiting)
        }
        Row::Sent(ids) => outbox::sent(transaction, ids, outlets, waiting),
        Row::Images(Images { event_id, stem, verdict, bytes, blake3, wall_nanos }) => {
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO images(event_id, stem, verdict, bytes, blake3, wall_ns) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute(params![event_id, stem, verdict, *bytes as i64, blake3, *wall_nanos as i64])?;
            Ok(())
        }
        Row::ImagesGone(ids) => {
            let mut delete = transaction.prepare_cached("DELETE FROM images WHERE event_id = ?1")?;
            ids.iter().try_for_each(|id| delete.execute([id]).map(drop))
        }
    }
}
