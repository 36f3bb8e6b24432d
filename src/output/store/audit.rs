//! The audit trail: rows that nobody can change or take out unseen.
//!
//! The hash of a row is BLAKE3 over the hash of the row before and all fields of this one, each with its length before it. Whoever changes
//! or deletes a row must make every hash after it anew; the last hash, noted elsewhere, gives that away, too.

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::inspection::audit::Deed;

/// Adds a deed.
pub(super) fn append(transaction: &Transaction, deed: &Deed, wall_nanos: u64) -> Result<(), rusqlite::Error> {
    let last: Option<(i64, Vec<u8>)> = transaction
        .prepare_cached("SELECT id, hash FROM audit ORDER BY id DESC LIMIT 1")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (id, before) = last.map_or((1, Vec::new()), |(id, hash)| (id + 1, hash));
    let hash = hash(&before, id, wall_nanos, deed);
    let Deed { who, from, what, of, old, new, refused } = deed;
    transaction
        .prepare_cached(
            "INSERT INTO audit(id, wall_ns, who, \"from\", what, of, old, new, refused, hash) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute(params![id, wall_nanos as i64, who, from, what, of, old, new, refused, hash.as_bytes()])?;
    Ok(())
}

fn hash(before: &[u8], id: i64, wall_nanos: u64, deed: &Deed) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let Deed { who, from, what, of, old, new, refused } = deed;
    hasher.update(before).update(&id.to_le_bytes()).update(&wall_nanos.to_le_bytes());
    let always = [who, from, what, of].map(|text| Some(text.as_str()));
    let perhaps = [old, new, refused].map(Option::as_deref);
    for field in always.into_iter().chain(perhaps) {
        // Nothing and an empty text are not the same.
        let length = field.map_or(u64::MAX, |text| text.len() as u64);
        hasher.update(&length.to_le_bytes()).update(field.unwrap_or_default().as_bytes());
    }
    hasher.finalize()
}

/// What an examination of the trail found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// Rows that were read.
    pub rows: u64,
    /// The hash of the last, hexadecimal: to be noted elsewhere.
    pub last: String,
    /// The first row that is not what was written, or before which one is missing.
    pub broken: Option<i64>,
}

/// Follows the chain from the first row to the last.
///
/// # Errors
/// The database cannot be read.
pub fn examine(db: &Connection) -> Result<Examined, rusqlite::Error> {
    let mut found = Examined { rows: 0, last: String::new(), broken: None };
    let mut before: Vec<u8> = Vec::new();
    let mut rows =
        db.prepare("SELECT id, wall_ns, who, \"from\", what, of, old, new, refused, hash FROM audit ORDER BY id")?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        let deed = Deed {
            who: row.get(2)?,
            from: row.get(3)?,
            what: row.get(4)?,
            of: row.get(5)?,
            old: row.get(6)?,
            new: row.get(7)?,
            refused: row.get(8)?,
        };
        found.rows += 1;
        let hash = hash(&before, id, row.get::<_, i64>(1)? as u64, &deed);
        before = row.get(9)?;
        found.last = before.iter().map(|byte| format!("{byte:02x}")).collect();
        if id as u64 != found.rows || hash.as_bytes().as_slice() != before {
            found.broken = Some(id);
            break;
        }
    }
    Ok(found)
}
