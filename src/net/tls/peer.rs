//! Whom a client's certificate names, spelled as the server spells it. Pure.

use super::{Error, TlsStream};
use std::borrow::Cow;
use x509_parser::asn1_rs::{Any, Tag, ToDer};
use x509_parser::oid_registry::OID_X509_COMMON_NAME;
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

/// The subject of a client's certificate, which the handshake has verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The first common name, in the bytes that stand in the certificate: what the method cert compares.
    pub common_name: Option<Vec<u8>>,
    /// The whole subject by RFC 2253, in ASCII: what `clientname=DN` compares and SYSTEM_USER shows.
    pub distinguished_name: String,
    /// Subject and issuer as pg_stat_ssl shows them, in UTF-8 unless the certificate says so wrongly.
    pub subject: Vec<u8>,
    pub issuer: Vec<u8>,
    /// The serial number, decimal.
    pub serial: String,
}

impl PeerCertificate {
    /// What be_tls_open_server() takes from the certificate (src/backend/libpq/be-secure-openssl.c); `None` when the client
    /// has sent none.
    ///
    /// # Errors
    /// [`Error::NullInCommonName`]; [`Error::PeerSubject`] for a subject that is no such thing.
    pub fn of<S>(stream: &TlsStream<S>) -> Result<Option<Self>, Error> {
        let certificates = stream.get_ref().1.peer_certificates();
        certificates.and_then(<[_]>::first).map(|leaf| Self::from_der(leaf)).transpose()
    }

    pub(super) fn from_der(leaf: &[u8]) -> Result<Self, Error> {
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| Error::PeerSubject)?;
        let subject = parsed.subject();
        let common_name = subject.iter_by_oid(&OID_X509_COMMON_NAME).next();
        let common_name = common_name.map(|attribute| attribute.attr_value().data.to_vec());
        // A certificate for "admin\0.example.org" must not pass as admin's (CVE-2009-4034).
        if common_name.as_ref().is_some_and(|name| name.contains(&0)) {
            return Err(Error::NullInCommonName);
        }

        // X509_NAME_print_ex() with XN_FLAG_RFC2253: last first, also within what `+` joins.
        let mut distinguished_name = String::new();
        let sets: Vec<_> = subject.iter().collect();
        for set in sets.into_iter().rev() {
            let attributes: Vec<_> = set.iter().collect();
            for (index, attribute) in attributes.into_iter().rev().enumerate() {
                if !distinguished_name.is_empty() {
                    distinguished_name.push(if index == 0 { ',' } else { '+' });
                }
                let oid = attribute.attr_type().to_id_string();
                let known = SHORT_NAMES.iter().find(|(id, _)| *id == oid).map(|(_, name)| *name);
                distinguished_name.push_str(known.unwrap_or(&oid));
                distinguished_name.push('=');
                let mut value = Vec::new();
                write_value(&mut value, attribute.attr_value(), known.is_some(), true)?;
                distinguished_name.push_str(&String::from_utf8_lossy(&value));
            }
        }
        Ok(Self {
            common_name,
            distinguished_name,
            subject: one_line(subject)?,
            issuer: one_line(parsed.issuer())?,
            serial: decimal(parsed.raw_serial()),
        })
    }
}

/// A name as X509_NAME_to_cstring() of the server makes it (src/backend/libpq/be-secure-openssl.c): in the order of the certificate,
/// and what is not ASCII as it is.
fn one_line(name: &X509Name<'_>) -> Result<Vec<u8>, Error> {
    let mut line = Vec::new();
    for attribute in name.iter_attributes() {
        let oid = attribute.attr_type().to_id_string();
        let known = SHORT_NAMES.iter().find(|(id, _)| *id == oid).map_or(&oid[..], |(_, name)| name);
        line.push(b'/');
        line.extend(known.as_bytes());
        line.push(b'=');
        write_value(&mut line, attribute.attr_value(), true, false)?;
    }
    Ok(line)
}

/// A number of DER, which may be negative and of any length.
fn decimal(bytes: &[u8]) -> String {
    let negative = bytes.first().is_some_and(|first| first & 0x80 != 0);
    let mut number: Cow<'_, [u8]> = bytes.into();
    if negative {
        // Two's complement.
        let mut carry = true;
        for byte in number.to_mut().iter_mut().rev() {
            (*byte, carry) = (!*byte).overflowing_add(u8::from(carry));
        }
    }
    let mut digits = Vec::new();
    let mut number = number.into_owned();
    while number.iter().any(|byte| *byte != 0) {
        let mut rest = 0;
        for byte in &mut number {
            let value = rest << 8 | u32::from(*byte);
            (*byte, rest) = ((value / 10) as u8, value % 10);
        }
        digits.push(rest);
    }
    let sign = if negative { "-" } else { "" };
    let digits = if digits.is_empty() { vec![0] } else { digits };
    digits.iter().rev().fold(sign.to_owned(), |text, digit| format!("{text}{digit}"))
}

/// A value as text, or its DER in hexadecimal where its kind or what it stands for is unknown. In ASCII where that is asked for.
fn write_value(out: &mut Vec<u8>, value: &Any<'_>, is_known: bool, ascii: bool) -> Result<(), Error> {
    let data = value.data;
    let text = match value.tag() {
        _ if !is_known => None,
        Tag::Utf8String => Some(data.to_vec()),
        Tag::NumericString
        | Tag::PrintableString
        | Tag::T61String
        | Tag::Ia5String
        | Tag::VisibleString
        | Tag::UtcTime
        | Tag::GeneralizedTime => Some(utf8(data.iter().map(|byte| u32::from(*byte)))?),
        Tag::BmpString => Some(utf8(units::<2>(data)?)?),
        Tag::UniversalString => Some(utf8(units::<4>(data)?)?),
        _ => None,
    };
    let Some(text) = text else {
        let der = value.to_der_vec().map_err(|_| Error::PeerSubject)?;
        out.push(b'#');
        der.iter().for_each(|byte| out.extend(format!("{byte:02X}").bytes()));
        return Ok(());
    };
    let last = text.len().wrapping_sub(1);
    for (index, byte) in text.iter().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => out.extend([b'\\', *byte]),
            b' ' if index == 0 || index == last => out.extend(b"\\ "),
            b'#' if index == 0 && index != last => out.extend(b"\\#"),
            0x20..=0x7e => out.push(*byte),
            0x80.. if !ascii => out.push(*byte),
            _ => out.extend(format!("\\{byte:02X}").bytes()),
        }
    }
    Ok(())
}

/// Characters of `WIDTH` bytes each.
fn units<const WIDTH: usize>(data: &[u8]) -> Result<impl Iterator<Item = u32>, Error> {
    let (units, rest) = data.as_chunks::<WIDTH>();
    if !rest.is_empty() {
        return Err(Error::PeerSubject);
    }
    Ok(units.iter().map(|unit| unit.iter().fold(0, |value, byte| value << 8 | u32::from(*byte))))
}

fn utf8(characters: impl Iterator<Item = u32>) -> Result<Vec<u8>, Error> {
    let text: Option<String> = characters.map(char::from_u32).collect();
    text.map(String::into_bytes).ok_or(Error::PeerSubject)
}

/// OpenSSL's short names of what subjects are made of. It knows hundreds more that no subject has.
const SHORT_NAMES: [(&str, &str); 45] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.13", "description"),
    ("2.5.4.14", "searchGuide"),
    ("2.5.4.15", "businessCategory"),
    ("2.5.4.16", "postalAddress"),
    ("2.5.4.17", "postalCode"),
    ("2.5.4.18", "postOfficeBox"),
    ("2.5.4.19", "physicalDeliveryOfficeName"),
    ("2.5.4.20", "telephoneNumber"),
    ("2.5.4.23", "facsimileTelephoneNumber"),
    ("2.5.4.26", "registeredAddress"),
    ("2.5.4.41", "name"),
    ("2.5.4.42", "GN"),
    ("2.5.4.43", "initials"),
    ("2.5.4.44", "generationQualifier"),
    ("2.5.4.45", "x500UniqueIdentifier"),
    ("2.5.4.46", "dnQualifier"),
    ("2.5.4.49", "distinguishedName"),
    ("2.5.4.51", "houseIdentifier"),
    ("2.5.4.54", "dmdName"),
    ("2.5.4.65", "pseudonym"),
    ("2.5.4.72", "role"),
    ("2.5.4.97", "organizationIdentifier"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.3", "mail"),
    ("0.9.2342.19200300.100.1.8", "userClass"),
    ("0.9.2342.19200300.100.1.9", "host"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
    ("1.2.840.113549.1.9.2", "unstructuredName"),
    ("1.2.840.113549.1.9.7", "challengePassword"),
    ("1.2.840.113549.1.9.8", "unstructuredAddress"),
    ("1.3.6.1.4.1.311.60.2.1.1", "jurisdictionL"),
    ("1.3.6.1.4.1.311.60.2.1.2", "jurisdictionST"),
    ("1.3.6.1.4.1.311.60.2.1.3", "jurisdictionC"),
    ("1.2.643.100.3", "SNILS"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_is_decimal_whatever_its_length_and_sign() {
        for (bytes, text) in [
            (&[0][..], "0"),
            (&[], "0"),
            (&[0x7f], "127"),
            (&[0, 0xff], "255"),
            (&[0xff], "-1"),
            (&[0x80], "-128"),
            (&[0xff, 0x7f], "-129"),
            (&[1, 0, 0, 0, 0, 0, 0, 0, 0], "18446744073709551616"),
        ] {
            assert_eq!(decimal(bytes), text, "{bytes:x?}");
        }
    }
}
