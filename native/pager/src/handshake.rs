//! What a VMM says when it connects: where its memory lies, and which part of the base belongs there.
//!
//! Firecracker's format: a JSON array of mappings in one message, with the userfaultfd beside it, and no
//! delimiter; so the text is parsed after each piece until it is whole. The sender is a VMM that a guest may
//! have taken over: nothing it says is believed before it has been checked here.

use serde::Deserialize;

use crate::limits::{ADDRESS_MAX, MAPPINGS_MAX, PAGE_BYTES};

#[derive(Deserialize)]
struct RawMapping {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    // Both are bytes; the second is Firecracker's older, misleading name.
    page_size: Option<u64>,
    page_size_kib: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawHandshake {
    List(Vec<RawMapping>),
    Named { mappings: Vec<RawMapping> },
}

/// One contiguous piece of guest memory. Addresses and lengths are whole pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Address in the VMM's memory.
    pub start: u64,
    pub size_bytes: u64,
    /// Where in the base its content is.
    pub offset: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Handshake {
    /// All that was received is the beginning of one.
    Partial,
    /// Ordered by address, not empty, without overlap.
    Whole(Vec<Mapping>),
}

/// Parses what was received so far, for a session of `session_bytes` bytes of memory.
pub fn parse(text: &[u8], session_bytes: u64) -> Result<Handshake, String> {
    let value: serde_json::Value = match serde_json::from_slice(text) {
        Ok(value) => value,
        Err(error) if error.is_eof() => return Ok(Handshake::Partial),
        Err(error) => return Err(format!("the handshake is not JSON: {error}")),
    };
    let raw = match serde_json::from_value(value) {
        Ok(RawHandshake::List(list) | RawHandshake::Named { mappings: list }) => list,
        Err(error) => return Err(format!("the handshake is not a list of mappings: {error}")),
    };
    if raw.is_empty() || raw.len() > MAPPINGS_MAX {
        return Err(format!("{} mappings; 1 to {MAPPINGS_MAX} are served", raw.len()));
    }
    let mut mappings =
        raw.iter().map(|mapping| checked(mapping, session_bytes)).collect::<Result<Vec<_>, _>>()?;
    mappings.sort_by_key(|mapping| mapping.start);
    if mappings.windows(2).any(|pair| pair[0].start + pair[0].size_bytes > pair[1].start) {
        return Err("mappings overlap".to_owned());
    }
    Ok(Handshake::Whole(mappings))
}

fn checked(raw: &RawMapping, session_bytes: u64) -> Result<Mapping, String> {
    for page_bytes in [raw.page_size, raw.page_size_kib].into_iter().flatten() {
        if page_bytes != PAGE_BYTES {
            return Err(format!("pages of {page_bytes} bytes; only {PAGE_BYTES} are served"));
        }
    }
    let Mapping { start, size_bytes, offset } =
        Mapping { start: raw.base_host_virt_addr, size_bytes: raw.size, offset: raw.offset };
    if [start, size_bytes, offset].iter().any(|number| number % PAGE_BYTES != 0) || size_bytes == 0 {
        return Err(format!("a mapping of {size_bytes} bytes at {start:#x} is not made of pages"));
    }
    if start.checked_add(size_bytes).filter(|end| *end <= ADDRESS_MAX).is_none() {
        return Err(format!("no memory can be at {start:#x}"));
    }
    if offset.checked_add(size_bytes).filter(|end| *end <= session_bytes).is_none() {
        return Err(format!("a mapping of {size_bytes} bytes at offset {offset} is outside the session"));
    }
    Ok(Mapping { start, size_bytes, offset })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION_BYTES: u64 = 1 << 20;
    const GOOD: &str = r#"[{"base_host_virt_addr":8192,"size":4096,"offset":0,"page_size":4096},
        {"base_host_virt_addr":4096,"size":4096,"offset":8192,"page_size_kib":4096,"new_field":{"a":[]}}]"#;

    fn refusal(text: &str) -> String {
        match parse(text.as_bytes(), SESSION_BYTES) {
            Err(reason) => reason,
            Ok(taken) => panic!("{text} was taken: {taken:?}"),
        }
    }

    fn one(start: u64, size: u64, offset: u64) -> String {
        format!(r#"[{{"base_host_virt_addr":{start},"size":{size},"offset":{offset}}}]"#)
    }

    #[test]
    fn mappings_are_ordered_by_address() {
        let expected = vec![
            Mapping { start: 4096, size_bytes: 4096, offset: 8192 },
            Mapping { start: 8192, size_bytes: 4096, offset: 0 },
        ];
        assert_eq!(parse(GOOD.as_bytes(), SESSION_BYTES), Ok(Handshake::Whole(expected.clone())));
        let named = format!("{{\"mappings\":{GOOD}}}");
        assert_eq!(parse(named.as_bytes(), SESSION_BYTES), Ok(Handshake::Whole(expected)));
    }

    #[test]
    fn every_beginning_is_partial() {
        for length in 0..GOOD.len() {
            let told = parse(&GOOD.as_bytes()[..length], SESSION_BYTES);
            assert_eq!(told, Ok(Handshake::Partial), "{length} bytes");
        }
    }

    #[test]
    fn what_is_not_a_list_of_mappings_is_refused() {
        for text in ["x", "[1]", "{}", "null", "[[]]", "[]x", "[{}]", "\u{0}", "[{\"size\":-1}]"] {
            refusal(text);
        }
        assert!(refusal("[]").contains("0 mappings"));
        assert!(parse(&[0xff, 0xfe], SESSION_BYTES).is_err());
        assert!(parse("[".repeat(10_000).as_bytes(), SESSION_BYTES).is_err());
    }

    #[test]
    fn too_many_mappings_are_refused() {
        let each = (0..=MAPPINGS_MAX as u64).map(|n| one(n * 4096, 4096, 0));
        let list = each.map(|text| text[1..text.len() - 1].to_owned()).collect::<Vec<_>>().join(",");
        assert!(refusal(&format!("[{list}]")).contains("mappings"));
    }

    #[test]
    fn numbers_outside_are_refused() {
        let top: u64 = !4095;
        for (start, size, offset) in [
            (4096, 0, 0),
            (4097, 4096, 0),
            (4096, 4095, 0),
            (4096, 4096, 1),
            (top, 4096, 0),
            (top, top, 0),
            (ADDRESS_MAX, 4096, 0),
            (4096, SESSION_BYTES + 4096, 0),
            (4096, 4096, SESSION_BYTES),
            (4096, 4096, top),
        ] {
            refusal(&one(start, size, offset));
        }
        assert!(parse(one(4096, SESSION_BYTES, 0).as_bytes(), SESSION_BYTES).is_ok());
    }

    #[test]
    fn overlapping_mappings_are_refused() {
        let text = r#"[{"base_host_virt_addr":4096,"size":8192,"offset":0},
            {"base_host_virt_addr":8192,"size":4096,"offset":0}]"#;
        assert!(refusal(text).contains("overlap"));
    }

    #[test]
    fn other_page_sizes_are_refused() {
        for name in ["page_size", "page_size_kib"] {
            let text = format!(r#"[{{"base_host_virt_addr":0,"size":2097152,"offset":0,"{name}":2097152}}]"#);
            assert!(refusal(&text).contains("2097152"));
        }
    }

    #[test]
    fn whatever_is_taken_is_within_the_session() {
        // Mutations of a good handshake, by a xorshift generator: the same ones every time.
        let mut seed: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut next = |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % below as u64) as usize
        };
        let alphabet = b"0123456789[]{}\",:.-e \xff\0";
        let mut taken = 0;
        for _ in 0..20_000 {
            let mut text = GOOD.as_bytes().to_vec();
            for _ in 0..=next(3) {
                let at = next(text.len());
                match next(3) {
                    0 => text[at] = alphabet[next(alphabet.len())],
                    1 => text.insert(at, alphabet[next(alphabet.len())]),
                    _ => drop(text.remove(at)),
                }
            }
            if let Ok(Handshake::Whole(mappings)) = parse(&text, SESSION_BYTES) {
                taken += 1;
                for mapping in mappings {
                    assert!(mapping.offset + mapping.size_bytes <= SESSION_BYTES);
                    assert!(mapping.start + mapping.size_bytes <= ADDRESS_MAX);
                }
            }
        }
        assert!(taken > 100, "{taken}");
    }
}
