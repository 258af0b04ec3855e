//! The control API's words: one JSON object a line, one answer a line.

use serde::Deserialize;
use serde_json::{json, Value};

use crate::limits::{OVERLAY_PAGES_MAX, PAGE_BYTES, SESSION_BYTES_MAX, SESSION_ID_BYTES_MAX};

/// How a base lies in its file. It is told and never guessed: a guest can write anything into its memory, such
/// as the end of a packed file.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// As it is, with holes for zeroes.
    #[default]
    Raw,
    /// As `docs/pager.md` says.
    Packed,
}

/// What a session has to do with its base's working set.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkingSetUse {
    #[default]
    Off,
    /// Record it, even if there is one.
    Record,
    /// Replay it; if there is none, and no other session is recording it, record it.
    Auto,
}

/// A page that a session sees instead of the base's.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverlayPage {
    /// Where in the base.
    pub offset: u64,
    /// A file that holds the page and nothing else.
    pub path: String,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenSession {
    pub id: String,
    pub base: String,
    pub size: u64,
    #[serde(default)]
    pub format: Format,
    #[serde(default)]
    pub overlays: Vec<OverlayPage>,
    #[serde(default)]
    pub working_set: WorkingSetUse,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Health {},
    Stats {},
    OpenSession(OpenSession),
    ReadySession { id: String },
    CompleteSession { id: String },
    CloseSession { id: String },
    Drain {},
}

/// Why a request was refused; `code` is stable.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    if let Request::OpenSession(asked) = &request {
        check(asked).map_err(invalid)?;
    }
    Ok(request)
}

fn check(asked: &OpenSession) -> Result<(), String> {
    let OpenSession { id, base, size, overlays, .. } = asked;
    // It becomes part of a file's name.
    let is_word = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if id.is_empty() || id.len() > SESSION_ID_BYTES_MAX || !is_word {
        return Err(format!("an id is 1 to {SESSION_ID_BYTES_MAX} letters, digits, - or _"));
    }
    if !base.starts_with('/') || overlays.iter().any(|page| !page.path.starts_with('/')) {
        return Err("paths are absolute".to_owned());
    }
    if *size == 0 || *size > SESSION_BYTES_MAX || size % PAGE_BYTES != 0 {
        return Err(format!("size is a multiple of {PAGE_BYTES}, at most {SESSION_BYTES_MAX}"));
    }
    if overlays.len() > OVERLAY_PAGES_MAX {
        return Err(format!("{} overlay pages; {OVERLAY_PAGES_MAX} are served", overlays.len()));
    }
    for (index, page) in overlays.iter().enumerate() {
        if page.offset % PAGE_BYTES != 0 || page.offset >= *size {
            return Err(format!("no page of the session is at {}", page.offset));
        }
        if overlays[..index].iter().any(|other| other.offset == page.offset) {
            return Err(format!("two overlay pages are at {}", page.offset));
        }
    }
    Ok(())
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
        let plain = OpenSession {
            id: "a-1".into(),
            base: "/b".into(),
            size: 4096,
            format: Format::Raw,
            overlays: vec![],
            working_set: WorkingSetUse::Off,
        };
        assert_eq!(
            parse(br#"{"op":"open_session","id":"a-1","base":"/b","size":4096}"#),
            Ok(Request::OpenSession(plain))
        );
        let all = br#"{"op":"open_session","id":"a","base":"/b","size":8192,"format":"packed",
            "overlays":[{"offset":4096,"path":"/p"}],"working_set":"auto"}"#;
        let Ok(Request::OpenSession(asked)) = parse(all) else { panic!("it was refused") };
        assert_eq!(asked.format, Format::Packed);
        assert_eq!(asked.overlays, [OverlayPage { offset: 4096, path: "/p".into() }]);
        assert_eq!(asked.working_set, WorkingSetUse::Auto);
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
            "{\"op\":\"ready_session\"}",
            "{\"op\":\"complete_session\",\"id\":1}",
            "{\"op\":\"open_session\",\"id\":\"a\",\"base\":\"/b\",\"size\":4096,\"format\":\"gzip\"}",
            "{\"op\":\"open_session\",\"id\":\"a\",\"base\":\"/b\",\"size\":4096,\"more\":1}",
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
    fn overlay_pages_are_pages_of_the_session() {
        let open = |pages: &[(u64, &str)]| {
            let overlays: Vec<Value> =
                pages.iter().map(|(offset, path)| json!({"offset": offset, "path": path})).collect();
            let asked =
                json!({"op": "open_session", "id": "a", "base": "/b", "size": 1 << 20, "overlays": overlays});
            parse(asked.to_string().as_bytes())
        };
        let full: Vec<(u64, &str)> = (0..=OVERLAY_PAGES_MAX as u64).map(|n| (n * 4096, "/p")).collect();
        assert!(open(&full[1..]).is_ok());
        for pages in [&[(1, "/p")][..], &[(1 << 20, "/p")], &[(0, "p")], &[(0, "/p"), (0, "/q")], &full] {
            assert_eq!(open(pages).expect_err("refused").code, "bad_request");
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
