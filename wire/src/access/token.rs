//! Tokens: `rct_<id>_<secret>`, 60 characters. The id finds the entry, the secret has 256 random bits.

use data_encoding::BASE64URL_NOPAD;
use ring::hmac;
use thiserror::Error;
use zeroize::Zeroizing;

use super::entry::Credential;
use crate::secret::Secret;

const PREFIX: &str = "rct_";
const ID_BYTES: usize = 12;
const ID_ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Why there is no new token.
#[derive(Debug, Error)]
pub enum TokenError {
    /// The system gave no random numbers.
    #[error("random numbers: {0}")]
    Random(getrandom::Error),
}

/// Makes a token, and what the access file keeps of it.
pub fn new_token() -> Result<(Secret, Credential), TokenError> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(TokenError::Random)?;
    let mut id_bytes = [0; ID_BYTES];
    getrandom::fill(&mut id_bytes).map_err(TokenError::Random)?;
    let mut secret = Zeroizing::new([0; 32]);
    getrandom::fill(secret.as_mut_slice()).map_err(TokenError::Random)?;

    let letters = id_bytes.iter().filter_map(|byte| ID_ALPHABET.get(usize::from(byte & 31)));
    let id: String = letters.map(|letter| char::from(*letter)).collect();
    let secret = Zeroizing::new(BASE64URL_NOPAD.encode(secret.as_slice()));
    let token = Secret::new(&Zeroizing::new(format!("{PREFIX}{id}_{}", secret.as_str())));
    let hash = hash(&salt, &token);
    Ok((token, Credential::Token { id, salt, hash }))
}

/// The id within a token; `None` for text that is no token.
pub(super) fn id(token: &Secret) -> Option<&str> {
    let rest = token.expose().strip_prefix(PREFIX)?;
    let (id, rest) = rest.split_at_checked(ID_BYTES)?;
    (is_id(id) && rest.starts_with('_')).then_some(id)
}

/// Whether text could be a token's id.
pub(super) fn is_id(text: &str) -> bool {
    text.len() == ID_BYTES && text.bytes().all(|byte| ID_ALPHABET.contains(&byte))
}

/// Whether a token is the one of this credential, in a time that depends on its length alone; the
/// same time is spent without a credential.
pub(super) fn matches(token: &Secret, credential: Option<&Credential>) -> bool {
    let (salt, hash, is_token) = match credential {
        Some(Credential::Token { salt, hash, .. }) => (salt, hash, true),
        _ => (&[0; 16], &[0; 32], false),
    };
    let key = hmac::Key::new(hmac::HMAC_SHA256, salt);
    hmac::verify(&key, token.expose().as_bytes(), hash).is_ok() & is_token
}

fn hash(salt: &[u8; 16], token: &Secret) -> [u8; 32] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, salt);
    let tag = hmac::sign(&key, token.expose().as_bytes());
    let mut hash = [0; 32];
    hash.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
    hash
}
