//! The control API's words: one JSON object a line, one answer a line.

use serde::Deserialize;
use serde_json::{json, Value};

use crate::limits::{PAGE_BYTES, SESSION_BYTES_MAX, SESSION_ID_BYTES_MAX};

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Health {},
    Stats {},
    OpenSession { id: String, base: String, size: u64 },
    CloseSession { id: String },
    Drain {},
}

/// Why a request was refused; `code` is stable.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: &'static str,
    pub message: String,
}

impl Refusal {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Parses one line. What it returns is within the limits; whether it can be done is another matter.
pub fn parse(line: &[u8]) -> Result<Request, Refusal> {
    let invalid = |message: String| Refusal::new("bad_request", message);
    let request = serde_json::from_slice(line).map_err(|error| invalid(error.to_string()))?;
    if let Request::OpenSession { id, base, size } = &request {
        // It becomes part of a file's name.
        let is_word = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        if id.is_empty() || id.len() > SESSION_ID_BYTES_MAX || !is_word {
            return Err(invalid(format!("an id is 1 to {SESSION_ID_BYTES_MAX} letters, digits, - or _")));
        }
        if !base.starts_with('/') {
            return Err(invalid("base is an absolute path".to_owned()));
        }
        if *size == 0 || *size > SESSION_BYTES_MAX || size % PAGE_BYTES != 0 {
            return Err(invalid(format!("size is a multiple of {PAGE_BYTES}, at most {SESSION_BYTES_MAX}")));
        }
    }
    Ok(request)
}

/// The answer as a line.
pub fn answer(result: Result<Value, Refusal>) -> Vec<u8> {
    let value = match result {
        Ok(value) => json!({ "ok": value }),
        Err(Refusal { code, message }) => json!({ "error": { "code": code, "message": message } }),
    };
    let mut line = value.to_string().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart() {
        assert_eq!(parse(br#"{"op":"health"}"#), Ok(Request::Health {}));
        assert_eq!(
            parse(br#"{"op":"open_session","id":"a-1","base":"/b","size":4096}"#),
            Ok(Request::OpenSession { id: "a-1".into(), base: "/b".into(), size: 4096 })
        );
        assert_eq!(
            parse(br#"{"id":"a","op":"close_session"}"#),
            Ok(Request::CloseSession { id: "a".into() })
        );
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for line in [
            "",
            "[]",
            "{}",
            "{\"op\":\"halt\"}",
            "{\"op\":\"health\",\"more\":1}",
            "{\"op\":\"drain\"} x",
            "{\"op\":\"close_session\"}",
            "{\"op\":\"open_session\",\"id\":\"a\",\"base\":\"/b\",\"size\":-4096}",
            "{\"op\":\"open_session\",\"id\":\"a\",\"base\":\"b\",\"size\":4096}",
        ] {
            assert_eq!(parse(line.as_bytes()).expect_err(line).code, "bad_request");
        }
        assert!(parse(&[0xff, b'\n']).is_err());
    }

    #[test]
    fn ids_and_sizes_have_limits() {
        let open = |id: &str, size: u64| {
            parse(json!({"op": "open_session", "id": id, "base": "/b", "size": size}).to_string().as_bytes())
        };
        assert!(open(&"a".repeat(SESSION_ID_BYTES_MAX), SESSION_BYTES_MAX).is_ok());
        for id in ["", "../up", "a b", "a.sock", "\u{e4}", &"a".repeat(SESSION_ID_BYTES_MAX + 1)] {
            assert!(open(id, 4096).is_err(), "{id}");
        }
        for size in [0, 1, 4097, SESSION_BYTES_MAX + 4096, u64::MAX] {
            assert!(open("a", size).is_err(), "{size}");
        }
    }

    #[test]
    fn answers_are_one_line() {
        let refused = Refusal::new("bad_request", "two\nlines");
        assert_eq!(
            answer(Err(refused)),
            b"{\"error\":{\"code\":\"bad_request\",\"message\":\"two\\nlines\"}}\n"
        );
        assert_eq!(answer(Ok(json!({}))), b"{\"ok\":{}}\n");
    }
}
