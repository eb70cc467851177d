//! Errors as they travel: an HTTP status and `{"error": {"side", "message", "remedy"}}`.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::{Error, Side};

/// An error with its HTTP status.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) error: Error,
}

impl Problem {
    pub(super) fn new(status: StatusCode, message: impl Into<String>, remedy: &str) -> Self {
        Self { status, error: Error::new(Side::Gateway, message).remedy(remedy) }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let away = error.retry && matches!(error.side, Side::Source | Side::Destination);
        Self { status: if away { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::CONFLICT }, error }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let cause =
            std::error::Error::source(&self.error).map(|cause| format!(": {cause}")).unwrap_or_default();
        let message = format!("{}{cause}", self.error.message);
        let body =
            json!({"error": {"side": self.error.side, "message": message, "remedy": self.error.remedy}});
        let mut response = (self.status, Json(body)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let bearer = axum::http::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(axum::http::header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}
