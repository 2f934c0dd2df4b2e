//! What a workload is told when its request is not answered by the metadata server.

use hyper::StatusCode;

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("The request is no HTTP/1.1: {0}.")]
    Malformed(&'static str),
    #[error("The request's head is larger than 8 KiB, or has more than 64 headers.")]
    HeadTooLarge,
    #[error("The request's body is larger than 64 KiB.")]
    BodyTooLarge,
    #[error("A request with a body must say Content-Length; Transfer-Encoding is not taken here.")]
    LengthRequired,
    #[error("The metadata service does not take {0}.")]
    Method(&'static str),
    #[error("The request did not come within 15 s.")]
    TooSlow,
    #[error(
        "The port's instance or project has a name that cannot be sent: the operator of this cloud has to mend it."
    )]
    Nameless,
    #[error(
        "The metadata server cannot be reached from this node; try again later, and tell the operator of this cloud."
    )]
    Unreachable,
    #[error(
        "The metadata server gave no proper answer; try again later, and tell the operator of this cloud."
    )]
    NoAnswer,
    #[error("The metadata server did not answer within 60 s; try again later.")]
    Late,
}

impl Refusal {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::LengthRequired => StatusCode::LENGTH_REQUIRED,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Nameless => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
            Self::NoAnswer => StatusCode::BAD_GATEWAY,
            Self::Late => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The name in output and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "bad_request",
            Self::HeadTooLarge => "head_too_large",
            Self::BodyTooLarge => "body_too_large",
            Self::LengthRequired => "length_required",
            Self::Method(_) => "bad_method",
            Self::TooSlow => "too_slow",
            Self::Nameless => "nameless",
            Self::Unreachable => "server_unreachable",
            Self::NoAnswer => "server_no_answer",
            Self::Late => "server_late",
        }
    }

    /// The whole answer.
    pub fn response(&self) -> Vec<u8> {
        let (status, body) = (self.status(), format!("{self}\n"));
        let reason = status.canonical_reason().unwrap_or_default();
        let retry = if status.is_server_error() { "Retry-After: 5\r\n" } else { "" };
        format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n{retry}Connection: \
             close\r\n\r\n{body}",
            status.as_u16(),
            body.len()
        )
        .into_bytes()
    }
}
