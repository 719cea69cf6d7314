//! Whom a client's certificate names, spelled as the server spells it. Pure.

use super::{Error, TlsStream};
use x509_parser::asn1_rs::{Any, Tag, ToDer};
use x509_parser::oid_registry::OID_X509_COMMON_NAME;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The subject of a client's certificate, which the handshake has verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The first common name, in the bytes that stand in the certificate: what the method cert compares.
    pub common_name: Option<Vec<u8>>,
    /// The whole subject by RFC 2253, in ASCII: what `clientname=DN` compares and pg_stat_ssl shows.
    pub distinguished_name: String,
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
                write_value(&mut distinguished_name, attribute.attr_value(), known.is_some())?;
            }
        }
        Ok(Self { common_name, distinguished_name })
    }
}

/// A value as text, or its DER in hexadecimal where its kind or what it stands for is unknown.
fn write_value(out: &mut String, value: &Any<'_>, is_known: bool) -> Result<(), Error> {
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
        out.push('#');
        der.iter().for_each(|byte| out.push_str(&format!("{byte:02X}")));
        return Ok(());
    };
    let last = text.len().wrapping_sub(1);
    for (index, byte) in text.iter().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => out.extend(['\\', char::from(*byte)]),
            b' ' if index == 0 || index == last => out.push_str("\\ "),
            b'#' if index == 0 && index != last => out.push_str("\\#"),
            0x20..=0x7e => out.push(char::from(*byte)),
            _ => out.push_str(&format!("\\{byte:02X}")),
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
