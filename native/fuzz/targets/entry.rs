//! Where a target begins: in libFuzzer's loop, or, built without it, with one run of each file that is named.
//!
//! So the committed inputs are replayed wherever Rust is, without C++ and without options that rustc hides.

#[cfg(fuzzing)]
pub use libfuzzer_sys::fuzz_target;

#[cfg(not(fuzzing))]
macro_rules! fuzz_target {
    (|$data:ident: &[u8]| $body:block) => {
        fn main() {
            for path in std::env::args_os().skip(1) {
                let content = std::fs::read(&path).expect("an input can be read");
                (|$data: &[u8]| $body)(&content);
            }
        }
    };
}
#[cfg(not(fuzzing))]
pub(crate) use fuzz_target;
