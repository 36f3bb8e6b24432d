//! Who asks too often, and who guesses passwords. Bounded, whatever is asked from wherever.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use crate::inspection::time::Timestamp;

/// Requests of one address: so many at once, and so many a second.
const REQUESTS: (f64, f64) = (500.0, 200.0);
/// Passwords that one address may try: so many at once, and so many a second.
const LOGINS: (f64, f64) = (10.0, 1.0 / 3.0);
/// Wrong passwords of an account from an address after which it is locked.
const TRIES: u32 = 5;
/// The first lock, and the longest one, seconds; each wrong password doubles it.
const LOCKS: (u64, u64) = (60, 15 * 60);
/// Seconds after which wrong passwords are forgotten.
const MEMORY: u64 = 3_600;
/// Addresses that are remembered.
const ADDRESSES: usize = 1_024;
/// Accounts that are remembered of each; all others count as one.
const ACCOUNTS: usize = 16;
const SECOND: u64 = 1_000_000_000;

/// Seconds after which it may be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait(pub u64);

/// What is known of whom.
#[derive(Debug, Default)]
pub struct Guard {
    addresses: HashMap<IpAddr, Address>,
}

#[derive(Debug)]
struct Address {
    seen: Timestamp,
    requests: Bucket,
    logins: Bucket,
    failed: Vec<Failed>,
}

/// Wrong passwords of one account.
#[derive(Debug)]
struct Failed {
    account: [u8; 32],
    count: u32,
    last: Timestamp,
    until: Timestamp,
}

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Timestamp,
}

impl Bucket {
    fn take(&mut self, (most, per_second): (f64, f64), now: Timestamp) -> Result<(), Wait> {
        self.left = (self.left + now.millis_since(self.at) / 1e3 * per_second).min(most);
        self.at = now;
        if self.left < 1.0 {
            return Err(Wait(((1.0 - self.left) / per_second).ceil().max(1.0) as u64));
        }
        self.left -= 1.0;
        Ok(())
    }
}

impl Guard {
    /// Counts a request.
    ///
    /// # Errors
    /// There were too many.
    pub fn request(&mut self, from: IpAddr, now: Timestamp) -> Result<(), Wait> {
        match self.address(from, now) {
            Some(address) => address.requests.take(REQUESTS, now),
            // All that are remembered are locked out: reading goes on for others.
            None => Ok(()),
        }
    }

    /// Counts a password as wrong before it is looked at, so that many at once are no way around. Answers with the seconds for
    /// which it locks, if it is wrong and does.
    ///
    /// # Errors
    /// It is locked, or there were too many.
    pub fn attempt(&mut self, from: IpAddr, account: &str, now: Timestamp) -> Result<Option<u64>, Wait> {
        let Some(address) = self.address(from, now) else { return Err(Wait(LOCKS.0)) };
        let failed = address.failed_of(account, now);
        if failed.until > now {
            return Err(Wait(failed.until.0.saturating_sub(now.0).div_ceil(SECOND)));
        }
        address.logins.take(LOGINS, now)?;
        let failed = address.failed_of(account, now);
        failed.count += 1;
        failed.last = now;
        let lock = (failed.count >= TRIES).then(|| lock(failed.count));
        failed.until = Timestamp(now.0 + lock.unwrap_or(0) * SECOND);
        Ok(lock)
    }

    /// It was right.
    pub fn right(&mut self, from: IpAddr, account: &str) {
        let account = name(account);
        if let Some(address) = self.addresses.get_mut(&network(from)) {
            address.failed.retain(|failed| failed.account != account);
        }
    }

    /// What is remembered of an address. Where there is no room for it, who was not seen for longest is forgotten; never who
    /// is locked out.
    fn address(&mut self, from: IpAddr, now: Timestamp) -> Option<&mut Address> {
        let from = network(from);
        if !self.addresses.contains_key(&from) && self.addresses.len() >= ADDRESSES {
            let free = self.addresses.iter().filter(|(_, address)| !address.is_locked(now));
            let oldest = free.min_by_key(|(_, address)| address.seen).map(|(from, _)| *from)?;
            self.addresses.remove(&oldest);
        }
        let address = self.addresses.entry(from).or_insert_with(|| Address {
            seen: now,
            requests: Bucket { left: REQUESTS.0, at: now },
            logins: Bucket { left: LOGINS.0, at: now },
            failed: Vec::new(),
        });
        address.seen = now;
        Some(address)
    }
}

impl Address {
    fn is_locked(&self, now: Timestamp) -> bool {
        self.failed.iter().any(|failed| failed.until > now)
    }

    fn failed_of(&mut self, account: &str, now: Timestamp) -> &mut Failed {
        self.failed.retain(|failed| failed.last.millis_since(Timestamp(0)) + MEMORY as f64 * 1e3 > now.0 as f64 / 1e6);
        let account = name(account);
        let known = self.failed.iter().position(|failed| failed.account == account);
        let at = known.unwrap_or_else(|| {
            let full = self.failed.len() >= ACCOUNTS;
            if !full {
                self.failed.push(Failed { account, count: 0, last: now, until: Timestamp(0) });
            }
            self.failed.len() - 1
        });
        &mut self.failed[at]
    }
}

/// Seconds of the lock after so many wrong passwords.
fn lock(count: u32) -> u64 {
    let doubled = LOCKS.0.checked_shl(count.saturating_sub(TRIES).min(8)).unwrap_or(LOCKS.1);
    doubled.min(LOCKS.1)
}

/// A name of any length in little room.
fn name(account: &str) -> [u8; 32] {
    *blake3::hash(account.as_bytes()).as_bytes()
}

/// Who may take any address of its network counts as one.
fn network(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn at(seconds: u64) -> Timestamp {
        Timestamp(seconds * SECOND)
    }

    #[test]
    fn locks_double_up_to_a_quarter_of_an_hour() {
        let (mut guard, mut now, mut locks) = (Guard::default(), 10, Vec::new());
        for _ in 0..TRIES + 6 {
            if let Some(lock) = guard.attempt(HERE, "chief", at(now)).expect("may try") {
                assert_eq!(guard.attempt(HERE, "chief", at(now + 1)), Err(Wait(lock - 1)), "not even the right one");
                assert!(guard.attempt(HERE, "other", at(now + 1)).is_ok(), "others are not locked");
                guard.right(HERE, "other");
                locks.push(lock);
                now += lock;
            }
            now += 3;
        }
        assert_eq!(locks, [60, 120, 240, 480, 900, 900, 900]);
        guard.right(HERE, "chief");
        assert_eq!(guard.attempt(HERE, "chief", at(now)), Ok(None), "a right password forgets the wrong ones");
    }

    #[test]
    fn wrong_passwords_are_forgotten_after_an_hour() {
        let mut guard = Guard::default();
        for _ in 0..TRIES - 1 {
            assert_eq!(guard.attempt(HERE, "chief", at(5)), Ok(None));
        }
        assert_eq!(guard.attempt(HERE, "chief", at(5 + MEMORY + 1)), Ok(None));
    }

    #[test]
    fn many_at_once_are_slowed_down() {
        let mut guard = Guard::default();
        let asked = (0..10_000).filter(|_| guard.request(HERE, at(1)).is_ok()).count();
        assert_eq!(asked, REQUESTS.0 as usize);
        assert_eq!(guard.request(HERE, at(1)), Err(Wait(1)));
        assert_eq!((0..10_000).filter(|_| guard.request(HERE, at(2)).is_ok()).count(), REQUESTS.1 as usize);
        let tried = (0..100).filter(|k| guard.attempt(HERE, &format!("a{k}"), at(2)).is_ok()).count();
        assert_eq!(tried, LOGINS.0 as usize);
        assert_eq!(guard.attempt(HERE, "b", at(2)), Err(Wait(3)));
    }

    #[test]
    fn the_tables_are_bounded_and_a_lock_stays_in_them() {
        let mut guard = Guard::default();
        for _ in 0..TRIES {
            assert!(guard.attempt(HERE, "chief", at(0)).is_ok());
        }
        for k in 0..3 * ADDRESSES as u32 {
            let from = IpAddr::from([10, 0, (k >> 8) as u8, k as u8]);
            assert!(guard.request(from, at(1)).is_ok());
        }
        assert_eq!(guard.addresses.len(), ADDRESSES);
        assert!(guard.attempt(HERE, "chief", at(2)).is_err(), "still locked");
        let (mut guard, mut refused) = (Guard::default(), 0);
        for k in 0..1_000 {
            refused += u32::from(guard.attempt(HERE, &format!("a{k}"), at(3 * k)).is_err());
        }
        assert!(guard.addresses[&HERE].failed.len() <= ACCOUNTS);
        assert!(refused > 500, "who tries many accounts is locked out of those beyond, together: {refused}");
    }

    #[test]
    fn a_network_of_version_6_counts_as_one_address() {
        let of = |text: &str| network(text.parse().expect("an address"));
        assert_eq!(of("2001:db8:1:2:3::4"), of("2001:db8:1:2:ffff::"));
        assert_ne!(of("2001:db8:1:2::"), of("2001:db8:1:3::"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
