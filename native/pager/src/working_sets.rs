//! The working sets of the bases that were restored last: recorded by one session, replayed for the next ones.

use std::collections::HashMap;
use std::sync::Arc;

use crate::base::Identity;
use crate::limits::{WORKING_SETS_BYTES_MAX, WORKING_SETS_MAX};
use crate::pages::WorkingSet;

#[derive(Default)]
pub struct WorkingSets {
    sets: HashMap<Identity, Kept>,
    uses: u64,
    bytes: usize,
}

struct Kept {
    set: Arc<WorkingSet>,
    /// A number that is larger the later it was used.
    used: u64,
}

impl WorkingSets {
    pub fn get(&mut self, base: &Identity) -> Option<Arc<WorkingSet>> {
        self.uses += 1;
        let kept = self.sets.get_mut(base)?;
        kept.used = self.uses;
        Some(Arc::clone(&kept.set))
    }

    /// Keeps a set instead of the one that the base had. One that is too large is not kept.
    pub fn insert(&mut self, base: Identity, set: WorkingSet) {
        self.forget(&base);
        if set.size_bytes() > WORKING_SETS_BYTES_MAX {
            return;
        }
        self.uses += 1;
        self.bytes += set.size_bytes();
        self.sets.insert(base, Kept { set: Arc::new(set), used: self.uses });
        while self.bytes > WORKING_SETS_BYTES_MAX || self.sets.len() > WORKING_SETS_MAX {
            let oldest = self.sets.iter().min_by_key(|(_, kept)| kept.used).map(|(base, _)| *base);
            let Some(oldest) = oldest else { return };
            self.forget(&oldest);
        }
    }

    pub fn len(&self) -> usize {
        self.sets.len()
    }

    pub fn size_bytes(&self) -> usize {
        self.bytes
    }

    fn forget(&mut self, base: &Identity) {
        if let Some(kept) = self.sets.remove(base) {
            self.bytes -= kept.set.size_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::SetWindow;
    use crate::protocol::Format;

    fn base(number: u64) -> Identity {
        Identity::for_test(number, Format::Raw)
    }

    fn set(window_count: usize) -> WorkingSet {
        let windows = vec![SetWindow { index: 0, pages: 1 }; window_count];
        WorkingSet { windows: windows.into(), page_count: window_count as u64 }
    }

    #[test]
    fn the_last_set_of_a_base_is_kept() {
        let mut sets = WorkingSets::default();
        assert!(sets.get(&base(1)).is_none());
        sets.insert(base(1), set(5));
        sets.insert(base(1), set(3));
        assert_eq!(sets.get(&base(1)).map(|set| set.page_count), Some(3));
        assert_eq!((sets.len(), sets.size_bytes()), (1, 3 * 8));
    }

    #[test]
    fn the_set_used_longest_ago_goes_first() {
        let mut sets = WorkingSets::default();
        for number in 0..WORKING_SETS_MAX as u64 {
            sets.insert(base(number), set(1));
        }
        assert!(sets.get(&base(0)).is_some());
        sets.insert(base(1000), set(1));
        assert_eq!(sets.len(), WORKING_SETS_MAX);
        assert!(sets.get(&base(0)).is_some() && sets.get(&base(1000)).is_some());
        assert!(sets.get(&base(1)).is_none());
    }

    #[test]
    fn their_size_is_bounded() {
        let mut sets = WorkingSets::default();
        let half = WORKING_SETS_BYTES_MAX / std::mem::size_of::<SetWindow>() / 2;
        for number in 0..3 {
            sets.insert(base(number), set(half));
            assert!(sets.size_bytes() <= WORKING_SETS_BYTES_MAX);
        }
        assert_eq!(sets.len(), 2);
        sets.insert(base(9), set(4 * half));
        assert!(sets.get(&base(9)).is_none());
    }
}
