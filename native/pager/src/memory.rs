//! A guest's memory map, and what belongs into a window of it. Pure: no system call is made here.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::handshake::Mapping;
use crate::limits::{PAGE_BYTES, WINDOW_BYTES, WINDOW_PAGES};
use crate::pages::PageSet;

/// All pages of a window.
pub const ALL_PAGES: u16 = u16::MAX;
const _: () = assert!(WINDOW_PAGES == u16::BITS as usize);

/// Pages that one session sees instead of the base's, by their offset in the base.
pub type Overlays = BTreeMap<u64, Box<[u8; PAGE_BYTES as usize]>>;

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
    /// Which of the base's windows this is part of.
    pub fn index(&self) -> u64 {
        self.offset / WINDOW_BYTES
    }

    /// Which pages of the base's window it has; bit n is page n.
    pub fn pages(&self) -> u16 {
        let count = self.size_bytes / PAGE_BYTES;
        (((1u32 << count) - 1) << self.first_page()) as u16
    }

    fn first_page(&self) -> u64 {
        self.offset % WINDOW_BYTES / PAGE_BYTES
    }

    /// The bit of the page at an address of this window.
    pub fn page_at(&self, address: u64) -> u16 {
        1 << (self.first_page() + (address - self.start) / PAGE_BYTES)
    }

    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.start + self.size_bytes).contains(&address)
    }
}

/// Where the content of a run comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The base, from this page of the window on.
    Data {
        page: usize,
    },
    /// The overlay page at this offset in the base.
    Overlay {
        offset: u64,
    },
    Zeroes,
}

/// Neighbouring pages of a window that get the same kind of content.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    pub start: u64,
    pub size_bytes: u64,
    pub source: Source,
}

/// The mappings of one VMM, with what it gave back since.
pub struct Memory {
    mappings: Vec<Mapping>,
    removed: Vec<PageSet>,
    unmapped: Vec<PageSet>,
    overlays: Overlays,
}

impl Memory {
    /// Mappings are ordered by address and do not overlap.
    pub fn new(mappings: Vec<Mapping>, overlays: Overlays) -> Self {
        let none = || mappings.iter().map(|_| PageSet::default()).collect();
        Self { removed: none(), unmapped: none(), mappings, overlays }
    }

    pub fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    pub fn overlay(&self, offset: u64) -> Option<&[u8; PAGE_BYTES as usize]> {
        self.overlays.get(&offset).map(Box::as_ref)
    }

    /// The window around `address`: aligned in the base, clipped to the mapping. None: not our memory.
    pub fn window(&self, address: u64) -> Option<Window> {
        let index = self.mappings.partition_point(|mapping| mapping.start <= address).checked_sub(1)?;
        let mapping = &self.mappings[index];
        let within = address - mapping.start;
        if within >= mapping.size_bytes {
            return None;
        }
        self.part(index, (mapping.offset + within) / WINDOW_BYTES)
    }

    /// All places where the base's window `window_index` is.
    pub fn places(&self, window_index: u64) -> impl Iterator<Item = Window> + '_ {
        (0..self.mappings.len()).filter_map(move |index| self.part(index, window_index))
    }

    /// The `nth` window of one mapping. None: it has no more.
    pub fn nth(&self, mapping_index: usize, nth: u64) -> Option<Window> {
        self.part(mapping_index, self.mappings[mapping_index].offset / WINDOW_BYTES + nth)
    }

    fn part(&self, index: usize, window_index: u64) -> Option<Window> {
        let mapping = &self.mappings[index];
        let aligned = window_index * WINDOW_BYTES;
        let first = aligned.max(mapping.offset);
        let end = (aligned + WINDOW_BYTES).min(mapping.offset + mapping.size_bytes);
        if first >= end {
            return None;
        }
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

    /// Which of these pages of a window are there to be filled, and have not been given back.
    pub fn kept(&self, window: &Window, pages: u16) -> u16 {
        self.but(&self.removed, window, self.mapped(window, pages))
    }

    /// The parts of one mapping that have not been unmapped, by address.
    pub fn mapped_ranges(&self, mapping_index: usize) -> Vec<Range<u64>> {
        let mapping = &self.mappings[mapping_index];
        let unmapped = &self.unmapped[mapping_index];
        if unmapped.len() == 0 {
            let whole = mapping.start..mapping.start + mapping.size_bytes;
            return vec![whole];
        }
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for page in (0..mapping.size_bytes / PAGE_BYTES).filter(|page| !unmapped.contains(*page)) {
            let start = mapping.start + page * PAGE_BYTES;
            match ranges.last_mut() {
                Some(range) if range.end == start => range.end += PAGE_BYTES,
                _ => ranges.push(start..start + PAGE_BYTES),
            }
        }
        ranges
    }

    /// Which of these pages of a window are mapped.
    fn mapped(&self, window: &Window, pages: u16) -> u16 {
        self.but(&self.unmapped, window, pages & window.pages())
    }

    fn but(&self, sets: &[PageSet], window: &Window, pages: u16) -> u16 {
        let set = &sets[window.mapping];
        let first = (window.start - self.mappings[window.mapping].start) / PAGE_BYTES;
        let is_left =
            |page: &u64| pages >> page & 1 == 1 && !set.contains(first + page - window.first_page());
        (0..WINDOW_PAGES as u64).filter(is_left).fold(0, |left, page| left | 1 << page)
    }

    /// What belongs into these pages of a window, of which the base has data for `data_pages`.
    pub fn runs(&self, window: &Window, pages: u16, data_pages: u16) -> Vec<Run> {
        let (mapped, kept) = (self.mapped(window, pages), self.kept(window, pages));
        let mut runs: Vec<Run> = Vec::new();
        for page in (0..WINDOW_PAGES).filter(|page| mapped >> page & 1 == 1) {
            let within = (page as u64 - window.first_page()) * PAGE_BYTES;
            let (start, offset) = (window.start + within, window.offset + within);
            let source = if kept >> page & 1 == 0 {
                Source::Zeroes
            } else if self.overlays.contains_key(&offset) {
                Source::Overlay { offset }
            } else if data_pages >> page & 1 == 1 {
                Source::Data { page }
            } else {
                Source::Zeroes
            };
            match runs.last_mut() {
                Some(run) if run.start + run.size_bytes == start && run.goes_on_with(source) => {
                    run.size_bytes += PAGE_BYTES;
                }
                _ => runs.push(Run { start, size_bytes: PAGE_BYTES, source }),
            }
        }
        runs
    }
}

impl Run {
    fn goes_on_with(&self, source: Source) -> bool {
        matches!(
            (self.source, source),
            (Source::Zeroes, Source::Zeroes) | (Source::Data { .. }, Source::Data { .. })
        )
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
        let mappings = vec![
            Mapping { start: A, size_bytes: 0x1_8000, offset: 0 },
            Mapping { start: B, size_bytes: 0x2000, offset: 0x1_9000 },
        ];
        let overlays = Overlays::from([(0x5000, Box::new([5; 4096])), (0x6000, Box::new([6; 4096]))]);
        Memory::new(mappings, overlays)
    }

    fn place(window: Option<Window>) -> Option<(u64, u64, u64)> {
        window.map(|window| (window.start, window.size_bytes, window.offset))
    }

    fn runs(memory: &Memory, window: &Window, pages: u16, data_pages: u16) -> Vec<(u64, u64, Source)> {
        let runs = memory.runs(window, pages, data_pages);
        runs.iter().map(|run| (run.start, run.size_bytes, run.source)).collect()
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
    fn a_window_of_the_base_is_found_wherever_it_is_mapped() {
        let memory = memory();
        let places = |index| memory.places(index).map(|window| window.start).collect::<Vec<_>>();
        assert_eq!([places(0), places(1), places(2)], [vec![A], vec![A + 0x1_0000, B], vec![]]);
        assert_eq!(place(memory.nth(0, 1)), Some((A + 0x1_0000, 0x8000, 0x1_0000)));
        assert_eq!(place(memory.nth(1, 0)), Some((B, 0x2000, 0x1_9000)));
        assert_eq!((memory.nth(0, 2), memory.nth(1, 1)), (None, None));
    }

    #[test]
    fn runs_follow_the_data() {
        let memory = memory();
        let window = memory.window(B).expect("window");
        let data = Source::Data { page: 9 };
        assert_eq!(runs(&memory, &window, ALL_PAGES, ALL_PAGES), [(B, 0x2000, data)]);
        assert_eq!(runs(&memory, &window, ALL_PAGES, 0), [(B, 0x2000, Source::Zeroes)]);
        assert_eq!(
            runs(&memory, &window, ALL_PAGES, 1 << 9),
            [(B, 0x1000, data), (B + 0x1000, 0x1000, Source::Zeroes)]
        );
    }

    #[test]
    fn runs_are_of_the_pages_asked_for() {
        let memory = memory();
        let window = memory.window(A).expect("window");
        let asked = window.page_at(A + 0x2000) | window.page_at(A + 0x3000) | window.page_at(A + 0xffff);
        assert_eq!(
            runs(&memory, &window, asked, ALL_PAGES),
            [(A + 0x2000, 0x2000, Source::Data { page: 2 }), (A + 0xf000, 0x1000, Source::Data { page: 15 })]
        );
        let window = memory.window(B).expect("window");
        assert_eq!(window.page_at(B + 0x1000), 1 << 10);
        assert_eq!(runs(&memory, &window, 1, ALL_PAGES), []);
    }

    #[test]
    fn removed_pages_are_zeroes_and_unmapped_ones_are_left_out() {
        let mut memory = memory();
        assert_eq!(memory.remove(A + 0x1000, A + 0x3000), 0x2000);
        assert_eq!(memory.unmap(A + 0xe000, A + 0x1_1000), 0x3000);
        let window = memory.window(A).expect("window");
        assert_eq!(
            runs(&memory, &window, 0xff8f, ALL_PAGES),
            [
                (A, 0x1000, Source::Data { page: 0 }),
                (A + 0x1000, 0x2000, Source::Zeroes),
                (A + 0x3000, 0x1000, Source::Data { page: 3 }),
                (A + 0x7000, 0x7000, Source::Data { page: 7 }),
            ]
        );
        assert_eq!(memory.kept(&window, ALL_PAGES), 0x3ff9);
    }

    #[test]
    fn what_is_left_of_a_mapping_is_told_by_range() {
        let mut memory = memory();
        let whole = A..A + 0x1_8000;
        assert_eq!(memory.mapped_ranges(0), std::slice::from_ref(&whole));
        memory.unmap(A, A + 0x1000);
        memory.unmap(A + 0x4000, A + 0x6000);
        assert_eq!(memory.mapped_ranges(0), [A + 0x1000..A + 0x4000, A + 0x6000..A + 0x1_8000]);
        memory.unmap(B, B + 0x2000);
        assert_eq!(memory.mapped_ranges(1), []);
    }

    #[test]
    fn an_overlay_page_is_there_instead_of_the_base_until_it_is_removed() {
        let mut memory = memory();
        let window = memory.window(A).expect("window");
        assert_eq!(
            runs(&memory, &window, 0x00f0, 0x0010),
            [
                (A + 0x4000, 0x1000, Source::Data { page: 4 }),
                (A + 0x5000, 0x1000, Source::Overlay { offset: 0x5000 }),
                (A + 0x6000, 0x1000, Source::Overlay { offset: 0x6000 }),
                (A + 0x7000, 0x1000, Source::Zeroes),
            ]
        );
        assert_eq!(memory.overlay(0x6000), Some(&[6; 4096]));
        memory.remove(A + 0x5000, A + 0x7000);
        assert_eq!(runs(&memory, &window, 0x0060, ALL_PAGES), [(A + 0x5000, 0x2000, Source::Zeroes)]);
    }

    #[test]
    fn ranges_over_several_mappings_mark_only_what_is_ours() {
        let mut memory = memory();
        assert_eq!(memory.remove(0, u64::MAX), 0x1_a000);
        assert_eq!(memory.remove(A + 0x1_8000, B), 0);
        let window = memory.window(B).expect("window");
        assert_eq!(runs(&memory, &window, ALL_PAGES, ALL_PAGES), [(B, 0x2000, Source::Zeroes)]);
    }
}
