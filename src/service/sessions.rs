//! Who has logged in. Tokens are kept as their hashes, in memory alone: a restart ends all sessions.

use std::collections::HashMap;

use crate::accounts::Known;
use crate::inspection::time::Timestamp;

/// Seconds that a session lasts: a shift, and what follows it.
pub const LIFE: u64 = 12 * 3_600;
/// Sessions of one account; one more ends the oldest.
const EACH: usize = 16;

/// What a token is kept as.
pub type Key = [u8; 32];

/// The sessions.
#[derive(Debug, Default)]
pub struct Sessions {
    open: HashMap<Key, Session>,
}

#[derive(Debug)]
struct Session {
    account: String,
    /// Of the password that it was opened with.
    mark: [u8; 32],
    until: Timestamp,
}

/// How a token is kept.
pub fn key(token: &str) -> Key {
    *blake3::hash(token.as_bytes()).as_bytes()
}

impl Sessions {
    /// Opens one, and answers with its token.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn open(&mut self, known: &Known, now: Timestamp) -> Result<String, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        let token = blake3::Hash::from_bytes(bytes).to_hex().to_string();
        self.open.retain(|_, session| session.until > now);
        let mut own: Vec<(Timestamp, Key)> =
            self.open.iter().filter(|(_, s)| s.account == known.name).map(|(key, s)| (s.until, *key)).collect();
        own.sort_unstable();
        for (_, key) in own.iter().take((own.len() + 1).saturating_sub(EACH)) {
            self.open.remove(key);
        }
        let session = Session { account: known.name.clone(), mark: known.mark, until: now.plus_millis(LIFE * 1_000) };
        self.open.insert(key(&token), session);
        Ok(token)
    }

    /// The account of a session, by what `known` says of accounts now: a session ends with its password.
    pub fn account<E>(
        &mut self,
        key: &Key,
        now: Timestamp,
        known: impl FnOnce(&str) -> Result<Option<Known>, E>,
    ) -> Result<Option<Known>, E> {
        let Some(session) = self.open.get(key).filter(|session| session.until > now) else {
            self.open.remove(key);
            return Ok(None);
        };
        let known = known(&session.account)?.filter(|known| known.mark == session.mark);
        if known.is_none() {
            self.open.remove(key);
        }
        Ok(known)
    }

    /// Ends one.
    pub fn close(&mut self, key: &Key) {
        self.open.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspection::account::Level;

    fn known(name: &str, mark: u8) -> Known {
        Known { name: name.into(), level: Level::Operator, must_change: false, mark: [mark; 32] }
    }

    fn account(sessions: &mut Sessions, token: &str, now: u64, mark: u8) -> Option<Known> {
        sessions.account(&key(token), Timestamp(now), |name| Ok::<_, ()>(Some(known(name, mark)))).expect("answers")
    }

    #[test]
    fn a_session_ends_with_its_time_its_password_or_by_hand() {
        let mut sessions = Sessions::default();
        let hours = |hours: u64| hours * 3_600 * 1_000_000_000;
        let mut open = |now| sessions.open(&known("op", 1), Timestamp(now)).expect("opens");
        let tokens = [open(0), open(0), open(0)];
        assert!(tokens[0].len() == 64 && tokens[0] != tokens[1]);
        assert!(account(&mut sessions, &tokens[0], hours(11), 1).is_some());
        assert!(account(&mut sessions, &tokens[0], hours(12), 1).is_none());
        assert!(account(&mut sessions, &tokens[1], 1, 2).is_none(), "the password was changed");
        assert!(account(&mut sessions, &tokens[1], 1, 1).is_none(), "and it stays closed");
        sessions.close(&key(&tokens[2]));
        assert!(account(&mut sessions, &tokens[2], 1, 1).is_none());
        assert!(sessions.open.is_empty());
    }

    #[test]
    fn nobody_fills_the_memory_and_nobody_ends_the_sessions_of_others() {
        let mut sessions = Sessions::default();
        let other = sessions.open(&known("other", 1), Timestamp(0)).expect("opens");
        let tokens: Vec<String> =
            (1..100).map(|k| sessions.open(&known("op", 1), Timestamp(k)).expect("opens")).collect();
        assert_eq!(sessions.open.len(), EACH + 1);
        assert!(account(&mut sessions, &other, 200, 1).is_some());
        assert!(account(&mut sessions, &tokens[98], 200, 1).is_some());
        assert!(account(&mut sessions, &tokens[0], 200, 1).is_none());
    }
}
