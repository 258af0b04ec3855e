//! The bases that are open, each once for all sessions that use it, and the cache of what is unpacked of them.
//!
//! A base lingers for a while when its last session has ended, since another restore of it is likely.

use std::collections::HashMap;
use std::io::Result;
use std::sync::Arc;
use std::time::Instant;

use crate::base::{Base, Identity};
use crate::cache::Cache;
use crate::limits::{BASES_LINGERING_MAX, BASE_LINGER};
use crate::protocol::Format;

pub struct Bases {
    open: HashMap<Identity, Open>,
    cache: Arc<Cache>,
    serial_last: u64,
}

struct Open {
    base: Arc<Base>,
    unused_since: Option<Instant>,
}

impl Bases {
    pub fn new(cache_bytes_max: usize) -> Self {
        Self { open: HashMap::new(), cache: Arc::new(Cache::new(cache_bytes_max)), serial_last: 0 }
    }

    /// The base at `path`, opened unless it is already.
    pub fn open(&mut self, path: &str, format: Format) -> Result<Arc<Base>> {
        let file = Base::open_file(path)?;
        let identity = Base::identify(&file, format)?;
        if let Some(known) = self.open.get_mut(&identity) {
            known.unused_since = None;
            return Ok(Arc::clone(&known.base));
        }
        self.serial_last += 1;
        let base = Arc::new(Base::new(file, identity, self.serial_last, &self.cache)?);
        self.open.insert(identity, Open { base: Arc::clone(&base), unused_since: None });
        Ok(base)
    }

    /// Closes what has not been used for long enough.
    pub fn sweep(&mut self, now: Instant) {
        for open in self.open.values_mut() {
            open.unused_since = match Arc::strong_count(&open.base) {
                1 => open.unused_since.or(Some(now)),
                _ => None,
            };
        }
        self.open.retain(|_, open| open.unused_since.map_or(true, |since| now - since < BASE_LINGER));
        let lingering = |open: &Open| open.unused_since.is_some();
        while self.open.values().filter(|open| lingering(open)).count() > BASES_LINGERING_MAX {
            let unused = self.open.iter().filter(|(_, open)| lingering(open));
            let oldest = unused.min_by_key(|(_, open)| open.unused_since).map(|(identity, _)| *identity);
            let Some(oldest) = oldest else { return };
            self.open.remove(&oldest);
        }
    }

    /// When to sweep at the latest.
    pub fn next_sweep(&self) -> Option<Instant> {
        self.open.values().map(|open| open.unused_since.unwrap_or_else(Instant::now) + BASE_LINGER).min()
    }

    pub fn len(&self) -> usize {
        self.open.len()
    }

    pub fn cache(&self) -> &Cache {
        &self.cache
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn with_files(name: &str, count: usize, test: impl Fn(&[String])) {
        let own = format!("/dev/shm/ramet-pager-test-{}-{name}", std::process::id());
        let paths: Vec<String> = (0..count).map(|number| format!("{own}-{number}")).collect();
        for path in &paths {
            std::fs::write(path, [1; 8192]).expect("write");
        }
        test(&paths);
        for path in &paths {
            std::fs::remove_file(path).expect("remove");
        }
    }

    #[test]
    fn one_file_is_one_base_under_all_its_names() {
        with_files("names", 1, |paths| {
            let mut bases = Bases::new(0);
            let first = bases.open(&paths[0], Format::Raw).expect("open");
            let link = format!("{}-link", paths[0]);
            std::fs::hard_link(&paths[0], &link).expect("link");
            let second = bases.open(&link, Format::Raw);
            std::fs::remove_file(&link).expect("remove");
            assert!(Arc::ptr_eq(&first, &second.expect("open")));
            assert_eq!(bases.len(), 1);
        });
    }

    #[test]
    fn a_file_written_anew_is_another_base() {
        with_files("anew", 1, |paths| {
            let mut bases = Bases::new(0);
            let first = bases.open(&paths[0], Format::Raw).expect("open").identity();
            let file = std::fs::File::options().write(true).open(&paths[0]).expect("open");
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("touch");
            let second = bases.open(&paths[0], Format::Raw).expect("open");
            assert_ne!(first, second.identity());
        });
    }

    #[test]
    fn an_unused_base_lingers_and_goes() {
        with_files("lingering", 1, |paths| {
            let mut bases = Bases::new(0);
            let base = bases.open(&paths[0], Format::Raw).expect("open");
            let now = Instant::now();
            bases.sweep(now + 2 * BASE_LINGER);
            assert_eq!(bases.len(), 1); // It is used.
            drop(base);
            bases.sweep(now);
            bases.sweep(now + BASE_LINGER / 2);
            assert_eq!((bases.len(), bases.next_sweep()), (1, Some(now + BASE_LINGER)));
            bases.sweep(now + BASE_LINGER);
            assert_eq!((bases.len(), bases.next_sweep()), (0, None));
        });
    }

    #[test]
    fn only_so_many_linger() {
        with_files("many", BASES_LINGERING_MAX + 3, |paths| {
            let mut bases = Bases::new(0);
            let now = Instant::now();
            for (index, path) in paths.iter().enumerate() {
                drop(bases.open(path, Format::Raw).expect("open"));
                bases.sweep(now + Duration::from_millis(index as u64));
            }
            assert_eq!(bases.len(), BASES_LINGERING_MAX);
        });
    }

    #[test]
    fn what_is_not_packed_is_no_packed_base() {
        with_files("raw", 1, |paths| {
            assert!(Bases::new(0).open(&paths[0], Format::Packed).is_err());
        });
    }
}
