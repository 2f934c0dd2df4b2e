//! Who may ask. Without a token only this machine can; with one, whoever has it. Names in `Host` are checked
//! always: a page elsewhere whose name is made to lead here (DNS rebinding) would ask with its own name.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};
use axum::http::{HeaderMap, header};
use subtle::ConstantTimeEq;

const TOKEN_MIN: usize = 16;
const TOKEN_MAX: usize = 512;

/// Who may ask.
pub struct Guard {
    token: Option<String>,
    /// What a browser shows after it has shown the token once; as long as this process lives.
    session: String,
    cookie: String,
    /// Names the page may be called by, beside addresses and `localhost`.
    hosts: Vec<String>,
}

/// What is to be done with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    Welcome,
    /// The token was in the address: it is to be a cookie from now on.
    Login,
    /// No token, or a wrong one.
    Stranger,
    /// It came by a name that is not ours.
    WrongHost,
}

impl Guard {
    /// For who listens at an address.
    pub fn new(listen: SocketAddr, token: Option<String>, hosts: Vec<String>) -> Result<Self> {
        if token.is_none() && !listen.ip().is_loopback() {
            bail!(
                "{listen} can be reached from elsewhere: give --token-file FILE, and who asks must show the token in it"
            );
        }
        if let Some(token) = &token {
            check_token(token)?;
        }
        let hosts = hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect();
        // Cookies know no ports: two instances on one machine are two cookies.
        Ok(Self { token, session: random()?, cookie: format!("vrouter-{}", listen.port()), hosts })
    }

    /// Judges a request by its headers and its query.
    pub fn judge(&self, headers: &HeaderMap, query: Option<&str>) -> Judgement {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        if !host.is_some_and(|host| self.knows(host)) {
            return Judgement::WrongHost;
        }
        let Some(token) = &self.token else { return Judgement::Welcome };
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        if bearer.and_then(|value| value.strip_prefix("Bearer ")).is_some_and(|shown| same(shown, token)) {
            return Judgement::Welcome;
        }
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut cookies = cookies.flat_map(|value| value.split("; ")).filter_map(|it| it.split_once('='));
        if cookies.any(|(name, value)| name == self.cookie && same(value, &self.session)) {
            return Judgement::Welcome;
        }
        let mut pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        match pairs.any(|(name, value)| name == "token" && same(value, token)) {
            true => Judgement::Login,
            false => Judgement::Stranger,
        }
    }

    /// The cookie of who has shown the token.
    pub fn set_cookie(&self) -> String {
        format!("{}={}; Path=/; HttpOnly; SameSite=Strict", self.cookie, self.session)
    }

    /// An address cannot be made to lead elsewhere; of names only those that we were told.
    fn knows(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, port)) if port.is_empty() || port.starts_with(':') => address,
            Some(_) => return false,
            None => host.split_once(':').map_or(host, |(name, _)| name),
        };
        let name = name.to_ascii_lowercase();
        name.parse::<IpAddr>().is_ok() || name == "localhost" || self.hosts.contains(&name)
    }
}

/// Compares in a time that says nothing of where they differ.
fn same(a: &str, b: &str) -> bool {
    a.as_bytes().ct_eq(b.as_bytes()).into()
}

/// What nobody can guess: 256 bits in hexadecimal.
pub fn random() -> Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("{error}")).context("no random bytes")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Tokens are in addresses and headers, so they are made of what needs no escapes there.
fn check_token(token: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
    if !(TOKEN_MIN..=TOKEN_MAX).contains(&token.len()) || !token.bytes().all(plain) {
        bail!(
            "the token must be {TOKEN_MIN} to {TOKEN_MAX} letters, digits, `-`, `_`, `.` or `~`; `openssl rand -hex 32` \
             makes one"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, HeaderValue::from_str(value).expect("a value"));
        }
        headers
    }

    fn guard(token: Option<&str>) -> Guard {
        let listen = "127.0.0.1:8480".parse().expect("an address");
        Guard::new(listen, token.map(str::to_owned), vec!["Router.example".to_owned()]).expect("a guard")
    }

    #[test]
    fn only_names_that_are_ours_are_heard() {
        let guard = guard(None);
        for (host, expected) in [
            ("127.0.0.1:8480", Judgement::Welcome),
            ("localhost:8480", Judgement::Welcome),
            ("LOCALHOST", Judgement::Welcome),
            ("[::1]:8480", Judgement::Welcome),
            ("192.0.2.7", Judgement::Welcome),
            ("router.example:8480", Judgement::Welcome),
            ("evil.example:8480", Judgement::WrongHost),
            ("127.0.0.1.evil.example", Judgement::WrongHost),
            ("[::1].evil.example", Judgement::WrongHost),
            ("", Judgement::WrongHost),
        ] {
            assert_eq!(guard.judge(&headers(&[(header::HOST, host)]), None), expected, "{host}");
        }
        assert_eq!(guard.judge(&HeaderMap::new(), None), Judgement::WrongHost);
    }

    #[test]
    fn a_token_is_shown_in_a_header_or_once_in_the_address() {
        let guard = guard(Some(TOKEN));
        let host = (header::HOST, "127.0.0.1:8480");
        let judge = |more: Option<(header::HeaderName, &str)>, query: Option<&str>| {
            let all: Vec<_> = std::iter::once(host.clone()).chain(more).collect();
            guard.judge(&headers(&all), query)
        };
        assert_eq!(judge(None, None), Judgement::Stranger);
        assert_eq!(judge(None, Some("token=0123456789abcdeX")), Judgement::Stranger);
        assert_eq!(judge(None, Some("token=0123456789abcde")), Judgement::Stranger);
        assert_eq!(judge(None, Some("token=0123456789abcdef")), Judgement::Login);
        assert_eq!(judge(Some((header::AUTHORIZATION, "Bearer 0123456789abcdef")), None), Judgement::Welcome);
        assert_eq!(judge(Some((header::AUTHORIZATION, "Basic 0123456789abcdef")), None), Judgement::Stranger);
        let cookie = guard.set_cookie();
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
        assert!(!cookie.contains(TOKEN), "{cookie}");
        let cookie = cookie.split(';').next().expect("a cookie");
        assert_eq!(judge(Some((header::COOKIE, &format!("a=b; {cookie}"))), None), Judgement::Welcome);
        assert_eq!(judge(Some((header::COOKIE, "vrouter-8480=x")), None), Judgement::Stranger);
    }

    #[test]
    fn what_others_can_reach_needs_a_token() {
        let anywhere: SocketAddr = "0.0.0.0:8480".parse().expect("an address");
        let Err(error) = Guard::new(anywhere, None, Vec::new()) else { panic!("open to everybody") };
        assert!(error.to_string().contains("--token-file"), "{error}");
        assert!(Guard::new(anywhere, Some("short".to_owned()), Vec::new()).is_err());
        assert!(Guard::new(anywhere, Some(random().expect("random")), Vec::new()).is_ok());
    }
}
