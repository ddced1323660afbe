//! The sign-ins on the web page: a browser has a random token in a cookie, and the gateway has its user in memory only.
//!
//! A sign-in ends by time, by signing out, when the gateway ends, and when the password or the rights of its user change.
//! Tokens are stored as digests, so that the time of a search reveals nothing about them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::{HeaderMap, header};
use base64ct::{Base64UrlUnpadded, Encoding};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::access::Access;
use crate::access::settings::UserSettings;
use crate::secret::{Digest, sha256};

/// The most sign-ins at the same time, of all users and of one user.
const MOST: usize = 256;
const MOST_OF_USER: usize = 16;
/// A sign-in ends after this time without use, and after a longer time in any case.
const IDLE: Duration = Duration::from_secs(24 * 60 * 60);
const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// The most cookies of our name that are examined: a request may have more than one, but not many.
const MOST_COOKIES: usize = 4;

/// The sign-in of one browser, which has the cookie.
#[derive(Debug)]
pub(crate) struct SignIn {
    /// The user as it was at the sign-in. If it changes in any way, the browser must sign in again.
    pub(crate) user: Arc<UserSettings>,
    begun: Instant,
    used: Mutex<Instant>,
    is_over: AtomicBool,
}

impl SignIn {
    /// Whether the sign-in is still valid. Calling this counts as use.
    pub(crate) fn goes_on(&self) -> bool {
        let now = Instant::now();
        let goes_on = self.is_valid(now);
        if goes_on {
            *self.used.lock() = now;
        }
        goes_on
    }

    /// Whether the user has not changed.
    pub(crate) fn is_of_now(&self, access: &Access) -> bool {
        access.authoriser.user(None, &self.user.name).is_some_and(|user| *user == *self.user)
    }

    fn is_valid(&self, now: Instant) -> bool {
        !self.is_over.load(Ordering::Acquire)
            && now.duration_since(*self.used.lock()) < IDLE
            && now.duration_since(self.begun) < LONGEST
    }

    fn end(&self) {
        self.is_over.store(true, Ordering::Release);
    }
}

/// All sign-ins, by the digests of their tokens.
#[derive(Debug)]
pub(crate) struct SignIns {
    /// The name of the cookie. It contains the port, because all ports of a host share cookies.
    name: String,
    known: Mutex<HashMap<Digest, Arc<SignIn>>>,
}

impl SignIns {
    /// No sign-ins, for a gateway at this port.
    pub(crate) fn new(port: u16) -> SignIns {
        SignIns { name: format!("pigateway-{port}"), known: Mutex::default() }
    }

    /// Signs a user in, and returns the token, or `None` if the system has no random numbers. If there are too many
    /// sign-ins, the user's own oldest one ends, or the oldest of the user with most.
    pub(crate) fn begin(&self, user: Arc<UserSettings>) -> Option<String> {
        let mut random = [0; 32];
        getrandom::fill(&mut random).ok()?;
        let token = Base64UrlUnpadded::encode_string(&random);
        let now = Instant::now();
        let sign_in = SignIn { user, begun: now, used: Mutex::new(now), is_over: AtomicBool::new(false) };
        let mut known = self.known.lock();
        known.retain(|_, other| other.is_valid(now));
        let mut counts: HashMap<String, usize> = HashMap::new();
        known.values().for_each(|other| *counts.entry(other.user.name.clone()).or_default() += 1);
        let own = counts.get(&sign_in.user.name).copied().unwrap_or(0);
        let loser = match own >= MOST_OF_USER {
            true => Some(sign_in.user.name.clone()),
            false if known.len() >= MOST => counts.into_iter().max_by_key(|(_, count)| *count).map(|(name, _)| name),
            false => None,
        };
        if let Some(loser) = loser {
            let of_loser = known.iter().filter(|(_, other)| other.user.name == loser);
            let oldest = of_loser.min_by_key(|(_, other)| *other.used.lock()).map(|(digest, _)| *digest);
            if let Some(gone) = oldest.and_then(|oldest| known.remove(&oldest)) {
                gone.end();
            }
        }
        known.insert(sha256(token.as_bytes()), Arc::new(sign_in));
        Some(token)
    }

    /// The sign-in to which a request belongs.
    pub(crate) fn find(&self, headers: &HeaderMap) -> Option<Arc<SignIn>> {
        let mut known = self.known.lock();
        self.tokens(headers).find_map(|token| {
            let digest = sha256(token.as_bytes());
            let found = known.get(&digest).cloned()?;
            if found.goes_on() {
                return Some(found);
            }
            known.remove(&digest);
            None
        })
    }

    /// Ends the sign-in to which a request belongs.
    pub(crate) fn end(&self, headers: &HeaderMap) {
        let mut known = self.known.lock();
        for token in self.tokens(headers) {
            if let Some(gone) = known.remove(&sha256(token.as_bytes())) {
                gone.end();
            }
        }
    }

    /// Ends a sign-in whose user has changed.
    pub(crate) fn forget(&self, gone: &Arc<SignIn>) {
        gone.end();
        self.known.lock().retain(|_, other| !Arc::ptr_eq(other, gone));
    }

    fn tokens<'a>(&'a self, headers: &'a HeaderMap) -> impl Iterator<Item = &'a str> {
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.filter(|(name, _)| *name == self.name).map(|(_, token)| token).take(MOST_COOKIES)
    }

    /// The cookie that a browser must store, or without a token the one that deletes it. `path` is the gateway's path behind
    /// a proxy.
    pub(crate) fn cookie(&self, token: Option<&str>, path: &str, is_secure: bool) -> String {
        let (value, age) = token.map_or(("", "; Max-Age=0"), |token| (token, ""));
        let path = if path.is_empty() { "/" } else { path };
        let secure = if is_secure { "; Secure" } else { "" };
        format!("{}={value}; Path={path}{age}; HttpOnly; SameSite=Strict{secure}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::settings::Rights;

    fn user(name: &str) -> Arc<UserSettings> {
        let (name, rights) = (name.into(), Rights::default());
        Arc::new(UserSettings { name, password_hash: None, rights, client_ids: Vec::new(), is_admin: false })
    }

    fn cookie(text: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::COOKIE, text.parse().unwrap())])
    }

    fn shown(sign_ins: &SignIns, token: &str) -> bool {
        sign_ins.find(&cookie(&format!("pigateway-8080={token}"))).is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn a_sign_in_ends_by_time_and_by_signing_out() {
        let sign_ins = SignIns::new(8080);
        let (a, b) = (sign_ins.begin(user("a")).unwrap(), sign_ins.begin(user("b")).unwrap());
        assert!(a.len() == 43 && a != b);
        assert!(shown(&sign_ins, &a) && shown(&sign_ins, &b));
        for (text, is_known) in [
            (format!("x=1; pigateway-8080={a}; y=2"), true),
            (format!("pigateway-8081={a}"), false),
            (format!("pigateway-8080=old; pigateway-8080={a}"), true),
            (format!("pigateway-8080={a}x"), false),
            ("pigateway-8080=".into(), false),
            ("pigateway-8080".into(), false),
            (format!("{}pigateway-8080={a}", "pigateway-8080=x; ".repeat(9)), false),
        ] {
            assert_eq!(sign_ins.find(&cookie(&text)).is_some(), is_known, "{text}");
        }
        let held = sign_ins.find(&cookie(&format!("pigateway-8080={b}"))).unwrap();
        sign_ins.end(&cookie(&format!("pigateway-8080={b}")));
        assert!(!shown(&sign_ins, &b) && !held.goes_on() && shown(&sign_ins, &a));
        for _ in 0..7 {
            assert!(shown(&sign_ins, &a));
            tokio::time::advance(IDLE - Duration::from_secs(1)).await;
        }
        assert!(shown(&sign_ins, &a));
        tokio::time::advance(Duration::from_secs(8)).await;
        assert!(!shown(&sign_ins, &a), "a week is over");
        let unused = sign_ins.begin(user("a")).unwrap();
        tokio::time::advance(IDLE).await;
        assert!(!shown(&sign_ins, &unused));
        assert!(sign_ins.known.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn there_are_only_so_many_and_nobody_pushes_others_out() {
        let sign_ins = SignIns::new(8080);
        let other = sign_ins.begin(user("other")).unwrap();
        let first = sign_ins.begin(user("a")).unwrap();
        for _ in 0..1000 {
            tokio::time::advance(Duration::from_millis(1)).await;
            sign_ins.begin(user("a")).unwrap();
        }
        assert_eq!(sign_ins.known.lock().len(), 1 + MOST_OF_USER);
        assert!(shown(&sign_ins, &other) && !shown(&sign_ins, &first));
        for name in 0..1000 {
            sign_ins.begin(user(&format!("user {name}"))).unwrap();
        }
        assert_eq!(sign_ins.known.lock().len(), MOST);
    }

    #[test]
    fn no_script_and_no_other_site_gets_at_the_cookie() {
        let sign_ins = SignIns::new(8080);
        assert_eq!(sign_ins.cookie(Some("t"), "", false), "pigateway-8080=t; Path=/; HttpOnly; SameSite=Strict");
        assert_eq!(
            sign_ins.cookie(Some("t"), "/pi", true),
            "pigateway-8080=t; Path=/pi; HttpOnly; SameSite=Strict; Secure"
        );
        assert_eq!(sign_ins.cookie(None, "", false), "pigateway-8080=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict");
    }
}
