//! Join tokens: 32 random bytes, shown once, kept only as their hash. Pure, except for the random numbers.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use crate::{Error, NodeId, Refusal, Role};

/// Crockford's base 32: no letter that looks like a digit.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const BYTES: usize = 32;
const CHARACTERS: usize = 52;

/// How long a token is valid unless said otherwise.
pub const DEFAULT_TTL: Duration = Duration::from_secs(60 * 60);

/// A join token as the operator sees it. It is printed once and never stored.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; BYTES]);

impl Token {
    /// A new random token.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn generate() -> Result<Self, Error> {
        let mut bytes = [0; BYTES];
        SystemRandom::new().fill(&mut bytes).map_err(|_| Error::Random)?;
        Ok(Self(bytes))
    }

    /// What is stored in place of the token.
    pub fn hash(&self) -> TokenHash {
        TokenHash(hex(ring::digest::digest(&ring::digest::SHA256, &self.0).as_ref()))
    }
}

impl fmt::Debug for Token {
    // A token must not reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut buffer, mut bits) = (0_u32, 0);
        let mut text = String::with_capacity(CHARACTERS);
        for byte in self.0 {
            buffer = (buffer << 8) | u32::from(byte);
            bits += 8;
            while bits >= 5 {
                bits -= 5;
                text.push(char::from(ALPHABET[((buffer >> bits) & 31) as usize]));
            }
            buffer &= (1 << bits) - 1;
        }
        if bits > 0 {
            text.push(char::from(ALPHABET[((buffer << (5 - bits)) & 31) as usize]));
        }
        f.write_str(&text)
    }
}

impl FromStr for Token {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() != CHARACTERS {
            return Err(format!(
                "the token has {} characters and not {CHARACTERS}; was it cut off?",
                text.chars().count()
            ));
        }
        let (mut bytes, mut filled) = ([0; BYTES], 0);
        let (mut buffer, mut bits) = (0_u32, 0);
        for character in text.chars() {
            // What a reader may have mistaken counts as what it looks like.
            let plain = match character.to_ascii_lowercase() {
                'o' => '0',
                'i' | 'l' => '1',
                other => other,
            };
            let value = ALPHABET
                .iter()
                .position(|&letter| char::from(letter) == plain)
                .ok_or_else(|| format!("the token holds {character:?}, which no token does"))?;
            buffer = (buffer << 5) | u32::try_from(value).unwrap_or(0);
            bits += 5;
            if bits >= 8 {
                bits -= 8;
                if filled < BYTES {
                    bytes[filled] = u8::try_from((buffer >> bits) & 0xff).unwrap_or(0);
                    filled += 1;
                }
            }
            buffer &= (1 << bits) - 1;
        }
        if buffer != 0 {
            return Err("the token's last character is wrong".into());
        }
        Ok(Self(bytes))
    }
}

/// SHA-256 of a token, 64 hexadecimal digits: its name in the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenHash(String);

impl TokenHash {
    /// The whole hash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Enough to name the token in a list and to revoke it.
    pub fn id(&self) -> &str {
        self.0.get(..10).unwrap_or(&self.0)
    }
}

/// What a new token may be used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenOptions {
    /// Valid for so long.
    pub ttl: Duration,
    /// Admits any number of nodes, not just one.
    pub reusable: bool,
    /// What nodes may join as.
    pub roles: Vec<Role>,
}

impl Default for TokenOptions {
    fn default() -> Self {
        Self { ttl: DEFAULT_TTL, reusable: false, roles: vec![Role::ControlPlane, Role::Worker] }
    }
}

/// What is stored of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenRecord {
    /// SHA-256 of the token.
    pub hash: TokenHash,
    /// When it was made.
    pub created: Timestamp,
    /// From then on it admits nobody.
    pub expires: Timestamp,
    /// Admits any number of nodes.
    pub reusable: bool,
    /// What nodes may join as.
    pub roles: Vec<Role>,
    /// How many nodes it admitted.
    #[serde(default)]
    pub uses: u32,
    /// The node that it admitted last: that one may repeat a join that was cut off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_by: Option<UsedBy>,
}

/// The node that used a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedBy {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
}

impl TokenRecord {
    /// Would the token admit this node? `Ok(true)`: it already did, and this is the same join again.
    ///
    /// # Errors
    /// Why not.
    pub fn admits(&self, id: NodeId, role: Role, now: Timestamp) -> Result<bool, Refusal> {
        if !self.roles.contains(&role) {
            return Err(Refusal::TokenRole { role, allowed: self.roles.clone() });
        }
        let again = self.used_by.as_ref().is_some_and(|used| used.id == id);
        if again {
            return Ok(true);
        }
        if !self.reusable
            && let Some(used) = &self.used_by
        {
            return Err(Refusal::TokenUsed { by: used.name.clone() });
        }
        if now >= self.expires {
            return Err(Refusal::TokenExpired { expired: self.expires });
        }
        Ok(false)
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_being_typed() {
        for bytes in [[0; 32], [0xff; 32], [0xa5; 32], std::array::from_fn(|i| u8::try_from(i * 7).unwrap())]
        {
            let token = Token(bytes);
            let text = token.to_string();
            assert_eq!(text.len(), CHARACTERS);
            assert_eq!(text.parse(), Ok(token.clone()));
            assert_eq!(text.to_uppercase().replace('0', "O").replace('1', "l").parse(), Ok(token));
        }
        assert_ne!(Token::generate().unwrap(), Token::generate().unwrap());
    }

    #[test]
    fn what_is_wrong_with_a_token_is_said() {
        let good = Token([7; 32]).to_string();
        for (text, hint) in [
            (good[..50].to_owned(), "50 characters"),
            (format!("{}u", &good[..51]), "'u'"),
            (format!("{}z", &good[..51]), "last character"),
        ] {
            let error = text.parse::<Token>().unwrap_err();
            assert!(error.contains(hint), "{error}");
        }
    }

    #[test]
    fn a_token_is_not_in_its_debug_output_or_its_record() {
        let token = Token([7; 32]);
        assert!(!format!("{token:?}").contains(&token.to_string()));
        assert_eq!(token.hash().as_str().len(), 64);
        assert_eq!(token.hash().id().len(), 10);
    }

    #[test]
    fn who_a_token_admits() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let (first, second) = (NodeId::new(1), NodeId::new(2));
        let record = |reusable, used: Option<NodeId>| TokenRecord {
            hash: Token([1; 32]).hash(),
            created: at(0),
            expires: at(100),
            reusable,
            roles: vec![Role::Worker],
            uses: 0,
            used_by: used.map(|id| UsedBy { id, name: "n1".into() }),
        };
        let expired = Err(Refusal::TokenExpired { expired: at(100) });
        let used = Err(Refusal::TokenUsed { by: "n1".into() });
        for (record, id, now, expected) in [
            (record(false, None), first, 99, Ok(false)),
            (record(false, None), first, 100, expired.clone()),
            (record(false, Some(first)), first, 200, Ok(true)),
            (record(false, Some(first)), second, 50, used.clone()),
            (record(false, Some(first)), second, 200, used),
            (record(true, Some(first)), second, 50, Ok(false)),
            (record(true, Some(first)), second, 100, expired),
        ] {
            assert_eq!(record.admits(id, Role::Worker, at(now)), expected, "{record:?} at {now}");
        }
        assert!(matches!(
            record(true, None).admits(first, Role::ControlPlane, at(1)),
            Err(Refusal::TokenRole { .. })
        ));
    }
}
