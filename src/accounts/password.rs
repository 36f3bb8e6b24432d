//! Passwords and their hashes.

use std::sync::{Mutex, PoisonError};

use argon2::password_hash::phc::{Ident, Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};

use super::AccountsError;

/// Fewest characters: with few tries a minute that is enough.
const FEWEST: usize = 10;
/// Longest password, bytes.
const LONGEST: usize = 256;
/// What a hash may cost at most, KiB and passes: more would be a way to stop the station.
const COST: (u32, u32) = (64 << 10, 8);
/// Without letters that are taken for others. Thirty-two, so that no letter is likelier than another.
const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// What hashes are made in, one at a time. Kept, because an allocator that gets so much back from several threads keeps
/// several times as much.
static BLOCKS: Mutex<Vec<Block>> = Mutex::new(Vec::new());

/// Argon2id with the parameters that OWASP names first: 19 MiB, two passes.
pub fn hash(password: &str) -> Result<String, AccountsError> {
    let failed =
        |error: &dyn std::fmt::Display| AccountsError::Refused(format!("the password cannot be hashed: {error}"));
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(|error| failed(&error))?;
    let params = Params::default();
    let output = derive(password, &salt, &params, Params::DEFAULT_OUTPUT_LEN).ok_or_else(|| failed(&"argon2"))?;
    let made = PasswordHash {
        algorithm: Ident::new(Algorithm::Argon2id.as_str()).map_err(|error| failed(&error))?,
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(&params).map_err(|error| failed(&error))?,
        salt: Some(Salt::new(&salt).map_err(|error| failed(&error))?),
        hash: Some(output),
    };
    Ok(made.to_string())
}

/// Whether a password is that of a hash.
pub fn fits(password: &str, hash: &str) -> bool {
    // What no password can be long enough for is not worth the time of the device.
    if password.len() > LONGEST {
        return false;
    }
    let Ok(PasswordHash { salt: Some(salt), hash: Some(known), params, .. }) = PasswordHash::new(hash) else {
        return false;
    };
    let Ok(params) = Params::try_from(&params) else { return false };
    // Outputs are compared in a time that does not depend on them.
    derive(password, salt.as_ref(), &params, known.len()).is_some_and(|output| output == known)
}

fn derive(password: &str, salt: &[u8], params: &Params, length: usize) -> Option<Output> {
    let mut output = [0; Output::MAX_LENGTH];
    let output = output.get_mut(..length)?;
    let mut blocks = BLOCKS.lock().unwrap_or_else(PoisonError::into_inner);
    blocks.resize(params.block_count(), Block::default());
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params.clone())
        .hash_password_into_with_memory(password.as_bytes(), salt, output, &mut blocks[..])
        .ok()?;
    Output::new(output).ok()
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

#[cfg(test)]
mod tests {
    use argon2::password_hash::{PasswordHasher, PasswordVerifier};

    use super::*;

    #[test]
    fn hashes_are_those_of_the_library() {
        let own = hash("correct horse").expect("hashes");
        assert!(own.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{own}");
        check_hash(&own).expect("its own");
        let parsed = PasswordHash::new(&own).expect("parses");
        assert!(Argon2::default().verify_password(b"correct horse", &parsed).is_ok());
        let made: PasswordHash = Argon2::default().hash_password(b"correct horse").expect("hashes");
        for hash in [own, made.to_string()] {
            assert!(fits("correct horse", &hash) && !fits("correct horsf", &hash) && !fits("", &hash), "{hash}");
        }
        assert!(!fits("correct horse", "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ") && !fits("", ""));
        assert!(!fits(&"x".repeat(LONGEST + 1), &hash("x").expect("hashes")));
    }
}
