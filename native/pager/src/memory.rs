//! A guest's memory map, and what belongs into a window of it. Pure: no system call is made here.

use crate::handshake::Mapping;
use crate::limits::{PAGE_BYTES, WINDOW_BYTES};

/// One bit for each page of a mapping; takes no memory until the first is set.
#[derive(Default)]
struct PageSet(Vec<u64>);

impl PageSet {
    fn insert(&mut self, pages: std::ops::Range<u64>, page_count: u64) {
        self.0.resize(page_count.div_ceil(64) as usize, 0);
        for page in pages {
            self.0[(page / 64) as usize] |= 1 << (page % 64);
        }
    }

    fn contains(&self, page: u64) -> bool {
        self.0.get((page / 64) as usize).is_some_and(|word| word >> (page % 64) & 1 == 1)
    }
}

/// Part of a mapping that is filled by one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    mapping: usize,
    /// Address in the VMM's memory.
    pub start: u64,
    pub size_bytes: u64,
    /// Where in the base.
    pub offset: u64,
}

impl Window {
    pub fn page_count(&self) -> usize {
        (self.size_bytes / PAGE_BYTES) as usize
    }

    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.start + self.size_bytes).contains(&address)
    }
}

/// Neighbouring pages of a window that get the same kind of content.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    pub start: u64,
    pub size_bytes: u64,
    /// Where in the base; None: zeroes.
    pub offset: Option<u64>,
}

/// The mappings of one VMM, with what it gave back since.
pub struct Memory {
    mappings: Vec<Mapping>,
    removed: Vec<PageSet>,
    unmapped: Vec<PageSet>,
}

impl Memory {
    /// Mappings are ordered by address and do not overlap.
    pub fn new(mappings: Vec<Mapping>) -> Self {
        let none = || mappings.iter().map(|_| PageSet::default()).collect();
        Self { removed: none(), unmapped: none(), mappings }
    }

    /// The window around `address`: aligned in the base, clipped to the mapping. None: not our memory.
    pub fn window(&self, address: u64) -> Option<Window> {
        let index = self.mappings.partition_point(|mapping| mapping.start <= address).checked_sub(1)?;
        let mapping = &self.mappings[index];
        let within = address - mapping.start;
        if within >= mapping.size_bytes {
            return None;
        }
        let aligned = (mapping.offset + within) / WINDOW_BYTES * WINDOW_BYTES;
        let first = aligned.max(mapping.offset);
        let end = (aligned + WINDOW_BYTES).min(mapping.offset + mapping.size_bytes);
        let start = mapping.start + (first - mapping.offset);
        Some(Window { mapping: index, start, size_bytes: end - first, offset: first })
    }

    /// These addresses read as zeroes from now on. Returns how many bytes of ours they are.
    pub fn remove(&mut self, start: u64, end: u64) -> u64 {
        mark(&self.mappings, &mut self.removed, start, end)
    }

    /// These addresses are nobody's memory any more.
    pub fn unmap(&mut self, start: u64, end: u64) -> u64 {
        mark(&self.mappings, &mut self.unmapped, start, end)
    }

    /// What belongs into a window, where `data_pages` tells which of its pages the base has data for.
    pub fn runs(&self, window: &Window, data_pages: u32) -> Vec<Run> {
        let mapping = &self.mappings[window.mapping];
        let mut runs: Vec<Run> = Vec::new();
        for index in 0..window.page_count() as u64 {
            let start = window.start + index * PAGE_BYTES;
            let page = (start - mapping.start) / PAGE_BYTES;
            if self.unmapped[window.mapping].contains(page) {
                continue;
            }
            let has_data = data_pages >> index & 1 == 1 && !self.removed[window.mapping].contains(page);
            let offset = has_data.then_some(window.offset + index * PAGE_BYTES);
            match runs.last_mut() {
                Some(run)
                    if run.start + run.size_bytes == start && run.offset.is_some() == offset.is_some() =>
                {
                    run.size_bytes += PAGE_BYTES;
                }
                _ => runs.push(Run { start, size_bytes: PAGE_BYTES, offset }),
            }
        }
        runs
    }
}

fn mark(mappings: &[Mapping], sets: &mut [PageSet], start: u64, end: u64) -> u64 {
    let mut marked = 0;
    for (mapping, set) in mappings.iter().zip(sets) {
        let first = start.max(mapping.start);
        let last = end.min(mapping.start + mapping.size_bytes);
        if first < last {
            let pages = (first - mapping.start) / PAGE_BYTES..(last - mapping.start).div_ceil(PAGE_BYTES);
            set.insert(pages, mapping.size_bytes / PAGE_BYTES);
            marked += last - first;
        }
    }
    marked
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u64 = 0x10_0000;
    const B: u64 = 0x20_0000;

    /// 96 KiB at A, of the base's first bytes; 8 KiB at B, of what follows after 4 KiB.
    fn memory() -> Memory {
        Memory::new(vec![
            Mapping { start: A, size_bytes: 0x1_8000, offset: 0 },
            Mapping { start: B, size_bytes: 0x2000, offset: 0x1_9000 },
        ])
    }

    fn place(window: Option<Window>) -> Option<(u64, u64, u64)> {
        window.map(|window| (window.start, window.size_bytes, window.offset))
    }

    #[test]
    fn windows_are_aligned_in_the_base_and_clipped_to_the_mapping() {
        let memory = memory();
        assert_eq!(place(memory.window(A)), Some((A, 0x1_0000, 0)));
        assert_eq!(place(memory.window(A + 0xffff)), Some((A, 0x1_0000, 0)));
        assert_eq!(place(memory.window(A + 0x1_0000)), Some((A + 0x1_0000, 0x8000, 0x1_0000)));
        assert_eq!(place(memory.window(B + 0x1fff)), Some((B, 0x2000, 0x1_9000)));
    }

    #[test]
    fn other_addresses_have_no_window() {
        for address in [0, A - 1, A + 0x1_8000, B - 1, B + 0x2000, u64::MAX] {
            assert_eq!(memory().window(address), None, "{address:#x}");
        }
    }

    #[test]
    fn runs_follow_the_data() {
        let memory = memory();
        let window = memory.window(B).expect("window");
        let (copy, zero) = (Some(0x1_9000), None);
        assert_eq!(memory.runs(&window, 0b11), [Run { start: B, size_bytes: 0x2000, offset: copy }]);
        assert_eq!(memory.runs(&window, 0), [Run { start: B, size_bytes: 0x2000, offset: zero }]);
        assert_eq!(
            memory.runs(&window, 1),
            [
                Run { start: B, size_bytes: 0x1000, offset: copy },
                Run { start: B + 0x1000, size_bytes: 0x1000, offset: zero }
            ]
        );
    }

    #[test]
    fn removed_pages_are_zeroes_and_unmapped_ones_are_left_out() {
        let mut memory = memory();
        assert_eq!(memory.remove(A + 0x1000, A + 0x3000), 0x2000);
        assert_eq!(memory.unmap(A + 0xf000, A + 0x1_1000), 0x2000);
        let window = memory.window(A).expect("window");
        assert_eq!(
            memory.runs(&window, 0xffff),
            [
                Run { start: A, size_bytes: 0x1000, offset: Some(0) },
                Run { start: A + 0x1000, size_bytes: 0x2000, offset: None },
                Run { start: A + 0x3000, size_bytes: 0xc000, offset: Some(0x3000) },
            ]
        );
    }

    #[test]
    fn ranges_over_several_mappings_mark_only_what_is_ours() {
        let mut memory = memory();
        assert_eq!(memory.remove(0, u64::MAX), 0x1_a000);
        assert_eq!(memory.remove(A + 0x1_8000, B), 0);
        let window = memory.window(B).expect("window");
        assert_eq!(memory.runs(&window, 0b11), [Run { start: B, size_bytes: 0x2000, offset: None }]);
    }
}
