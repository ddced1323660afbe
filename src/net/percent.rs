//! Percent-encoding in addresses [RFC 3986 section 2.1].

/// Why a text cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotDecoded {
    #[error("a '%' in the address is not followed by two hexadecimal digits")]
    Escape,
    #[error("the address is not UTF-8")]
    Utf8,
}

/// Decodes `%XX`; in a query, also `+` as a space.
pub(crate) fn decode(text: &str, is_query: bool) -> Result<String, NotDecoded> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => match (digit(bytes.next()), digit(bytes.next())) {
                (Some(high), Some(low)) => (high * 16 + low) as u8,
                _ => return Err(NotDecoded::Escape),
            },
            b'+' if is_query => b' ',
            other => other,
        });
    }
    String::from_utf8(decoded).map_err(|_| NotDecoded::Utf8)
}
