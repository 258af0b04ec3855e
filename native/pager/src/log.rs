//! The log: one JSON object a line, on standard error.

use std::io::Write;

use serde_json::{json, Value};

/// Writes one event. A log that cannot be written must not end the guests, so that is not an error.
pub fn event(name: &str, fields: &Value) {
    let mut line = json!({ "event": name });
    if let (Some(line), Some(fields)) = (line.as_object_mut(), fields.as_object()) {
        line.extend(fields.clone());
    }
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The end of the program, for what leaves it unable to serve anybody.
pub fn die(reason: &str) -> ! {
    event("pager_failed", &json!({ "reason": reason }));
    std::process::exit(1)
}
