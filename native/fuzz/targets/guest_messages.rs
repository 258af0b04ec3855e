//! What a host may ask, and the boot configuration: parsed or refused, whatever it is.
//!
//! The first byte chooses the message.
#![cfg_attr(fuzzing, no_main)]

mod entry;
#[path = "../../guest/src/messages.rs"]
#[allow(dead_code)]
mod messages;

use entry::fuzz_target;
use messages::{
    from_hex, to_json, BootConfig, ErrorBody, ExecRequest, Hello, Identity, Operation, ReadRequest, Refusal,
    ResizeRequest, ShutdownRequest, SignalRequest, WriteRequest,
};

fuzz_target!(|data: &[u8]| {
    let Some((&choice, payload)) = data.split_first() else { return };
    match choice % 11 {
        0 => drop(serde_json::from_slice::<Hello>(payload)),
        1 => drop(serde_json::from_slice::<Operation>(payload)),
        2 => drop(serde_json::from_slice::<ExecRequest>(payload)),
        3 => drop(serde_json::from_slice::<ShutdownRequest>(payload)),
        4 => drop(serde_json::from_slice::<SignalRequest>(payload)),
        5 => {
            if let Ok(identity) = serde_json::from_slice::<Identity>(payload) {
                if let Some(bytes) = from_hex(&identity.entropy) {
                    assert_eq!(bytes.len() * 2, identity.entropy.len());
                }
            }
        }
        6 => drop(serde_json::from_slice::<BootConfig>(payload)),
        8 => drop(serde_json::from_slice::<ResizeRequest>(payload)),
        9 => drop(serde_json::from_slice::<ReadRequest>(payload)),
        10 => drop(serde_json::from_slice::<WriteRequest>(payload)),
        _ => {
            // Whatever a message says, it stands on the wire as ASCII and is read as it was.
            let text = String::from_utf8_lossy(payload);
            let json = to_json(&Refusal { error: ErrorBody { code: "internal", message: &text } });
            assert!(json.is_ascii() && !json.contains('\n'));
            let again: serde_json::Value = serde_json::from_str(&json).expect("what we write is JSON");
            assert_eq!(again["error"]["message"], *text);
        }
    }
});
