//! The last word on a connection.

use axum::http::StatusCode;

/// An answer that is written past HTTP's own machinery, and after which the connection is closed.
pub(crate) fn last_answer(status: StatusCode, code: &str, detail: &str) -> String {
    let reason = status.canonical_reason().unwrap_or_default();
    let body = serde_json::json!({
        "type": "about:blank",
        "title": reason,
        "status": status.as_u16(),
        "code": code,
        "detail": detail,
        "request_id": uuid::Uuid::now_v7().to_string(),
    })
    .to_string();
    let retry = if status == StatusCode::SERVICE_UNAVAILABLE { "retry-after: 1\r\n" } else { "" };
    format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n{retry}\
         cache-control: no-store\r\nconnection: close\r\n\r\n{body}",
        status.as_u16(),
        body.len()
    )
}
