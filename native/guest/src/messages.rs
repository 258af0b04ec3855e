//! The JSON of the protocol and of the boot configuration. Members we do not know are ignored.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

pub const VERSION: u32 = 1;

#[derive(Deserialize)]
pub struct Hello {
    pub version: u32,
    pub nonce: String,
    pub streams: Streams,
}

/// What becomes of the execs of the session before.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Streams {
    Kill,
    Keep,
}

#[derive(Serialize)]
pub struct HelloAck<'a> {
    pub version: u32,
    pub nonce: &'a str,
    pub agent: &'static str,
    pub workload: WorkloadReport,
}

#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadState {
    Starting,
    Running,
    Frozen,
    Exited,
}

#[derive(Serialize)]
pub struct WorkloadReport {
    pub state: WorkloadState,
    pub pid: Option<i32>,
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub message: String,
}

#[derive(Serialize)]
pub struct Health {
    pub workload: WorkloadReport,
    pub uptime_s: f64,
}

#[derive(Deserialize)]
pub struct Operation {
    pub op: String,
}

#[derive(Deserialize)]
pub struct ExecRequest {
    pub argv: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    pub cwd: Option<String>,
    pub user: Option<String>,
    pub timeout_s: Option<f64>,
    #[serde(default)]
    pub stdin: bool,
    pub tty: Option<TerminalSize>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub struct TerminalSize {
    pub rows: NonZeroU16,
    pub cols: NonZeroU16,
}

/// `exec`: the stream of the exec whose terminal it is.
#[derive(Deserialize)]
pub struct ResizeRequest {
    pub exec: u16,
    #[serde(flatten)]
    pub size: TerminalSize,
}

#[derive(Deserialize)]
pub struct ReadRequest {
    pub path: String,
    #[serde(default)]
    pub follow_links: bool,
}

#[derive(Deserialize)]
pub struct WriteRequest {
    pub path: String,
    #[serde(default)]
    pub keep_owner: bool,
}

#[derive(Serialize, Default, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Deserialize))]
pub struct PathReport {
    pub exists: bool,
    pub is_dir: bool,
    pub is_file: bool,
    pub is_symlink: bool,
    pub link_target: Option<String>,
    pub mode: u32,
    pub size_bytes: u64,
    pub uid: u32,
    pub gid: u32,
    pub mtime_ns: i64,
    pub error: Option<String>,
}

#[derive(Deserialize)]
pub struct ShutdownRequest {
    pub timeout_s: Option<f64>,
}

#[derive(Deserialize)]
pub struct SignalRequest {
    pub signal: i32,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Network {
    pub mac: String,
    pub ip: Ipv4Addr,
    pub prefix_length: u8,
    pub gateway: Option<Ipv4Addr>,
    #[serde(default)]
    pub dns: Vec<IpAddr>,
}

#[derive(Deserialize)]
pub struct Identity {
    pub hostname: String,
    pub machine_id: String,
    pub clock_ns: u64,
    pub entropy: String,
    pub network: Option<Network>,
}

#[derive(Serialize)]
pub struct Identified {
    pub mac: Option<String>,
    pub ip: Option<Ipv4Addr>,
    pub hostname: String,
    pub ran_before_identity: bool,
}

#[derive(Deserialize)]
pub struct Volume {
    pub path: String,
    pub read_only: bool,
    pub overlay_part: Option<usize>,
}

#[derive(Deserialize)]
pub struct BootConfig {
    pub argv: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default)]
    pub cwd: String,
    #[serde(default)]
    pub user: String,
    pub overlay: String,
    #[serde(default)]
    pub overlay_parts: Vec<u64>,
    #[serde(default)]
    pub volumes: Vec<Volume>,
    #[serde(default)]
    pub skip_agent: bool,
    #[serde(flatten)]
    pub identity: Identity,
}

#[derive(Serialize)]
pub struct Started {
    pub pid: i32,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tty: bool,
}

#[derive(Serialize)]
pub struct Frozen {
    pub frozen: bool,
}

#[derive(Serialize)]
pub struct Nothing {}

#[derive(Serialize)]
pub struct Answer<T: Serialize> {
    pub ok: T,
}

#[derive(Serialize)]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub timed_out: bool,
}

/// How the workload ended, as the host reads it on the console.
#[derive(Serialize)]
pub struct WorkloadExit<'a> {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub message: &'a str,
}

#[derive(Serialize)]
pub struct WorkloadExited<'a> {
    pub event: &'static str,
    #[serde(flatten)]
    pub exit: WorkloadExit<'a>,
}

#[derive(Serialize)]
pub struct Refusal<'a> {
    pub error: ErrorBody<'a>,
}

#[derive(Serialize)]
pub struct ErrorBody<'a> {
    pub code: &'static str,
    pub message: &'a str,
}

/// A request that could not be done, by its stable code.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    pub code: &'static str,
    pub message: String,
}

impl Refused {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// JSON in ASCII and without newlines, as it may stand on the wire.
pub fn to_json(value: &impl Serialize) -> String {
    // Our types have text keys and finite numbers: there is nothing in them that cannot be JSON.
    let text = serde_json::to_string(value).unwrap_or_default();
    if text.is_ascii() {
        return text;
    }
    let mut escaped = String::with_capacity(text.len() * 2);
    let mut units = [0; 2];
    for character in text.chars() {
        if character.is_ascii() {
            escaped.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut units) {
            escaped.push_str(&format!("\\u{unit:04x}"));
        }
    }
    escaped
}

/// The bytes behind pairs of hex digits.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    if text.len() % 2 != 0 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_on_the_wire_is_ascii() {
        let answer = Refusal { error: ErrorBody { code: "internal", message: "na\u{ef}ve \u{1f600}\n" } };
        let text = to_json(&answer);
        assert_eq!(text, r#"{"error":{"code":"internal","message":"na\u00efve \ud83d\ude00\n"}}"#);
        let back: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(back["error"]["message"], "na\u{ef}ve \u{1f600}\n");
    }

    #[test]
    fn a_boot_configuration_is_read_and_unknown_members_are_ignored() {
        let config: BootConfig = serde_json::from_str(
            r#"{"argv": ["/bin/sh"], "env": {"A": "b"}, "cwd": "/", "user": "", "hostname": "web",
                "machine_id": "00", "clock_ns": 5, "entropy": "ff", "overlay": "disk", "later": [1],
                "overlay_parts": [4096, 8192], "skip_agent": true,
                "volumes": [{"path": "/data", "read_only": true, "overlay_part": 1},
                            {"path": "/more", "read_only": false, "overlay_part": null}],
                "network": {"mac": "52:54:00:00:00:01", "ip": "10.0.0.2", "prefix_length": 24,
                            "gateway": "10.0.0.1", "dns": ["10.0.0.1"]}}"#,
        )
        .unwrap();
        assert_eq!(config.identity.hostname, "web");
        assert_eq!(config.overlay_parts, [4096, 8192]);
        assert!(config.skip_agent);
        let volumes: Vec<_> =
            config.volumes.iter().map(|one| (one.path.as_str(), one.overlay_part)).collect();
        assert_eq!(volumes, [("/data", Some(1)), ("/more", None)]);
        assert_eq!(config.identity.network.unwrap().ip, Ipv4Addr::new(10, 0, 0, 2));
    }

    #[test]
    fn the_shared_vectors_of_requests_and_reports() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/wire/vectors.json");
        let vectors: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        for case in vectors["requests"].as_array().unwrap() {
            let message = case["message"].clone();
            let taken = if message["op"] == "resize" {
                serde_json::from_value::<ResizeRequest>(message).is_ok()
            } else {
                serde_json::from_value::<ExecRequest>(message).is_ok()
            };
            assert_eq!(taken, case["accepted"].as_bool().unwrap(), "{}", case["name"]);
        }
        for case in vectors["path_reports"].as_array().unwrap() {
            let report: PathReport = serde_json::from_value(case["report"].clone()).unwrap();
            assert_eq!(serde_json::to_value(report).unwrap(), case["report"], "{}", case["name"]);
        }
    }

    #[test]
    fn hex_is_pairs_of_digits_and_nothing_else() {
        assert_eq!(from_hex("00ff"), Some(vec![0, 255]));
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("+f"), None);
        assert_eq!(from_hex("\u{e9}"), None);
    }
}
