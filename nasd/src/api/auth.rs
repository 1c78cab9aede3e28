//! Who may ask over the network without a certificate: whoever has the token.

use super::answer::Problem;
use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A token that is shorter can be guessed.
const SHORTEST: usize = 16;
/// Nobody's token is longer.
const LONGEST: u64 = 4096;

/// There is no token to compare with.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("{}: the token can't be read: {source}; make one with `openssl rand -hex 32`, or correct `token_file`", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{}: others than its owner may read or write the token (mode {mode:03o}); chmod 600 it, and make a new one if somebody may have read it", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{}: the token in the first line has less than {SHORTEST} characters; make one with `openssl rand -hex 32`", path.display())]
    Short { path: PathBuf },
}

/// The token's file: when it changes the new token counts, and the old one does not any more.
pub struct TokenFile {
    path: PathBuf,
    read: Mutex<(Stamp, Option<Token>)>,
}

/// Equal as long as nobody has changed the file.
#[derive(Debug, PartialEq, Eq)]
struct Stamp(Option<(u64, u64, i64, i64, u32)>);

impl Stamp {
    fn of(metadata: io::Result<Metadata>) -> Stamp {
        // The change time, which nobody can set: a file that is replaced within its second differs all the same.
        Stamp(metadata.ok().map(|m| (m.dev(), m.ino(), m.ctime(), m.ctime_nsec(), m.mode())))
    }
}

/// A hash: comparing two of them takes the same time wherever they differ, and says nothing of the token's length.
struct Token(blake3::Hash);

impl Token {
    fn new(text: &[u8]) -> Token {
        Token(blake3::hash(text))
    }

    fn read(path: &Path) -> Result<Token, TokenError> {
        let unreadable = |source| TokenError::Unreadable { path: path.to_owned(), source };
        let file = File::open(path).map_err(unreadable)?;
        let mode = file.metadata().map_err(unreadable)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(TokenError::Exposed { path: path.to_owned(), mode });
        }
        let mut text = Vec::new();
        file.take(LONGEST).read_to_end(&mut text).map_err(unreadable)?;
        let line = text.split(|b| *b == b'\n').next().unwrap_or_default().trim_ascii();
        if line.len() < SHORTEST {
            return Err(TokenError::Short { path: path.to_owned() });
        }
        Ok(Token::new(line))
    }
}

impl TokenFile {
    /// Reads the token.
    pub fn open(path: &Path) -> Result<TokenFile, TokenError> {
        let stamp = Stamp::of(path.metadata());
        let token = Token::read(path)?;
        Ok(TokenFile { path: path.to_owned(), read: Mutex::new((stamp, Some(token))) })
    }

    /// Whether this is the token that the file holds now. While there is no good one in it nothing is.
    fn is(&self, shown: &[u8]) -> bool {
        let mut read = self.read.lock();
        let now = Stamp::of(self.path.metadata());
        if now != read.0 {
            let token = Token::read(&self.path);
            if let Err(e) = &token {
                tracing::warn!("no token is accepted any more: {e}");
            }
            *read = (now, token.ok());
        }
        read.1.as_ref().is_some_and(|token| token.0 == Token::new(shown).0)
    }
}

/// What a request without a certificate has to pass.
#[derive(Clone)]
pub struct Gate(pub Option<Arc<TokenFile>>);

/// What the caller shows: `Authorization: Bearer TOKEN`.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

/// Lets the request through, or answers 401.
pub async fn check(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let shown = bearer(request.headers());
    let known = shown.zip(gate.0.as_deref()).is_some_and(|(shown, file)| file.is(shown));
    if known {
        return next.run(request).await;
    }
    let (challenge, error) = match shown {
        None => (
            "Bearer",
            "show the token: `Authorization: Bearer TOKEN`, or a certificate of the volume's authority",
        ),
        Some(_) => ("Bearer error=\"invalid_token\"", "this is not the token"),
    };
    let problem = Problem { error: error.to_owned() };
    (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, challenge)], Json(problem)).into_response()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn write(path: &Path, text: &str, mode: u32) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_token_counts_that_is_in_the_file_now() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        write(&path, "0123456789abcdef\n", 0o600);
        let file = TokenFile::open(&path).unwrap();
        assert!(file.is(b"0123456789abcdef"));
        for wrong in [&b"0123456789abcdeF"[..], b"0123456789abcde", b"0123456789abcdef\n", b""] {
            assert!(!file.is(wrong), "{wrong:?}");
        }
        write(&path, "another-token-of-mine", 0o600);
        assert!(file.is(b"another-token-of-mine") && !file.is(b"0123456789abcdef"));
        // Exposed, empty or gone: nobody.
        write(&path, "another-token-of-mine", 0o644);
        assert!(!file.is(b"another-token-of-mine"));
        write(&path, "", 0o600);
        assert!(!file.is(b""));
        std::fs::remove_file(&path).unwrap();
        assert!(!file.is(b"another-token-of-mine"));
        write(&path, "another-token-of-mine", 0o600);
        assert!(file.is(b"another-token-of-mine"));
    }

    #[test]
    fn a_bad_file_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let said = |path: &Path| TokenFile::open(path).err().unwrap().to_string();
        assert!(said(&path).contains("openssl rand -hex 32"), "{}", said(&path));
        for mode in [0o604, 0o640, 0o602, 0o777] {
            write(&path, "0123456789abcdef", mode);
            assert!(said(&path).contains("chmod 600"), "{mode:o}: {}", said(&path));
        }
        for short in ["", "\n0123456789abcdef", "0123456789abcde", "               \t     \n"] {
            write(&path, short, 0o600);
            assert!(said(&path).contains("less than 16 characters"), "{short:?}: {}", said(&path));
        }
    }

    #[test]
    fn a_token_is_shown_as_bearer_only() {
        let shown = |value: &'static str| {
            bearer(&HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())])).map(<[u8]>::to_vec)
        };
        assert_eq!(shown("Bearer abc").unwrap(), b"abc");
        assert_eq!(shown("bearer  abc").unwrap(), b"abc");
        assert_eq!(shown("Basic abc"), None);
        assert_eq!(shown("Bearer"), None);
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}
