//! Links without libc: the library needs none.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-nostdlib");
}
