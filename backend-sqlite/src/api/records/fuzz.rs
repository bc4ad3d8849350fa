//! Fuzz target: what a client sends about records, `make fuzz`.

#[path = "../../../../tests/src/mutate.rs"]
#[expect(unreachable_pub, reason = "it is public where the other targets use it")]
mod mutate;

use axum::http::{HeaderMap, HeaderValue, header};

use super::{Batch, Conditions, Write, check_key, raw_json};
use crate::http::page::PageQuery;

/// Any bytes as a value, a batch, a key, a cursor and a condition.
fn records(bytes: &[u8]) {
    if let Ok(value) = raw_json(bytes) {
        assert!(
            bytes.windows(value.get().len()).any(|window| window == value.get().as_bytes()),
            "as it came"
        );
    }
    if let Ok(Batch { writes }) = serde_json::from_slice(bytes) {
        for checked in writes.into_iter().map(Write::checked) {
            assert!(
                checked.is_err() || checked.is_ok_and(|(key, ..)| check_key(&key).is_ok()),
                "the key is fit"
            );
        }
    }
    let text = String::from_utf8_lossy(bytes);
    if let Ok(after) = (PageQuery { limit: None, cursor: Some(text.clone().into_owned()) }).after() {
        let again = PageQuery { limit: None, cursor: Some(PageQuery::cursor(&after)) };
        assert!(again.after().is_ok_and(|same| same == after), "a cursor leads to where it came from");
    }
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(header::IF_MATCH, value.clone());
    headers.insert(header::IF_NONE_MATCH, value);
    if let Ok(conditions) = Conditions::read(&headers) {
        let _ = [None, Some(0), Some(i64::MAX)].map(|version| conditions.hold(version));
    }
}

#[test]
fn fuzz_records() {
    let seeds: [&[u8]; 4] = [
        br#"{"writes":[{"op":"put","key":"a","value":{"x":[1,2.5e3,null]},"if_match":"\"1\""},{"op":"delete","key":"b"}]}"#,
        br#"[[[["\u0000\ud83d\ude00"]]]]"#,
        b"YWJj",
        b"W/\"1\", \"2\"",
    ];
    let words = [
        "{", "}", "[", "]", "\"", "\\u", ":", ",", "null", "1e999", "*", "W/", "op", "key", "value", "-", "=",
    ];
    mutate::fuzz("records", &seeds, &words, records);
}
