//! Reading the database beside the connection that writes.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};

use super::{Images, audit};

/// A connection that only reads.
pub struct Reader {
    db: Connection,
}

/// Which events.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Made at or after, nanoseconds since the Unix epoch.
    pub from: Option<u64>,
    /// Made before, nanoseconds since the Unix epoch.
    pub until: Option<u64>,
    /// Of this part.
    pub part: Option<String>,
    /// With this verdict.
    pub verdict: Option<String>,
    /// Of this camera.
    pub camera: Option<String>,
    /// With a larger number than this.
    pub after: i64,
}

impl Reader {
    /// Reads the database of a folder, which must be there.
    ///
    /// # Errors
    /// It is not, or cannot be read.
    pub fn open(folder: &Path) -> Result<Self, rusqlite::Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(super::file(folder), flags)?;
        db.busy_timeout(std::time::Duration::from_secs(5))?;
        Ok(Self { db })
    }

    pub(super) fn db(&self) -> &Connection {
        &self.db
    }

    /// Gives the numbers and JSON of events, the oldest first, to `each` until it answers false.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn events(&self, filter: &Filter, mut each: impl FnMut(i64, &str) -> bool) -> Result<(), rusqlite::Error> {
        let mut query = self.db.prepare_cached(
            "SELECT id, json FROM events WHERE id > ?1 AND wall_ns >= ?2 AND wall_ns < ?3 AND (?4 IS NULL OR part_id = ?4) \
             AND (?5 IS NULL OR verdict = ?5) AND (?6 IS NULL OR camera = ?6) ORDER BY id",
        )?;
        let Filter { from, until, part, verdict, camera, after } = filter;
        let time =
            |time: &Option<u64>, default: i64| time.map_or(default, |time| i64::try_from(time).unwrap_or(i64::MAX));
        let mut rows =
            query.query(params![after, time(from, i64::MIN), time(until, i64::MAX), part, verdict, camera])?;
        while let Some(row) = rows.next()? {
            if !each(row.get(0)?, row.get_ref(1)?.as_str()?) {
                break;
            }
        }
        Ok(())
    }

    /// At most so many events after that of an id, the oldest first; without an id the newest ones.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn recent(&self, after: Option<&str>, limit: usize) -> Result<Vec<String>, rusqlite::Error> {
        let after = match after {
            // Of an id that is not known, any more, all are after it.
            Some(id) => self.number(id)?.unwrap_or(0),
            None => self.last_number()?.saturating_sub(limit as i64),
        };
        let mut found = Vec::new();
        self.events(&Filter { after, ..Filter::default() }, |_, json| {
            if found.len() < limit {
                found.push(json.to_owned());
            }
            found.len() < limit
        })?;
        Ok(found)
    }

    /// The number of an event.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn number(&self, event_id: &str) -> Result<Option<i64>, rusqlite::Error> {
        self.db.query_row("SELECT id FROM events WHERE event_id = ?1", [event_id], |row| row.get(0)).optional()
    }

    /// The number of the last event, 0 where there is none.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn last_number(&self) -> Result<i64, rusqlite::Error> {
        self.db.query_row("SELECT COALESCE(MAX(id), 0) FROM events", [], |row| row.get(0))
    }

    /// Bytes of all files of events, and how many events have some.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn image_bytes(&self) -> Result<(u64, u64), rusqlite::Error> {
        self.db.query_row("SELECT COALESCE(SUM(bytes), 0), COUNT(*) FROM images", [], |row| {
            Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64))
        })
    }

    /// Whether an event has files.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn has_images(&self, event_id: &str) -> Result<bool, rusqlite::Error> {
        self.db.prepare_cached("SELECT 1 FROM images WHERE event_id = ?1")?.exists([event_id])
    }

    /// The events whose files may be deleted first, at most so many: the oldest passes, then the oldest of the others. Those that somebody
    /// marked to be kept are not among them.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn oldest_images(&self, limit: usize) -> Result<Vec<Images>, rusqlite::Error> {
        let mut query = self.db.prepare_cached(
            "SELECT event_id, stem, verdict, bytes, blake3, wall_ns FROM images WHERE keep = 0 ORDER BY verdict <> 'pass', wall_ns LIMIT ?1",
        )?;
        query.query_map([limit as i64], images)?.collect()
    }

    /// The oldest events with files that were made before a time, at most so many, but those that somebody marked to be kept.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn images_before(&self, wall_nanos: u64, limit: usize) -> Result<Vec<Images>, rusqlite::Error> {
        let mut query = self.db.prepare_cached(
            "SELECT event_id, stem, verdict, bytes, blake3, wall_ns FROM images WHERE keep = 0 AND wall_ns < ?1 ORDER BY wall_ns LIMIT ?2",
        )?;
        query.query_map(params![wall_nanos as i64, limit as i64], images)?.collect()
    }

    /// All files that the index knows, in no order, to `each`.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn images(&self, mut each: impl FnMut(Images)) -> Result<(), rusqlite::Error> {
        let mut query =
            self.db.prepare("SELECT event_id, stem, verdict, bytes, blake3, wall_ns FROM images ORDER BY wall_ns")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            each(images(row)?);
        }
        Ok(())
    }

    /// Follows the chain of the audit trail.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn examine_audit(&self) -> Result<audit::Examined, rusqlite::Error> {
        audit::examine(&self.db)
    }

    /// Gives the rows of the audit trail, the oldest first, as JSON objects.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn audit(&self, mut each: impl FnMut(serde_json::Value)) -> Result<(), rusqlite::Error> {
        let mut query =
            self.db.prepare("SELECT id, wall_ns, who, \"from\", what, of, old, new, refused FROM audit ORDER BY id")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let text = |at: usize| row.get::<_, Option<String>>(at);
            each(serde_json::json!({
                "id": row.get::<_, i64>(0)?, "t_wall": crate::inspection::time::rfc3339(row.get::<_, i64>(1)? as u64),
                "who": text(2)?, "from": text(3)?, "what": text(4)?, "of": text(5)?, "old": text(6)?, "new": text(7)?,
                "refused": text(8)?
            }));
        }
        Ok(())
    }
}

fn images(row: &Row) -> Result<Images, rusqlite::Error> {
    Ok(Images {
        event_id: row.get(0)?,
        stem: row.get(1)?,
        verdict: row.get(2)?,
        bytes: row.get::<_, i64>(3)? as u64,
        blake3: row.get(4)?,
        wall_nanos: row.get::<_, i64>(5)? as u64,
    })
}
