//! Sets of pages, and the set that a guest touches until it is ready.

use std::ops::Range;

use crate::limits::WINDOW_PAGES;

const PAGES_PER_WORD: u64 = u64::BITS as u64;

/// One bit for each page; takes no memory until the first is set.
#[derive(Default)]
pub struct PageSet(Vec<u64>);

impl PageSet {
    /// Adds pages to a set whose pages are all below `page_count`.
    pub fn insert(&mut self, pages: Range<u64>, page_count: u64) {
        self.0.resize(page_count.div_ceil(PAGES_PER_WORD) as usize, 0);
        for page in pages {
            self.0[(page / PAGES_PER_WORD) as usize] |= 1 << (page % PAGES_PER_WORD);
        }
    }

    pub fn contains(&self, page: u64) -> bool {
        let word = self.0.get((page / PAGES_PER_WORD) as usize);
        word.is_some_and(|word| word >> (page % PAGES_PER_WORD) & 1 == 1)
    }

    pub fn len(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The windows that hold pages of the set, each with those pages.
    fn windows(&self) -> impl Iterator<Item = SetWindow> + '_ {
        const WINDOWS_PER_WORD: usize = u64::BITS as usize / WINDOW_PAGES;
        let masks = self.0.iter().enumerate().flat_map(|(index, word)| {
            (0..WINDOWS_PER_WORD).map(move |nth| {
                let pages = (word >> (nth * WINDOW_PAGES)) as u16;
                SetWindow { index: (index * WINDOWS_PER_WORD + nth) as u32, pages }
            })
        });
        masks.filter(|window| window.pages != 0)
    }
}

/// Pages of one window of a base; bit n is its page n.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetWindow {
    pub index: u32,
    pub pages: u16,
}

/// The pages of a base that a guest touched from its restore until it was ready. A set and not an order: which
/// page is next differs from restore to restore, which pages there are hardly does.
pub struct WorkingSet {
    pub windows: Box<[SetWindow]>,
    pub page_count: u64,
}

impl WorkingSet {
    /// `touched` are pages of the base.
    pub fn new(touched: &PageSet) -> Self {
        Self { windows: touched.windows().collect(), page_count: touched.len() }
    }

    /// Its pages of one window of the base.
    pub fn pages_of(&self, window_index: u64) -> u16 {
        let found = self.windows.binary_search_by_key(&window_index, |window| u64::from(window.index));
        found.map_or(0, |at| self.windows[at].pages)
    }

    /// What keeping it takes.
    pub fn size_bytes(&self) -> usize {
        std::mem::size_of_val(&*self.windows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_working_set_is_the_pages_touched_by_window() {
        let mut touched = PageSet::default();
        for pages in [0..1, 15..17, 64..65, 130..134] {
            touched.insert(pages, 200);
        }
        let set = WorkingSet::new(&touched);
        let found: Vec<(u32, u16)> = set.windows.iter().map(|window| (window.index, window.pages)).collect();
        assert_eq!(found, [(0, 1 | 1 << 15), (1, 1), (4, 1), (8, 0b11_1100)]);
        assert_eq!(set.page_count, 8);
        assert_eq!(set.size_bytes(), 4 * 8);
        assert_eq!([0, 1, 2, 8, 9].map(|index| set.pages_of(index)), [1 | 1 << 15, 1, 0, 0b11_1100, 0]);
    }

    #[test]
    fn pages_beyond_the_set_are_not_in_it() {
        let mut set = PageSet::default();
        assert!(!set.contains(0));
        set.insert(70..71, 71);
        assert!(set.contains(70));
        assert!(!set.contains(71) && !set.contains(1 << 40));
    }
}
