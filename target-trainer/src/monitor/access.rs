//! Decides whether a request is answered. On a loopback address, whoever is on this machine may look, and a web
//! page of another site may not, whatever name it gives this server. Elsewhere, the token is needed. A change
//! needs it everywhere. Answers nothing itself.

use std::net::IpAddr;

use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderValue, Method};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::token::Token;

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// A browser was told that this is another server.
    #[error("the request is for another host; use `localhost` or the address of the monitor")]
    OtherHost,
    /// A page of another site has sent it.
    #[error("the request comes from a page of another site")]
    OtherSite,
    /// The token is missing or wrong.
    #[error(
        "send the token as `Authorization: Bearer TOKEN`; it is in `monitor-token` in the trainer's root"
    )]
    NoToken,
    /// There is no token, so that nobody can have it.
    #[error("the token could not be read or made, so nothing that needs it is possible; see the log")]
    TokenUnknown,
}

/// What decides about requests.
#[derive(Debug, Clone)]
pub(super) struct AccessRules {
    pub(super) is_loopback: bool,
    /// `None` if there is none.
    pub(super) token: Option<Token>,
    /// The guard `change_token`.
    pub(super) needs_token: bool,
}

impl AccessRules {
    /// Checks a request.
    pub(super) fn check(&self, method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
        if !self.needs_token {
            return Ok(());
        }
        let host = headers.get(HOST).and_then(host_of);
        if self.is_loopback && !host.as_deref().is_some_and(is_this_machine) {
            return Err(Refusal::OtherHost);
        }
        let is_change = !matches!(*method, Method::GET | Method::HEAD);
        if is_change && headers.get(ORIGIN).is_some_and(|origin| !is_same_site(origin, headers.get(HOST))) {
            return Err(Refusal::OtherSite);
        }
        if self.is_loopback && !is_change {
            return Ok(());
        }
        let token = self.token.as_ref().ok_or(Refusal::TokenUnknown)?;
        let given = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let is_known = match given.split_at_checked(7) {
            Some((scheme, text)) if scheme.eq_ignore_ascii_case(b"bearer ") => token.is(text.trim_ascii()),
            // The password that a browser has asked for. It is sent along with requests of other sites, too, so
            // that it is good for looking only.
            _ if !is_change => basic_password(given).is_some_and(|password| token.is(&password)),
            _ => false,
        };
        if is_known { Ok(()) } else { Err(Refusal::NoToken) }
    }
}

/// The host in a header, without the port.
fn host_of(value: &HeaderValue) -> Option<String> {
    let text = value.to_str().ok()?;
    let host = match text.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => text.split(':').next(),
    };
    host.map(str::to_ascii_lowercase)
}

fn is_this_machine(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

fn is_same_site(origin: &HeaderValue, host: Option<&HeaderValue>) -> bool {
    let site =
        origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, site)| site.as_bytes());
    site.is_some() && site == host.map(HeaderValue::as_bytes)
}

/// The password of `Basic` authentication.
fn basic_password(given: &[u8]) -> Option<Vec<u8>> {
    let (scheme, encoded) = given.split_at_checked(6)?;
    let decoded =
        scheme.eq_ignore_ascii_case(b"basic ").then(|| STANDARD.decode(encoded.trim_ascii()).ok())??;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    Some(decoded[colon + 1..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn check(is_loopback: bool, method: Method, headers: &[(&'static str, &str)]) -> Result<(), Refusal> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, TOKEN).unwrap();
        let token = Some(Token::read_or_make(&path).unwrap());
        let headers = headers.iter().map(|(name, value)| {
            (axum::http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        });
        AccessRules { is_loopback, token, needs_token: true }.check(&method, &headers.collect())
    }

    #[test]
    fn on_loopback_this_machine_may_look_and_another_site_may_not() {
        for host in ["localhost", "LocalHost:8420", "127.0.0.1:8420", "127.1.2.3", "[::1]:8420", "[::1]"] {
            assert_eq!(check(true, Method::GET, &[("host", host)]), Ok(()), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example:8420", "localhost.evil.example", "10.0.0.1", ""]
        {
            assert_eq!(check(true, Method::GET, &[("host", host)]), Err(Refusal::OtherHost), "{host}");
        }
        assert_eq!(check(true, Method::GET, &[]), Err(Refusal::OtherHost));
    }

    #[test]
    fn a_change_needs_the_token_and_comes_from_no_other_site() {
        let host = ("host", "localhost:8420");
        let bearer = format!("Bearer {TOKEN}");
        let authorized = ("authorization", bearer.as_str());
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
            assert_eq!(check(true, method.clone(), &[host]), Err(Refusal::NoToken));
            assert_eq!(check(true, method, &[host, authorized]), Ok(()));
        }
        let wrong = format!("Bearer {TOKEN}0");
        assert_eq!(check(true, Method::POST, &[host, ("authorization", &wrong)]), Err(Refusal::NoToken));
        let post = |origin| check(true, Method::POST, &[host, authorized, ("origin", origin)]);
        assert_eq!(post("http://localhost:8420"), Ok(()));
        for origin in
            ["http://evil.example", "null", "http://localhost:9", "http://localhost:8420.evil.example"]
        {
            assert_eq!(post(origin), Err(Refusal::OtherSite), "{origin}");
        }
    }

    #[test]
    fn elsewhere_everything_needs_the_token_and_a_browser_may_look_with_it_as_its_password() {
        let host = ("host", "trainer.example:8420");
        let look = |given: &str| check(false, Method::GET, &[host, ("authorization", given)]);
        assert_eq!(check(false, Method::GET, &[host]), Err(Refusal::NoToken));
        assert_eq!(look(&format!("bearer {TOKEN}")), Ok(()));
        // me:TOKEN
        let basic = "Basic bWU6MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
        assert_eq!(look(basic), Ok(()));
        for wrong in ["Basic", "Basic !", "Basic bWU6", "Bearer", "", "Basic bWU6MDEyMzQ1Njc4OWFiY2RlZg=="] {
            assert_eq!(look(wrong), Err(Refusal::NoToken), "{wrong}");
        }
        let post = check(false, Method::POST, &[host, ("authorization", basic)]);
        assert_eq!(post, Err(Refusal::NoToken));
    }
}
