//! SASLprep as PostgreSQL applies it to passwords (src/common/saslprep.c; RFC 4013). Pure.
//!
//! Two things differ from the RFC, and a password hashed by the server counts on both: what may not be prepared
//! is used as it is, and prohibited and right-to-left characters are looked for before normalization.

use stringprep::tables;
use unicode_normalization::UnicodeNormalization;
use zeroize::Zeroizing;

/// The bytes of the password that are hashed. Bytes that are no UTF-8, or that SASLprep prohibits, stay as they are.
pub(super) fn saslprep(password: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(prepared(password).unwrap_or_else(|| password.to_vec()))
}

fn prepared(password: &[u8]) -> Option<Vec<u8>> {
    if password.is_ascii() {
        return None;
    }
    let mapped: Zeroizing<Vec<char>> = Zeroizing::new(
        str::from_utf8(password)
            .ok()?
            .chars()
            // U+200B is in both tables: a space to the server, as it asks about spaces first.
            .map(|c| if tables::non_ascii_space_character(c) { ' ' } else { c })
            .filter(|&c| !tables::commonly_mapped_to_nothing(c))
            .collect(),
    );
    let (first, last) = (*mapped.first()?, *mapped.last()?);
    if mapped.iter().any(|&c| is_prohibited(c)) {
        return None;
    }
    if mapped.iter().any(|&c| tables::bidi_r_or_al(c))
        && (mapped.iter().any(|&c| tables::bidi_l(c))
            || !tables::bidi_r_or_al(first)
            || !tables::bidi_r_or_al(last))
    {
        return None;
    }
    Some(mapped.iter().copied().nfkc().collect::<String>().into_bytes())
}

/// RFC 4013 section 2.3 and 2.5.
fn is_prohibited(c: char) -> bool {
    tables::non_ascii_space_character(c)
        || tables::ascii_control_character(c)
        || tables::non_ascii_control_character(c)
        || tables::private_use(c)
        || tables::non_character_code_point(c)
        || tables::inappropriate_for_plain_text(c)
        || tables::inappropriate_for_canonical_representation(c)
        || tables::change_display_properties_or_deprecated(c)
        || tables::tagging_character(c)
        || tables::unassigned_code_point(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prep(password: &str) -> String {
        String::from_utf8(saslprep(password.as_bytes()).to_vec()).unwrap()
    }

    #[test]
    fn the_examples_of_rfc_4013_come_out_as_the_server_has_them() {
        assert_eq!(prep("I\u{ad}X"), "IX");
        assert_eq!(prep("user"), "user");
        assert_eq!(prep("USER"), "USER");
        assert_eq!(prep("\u{aa}"), "a");
        assert_eq!(prep("\u{2168}"), "IX");
    }

    #[test]
    fn what_is_prohibited_is_used_as_it_is() {
        for password in [
            "\u{7}",
            "\u{627}1",
            "\u{627}a\u{627}",
            "\u{2168}\u{7}",
            "\u{2168}\u{e000}",
            "\u{2168}\u{221}",
            "\u{2168}\u{340}",
            "\u{ad}",
            "",
        ] {
            assert_eq!(prep(password), password, "{}", password.escape_unicode());
        }
        assert_eq!(saslprep(b"\xe2\x85\xa8\xff").as_slice(), b"\xe2\x85\xa8\xff");
    }

    #[test]
    fn spaces_and_right_to_left_text_are_prepared() {
        assert_eq!(prep("a\u{a0}b"), "a b");
        assert_eq!(prep("a\u{200b}\u{200c}b"), "a b");
        assert_eq!(prep("\u{627}\u{31}\u{628}"), "\u{627}1\u{628}");
    }
}
