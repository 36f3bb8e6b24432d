//! What is still to be told: one row for each thing and destination, until the destination says that it has it.
//!
//! A row leaves the outbox when it is acknowledged, and not before: what was under way when the connection or the process broke is sent
//! again, and its reader knows it by its `event_id`.
//!
//! Of what waits, failures and faults go first, then messages of the station, then passes. Within each of these what was published since the
//! connection is there goes before what waited for it: a long outage does not delay the verdicts of now. Each of these lanes keeps
//! its order. What is too much or too old is given up, passes first, and counted.

use rusqlite::{Connection, Transaction, params};

use super::read::Reader;

/// Whom the outbox is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Destination {
    /// The MQTT broker.
    Mqtt,
    /// The webhook.
    Webhook,
}

impl Destination {
    /// The word in the database, in logs and in metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
            Self::Webhook => "webhook",
        }
    }
}

/// A destination, and what it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlet {
    /// Whom.
    pub to: Destination,
    /// Whether passes are told, too.
    pub passes: bool,
}

/// What goes before what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Failures and faults.
    Bad = 0,
    /// Messages of the station.
    Station = 1,
    /// Passes.
    Pass = 2,
}

impl Priority {
    /// All of them, the first first.
    pub const ALL: [Priority; 3] = [Priority::Bad, Priority::Station, Priority::Pass];

    /// Of a verdict's word.
    pub fn of(verdict: &str) -> Self {
        if verdict == "pass" { Self::Pass } else { Self::Bad }
    }
}

/// Something that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The row, to be acknowledged.
    pub id: i64,
    /// `verdict`, `state` or `alarm`.
    pub topic: String,
    /// What is told, JSON.
    pub body: String,
}

/// Where a destination has got to since its connection is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    destination: Destination,
    /// What has a higher number came since then.
    since: i64,
    /// The last row that was handed out of each priority: of what came since then, and of what waited.
    last: [(i64, i64); 3],
}

impl Turn {
    /// A connection is there now. What was handed out before and not acknowledged is handed out again.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn begin(reader: &Reader, destination: Destination) -> Result<Self, rusqlite::Error> {
        let since = reader.db().query_row(
            "SELECT COALESCE((SELECT seq FROM sqlite_sequence WHERE name = 'outbox'), 0)",
            [],
            |row| row.get(0),
        )?;
        Ok(Self { destination, since, last: [(since, 0); 3] })
    }

    /// What goes next, at most so many.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn next(&mut self, reader: &Reader, limit: usize) -> Result<Vec<Waiting>, rusqlite::Error> {
        let mut found = Vec::new();
        for priority in Priority::ALL {
            let (fresh, old) = &mut self.last[priority as usize];
            for (last, until) in [(fresh, i64::MAX), (old, self.since)] {
                let mut query = reader.db().prepare_cached(
                    "SELECT o.id, o.topic, COALESCE(o.body, e.json) FROM outbox o LEFT JOIN events e ON e.id = o.event \
                     WHERE o.destination = ?1 AND o.priority = ?2 AND o.id > ?3 AND o.id <= ?4 ORDER BY o.id LIMIT ?5",
                )?;
                let left = limit.saturating_sub(found.len()) as i64;
                let rows = query
                    .query_map(params![self.destination.word(), priority as i64, *last, until, left], |row| {
                        Ok(Waiting { id: row.get(0)?, topic: row.get(1)?, body: row.get(2)? })
                    })?;
                for row in rows {
                    let row = row?;
                    *last = row.id;
                    found.push(row);
                }
            }
        }
        Ok(found)
    }
}

/// Bytes that wait for a destination.
pub(super) fn waiting_bytes(db: &Connection, destination: &str) -> Result<u64, rusqlite::Error> {
    let bytes: i64 =
        db.query_row("SELECT COALESCE(SUM(bytes), 0) FROM outbox WHERE destination = ?1", [destination], |row| {
            row.get(0)
        })?;
    Ok(bytes as u64)
}

/// Deletes what waits for destinations that the station has no more.
pub(super) fn forget_others(db: &Connection, names: &[&str]) -> Result<(), rusqlite::Error> {
    let known = names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(",");
    let gone = db.execute(&format!("DELETE FROM outbox WHERE destination NOT IN ({known})"), [])?;
    if gone > 0 {
        log::warn!("{gone} messages waited for destinations that the configuration has no more; they are given up");
    }
    Ok(())
}

pub(super) fn put_event(
    transaction: &Transaction,
    event: i64,
    priority: Priority,
    bytes: usize,
    wall_nanos: u64,
    outlets: &[Outlet],
    waiting: &mut [u64],
) -> Result<(), rusqlite::Error> {
    for (Outlet { to, passes }, waiting) in outlets.iter().zip(waiting) {
        if priority == Priority::Pass && !passes {
            continue;
        }
        transaction
            .prepare_cached(
                "INSERT INTO outbox(destination, priority, topic, event, bytes, wall_ns) VALUES (?1, ?2, 'verdict', ?3, ?4, ?5)",
            )?
            .execute(params![to.word(), priority as i64, event, bytes as i64, wall_nanos as i64])?;
        *waiting += bytes as u64;
    }
    Ok(())
}

pub(super) fn put_message(
    transaction: &Transaction,
    topic: &str,
    body: &str,
    wall_nanos: u64,
    outlets: &[Outlet],
    waiting: &mut [u64],
) -> Result<(), rusqlite::Error> {
    for (outlet, waiting) in outlets.iter().zip(waiting) {
        transaction
            .prepare_cached(
                "INSERT INTO outbox(destination, priority, topic, body, bytes, wall_ns) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                outlet.to.word(),
                Priority::Station as i64,
                topic,
                body,
                body.len() as i64,
                wall_nanos as i64
            ])?;
        *waiting += body.len() as u64;
    }
    Ok(())
}

/// Deletes what was acknowledged.
pub(super) fn sent(
    transaction: &Transaction,
    ids: &[i64],
    outlets: &[Outlet],
    waiting: &mut [u64],
) -> Result<(), rusqlite::Error> {
    let mut delete = transaction.prepare_cached("DELETE FROM outbox WHERE id = ?1 RETURNING destination, bytes")?;
    for id in ids {
        let mut rows = delete.query([id])?;
        while let Some(row) = rows.next()? {
            subtract(outlets, waiting, &row.get::<_, String>(0)?, row.get::<_, i64>(1)? as u64);
        }
    }
    Ok(())
}

fn subtract(outlets: &[Outlet], waiting: &mut [u64], destination: &str, bytes: u64) {
    let at = outlets.iter().position(|known| known.to.word() == destination);
    if let Some(waiting) = at.and_then(|at| waiting.get_mut(at)) {
        *waiting = waiting.saturating_sub(bytes);
    }
}

/// Gives up the oldest of what waits for a destination until it is not too much, passes first; says how many bytes and rows.
pub(super) fn shrink(
    transaction: &Transaction,
    destination: Destination,
    waiting: u64,
    most: u64,
) -> Result<(u64, u64), rusqlite::Error> {
    let (mut freed, mut rows) = (0, 0);
    let mut first = transaction.prepare_cached(
        "DELETE FROM outbox WHERE id = (SELECT id FROM outbox WHERE destination = ?1 AND priority = ?2 ORDER BY id LIMIT 1) \
         RETURNING bytes",
    )?;
    for priority in Priority::ALL.into_iter().rev() {
        while waiting.saturating_sub(freed) > most {
            let mut gone = first.query(params![destination.word(), priority as i64])?;
            let Some(row) = gone.next()? else { break };
            freed += row.get::<_, i64>(0)? as u64;
            rows += 1;
        }
    }
    Ok((freed.min(waiting), rows))
}

/// Gives up what was made before a time, a bounded number of rows; says how many bytes of each destination, and how many rows.
pub(super) fn expire(
    transaction: &Transaction,
    before: i64,
    outlets: &[Outlet],
) -> Result<(Vec<u64>, u64), rusqlite::Error> {
    let mut freed = vec![0; outlets.len()];
    let mut rows = 0;
    let mut delete = transaction.prepare_cached(
        "DELETE FROM outbox WHERE id IN (SELECT id FROM outbox WHERE wall_ns < ?1 ORDER BY id LIMIT 2000) RETURNING destination, bytes",
    )?;
    let mut gone = delete.query([before])?;
    while let Some(row) = gone.next()? {
        let name: String = row.get(0)?;
        if let Some(at) = outlets.iter().position(|known| known.to.word() == name) {
            freed[at] += row.get::<_, i64>(1)? as u64;
        }
        rows += 1;
    }
    Ok((freed, rows))
}
