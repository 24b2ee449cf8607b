//! Tokens: what an RPC has allowed, waiting for the one who comes with the URL.
//!
//! A token is 256 bits of the kernel's randomness, is good once, and for a minute. The cache is bounded: when it is full
//! of tokens that are not over yet, the RPC fails and says so. Nothing sweeps it; what is over goes when the next comes.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use coracle_engine::id;

/// How long a token is good.
pub(super) const LIFE: Duration = Duration::from_secs(60);
/// Tokens that wait at once, as in kubelet's own server.
pub(super) const MAX_WAITING: usize = 1000;

/// One waiting request.
struct Entry<T> {
    token: String,
    until: Instant,
    request: T,
}

/// Requests by token, the oldest first.
pub(super) struct Tokens<T> {
    entries: Mutex<VecDeque<Entry<T>>>,
}

/// Why there is no token.
#[derive(Debug)]
pub enum TokenError {
    /// Too many wait.
    Full,
    /// No randomness.
    Random(coracle_engine::Error),
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TokenError::Full => {
                write!(f, "{MAX_WAITING} streaming requests wait for their clients already; retry in a minute")
            }
            TokenError::Random(error) => write!(f, "make a token: {error}"),
        }
    }
}

impl std::error::Error for TokenError {}

impl<T> Tokens<T> {
    pub(super) fn new() -> Tokens<T> {
        Tokens { entries: Mutex::new(VecDeque::new()) }
    }

    /// Keeps a request and gives its token.
    pub(super) fn insert(&self, request: T, now: Instant) -> Result<String, TokenError> {
        let token = id::new().map_err(TokenError::Random)?;
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        while entries.front().is_some_and(|entry| entry.until <= now) {
            entries.pop_front();
        }
        if entries.len() >= MAX_WAITING {
            return Err(TokenError::Full);
        }
        entries.push_back(Entry { token: token.clone(), until: now + LIFE, request });
        Ok(token)
    }

    /// The request of a token, once. Which kind it must be of is told by `fits`; another kind's token is not used up.
    pub(super) fn take(&self, token: &str, now: Instant, fits: impl Fn(&T) -> bool) -> Option<T> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let at = entries.iter().position(|entry| same(&entry.token, token) && fits(&entry.request))?;
        let entry = entries.remove(at)?;
        (entry.until > now).then_some(entry.request)
    }
}

/// Compares without telling by its time how much was right.
fn same(one: &str, other: &str) -> bool {
    one.len() == other.len() && one.bytes().zip(other.bytes()).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_long_and_good_once() {
        let (tokens, now) = (Tokens::new(), Instant::now());
        let token = tokens.insert("request", now).unwrap();
        assert!(token.len() * 4 >= 128 && token != tokens.insert("other", now).unwrap());
        assert_eq!(tokens.take("wrong", now, |_| true), None);
        assert_eq!(tokens.take(&token, now, |_| false), None, "another kind");
        assert_eq!(tokens.take(&token, now, |_| true), Some("request"));
        assert_eq!(tokens.take(&token, now, |_| true), None);
    }

    #[test]
    fn a_token_is_over_after_a_minute() {
        let (tokens, now) = (Tokens::new(), Instant::now());
        let (one, other) = (tokens.insert(1, now).unwrap(), tokens.insert(2, now).unwrap());
        assert_eq!(tokens.take(&one, now + LIFE - Duration::from_millis(1), |_| true), Some(1));
        assert_eq!(tokens.take(&other, now + LIFE, |_| true), None);
    }

    #[test]
    fn the_cache_is_bounded_and_forgets_what_is_over() {
        let (tokens, now) = (Tokens::new(), Instant::now());
        for request in 0..MAX_WAITING {
            tokens.insert(request, now).unwrap();
        }
        assert!(matches!(tokens.insert(0, now), Err(TokenError::Full)));
        tokens.insert(0, now + LIFE).unwrap();
        assert_eq!(tokens.entries.lock().unwrap().len(), 1);
    }
}
