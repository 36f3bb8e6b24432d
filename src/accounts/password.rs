//! Passwords and their hashes.

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};

use super::AccountsError;

/// Fewest characters: with few tries a minute that is enough.
const FEWEST: usize = 10;
/// Longest password, bytes.
const LONGEST: usize = 256;
/// What a hash may cost at most, KiB and passes: more would be a way to stop the station.
const COST: (u32, u32) = (64 << 10, 8);
/// Without letters that are taken for others. Thirty-two, so that no letter is likelier than another.
const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// Argon2id with the parameters that OWASP names first: 19 MiB, two passes.
pub fn hash(password: &str) -> Result<String, AccountsError> {
    let made: Result<PasswordHash, _> = Argon2::default().hash_password(password.as_bytes());
    made.map(|hash| hash.to_string())
        .map_err(|error| AccountsError::Refused(format!("the password cannot be hashed: {error}")))
}

/// Whether a password is that of a hash.
pub fn fits(password: &str, hash: &str) -> bool {
    // What no password can be long enough for is not worth the time of the device.
    password.len() <= LONGEST
        && PasswordHash::new(hash)
            .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
}

/// Whether a hash is one that this program makes, or not much dearer.
pub fn check_hash(text: &str) -> Result<(), String> {
    let hash = PasswordHash::new(text).map_err(|error| format!("no hash: {error}"))?;
    let number = |name: &str| hash.params.get_decimal(name).unwrap_or(u32::MAX);
    if hash.algorithm.as_str() != "argon2id" || number("m") > COST.0 || number("t") > COST.1 || hash.hash.is_none() {
        return Err(format!("the hash must be argon2id with m at most {} and t at most {}", COST.0, COST.1));
    }
    Ok(())
}

/// Whether a password may be chosen.
pub fn check(name: &str, password: &str) -> Result<(), AccountsError> {
    if password.chars().count() < FEWEST || password.len() > LONGEST {
        let text = format!("a password has at least {FEWEST} characters and at most {LONGEST} bytes");
        return Err(AccountsError::Refused(text));
    }
    if password.eq_ignore_ascii_case(name) {
        return Err(AccountsError::Refused("the password is the account's name; take another".into()));
    }
    Ok(())
}

/// A hundred random bits, to be typed by hand.
pub fn random() -> Result<String, AccountsError> {
    let mut bytes = [0_u8; 20];
    getrandom::fill(&mut bytes)
        .map_err(|error| AccountsError::Refused(format!("the system gives no randomness: {error}")))?;
    let letters: Vec<char> = bytes.iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect();
    Ok(letters.chunks(5).map(|group| group.iter().collect::<String>()).collect::<Vec<_>>().join("-"))
}
