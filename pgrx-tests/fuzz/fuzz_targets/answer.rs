//! What a service may send to a client: whole messages.

/// # Panics
/// Where the bytes end within a message.
pub fn assert_whole_messages(bytes: &[u8]) {
    let mut rest = bytes;
    while let Some((_, after)) = rest.split_first() {
        let word = after.first_chunk::<4>().expect("a length");
        rest = &after[u32::from_be_bytes(*word) as usize..];
    }
}
