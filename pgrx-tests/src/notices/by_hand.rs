//! What cannot be read from the crates: the notices of those that come without a text, what C they bring along, and what is compiled in
//! without being a crate. Each was looked up in the source that is linked.

use super::Part;

/// What is bundled: its name, its licence, and where its texts are in the crate; of a C file its first comment.
type Bundled = (&'static str, &'static str, &'static [&'static str]);

/// The crates with C or assembly in them, each with what of that is of others. What is the crate's own is under the crate's licence.
pub(super) const BUNDLED: [(&str, &[Bundled]); 7] = [
    ("cee-scape", &[]),
    ("libz-sys", &[("zlib", "Zlib", &["src/zlib/LICENSE"])]),
    // Its C only asks the preprocessor for OpenSSL's version.
    ("openssl-sys", &[]),
    ("pgrx-pg-sys", &[]),
    (
        "rdkafka-sys",
        &[
            // What librdkafka itself brings along has its texts in there, one after the other; but for two files.
            (
                "librdkafka",
                "BSD-2-Clause AND Apache-2.0 AND BSD-3-Clause AND MIT AND Zlib",
                &["librdkafka/LICENSES.txt", "librdkafka/src/rdsysqueue.h"],
            ),
            ("xxHash", "BSD-2-Clause", &["librdkafka/src/rdxxhash.c"]),
        ],
    ),
    // BoringSSL's text is at the top of the crate.
    (
        "ring",
        &[
            ("fiat-crypto", "MIT OR Apache-2.0", &["third_party/fiat/LICENSE"]),
            ("once_cell", "MIT OR Apache-2.0", &["src/polyfill/once_cell/LICENSE-MIT"]),
        ],
    ),
    // Also offered under the GPL, which we do not take.
    (
        "zstd-sys",
        &[
            ("zstd", "BSD-3-Clause OR GPL-2.0-only", &["zstd/LICENSE"]),
            ("libdivsufsort-lite", "MIT", &["zstd/lib/dictBuilder/divsufsort.h"]),
        ],
    ),
];

const PGRX: &str = "\
Portions Copyright 2019-2021 ZomboDB, LLC.
Portions Copyright 2021-2023 Technology Concepts & Design, Inc.
Portions Copyright 2023-2023 PgCentral Foundation, Inc. <contact@pgcentral.org>
All rights reserved.";

/// The crates whose sources have no text: all are under the MIT licence. Copyright as their files or, without a word there, their manifests
/// have it.
const MIT_BY: [(&str, &str); 5] = [
    ("pgrx", PGRX),
    ("pgrx-pg-sys", PGRX),
    ("pgrx-sql-entity-graph", PGRX),
    ("rdkafka-sys", "Copyright (c) 2016 Federico Giraud"),
    ("seahash", "Copyright (c) ticki, Tom Almeida"),
];

const MIT: &str = "
Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the \"Software\"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED \"AS IS\", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
";

const POSTGRESQL: &str = "\
Portions Copyright (c) 1996-2026, PostgreSQL Global Development Group
Portions Copyright (c) 1994, The Regents of the University of California

Permission to use, copy, modify, and distribute this software and its
documentation for any purpose, without fee, and without a written agreement is
hereby granted, provided that the above copyright notice and this paragraph and
the following two paragraphs appear in all copies.

IN NO EVENT SHALL THE UNIVERSITY OF CALIFORNIA BE LIABLE TO ANY PARTY FOR
DIRECT, INDIRECT, SPECIAL, INCIDENTAL, OR CONSEQUENTIAL DAMAGES, INCLUDING LOST
PROFITS, ARISING OUT OF THE USE OF THIS SOFTWARE AND ITS DOCUMENTATION, EVEN IF
THE UNIVERSITY OF CALIFORNIA HAS BEEN ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.

THE UNIVERSITY OF CALIFORNIA SPECIFICALLY DISCLAIMS ANY WARRANTIES, INCLUDING,
BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A
PARTICULAR PURPOSE. THE SOFTWARE PROVIDED HEREUNDER IS ON AN \"AS IS\" BASIS, AND
THE UNIVERSITY OF CALIFORNIA HAS NO OBLIGATIONS TO PROVIDE MAINTENANCE, SUPPORT,
UPDATES, ENHANCEMENTS, OR MODIFICATIONS.
";

const RUST: &str = "\
Copyright (c) The Rust Project Contributors

What the standard library brings along is under MIT, Apache-2.0, Unicode-3.0 and like licences; which, with all the texts, is in
share/doc/rust/COPYRIGHT-library.html of the Rust toolchain, of which the Debian packages carry a copy beside this file.
";

/// For a crate that comes without one.
pub(super) fn text_of(name: &str) -> Option<String> {
    MIT_BY.iter().find(|(theirs, _)| *theirs == name).map(|(_, copyright)| format!("{copyright}\n{MIT}"))
}

/// What is compiled in and no crate.
pub(super) fn beside_crates() -> [Part; 2] {
    [
        Part {
            name: "The Rust standard library".to_owned(),
            license: "MIT OR Apache-2.0".to_owned(),
            texts: vec![format!("{RUST}{MIT}")],
        },
        Part {
            name: "PostgreSQL's headers (their inline functions)".to_owned(),
            license: "PostgreSQL".to_owned(),
            texts: vec![POSTGRESQL.to_owned()],
        },
    ]
}
