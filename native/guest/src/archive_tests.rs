use super::*;

/// A generator of the xorshift family: the same numbers on every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn name(&mut self) -> Vec<u8> {
        let length = 1 + self.below(300);
        let odd = self.below(3);
        (0..length)
            .map(|_| match (odd, self.below(256) as u8) {
                (0, byte) => b'a' + byte % 26,
                (_, byte) => byte.max(1),
            })
            .collect()
    }

    fn entry(&mut self) -> Entry {
        let kind = [REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK, DIRECTORY, FIFO][self.below(7) as usize];
        let has_link = kind == HARD_LINK || kind == SYMLINK;
        let has_device = kind == CHARACTER || kind == BLOCK;
        Entry {
            name: self.name(),
            link: if has_link { self.name() } else { Vec::new() },
            kind,
            mode: self.below(0o10000) as u32,
            uid: (self.next() >> (32 + self.below(32))) as u32,
            gid: (self.next() >> (32 + self.below(32))) as u32,
            size: if kind == REGULAR { self.next() >> (1 + self.below(63)) } else { 0 },
            mtime_s: (self.next() >> (16 + self.below(48))) as i64 - (1 << 20),
            mtime_ns: if self.below(2) == 0 { 0 } else { self.below(1_000_000_000) as u32 },
            major: if has_device { self.below(4096) as u32 } else { 0 },
            minor: if has_device { self.below(1 << 20) as u32 } else { 0 },
        }
    }
}

/// Reads the headers of one entry.
fn read(mut bytes: &[u8]) -> Result<Entry, &'static str> {
    let mut extensions = Extensions::default();
    loop {
        let block = bytes.get(..BLOCK_BYTES).and_then(|block| block.try_into().ok()).ok_or("cut")?;
        bytes = &bytes[BLOCK_BYTES..];
        match parse(block, &mut extensions)? {
            Header::End => return Err("end"),
            Header::Entry(entry) => return Ok(entry),
            Header::Extension { kind, size } => {
                let size = size as usize;
                extensions.take(kind, bytes.get(..size).ok_or("cut")?)?;
                bytes = bytes.get(size + padding(size as u64)..).ok_or("cut")?;
            }
        }
    }
}

#[test]
fn what_is_written_is_read_again() {
    let mut numbers = Numbers(88172645463325252);
    for _ in 0..5_000 {
        let entry = numbers.entry();
        let mut bytes = Vec::new();
        entry.append_to(&mut bytes);
        assert_eq!(bytes.len() % BLOCK_BYTES, 0);
        assert_eq!(read(&bytes), Ok(entry));
    }
}

#[test]
fn no_bytes_whatever_break_the_reader() {
    let mut numbers = Numbers(42);
    let mut read_count = 0;
    for _ in 0..20_000 {
        let mut bytes = Vec::new();
        numbers.entry().append_to(&mut bytes);
        for _ in 0..=numbers.below(3) {
            let at = numbers.below(bytes.len() as u64) as usize;
            bytes[at] = numbers.next() as u8;
        }
        // Most changes are found by the checksum; so that the rest is met too, it is made right.
        let last = bytes.len() - BLOCK_BYTES;
        for block in [0, last] {
            bytes[block + 148..block + 156].fill(b' ');
            let sum: u32 = bytes[block..block + BLOCK_BYTES].iter().map(|byte| u32::from(*byte)).sum();
            bytes[block + 148..block + 155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
        read_count += usize::from(read(&bytes).is_ok());
    }
    assert!(read_count > 1_000);
}

#[test]
fn times_before_1970_count_their_fraction_backwards() {
    for (seconds, nanos, text) in
        [(0, 0, "0"), (5, 7, "5.000000007"), (-1, 500_000_000, "-0.500000000"), (-2, 1, "-1.999999999")]
    {
        assert_eq!(format_time(seconds, nanos), text);
        assert_eq!(parse_time(text), Some((seconds, nanos)));
    }
    assert_eq!(parse_time("1.5"), Some((1, 500_000_000)));
    for damaged in ["", ".", "a", "1.x", "1.-5", "99999999999999999999"] {
        assert_eq!(parse_time(damaged), None, "{damaged}");
    }
}

#[test]
fn numbers_of_other_programs_are_read() {
    assert_eq!(number(b"0000644\0"), Ok(0o644));
    assert_eq!(number(b"   644 \0"), Ok(0o644));
    assert_eq!(number(b"\0\0\0\0"), Ok(0));
    assert_eq!(number(b"\x80\0\0\0\0\0\x01\x02"), Ok(258));
    assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xfe"), Ok(-2));
    assert!(number(b"12a").is_err());
    assert!(number(b"888").is_err());
    assert!(number(b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").is_err());
}
