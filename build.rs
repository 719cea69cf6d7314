//! Build script: keeps pgrx's schema section in the shared library.
//!
//! pgrx writes what `CREATE EXTENSION` must create into the section `.pgrxsc`, which nothing in the code
//! refers to, so the linker's garbage collection would drop it. Only the cdylib keeps it: a test binary
//! needs the collection, because it cannot resolve the server's symbols.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let server = std::env::var_os("CARGO_FEATURE_POSTGRES").is_some();
    let elf = std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os != "macos" && os != "windows");
    if server && elf {
        println!("cargo:rustc-cdylib-link-arg=-Wl,--no-gc-sections");
    }
}
