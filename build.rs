//! Build script: compiles the C files against the server's headers, and keeps pgrx's schema section in the shared library.
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
    #[cfg(feature = "postgres")]
    shim::compile();
}

#[cfg(feature = "postgres")]
mod shim {
    use std::process::Command;

    const SOURCES: [&str; 16] = [
        "src/postgres/shim/activity.c",
        "src/postgres/shim/catalog.c",
        "src/postgres/shim/client.c",
        "src/postgres/shim/hba.c",
        "src/postgres/shim/hooks.c",
        "src/postgres/shim/interrupts.c",
        "src/postgres/shim/messages.c",
        "src/postgres/shim/relay.c",
        "src/postgres/shim/session.c",
        "src/postgres/shim/socket.c",
        "src/postgres/shim/statements.c",
        "src/postgres/shim/versions.c",
        "src/postgres/stream/decoding.c",
        "src/postgres/stream/rows.c",
        "src/postgres/stream/session.c",
        "src/postgres/stream/slots.c",
    ];
    const HEADERS: [&str; 3] =
        ["src/postgres/shim/shim.h", "src/postgres/shim/versions.h", "src/postgres/stream/rows.h"];

    /// Against the same server as pgrx: what `PGRX_PG_CONFIG_PATH` names.
    pub fn compile() {
        for file in SOURCES.iter().chain(&HEADERS) {
            println!("cargo:rerun-if-changed={file}");
        }
        println!("cargo:rerun-if-env-changed=PGRX_PG_CONFIG_PATH");
        let pg_config = std::env::var("PGRX_PG_CONFIG_PATH").unwrap_or_else(|_| "pg_config".to_owned());
        let ask = |what: &str| {
            let output = Command::new(&pg_config).arg(what).output();
            let output = output.unwrap_or_else(|error| panic!("{pg_config} {what}: {error}"));
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        let mut build = cc::Build::new();
        // What the tests run lets pgoutput write each row too, and compares.
        if std::env::var("PROFILE").is_ok_and(|profile| profile == "debug") {
            build.define("POSTERN_CHECKS_ROWS", None);
        }
        // The headers of the libraries that the server was built with (krb5) are where its own flags say.
        for flag in ask("--cppflags").split_whitespace().filter(|flag| flag.starts_with("-I")) {
            build.flag(flag);
        }
        build
            .files(SOURCES)
            .include(ask("--includedir-server"))
            .define("_GNU_SOURCE", None)
            .flag_if_supported("-Wno-unused-parameter")
            .flag_if_supported("-Wno-sign-compare")
            .flag_if_supported("-fexceptions")
            .flag_if_supported("-Werror=implicit-function-declaration")
            .opt_level(2)
            .compile("postern_shim");
    }
}
