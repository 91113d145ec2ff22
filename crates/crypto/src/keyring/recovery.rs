//! The recovery code: 160 random bits that a person writes on paper.
//!
//! Nine groups of four characters of Crockford's base 32: 32 characters of secret, four of checksum.

use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::error::CryptoError;
use crate::random::random_bytes;

const CODE_BYTES: usize = 20;
const SECRET_CHARACTERS: usize = CODE_BYTES * 8 / 5;
const CHECKSUM_CHARACTERS: usize = 4;
const CHARACTERS: usize = SECRET_CHARACTERS + CHECKSUM_CHARACTERS;
const GROUP_CHARACTERS: usize = 4;
/// Longer text is no code, however forgiving one is.
const TEXT_BYTES_MAX: usize = 256;
/// Digits and letters without I, L, O and U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Opens the keyring of someone who lost the password. Shown once, when it is made.
#[derive(ZeroizeOnDrop)]
pub struct RecoveryCode([u8; CODE_BYTES]);

impl RecoveryCode {
    /// A new random code.
    pub fn generate() -> Self {
        Self(random_bytes())
    }

    /// The code as it is shown: `XXXX-XXXX-…`, nine groups of four.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text =
            Zeroizing::new(String::with_capacity(CHARACTERS + CHARACTERS / GROUP_CHARACTERS));
        for (position, digit) in (0..).zip(digits(&self.0).iter()) {
            if position > 0 && position % GROUP_CHARACTERS == 0 {
                text.push('-');
            }
            text.push(char::from(ALPHABET[usize::from(*digit)]));
        }
        text
    }

    /// Reads what a person typed: any case, any spaces and hyphens, and O, I and L for the digits
    /// they look like.
    pub fn parse(text: &str) -> Result<Self, CryptoError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(CryptoError::InvalidRecoveryCode);
        }
        let mut typed = Zeroizing::new([0u8; CHARACTERS]);
        let mut length = 0;
        for character in
            text.chars().filter(|character| !character.is_whitespace() && *character != '-')
        {
            let digit = value(character).ok_or(CryptoError::InvalidRecoveryCode)?;
            *typed.get_mut(length).ok_or(CryptoError::InvalidRecoveryCode)? = digit;
            length += 1;
        }
        let mut code = Self([0; CODE_BYTES]);
        for (bytes, eight) in code.0.chunks_exact_mut(5).zip(typed.chunks_exact(8)) {
            let bits = eight.iter().fold(0u64, |bits, digit| bits << 5 | u64::from(*digit));
            bytes.copy_from_slice(&bits.to_be_bytes()[3..]);
        }
        if length == CHARACTERS && *digits(&code.0) == *typed {
            Ok(code)
        } else {
            Err(CryptoError::InvalidRecoveryCode)
        }
    }

    #[cfg(test)]
    pub(crate) const fn from_bytes(bytes: [u8; CODE_BYTES]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; CODE_BYTES] {
        &self.0
    }
}

/// The characters of a code as numbers: 160 bits of secret, then the first 20 bits of its hash.
fn digits(code: &[u8; CODE_BYTES]) -> Zeroizing<[u8; CHARACTERS]> {
    let checksum = blake3::derive_key("coffer/v1/recovery-code-checksum", code);
    let mut digits = Zeroizing::new([0u8; CHARACTERS]);
    // The last group of eight has only four characters of checksum to give.
    let source = code.chunks_exact(5).chain([&checksum[..5]]);
    for (eight, bytes) in digits.chunks_mut(8).zip(source) {
        let bits = bytes.iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        for (digit, shift) in eight.iter_mut().zip([35, 30, 25, 20, 15, 10, 5, 0]) {
            *digit = (bits >> shift & 31).to_le_bytes()[0];
        }
    }
    digits
}

fn value(character: char) -> Option<u8> {
    let upper = match character.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        other => other,
    };
    (0..).zip(ALPHABET).find(|(_, known)| char::from(**known) == upper).map(|(value, _)| value)
}

#[cfg(test)]
#[expect(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_however_it_is_typed() {
        let code = RecoveryCode::generate();
        let text = code.to_text();
        assert_eq!(text.len(), 44);
        assert!(text.split('-').count() == 9 && text.split('-').all(|group| group.len() == 4));
        let lookalikes = text.replace('0', "o").replace('1', "l").to_lowercase();
        let squeezed = text.replace('-', "");
        let spaced = text.replace('-', "  \n");
        for typed in [text.as_str(), &lookalikes, &squeezed, &spaced] {
            assert!(RecoveryCode::parse(typed).unwrap().0 == code.0);
        }
    }

    #[test]
    fn typing_errors_are_found() {
        let text = RecoveryCode::generate().to_text().replace('-', "");
        let mut typed = text.clone().into_bytes();
        let mut missed = 0;
        for position in 0..typed.len() {
            let right = typed[position];
            for wrong in ALPHABET.iter().filter(|wrong| **wrong != right) {
                typed[position] = *wrong;
                missed +=
                    usize::from(RecoveryCode::parse(std::str::from_utf8(&typed).unwrap()).is_ok());
            }
            typed[position] = right;
        }
        for position in 1..typed.len() {
            if typed[position] != typed[position - 1] {
                typed.swap(position, position - 1);
                missed +=
                    usize::from(RecoveryCode::parse(std::str::from_utf8(&typed).unwrap()).is_ok());
                typed.swap(position, position - 1);
            }
        }
        // 1,151 typing errors against 20 bits of checksum.
        assert!(missed <= 1, "{missed} typing errors went unnoticed");
        for bad in [
            "",
            "0",
            &text[1..],
            &format!("{text}0"),
            &text.replace(&text[..1], "U"),
            &"0".repeat(999),
        ] {
            assert!(RecoveryCode::parse(bad).is_err());
        }
    }
}
