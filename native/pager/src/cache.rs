//! Windows of packed bases, unpacked: shared by all sessions, bounded in bytes.
//!
//! Sharded, so that workers hardly ever wait for each other. Each shard gives every window that was used since
//! it last came by a second chance (CLOCK), which takes no order to be kept on a hit.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{json, Value};

use crate::limits::{CACHE_SHARDS_MAX, CACHE_SHARD_BYTES_MIN};

/// Which window of which base, by the base's serial number: a base that is gone leaves no content behind for
/// another that is a file with the same number.
pub type Key = (u64, u64);

pub struct Cache {
    shards: Box<[Mutex<Shard>]>,
    shard_bytes_max: usize,
    hits: AtomicU64,
    misses: AtomicU64,
    evictions: AtomicU64,
}

#[derive(Default)]
struct Shard {
    windows: HashMap<Key, Slot>,
    /// In the order in which the clock's hand comes by.
    hand: VecDeque<Key>,
    bytes: usize,
}

struct Slot {
    content: Arc<[u8]>,
    used: bool,
}

impl Cache {
    /// A cache that keeps at most `bytes_max` bytes of content.
    pub fn new(bytes_max: usize) -> Self {
        let shard_count = (bytes_max / CACHE_SHARD_BYTES_MIN).clamp(1, CACHE_SHARDS_MAX);
        Self {
            shards: (0..shard_count).map(|_| Mutex::default()).collect(),
            shard_bytes_max: bytes_max / shard_count,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
        }
    }

    pub fn get(&self, key: Key) -> Option<Arc<[u8]>> {
        let mut shard = self.shard(key);
        let found = shard.windows.get_mut(&key).map(|slot| {
            slot.used = true;
            Arc::clone(&slot.content)
        });
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Keeps a window, if there can be room for it. If it is there already, it stays as it is.
    pub fn insert(&self, key: Key, content: Arc<[u8]>) {
        if content.len() > self.shard_bytes_max {
            return;
        }
        let mut shard = self.shard(key);
        if shard.windows.contains_key(&key) {
            return;
        }
        while shard.bytes + content.len() > self.shard_bytes_max {
            shard.evict();
            self.evictions.fetch_add(1, Ordering::Relaxed);
        }
        shard.bytes += content.len();
        shard.hand.push_back(key);
        shard.windows.insert(key, Slot { content, used: false });
    }

    /// Drops all windows of a base.
    pub fn forget(&self, serial: u64) {
        for shard in &*self.shards {
            let mut shard = lock(shard);
            shard.hand.retain(|key| key.0 != serial);
            shard.windows.retain(|key, _| key.0 != serial);
            shard.bytes = shard.windows.values().map(|slot| slot.content.len()).sum();
        }
    }

    /// For `stats`.
    pub fn describe(&self) -> Value {
        let shards = self.shards.iter().map(|shard| {
            let shard = lock(shard);
            (shard.bytes, shard.windows.len())
        });
        let (bytes, windows) = shards.fold((0, 0), |sum, shard| (sum.0 + shard.0, sum.1 + shard.1));
        json!({
            "bytes": bytes,
            "bytes_max": self.shard_bytes_max * self.shards.len(),
            "windows": windows,
            "hits": self.hits.load(Ordering::Relaxed),
            "misses": self.misses.load(Ordering::Relaxed),
            "evictions": self.evictions.load(Ordering::Relaxed),
        })
    }

    fn shard(&self, key: Key) -> MutexGuard<'_, Shard> {
        // Neighbours go to different shards, and the first windows of all bases not to one.
        let index = key.0.wrapping_mul(0x9e37_79b9).wrapping_add(key.1) % self.shards.len() as u64;
        lock(&self.shards[index as usize])
    }
}

impl Shard {
    /// Drops the window that has not been used for longest, roughly. There is one.
    fn evict(&mut self) {
        while let Some(key) = self.hand.pop_front() {
            match self.windows.get_mut(&key) {
                Some(slot) if slot.used => {
                    slot.used = false;
                    self.hand.push_back(key);
                }
                _ => {
                    let content = self.windows.remove(&key).map(|slot| slot.content);
                    self.bytes -= content.map_or(0, |content| content.len());
                    return;
                }
            }
        }
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: usize = 1024;

    fn content(number: u64) -> Arc<[u8]> {
        vec![number as u8; WINDOW].into()
    }

    #[test]
    fn it_never_holds_more_than_its_limit() {
        let cache = Cache::new(8 * WINDOW);
        for number in 0..1000 {
            cache.insert((1, number), content(number));
            assert!(cache.describe()["bytes"].as_u64() <= Some(8 * WINDOW as u64));
        }
        assert_eq!(cache.describe()["windows"], 8);
        assert_eq!(cache.describe()["evictions"], 992);
    }

    #[test]
    fn what_was_used_stays_longer() {
        let cache = Cache::new(4 * WINDOW);
        for number in 0..4 {
            cache.insert((1, number), content(number));
        }
        assert_eq!(cache.get((1, 0)).as_deref(), Some(&*content(0)));
        for number in 4..7 {
            cache.insert((1, number), content(number));
        }
        assert!(cache.get((1, 0)).is_some());
        assert!((1..4).all(|number| cache.get((1, number)).is_none()));
    }

    #[test]
    fn bases_do_not_see_each_other_and_are_forgotten_alone() {
        let cache = Cache::new(1 << 30);
        for serial in 1..3 {
            for number in 0..100 {
                cache.insert((serial, number), content(serial));
            }
        }
        cache.forget(1);
        assert_eq!(cache.get((1, 7)), None);
        assert_eq!(cache.get((2, 7)).as_deref(), Some(&*content(2)));
        assert_eq!(cache.describe()["bytes"], 100 * WINDOW);
    }

    #[test]
    fn what_is_larger_than_a_shard_is_not_kept() {
        let cache = Cache::new(WINDOW / 2);
        cache.insert((1, 1), content(1));
        assert_eq!(cache.describe()["bytes"], 0);
    }

    #[test]
    fn neighbours_spread_over_the_shards() {
        let cache = Cache::new(CACHE_SHARD_BYTES_MIN * CACHE_SHARDS_MAX);
        for number in 0..CACHE_SHARDS_MAX as u64 {
            cache.insert((3, number), content(number));
        }
        assert!(cache.shards.iter().all(|shard| lock(shard).windows.len() == 1));
    }
}
