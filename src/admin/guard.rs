//! Who may change something.

use axum::http::{HeaderMap, StatusCode, header};
use subtle::ConstantTimeEq;

use super::problem::Problem;
use crate::config::is_loopback;
use crate::server::Secret;

/// The checks that a `POST` has to pass.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    token: Option<Secret>,
    loopback: bool,
}

impl Guard {
    pub(super) fn new(token: Option<Secret>, loopback: bool) -> Self {
        Self { token, loopback }
    }

    /// Lets a changing request pass, or says why not.
    pub(super) fn admit(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let host = text(header::HOST).unwrap_or_default();
        if self.loopback && self.token.is_none() && !is_loopback(host) {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "this address answers to loopback names only",
                "use 127.0.0.1 or localhost, or set admin.token",
            ));
        }
        if let Some(origin) = headers.get(header::ORIGIN) {
            let own = origin
                .to_str()
                .ok()
                .and_then(|origin| origin.split_once("://"))
                .is_some_and(|(_, at)| at == host);
            if !own {
                return Err(Problem::new(
                    StatusCode::FORBIDDEN,
                    "a page of another origin may not change anything here",
                    "use the gateway's own dashboard, or the command line",
                ));
            }
        }
        let json = text(header::CONTENT_TYPE)
            .and_then(|kind| kind.split(';').next())
            .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
        if !json {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the body's content type is not application/json",
                "send the header Content-Type: application/json, and {} as the least body",
            ));
        }
        match &self.token {
            Some(token) if !shown(text(header::AUTHORIZATION), token) => Err(Problem::new(
                StatusCode::UNAUTHORIZED,
                "the token is missing or wrong",
                "give it with --token or CROSSFADE_ADMIN_TOKEN",
            )),
            _ => Ok(()),
        }
    }
}

/// Takes the same time whatever part of a guess is right; only its length shows.
fn shown(authorization: Option<&str>, token: &Secret) -> bool {
    let Some((scheme, guess)) = authorization.and_then(|text| text.split_once(' ')) else { return false };
    scheme.eq_ignore_ascii_case("bearer")
        && bool::from(guess.trim().as_bytes().ct_eq(token.reveal().as_bytes()))
}
