//! The control API of a running gateway, as the subcommands use it.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use serde_json::Value as Json;

use super::Failure;
use crate::Side;
use crate::migration::status::Status;

/// Where the gateway is.
#[derive(Debug, Clone, Args)]
pub(super) struct Gateway {
    /// Address of the gateway's control API
    #[arg(
        long,
        env = "CROSSFADE_ADMIN",
        default_value = "127.0.0.1:6401",
        value_name = "ADDR",
        help_heading = "Gateway"
    )]
    admin: String,
    /// Token of the control API
    #[arg(
        long,
        env = "CROSSFADE_ADMIN_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        help_heading = "Gateway"
    )]
    token: Option<String>,
}

impl Gateway {
    /// `GET /v1/status`.
    pub(super) fn status(&self) -> Result<Status, Failure> {
        let document = self.get("/v1/status")?;
        serde_json::from_value(document).map_err(|error| {
            Failure::failed(format!("what answers at {} is no gateway of this version: {error}", self.admin))
        })
    }

    /// `GET` of a path.
    pub(super) fn get(&self, path: &str) -> Result<Json, Failure> {
        let mut request = agent(Duration::from_secs(10)).get(self.url(path)?);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        self.read(request.call())
    }

    /// `POST` with a JSON body. It may take long: a switch waits for the mirror, a comparison reads everything.
    pub(super) fn post(&self, path: &str, body: &impl Serialize) -> Result<Json, Failure> {
        let mut request = agent(Duration::from_secs(24 * 3600)).post(self.url(path)?);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        self.read(request.send_json(body))
    }

    fn url(&self, path: &str) -> Result<String, Failure> {
        let address = self.admin.trim().trim_end_matches('/');
        let address = address.strip_prefix("http://").unwrap_or(address);
        if address.is_empty() || address.contains(['/', ' ', '@']) {
            return Err(Failure::usage(format!("--admin {}: an address is expected", self.admin))
                .remedy("write HOST:PORT, as in 127.0.0.1:6401"));
        }
        let port = if address.starts_with(':') { "127.0.0.1" } else { "" };
        Ok(format!("http://{port}{address}{path}"))
    }

    fn read(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Json, Failure> {
        let mut answer = answer.map_err(|error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                Failure::usage(format!("--admin {}: {error}", self.admin)).remedy("write HOST:PORT")
            }
            error => {
                Failure::unreachable(Side::Gateway, format!("no gateway answers at {}: {error}", self.admin))
                    .remedy("start one with `crossfade run`, or name its control API with --admin HOST:PORT")
            }
        })?;
        let code = answer.status().as_u16();
        let text = answer.body_mut().with_config().limit(64 << 20).read_to_string().map_err(|error| {
            Failure::unreachable(Side::Gateway, format!("the gateway's answer broke off: {error}"))
        })?;
        let body: Json = serde_json::from_str(&text).unwrap_or(Json::Null);
        if answer.status().is_success() {
            return Ok(body);
        }
        Err(refusal(code, &body).unwrap_or_else(|| {
            Failure::failed(format!("what answers at {} is no gateway: HTTP status {code}", self.admin))
                .remedy("name the gateway's control API with --admin HOST:PORT")
        }))
    }
}

/// The body of an answer that is not 2xx.
fn refusal(code: u16, body: &Json) -> Option<Failure> {
    let error = body.get("error")?;
    let side = serde_json::from_value(error.get("side")?.clone()).ok()?;
    let text = |key: &str| error.get(key).and_then(Json::as_str).map(str::to_owned);
    Some(Failure {
        exit: if code == 503 { 3 } else { 1 },
        side,
        message: text("message")?,
        remedy: text("remedy"),
    })
}

fn agent(timeout: Duration) -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(5)))
        .timeout_global(Some(timeout))
        .proxy(None)
        .user_agent(concat!("crossfade/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn url(admin: &str) -> Result<String, Failure> {
        Gateway { admin: admin.into(), token: None }.url("/v1/status")
    }

    #[test]
    fn addresses() {
        assert_eq!(url("127.0.0.1:6401").unwrap(), "http://127.0.0.1:6401/v1/status");
        assert_eq!(url("http://gw:1/").unwrap(), "http://gw:1/v1/status");
        assert_eq!(url(":6401").unwrap(), "http://127.0.0.1:6401/v1/status");
        for wrong in ["", "https://gw:1", "a b", "redis://x"] {
            assert_eq!(url(wrong).unwrap_err().exit, 2, "{wrong}");
        }
    }

    #[test]
    fn refusals_keep_side_and_remedy() {
        let body =
            json!({"error": {"side": "destination", "message": "it is read-only", "remedy": "promote it"}});
        let failure = refusal(409, &body).unwrap();
        assert_eq!((failure.exit, failure.side), (1, Side::Destination));
        assert_eq!(failure.to_string(), "crossfade: destination: it is read-only\n  what to do: promote it");
        assert_eq!(refusal(503, &body).unwrap().exit, 3);
        assert_eq!(refusal(404, &json!({})), None);
    }
}
