//! The reference of the settings: a manual page, `doc/postern-settings.7`, from what a running server says of each. Runs in `cargo
//! documents` and in a test that says whether the file is fresh.

use crate::cluster::Cluster;
use anyhow::{Context, Result};
use serde_json::Value;
use std::fmt::Write;

/// Where the page is kept, in the checkout.
pub const FILE: &str = "doc/postern-settings.7";

/// Settings with their short and long descriptions, in the order of their names.
const QUERY: &str = "\
SELECT coalesce(json_agg(s ORDER BY name COLLATE \"C\"), '[]')
  FROM (SELECT name, vartype, unit, boot_val, min_val, max_val, array_to_string(enumvals, ', ') AS enumvals, context,
               short_desc, extra_desc
          FROM pg_settings WHERE name LIKE 'postern.%' OR name LIKE 'bgw\\_replstatus.%') AS s";

const HEAD: &str = r#".\" Written by "cargo documents" from what the server says; do not edit.
.TH POSTERN-SETTINGS 7 "" "Postern @VERSION@" "PostgreSQL extension"
.SH NAME
postern\-settings \- settings of Postern, PostgreSQL's side gate
.SH DESCRIPTION
Postern is loaded by its name in
.BR shared_preload_libraries .
Its settings are the server's: they stand in
.IR postgresql.conf ,
or are given by
.BR "ALTER SYSTEM" ,
and the view
.B postern.settings
shows them with their values.
A value that is wrong is refused: on reload the old one is kept, and a server does not start with it.
.PP
Addresses are a list
.IR host : port [, host : port ]:
an IPv4 address, an IPv6 address in brackets, a name (every address that it has), * for all IPv4 and IPv6 interfaces, or the path of a
Unix socket.
.PP
Numbers with a unit take any unit of their kind, as in the server's own settings: B, kB, MB, GB, TB; us, ms, s, min, h, d.
.SH SETTINGS
"#;

const TAIL: &str = r#".SH FILES
.I README.md
and
.I examples/haproxy.cfg
in the documentation of the package say how the parts work together.
.SH SEE ALSO
.BR postgres (1),
.BR pg_ctl (1),
.BR haproxy (1)
"#;

/// The whole page. The server must be running, with Postern loaded.
///
/// # Errors
/// When the server does not answer.
pub fn text(cluster: &Cluster) -> Result<String> {
    let said: Value = serde_json::from_str(&cluster.sql(QUERY)?)?;
    let settings =
        said.as_array().filter(|all| !all.is_empty()).context("the server knows no settings of Postern")?;
    let mut page = HEAD.replace("@VERSION@", env!("CARGO_PKG_VERSION"));
    for setting in settings {
        page.push_str(&entry(setting)?);
    }
    page.push_str(TAIL);
    Ok(page)
}

/// The names of the settings, as the server has them.
///
/// # Errors
/// As [`text`].
pub fn names(cluster: &Cluster) -> Result<Vec<String>> {
    let said: Value = serde_json::from_str(&cluster.sql(QUERY)?)?;
    let names = said.as_array().into_iter().flatten();
    Ok(names.filter_map(|setting| setting["name"].as_str().map(str::to_owned)).collect())
}

/// One setting: its name, a line of facts, and what it does.
fn entry(setting: &Value) -> Result<String> {
    let text = |key: &str| setting[key].as_str().unwrap_or_default();
    let (name, unit) = (text("name"), text("unit"));
    let mut kind = match text("vartype") {
        "string" => "Text".to_owned(),
        "integer" if unit.is_empty() => "Number".to_owned(),
        "integer" => format!("Number with a unit (without one: {unit})"),
        "enum" => format!("One of {}", text("enumvals")),
        "bool" => "on or off".to_owned(),
        other => other.to_owned(),
    };
    if text("vartype") == "integer" {
        write!(kind, ", {} to {}", with_unit(text("min_val"), unit), with_unit(text("max_val"), unit))?;
    }
    let default = match text("vartype") {
        "string" => format!("'{}'", text("boot_val")),
        _ => with_unit(text("boot_val"), unit),
    };
    let set = match text("context") {
        "postmaster" => "at the server's start",
        "sighup" => "for the whole server, on reload",
        "superuser" => "on reload; superusers by role, database and session too",
        "user" => "on reload; anybody by role, database and session too",
        other => other,
    };
    let mut entry = format!(".TP\n.B {}\n", escaped(name));
    for sentence in [text("short_desc"), text("extra_desc")].into_iter().filter(|text| !text.is_empty()) {
        writeln!(entry, "{}", escaped(sentence))?;
    }
    let facts = [format!("{kind}."), format!("Default: {default}."), format!("Set {set}.")];
    writeln!(entry, ".br")?;
    for fact in facts {
        writeln!(entry, "{}", escaped(&fact))?;
    }
    Ok(entry)
}

/// As SHOW writes it: in the largest unit that leaves a whole number.
fn with_unit(number: &str, unit: &str) -> String {
    let steps: &[(&str, u64)] = match unit {
        "kB" => &[("MB", 1024), ("GB", 1024), ("TB", 1024)],
        "s" => &[("min", 60), ("h", 60), ("d", 24)],
        _ => &[],
    };
    let Some(mut left) = number.parse::<u64>().ok().filter(|number| *number > 0) else {
        return number.to_owned();
    };
    let mut unit = unit;
    for &(larger, times) in steps {
        if !left.is_multiple_of(times) {
            break;
        }
        (left, unit) = (left / times, larger);
    }
    format!("{left}{unit}")
}

/// Text that roff takes for nothing else.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq").replace('"', "\\(dq");
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_have_the_largest_unit_that_fits() {
        let shown = [
            ("16384", "kB"),
            ("256", "kB"),
            ("600", "s"),
            ("3600", "s"),
            ("15", "s"),
            ("0", "s"),
            ("20", ""),
        ];
        let shown = shown.map(|(number, unit)| with_unit(number, unit));
        assert_eq!(shown, ["16MB", "256kB", "10min", "1h", "15s", "0", "20"]);
    }

    #[test]
    fn an_entry_has_type_range_default_and_when_it_takes_effect() {
        let setting = json!({"name": "postern.x_size", "vartype": "integer", "unit": "kB", "boot_val": "2048", "min_val": "64",
            "max_val": "1048576", "context": "postmaster", "short_desc": "What it \"is\".", "extra_desc": ".5 - or so."});
        let wanted = ".TP\n.B postern.x_size\nWhat it \\(dqis\\(dq.\n\\&.5 \\- or so.\n.br\n\
                      Number with a unit (without one: kB), 64kB to 1GB.\nDefault: 2MB.\nSet at the server\\(aqs start.\n";
        assert_eq!(entry(&setting).unwrap(), wanted);
    }
}
