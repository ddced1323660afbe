//! Password hashes: argon2id, which the gateway makes, and those of mosquitto's password files, which it verifies unchanged.
//!
//! | form | what |
//! |---|---|
//! | `$argon2id$v=19$m=...,t=...,p=...$SALT$HASH` | a PHC string |
//! | `$7$ROUNDS$SALT$HASH` | mosquitto 2: PBKDF2 with HMAC-SHA512 |
//! | `$6$SALT$HASH` | mosquitto 1: SHA-512 of the password and the salt behind it |

use std::io;

use argon2::password_hash::{Output, ParamsString, SaltString};
use argon2::{ARGON2ID_IDENT, Algorithm, Argon2, Block, Params, PasswordHash, Version};
use base64ct::{Base64, Encoding};
use sha2::{Digest, Sha512};

/// Most memory for one password check, in KiB. A Pi with 512 MB can still bear it.
pub(crate) const MAX_MEMORY: u32 = 64 << 10;
/// Most KiB times passes of argon2id: four passes over the most memory, which take a small Pi some seconds. One check
/// runs at a time, and the name of nobody is checked against somebody's hash, so a dearer one would keep everybody
/// waiting.
pub(crate) const MAX_WORK: u64 = 4 * MAX_MEMORY as u64;
/// Most rounds of PBKDF2. They take a small Pi some seconds.
const MAX_ROUNDS: u32 = 500_000;
const SHA512_LENGTH: usize = 64;

/// The size of the memory that is asked for. glibc keeps freed memory for every thread unless the piece was larger than 32
/// MiB, the highest value of its threshold for a mapping of its own. So the gateway asks for more than it uses: untouched
/// pages cost nothing, and all of it goes back to the system after each check, on whatever thread it ran.
const OWN_MAPPING: usize = 33 << 20;

/// A valid hash that matches no password.
pub(super) const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$cGlnYXRld2F5LW5vYm9keQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Reserves the memory for one hash.
pub(super) fn memory(params: &Params) -> Vec<Block> {
    let mut memory = Vec::with_capacity(params.block_count().max(OWN_MAPPING / Block::SIZE));
    memory.resize(params.block_count(), Block::default());
    memory
}

/// A hash in one of mosquitto's formats.
#[derive(Debug, PartialEq, Eq)]
struct MosquittoHash {
    /// `None` for the older format, which has no rounds.
    rounds: Option<u32>,
    salt: Vec<u8>,
    hash: Vec<u8>,
}

impl MosquittoHash {
    fn parse(text: &str) -> Option<MosquittoHash> {
        let decoded = |text: &str| Base64::decode_vec(text).ok().filter(|bytes| !bytes.is_empty());
        let parts: Vec<&str> = text.split('$').collect();
        let (rounds, salt, hash) = match parts.as_slice() {
            ["", "6", salt, hash] => (None, salt, hash),
            ["", "7", rounds, salt, hash] => {
                (Some(rounds.parse().ok().filter(|rounds| (1..=MAX_ROUNDS).contains(rounds))?), salt, hash)
            }
            _ => return None,
        };
        let hash = decoded(hash).filter(|hash| hash.len() == SHA512_LENGTH)?;
        Some(MosquittoHash { rounds, salt: decoded(salt)?, hash })
    }

    fn is_of(&self, password: &[u8]) -> bool {
        let mut computed = [0; SHA512_LENGTH];
        match self.rounds {
            Some(rounds) => pbkdf2::pbkdf2_hmac::<Sha512>(password, &self.salt, rounds, &mut computed),
            None => computed.copy_from_slice(&Sha512::new().chain_update(password).chain_update(&self.salt).finalize()),
        }
        // `Output` compares in constant time
        matches!((Output::new(&computed), Output::new(&self.hash)), (Ok(computed), Ok(hash)) if computed == hash)
    }
}

/// Whether passwords can be checked against this hash within bearable time and memory.
pub fn is_usable(text: &str) -> bool {
    if MosquittoHash::parse(text).is_some() {
        return true;
    }
    PasswordHash::new(text).is_ok_and(|hash| {
        let bearable = Params::try_from(&hash).is_ok_and(|params| {
            let work = u64::from(params.m_cost()) * u64::from(params.t_cost());
            params.m_cost() <= MAX_MEMORY && work <= MAX_WORK
        });
        hash.algorithm == ARGON2ID_IDENT && hash.salt.is_some() && hash.hash.is_some() && bearable
    })
}

/// Whether mosquitto made this hash. Its hashes are cheaper to guess against than argon2id.
pub fn is_from_mosquitto(text: &str) -> bool {
    MosquittoHash::parse(text).is_some()
}

/// Whether the password matches this hash; `None` if it is not a hash of mosquitto's.
pub(super) fn verify_mosquitto(hash: &str, password: &[u8]) -> Option<bool> {
    MosquittoHash::parse(hash).map(|hash| hash.is_of(password))
}

/// Makes an argon2id hash that a small Pi computes in a fraction of a second: 19 MiB, 2 passes, 1 lane.
pub(crate) fn make(password: impl AsRef<[u8]>) -> io::Result<String> {
    fn other(error: impl std::fmt::Display) -> io::Error {
        io::Error::other(error.to_string())
    }
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(other)?;
    let params = Params::new(19_456, 2, 1, None).map_err(other)?;
    let memory = memory(&params);
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params.clone());
    let mut computed = [0; 32];
    argon2.hash_password_into_with_memory(password.as_ref(), &salt, &mut computed, memory).map_err(other)?;
    let salt = SaltString::encode_b64(&salt).map_err(other)?;
    let hash = PasswordHash {
        algorithm: ARGON2ID_IDENT,
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(&params).map_err(other)?,
        salt: Some(salt.as_salt()),
        hash: Some(Output::new(&computed).map_err(other)?),
    };
    Ok(hash.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by mosquitto_passwd 2.0.11 (`$7$`) and, with -H sha512, as 1.6 did (`$6$`).
    const MADE_BY_MOSQUITTO: [&str; 2] = [
        "$7$101$X+vfWTSUfGwxZqZA$0X68176mCA7P0/iVT5aJ0nJWnUQr8KI+3NzuWUArBX1tuqxqnf95WYUKt/nLkSCK58xYfTcAq9yDf/Xx+jIffg==",
        "$6$NnORNO+Hq9AG2LI5$2UB54qxnjCLgjn/JLSIUgxwJqz0NgHwVBurKcrYHRMWCoD9LrqUBg8JkFSHFV5rAvIjPGIfVr29fTMRCFEUvIw==",
    ];

    #[test]
    fn what_mosquitto_made_is_verified_as_it_is() {
        for hash in MADE_BY_MOSQUITTO {
            assert!(is_usable(hash) && is_from_mosquitto(hash), "{hash}");
            assert_eq!(verify_mosquitto(hash, "pässword".as_bytes()), Some(true), "{hash}");
            for wrong in ["", "password", "pässword ", "Pässword"] {
                assert_eq!(verify_mosquitto(hash, wrong.as_bytes()), Some(false), "{hash} {wrong}");
            }
        }
    }

    #[test]
    fn what_cannot_be_checked_against_is_refused() {
        let seven = MADE_BY_MOSQUITTO[0];
        let parts: Vec<&str> = seven.split('$').collect();
        for bad in [
            String::new(),
            "secret".into(),
            "$6$$".into(),
            "$5$c2FsdA==$aGFzaA==".into(),
            format!("$7$0${}${}", parts[3], parts[4]),
            format!("$7$999999999${}${}", parts[3], parts[4]),
            format!("$7$101${}$aGFzaA==", parts[3]),
            format!("$7$101$!${}", parts[4]),
            format!("{seven}$more"),
            "$argon2i$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAA".into(),
            "$argon2id$v=19$m=999999,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAA".into(),
            "$argon2id$v=19$m=65536,t=5,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAA".into(),
            "$argon2id$v=19$m=8,t=4294967295,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAA".into(),
        ] {
            assert!(!is_usable(&bad) && verify_mosquitto(&bad, b"x").is_none(), "{bad}");
        }
    }

    #[test]
    fn what_others_recommend_is_usable() {
        for cost in ["m=65536,t=3,p=4", "m=47104,t=1,p=1", "m=19456,t=2,p=1", "m=7168,t=5,p=1"] {
            assert!(is_usable(&format!("$argon2id$v=19${cost}$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAA")), "{cost}");
        }
    }

    #[test]
    fn what_is_made_is_usable() {
        let hash = make("hunter2").unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        assert!(is_usable(&hash) && !is_from_mosquitto(&hash));
    }
}
