//! The headers of POSIX pax archives, without input or output: what is written, and what is believed.
//!
//! Read is what others write, too: ustar, GNU's long names and base-256 numbers, pax records.

pub const BLOCK_BYTES: usize = 512;
/// What one extension header (long name, pax records) may take.
pub const EXTENSION_BYTES_MAX: u64 = 1 << 20;

pub const REGULAR: u8 = b'0';
pub const HARD_LINK: u8 = b'1';
pub const SYMLINK: u8 = b'2';
pub const CHARACTER: u8 = b'3';
pub const BLOCK: u8 = b'4';
pub const DIRECTORY: u8 = b'5';
pub const FIFO: u8 = b'6';
const PAX: u8 = b'x';
const PAX_GLOBAL: u8 = b'g';
const LONG_NAME: u8 = b'L';
const LONG_LINK: u8 = b'K';

const NAME_BYTES: usize = 100;
const SEVEN_DIGITS_MAX: u64 = 0o7_777_777;
const ELEVEN_DIGITS_MAX: u64 = 0o77_777_777_777;
const NANOS_DIGITS: usize = 9;

/// One member of an archive. Its names are bytes: a file may be called anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: u8,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes of content that follow, without padding.
    pub size: u64,
    pub mtime_s: i64,
    pub mtime_ns: u32,
    pub major: u32,
    pub minor: u32,
}

/// How many zeros fill the last block of a content.
pub fn padding(size: u64) -> usize {
    ((BLOCK_BYTES as u64 - size % BLOCK_BYTES as u64) % BLOCK_BYTES as u64) as usize
}

impl Entry {
    /// Appends the headers of this entry.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        let records = self.records();
        if !records.is_empty() {
            let extension = Entry {
                name: b"PaxHeaders/entry".to_vec(),
                kind: PAX,
                mode: 0o644,
                size: records.len() as u64,
                ..Entry::default()
            };
            extension.append_block(out);
            out.extend_from_slice(&records);
            out.resize(out.len() + padding(extension.size), 0);
        }
        self.append_block(out);
    }

    /// What does not fit the block, or not exactly.
    fn records(&self) -> Vec<u8> {
        let mut records = Vec::new();
        let is_odd = |text: &[u8]| text.len() > NAME_BYTES || !text.is_ascii();
        let is_text = |text: &[u8]| std::str::from_utf8(text).is_ok();
        if !is_text(&self.name) || !is_text(&self.link) {
            append_record(&mut records, "hdrcharset", b"BINARY");
        }
        if is_odd(&self.name) {
            append_record(&mut records, "path", &self.name);
        }
        if is_odd(&self.link) {
            append_record(&mut records, "linkpath", &self.link);
        }
        for (key, value, max) in [
            ("size", self.size, ELEVEN_DIGITS_MAX),
            ("uid", u64::from(self.uid), SEVEN_DIGITS_MAX),
            ("gid", u64::from(self.gid), SEVEN_DIGITS_MAX),
        ] {
            if value > max {
                append_record(&mut records, key, value.to_string().as_bytes());
            }
        }
        if self.mtime_ns != 0 || !(0..=ELEVEN_DIGITS_MAX as i64).contains(&self.mtime_s) {
            append_record(&mut records, "mtime", format_time(self.mtime_s, self.mtime_ns).as_bytes());
        }
        records
    }

    fn append_block(&self, out: &mut Vec<u8>) {
        let mut block = [0; BLOCK_BYTES];
        let put = |block: &mut [u8; BLOCK_BYTES], at: usize, text: &[u8], length: usize| {
            let length = text.len().min(length);
            block[at..at + length].copy_from_slice(&text[..length]);
        };
        let octal = |block: &mut [u8; BLOCK_BYTES], at: usize, digits: usize, value: u64, max: u64| {
            let value = if value > max { 0 } else { value };
            put(block, at, format!("{value:0digits$o}").as_bytes(), digits);
        };
        put(&mut block, 0, &self.name, NAME_BYTES);
        octal(&mut block, 100, 7, u64::from(self.mode), SEVEN_DIGITS_MAX);
        octal(&mut block, 108, 7, u64::from(self.uid), SEVEN_DIGITS_MAX);
        octal(&mut block, 116, 7, u64::from(self.gid), SEVEN_DIGITS_MAX);
        octal(&mut block, 124, 11, self.size, ELEVEN_DIGITS_MAX);
        octal(&mut block, 136, 11, u64::try_from(self.mtime_s).unwrap_or(0), ELEVEN_DIGITS_MAX);
        block[156] = self.kind;
        put(&mut block, 157, &self.link, NAME_BYTES);
        put(&mut block, 257, b"ustar\x0000", 8);
        octal(&mut block, 329, 7, u64::from(self.major), SEVEN_DIGITS_MAX);
        octal(&mut block, 337, 7, u64::from(self.minor), SEVEN_DIGITS_MAX);
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        octal(&mut block, 148, 6, sum, SEVEN_DIGITS_MAX);
        block[154] = 0;
        out.extend_from_slice(&block);
    }
}

fn append_record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    // A space, an equals sign and a newline; the length counts its own digits.
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest > length {
        length += 1;
    }
    out.extend_from_slice(format!("{length} {key}=").as_bytes());
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn format_time(seconds: i64, nanos: u32) -> String {
    // The fraction counts away from zero, nanoseconds count forward.
    match (seconds < 0 && nanos > 0, nanos) {
        (true, _) => {
            let whole = seconds + 1;
            format!("-{}.{:09}", -whole, 1_000_000_000 - nanos)
        }
        (false, 0) => seconds.to_string(),
        (false, _) => format!("{seconds}.{nanos:09}"),
    }
}

fn parse_time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let mut digits: String = fraction.chars().take(NANOS_DIGITS).collect();
    while digits.len() < NANOS_DIGITS {
        digits.push('0');
    }
    let (seconds, nanos): (i64, u32) = (whole.parse().ok()?, digits.parse().ok()?);
    if whole.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

/// What a header block is.
#[derive(Debug)]
pub enum Header {
    /// The archive ends here.
    End,
    /// Extends the next entry; give its content to `Extensions::take`.
    Extension {
        kind: u8,
        size: u64,
    },
    Entry(Entry),
}

/// What pax records and GNU headers said of the next entry.
#[derive(Default)]
pub struct Extensions {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
}

impl Extensions {
    /// Reads the content of an extension header. Errors are reasons.
    pub fn take(&mut self, kind: u8, content: &[u8]) -> Result<(), &'static str> {
        let text = || content.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        match kind {
            LONG_NAME => self.name = Some(text()),
            LONG_LINK => self.link = Some(text()),
            PAX => self.take_records(content)?,
            // Of all entries to come; the records that we know are never global.
            _ => {}
        }
        Ok(())
    }

    fn take_records(&mut self, mut content: &[u8]) -> Result<(), &'static str> {
        const BAD: &str = "a pax record is damaged";
        while !content.is_empty() {
            let space = content.iter().position(|byte| *byte == b' ').ok_or(BAD)?;
            let length = std::str::from_utf8(&content[..space]).ok().and_then(|text| text.parse().ok());
            let length: usize = length.ok_or(BAD)?;
            if length <= space + 1 || length > content.len() || content[length - 1] != b'\n' {
                return Err(BAD);
            }
            let record = &content[space + 1..length - 1];
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(BAD)?;
            self.take_record(&record[..equals], &record[equals + 1..]).ok_or(BAD)??;
            content = &content[length..];
        }
        Ok(())
    }

    fn take_record(&mut self, key: &[u8], value: &[u8]) -> Option<Result<(), &'static str>> {
        let text = || std::str::from_utf8(value).ok();
        match key {
            b"path" => self.name = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(text()?.parse().ok()?),
            b"uid" => self.uid = Some(text()?.parse().ok()?),
            b"gid" => self.gid = Some(text()?.parse().ok()?),
            b"mtime" => self.mtime = Some(parse_time(text()?)?),
            _ if key.starts_with(b"GNU.sparse.") => {
                return Some(Err("it holds GNU sparse files; make it without --sparse"));
            }
            _ => {}
        }
        Some(Ok(()))
    }

    /// Gives what was collected to the entry it is about.
    fn apply(&mut self, entry: &mut Entry) {
        let taken = std::mem::take(self);
        entry.name = taken.name.unwrap_or(std::mem::take(&mut entry.name));
        entry.link = taken.link.unwrap_or(std::mem::take(&mut entry.link));
        entry.size = taken.size.unwrap_or(entry.size);
        entry.uid = taken.uid.unwrap_or(entry.uid);
        entry.gid = taken.gid.unwrap_or(entry.gid);
        (entry.mtime_s, entry.mtime_ns) = taken.mtime.unwrap_or((entry.mtime_s, entry.mtime_ns));
    }
}

/// Reads a header block. Errors are reasons.
pub fn parse(block: &[u8; BLOCK_BYTES], extensions: &mut Extensions) -> Result<Header, &'static str> {
    if block.iter().all(|byte| *byte == 0) {
        return Ok(Header::End);
    }
    let told = number(&block[148..156])?;
    let sum = |count: fn(u8) -> i64| -> i64 {
        let outside: i64 = block[..148].iter().chain(&block[156..]).map(|byte| count(*byte)).sum();
        outside + 8 * i64::from(b' ')
    };
    // Old programs added the bytes up as signed ones.
    if told != sum(i64::from) && told != sum(|byte| i64::from(byte as i8)) {
        return Err("a header's checksum is wrong");
    }
    let size = u64::try_from(number(&block[124..136])?).map_err(|_| "a size is negative")?;
    let kind = block[156];
    match kind {
        PAX | PAX_GLOBAL | LONG_NAME | LONG_LINK => {
            if size > EXTENSION_BYTES_MAX {
                return Err("an extension header is too long");
            }
            return Ok(Header::Extension { kind, size });
        }
        b'S' => return Err("it holds GNU sparse files; make it without --sparse"),
        _ => {}
    }
    let mut name = text(&block[..NAME_BYTES]);
    let is_ustar = &block[257..263] == b"ustar\0";
    if is_ustar && block[345] != 0 {
        let prefix = text(&block[345..500]);
        name = [prefix, name].join(&b'/');
    }
    let small = |field: &[u8]| number(field).map(|value| u32::try_from(value).unwrap_or(0));
    let mut entry = Entry {
        name,
        link: text(&block[157..157 + NAME_BYTES]),
        kind,
        mode: small(&block[100..108])? & 0o7777,
        uid: small(&block[108..116])?,
        gid: small(&block[116..124])?,
        size,
        mtime_s: number(&block[136..148])?,
        mtime_ns: 0,
        major: 0,
        minor: 0,
    };
    extensions.apply(&mut entry);
    match kind {
        0 if entry.name.ends_with(b"/") => entry.kind = DIRECTORY,
        0 | b'7' => entry.kind = REGULAR,
        CHARACTER | BLOCK => {
            (entry.major, entry.minor) = (small(&block[329..337])?, small(&block[337..345])?)
        }
        REGULAR | HARD_LINK | SYMLINK | DIRECTORY | FIFO => {}
        _ => return Err("a member is of a kind nobody knows"),
    }
    if entry.kind != REGULAR {
        entry.size = 0;
    }
    Ok(Header::Entry(entry))
}

fn text(field: &[u8]) -> Vec<u8> {
    field.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// Octal digits among spaces and zero bytes, or GNU's base-256. Nothing is 0.
fn number(field: &[u8]) -> Result<i64, &'static str> {
    const BAD: &str = "a number in a header is damaged";
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (index, byte) in field.iter().enumerate() {
            let byte = if index == 0 && !negative { byte & 0x7f } else { *byte };
            value = value << 8 | i128::from(byte);
        }
        return i64::try_from(value).map_err(|_| BAD);
    }
    let digits = std::str::from_utf8(field).map_err(|_| BAD)?;
    let digits = digits.trim_matches(|character| character == ' ' || character == '\0');
    if digits.is_empty() {
        return Ok(0);
    }
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(BAD);
    }
    i64::from_str_radix(digits, 8).map_err(|_| BAD)
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
