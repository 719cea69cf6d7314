//! A limit of replication lag, in bytes or in time: `postern.status_max_lag` and the `lag=` of an HTTP check. Pure.

use super::Error;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How far behind its primary a standby may be. A text of digits and a unit; the part after `lag=` comes from
/// the network, so it is fuzzed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LagLimit {
    Bytes(u64),
    Time(Duration),
}

impl LagLimit {
    /// Reads the setting, in which `0` (with or without a unit) means no limit.
    ///
    /// # Errors
    /// [`Error::Lag`] when the text is neither bytes nor a time.
    pub fn from_setting(text: &str) -> Result<Option<Self>, Error> {
        Ok(match text.parse()? {
            Self::Bytes(0) | Self::Time(Duration::ZERO) => None,
            limit => Some(limit),
        })
    }
}

impl FromStr for LagLimit {
    type Err = Error;

    /// Bytes without a unit. Units are PostgreSQL's (`kB` = 1024 bytes), in any case, as Patroni reads them.
    fn from_str(text: &str) -> Result<Self, Error> {
        let refused = || Error::Lag(text.chars().take(40).collect());
        let text = text.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = text[..digits].parse().map_err(|_| refused())?;
        let unit = text[digits..].trim().to_ascii_lowercase();
        let bytes = |shift: u32| number.checked_mul(1 << shift).map(Self::Bytes);
        let micros = |each: u64| number.checked_mul(each).map(|us| Self::Time(Duration::from_micros(us)));
        match unit.as_str() {
            "" | "b" => bytes(0),
            "kb" => bytes(10),
            "mb" => bytes(20),
            "gb" => bytes(30),
            "tb" => bytes(40),
            "us" => micros(1),
            "ms" => micros(1_000),
            "s" => micros(1_000_000),
            "min" => micros(60_000_000),
            "h" => micros(3_600_000_000),
            "d" => micros(86_400_000_000),
            _ => None,
        }
        .ok_or_else(refused)
    }
}

impl fmt::Display for LagLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{}", ByteSize(*bytes)),
            Self::Time(time) => write!(f, "{}", Span(*time)),
        }
    }
}

/// A byte count as a person reads it: whole units of 1024, as the server writes settings.
pub(crate) struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0;
        for unit in ["B", "kB", "MB", "GB"] {
            if value < 10 * 1024 {
                return write!(f, "{value}{unit}");
            }
            value /= 1024;
        }
        write!(f, "{value}TB")
    }
}

/// A time as a person reads it.
pub(crate) struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            t if t < Duration::from_secs(10) => write!(f, "{}ms", t.as_millis()),
            t if t < Duration::from_secs(600) => write!(f, "{}s", t.as_secs()),
            t => write!(f, "{}min", t.as_secs() / 60),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_and_times_are_read_in_postgresqls_units() {
        for (text, limit) in [
            ("16MB", LagLimit::Bytes(16 << 20)),
            ("16mb", LagLimit::Bytes(16 << 20)),
            ("1024", LagLimit::Bytes(1024)),
            ("8 kB", LagLimit::Bytes(8192)),
            ("10s", LagLimit::Time(Duration::from_secs(10))),
            ("500ms", LagLimit::Time(Duration::from_millis(500))),
            ("2min", LagLimit::Time(Duration::from_secs(120))),
        ] {
            assert_eq!(text.parse(), Ok(limit), "{text}");
        }
        assert_eq!(LagLimit::from_setting("0"), Ok(None));
        assert_eq!(LagLimit::from_setting("0s"), Ok(None));
    }

    #[test]
    fn mistakes_are_named() {
        for text in ["", "MB", "-1", "1.5MB", "16m", "99999999999999999999", "18446744073709551615TB", "10s;"]
        {
            assert!(
                text.parse::<LagLimit>().unwrap_err().to_string().contains("is not a lag limit"),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_of_the_network_panics(text in "\\PC{0,50}") {
            let _ = text.parse::<LagLimit>();
        }
    }
}
