//! What a session counts, and how it is told.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{json, Value};

#[derive(Default)]
pub struct Counters {
    pub faults: Counter,
    /// From the base.
    pub copied_bytes: Counter,
    pub overlaid_bytes: Counter,
    pub zeroed_bytes: Counter,
    /// Of those above, what was there before anybody had asked for it.
    pub replayed_bytes: Counter,
    pub removed_bytes: Counter,
    pub deferrals: Counter,
    /// Spent on answers to faults.
    pub answering_ns: Counter,
    pub answering_ns_max: AtomicU64,
}

#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub fn add_answer(&self, began: Instant) {
        let nanos = |took: Duration| u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let took_ns = nanos(began.elapsed());
        self.answering_ns.add(took_ns);
        self.answering_ns_max.fetch_max(took_ns, Ordering::Relaxed);
    }

    /// For `stats`.
    pub fn describe(&self) -> Value {
        json!({
            "faults": self.faults.get(),
            "copied_bytes": self.copied_bytes.get(),
            "overlaid_bytes": self.overlaid_bytes.get(),
            "zeroed_bytes": self.zeroed_bytes.get(),
            "replayed_bytes": self.replayed_bytes.get(),
            "removed_bytes": self.removed_bytes.get(),
            "deferrals": self.deferrals.get(),
            "answering_us": self.answering_ns.get() / 1000,
            "answering_us_max": self.answering_ns_max.load(Ordering::Relaxed) / 1000,
        })
    }
}
