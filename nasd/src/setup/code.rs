//! The code that pairs two nodes, once.
//!
//! Half of it is the fingerprint of the certificate that the waiting node shows: whoever has the code knows whom it talks
//! to, so that nobody in the middle can pass for that node. The other half is a secret, which is said only to that
//! certificate: so the waiting node knows who may join. Neither half can be searched for: the fingerprint would need some
//! 2^80 keys within the minutes that the code is valid, and of the secret's 2^80 three may be tried.

use rand::Rng;
use std::fmt;
use std::str::FromStr;

/// Bytes of each half.
const HALF: usize = 10;
/// Digits that can't be taken for one another (Crockford's base 32).
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// Digits of a code, and of each group of them.
const LENGTH: usize = HALF * 2 * 8 / 5;
const GROUP: usize = 4;

/// A code.
#[derive(Clone, PartialEq, Eq)]
pub struct Code {
    fingerprint: [u8; HALF],
    secret: [u8; HALF],
}

/// What was typed is no code.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not a code of {LENGTH} digits and letters; type it as the first node shows it")]
pub struct NotACode;

impl Code {
    /// A new secret, and the fingerprint of this certificate (DER).
    pub fn new(certificate: &[u8]) -> Code {
        Code { fingerprint: fingerprint(certificate), secret: rand::rng().random() }
    }

    /// Whether the certificate is the one that the code was made for.
    pub fn is_for(&self, certificate: &[u8]) -> bool {
        self.fingerprint == fingerprint(certificate)
    }

    /// What is said to the node whose certificate fits.
    pub fn secret(&self) -> [u8; HALF] {
        self.secret
    }

    /// Whether this is the secret; takes equally long whatever it is.
    pub fn admits(&self, secret: &[u8]) -> bool {
        // Hashes are compared in constant time.
        blake3::hash(&self.secret) == blake3::hash(secret)
    }
}

fn fingerprint(certificate: &[u8]) -> [u8; HALF] {
    let mut half = [0; HALF];
    half.copy_from_slice(&blake3::hash(certificate).as_bytes()[..HALF]);
    half
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, five) in [self.fingerprint, self.secret].concat().chunks(5).enumerate() {
            let bits = five.iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
            for digit in 0..8 {
                if digit % GROUP == 0 && i + digit > 0 {
                    f.write_str("-")?;
                }
                let value = bits >> (35 - 5 * digit) & 31;
                write!(f, "{}", char::from(DIGITS[value as usize]))?;
            }
        }
        Ok(())
    }
}

impl FromStr for Code {
    type Err = NotACode;

    fn from_str(typed: &str) -> Result<Code, NotACode> {
        let mut values = Vec::with_capacity(LENGTH);
        for c in typed.bytes().filter(|c| !matches!(c, b'-' | b' ')) {
            let c = match c.to_ascii_lowercase() {
                b'o' => b'0',
                b'i' | b'l' => b'1',
                c => c,
            };
            values.push(DIGITS.iter().position(|d| *d == c).ok_or(NotACode)? as u64);
        }
        if values.len() != LENGTH {
            return Err(NotACode);
        }
        let bytes: Vec<u8> = values
            .chunks(8)
            .flat_map(|eight| {
                let bits = eight.iter().fold(0, |bits, value| bits << 5 | value);
                bits.to_be_bytes()[3..].to_vec()
            })
            .collect();
        let half = |at: usize| bytes[at..at + HALF].try_into().map_err(|_| NotACode);
        Ok(Code { fingerprint: half(0)?, secret: half(HALF)? })
    }
}

// Not derived: a secret does not get into a log by mistake.
impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Code")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_code_is_read_as_it_is_shown(fingerprint: [u8; HALF], secret: [u8; HALF]) {
            let code = Code { fingerprint, secret };
            let shown = code.to_string();
            prop_assert_eq!(shown.len(), LENGTH + LENGTH / GROUP - 1);
            prop_assert_eq!(shown.parse::<Code>(), Ok(code.clone()));
            let typed = shown.to_uppercase().replace('-', " ").replace('0', "O").replace('1', "l");
            prop_assert_eq!(typed.parse::<Code>(), Ok(code));
        }

        #[test]
        fn whatever_is_typed_is_a_code_or_refused(typed: String) {
            if let Ok(code) = typed.parse::<Code>() {
                prop_assert_eq!(code.to_string().parse::<Code>(), Ok(code));
            }
        }
    }

    #[test]
    fn it_fits_one_certificate_and_admits_one_secret() {
        let code = Code::new(b"mine");
        assert!(code.is_for(b"mine") && !code.is_for(b"yours"));
        assert!(code.admits(&code.secret()));
        let mut other = code.secret();
        other[HALF - 1] ^= 1;
        assert!(!code.admits(&other) && !code.admits(b""));
        assert_ne!(Code::new(b"mine").secret(), code.secret(), "each has a secret of its own");
    }

    #[test]
    fn too_few_or_wrong_digits_are_refused() {
        let code = Code::new(b"mine").to_string();
        for typed in ["", &code[1..], &format!("{code}0"), &code.replace('-', "_"), "u"] {
            assert_eq!(typed.parse::<Code>(), Err(NotACode), "{typed}");
        }
    }
}
