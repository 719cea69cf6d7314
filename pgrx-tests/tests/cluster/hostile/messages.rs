//! Messages that are wrong, in every state of a session: what comes back is what comes back from the server itself, byte for byte.

use crate::pooling::with_pool;
use anyhow::{Result, ensure};
use pgrx_tests::script::{Script, Target, staged};

/// Lines of a script that bring client A into a state, and what the state is called.
const STATES: [(&str, &str); 9] = [
    ("idle", "> Query \"select 1\""),
    ("in a transaction", "> Query \"begin\""),
    ("in a failed transaction", "> Query \"begin\"\n> Query \"select 1/0\""),
    ("in COPY from the client", "> Query \"copy hostile_copy from stdin\"\n> CopyData \"1\\n\""),
    (
        "in COPY of the extended protocol",
        "> Parse \"\" \"copy hostile_copy from stdin\"\n> Bind \"\" \"\" []\n> Execute \"\"\n> Flush\n< until CopyInResponse",
    ),
    (
        "after an error, before Sync",
        "> Parse \"\" \"select 1/0\"\n> Bind \"\" \"\" []\n> Execute \"\"\n> Flush\n< until ErrorResponse",
    ),
    ("after Parse", "> Parse \"s\" \"select 1\"\n> Flush\n< until ParseComplete"),
    (
        "with an open portal",
        "> Query \"begin\"\n> Parse \"\" \"select generate_series(1, 9)\"\n> Bind \"p\" \"\" []\n> Execute \"p\" 2\n> Flush\n\
         < until PortalSuspended",
    ),
    ("pinned", "> Query \"create temp table own (a int)\""),
];

/// Bytes that have no business there, and what they are called.
const MESSAGES: [(&str, &str); 24] = [
    ("an unknown type", "0x7a00000004"),
    ("an unknown type with a body", "0x7100000008deadbeef"),
    ("type 0", "0x0000000004"),
    ("type 255", "0xff00000004"),
    ("a server's type", "0x5a0000000549"),
    ("length 0", "0x5100000000"),
    ("length 3", "0x5300000003"),
    ("a negative length", "0x51ffffffff"),
    ("a length that is too large", "0x5300010000"),
    ("a length of two gigabytes", "0x517fffffff"),
    ("a Query without an end", "0x510000000773656c"),
    ("an empty body of Query", "0x5100000004"),
    ("a Query with more behind it", "0x510000000d73656c6563740031"),
    ("a Parse without an end", "0x500000000773656c"),
    ("a Bind that is too short", "0x42000000060000"),
    ("a Bind with a negative count", "0x420000000a00000000ffff"),
    ("a Describe of nothing", "0x440000000658 00"),
    ("an Execute that is too short", "0x450000000500"),
    ("a Sync with a body", "0x530000000578"),
    ("a password", "0x7000000008736563 00"),
    ("a CopyData", "0x6400000006310a"),
    ("a CopyDone", "0x6300000004"),
    ("a CopyFail", "0x660000000877687900"),
    ("a function call that is too short", "0x460000000600 01"),
];

/// What follows: in the same packet, or by itself.
const WAYS: [(&str, &str, &str); 2] = [("together", "together\n", "end\n"), ("apart", "", "")];

#[test]
fn a_wrong_message_is_answered_in_every_state_as_the_server_answers_it() -> Result<()> {
    let cluster = with_pool("wrong", 2, &[("log_min_messages", "fatal")])?;
    let mut superuser = cluster.connect()?;
    superuser.batch_execute("set client_min_messages = warning; create table hostile_copy (a int)")?;
    let (direct, front) = (Target::tcp(cluster.port), Target::tcp(cluster.pooler_port));
    let only = std::env::var("POSTERN_TEST_SCRIPT").unwrap_or_default();
    let mut differ = Vec::new();
    let mut seen_errors = std::collections::BTreeSet::new();
    for (state, lines) in STATES {
        for (message, bytes) in MESSAGES {
            for (way, begin, end) in WAYS {
                let name = format!("{message}, {state}, {way}");
                if !name.contains(&only) {
                    continue;
                }
                let bytes = bytes.replace(' ', "");
                // Whether the server goes on or not, it closes at last. The other client has the pool's other backend, or the same.
                let mut script = Script::parse(
                    &name,
                    &format!(
                        "B> Query \"set work_mem = '1234kB'\"\n{lines}\n{begin}>> raw {bytes}\n>> Sync\n>> Query \"select 'in step'\"\n\
                         >> Terminate\n{end}< eof\nB> Query \"show work_mem; select count(*) from hostile_copy\""
                    ),
                )?;
                script.setup.push("truncate hostile_copy".to_owned());
                let directly = staged(&script, &mut superuser, &direct)?;
                ensure!(!directly.is_stuck(), "{name}: the server waits\n{}", directly.text());
                seen_errors.extend(directly.errors());
                let through = staged(&script, &mut superuser, &front)?;
                if let Some(difference) = directly.difference(&through) {
                    differ.push(format!("{name}:\n{difference}"));
                }
            }
        }
        ensure!(differ.len() < 8, "directly (-) and through the front (+):\n{}", differ.join("\n\n"));
    }
    ensure!(differ.is_empty(), "directly (-) and through the front (+):\n{}", differ.join("\n\n"));
    ensure!(!only.is_empty() || seen_errors.len() >= 4, "{seen_errors:?}");
    Ok(())
}
