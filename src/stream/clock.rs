//! Times: those of events in RFC 3339, those of words in shared memory. Pure.

pub use crate::bridge::now;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;

/// From 1970 to 2000-01-01 UTC, in microseconds: the server counts from there.
pub const EPOCH: i64 = 946_684_800_000_000;

/// Writes times, which mostly lie in the same second as the one before.
#[derive(Debug, Default)]
pub struct Clock {
    second: Option<i64>,
    text: Vec<u8>,
}

impl Clock {
    /// Appends a time of the system's, without quotes: UTC, the fraction without zeros at its end. Times outside the years 1 to 9999,
    /// which no clock shows, become the epoch.
    pub fn system(&mut self, now: SystemTime, out: &mut Vec<u8>) {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let second = i64::try_from(since.as_secs()).unwrap_or(0);
        self.write(second, since.subsec_nanos(), out);
    }

    /// Appends a time of the server's: microseconds since 2000-01-01 UTC.
    pub fn server(&mut self, micros: i64, out: &mut Vec<u8>) {
        let second = micros.div_euclid(1_000_000) + EPOCH / 1_000_000;
        self.write(second, micros.rem_euclid(1_000_000) as u32 * 1000, out);
    }

    fn write(&mut self, second: i64, nanos: u32, out: &mut Vec<u8>) {
        if self.second != Some(second) {
            let time = OffsetDateTime::from_unix_timestamp(second).ok();
            let time = time.filter(|time| time.year() > 0).unwrap_or(OffsetDateTime::UNIX_EPOCH);
            self.text.clear();
            date_and_time(time, &mut self.text);
            self.second = Some(second);
        }
        out.extend_from_slice(&self.text);
        if nanos != 0 {
            let mut digits = *b".000000000";
            let mut rest = nanos;
            for digit in digits[1..].iter_mut().rev() {
                *digit = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
            let end = digits.iter().rposition(|digit| *digit != b'0').map_or(0, |last| last + 1);
            out.extend_from_slice(&digits[..end]);
        }
        out.push(b'Z');
    }
}

/// `2026-01-02T03:04:05`, of the years 0 to 9999.
pub fn date_and_time(time: OffsetDateTime, out: &mut Vec<u8>) {
    let year = time.year().unsigned_abs();
    let mut two = |number: u32, before: &[u8]| {
        out.extend_from_slice(before);
        out.extend_from_slice(&[b'0' + (number / 10 % 10) as u8, b'0' + (number % 10) as u8]);
    };
    two(year / 100, b"");
    two(year % 100, b"");
    two(u8::from(time.month()).into(), b"-");
    two(time.day().into(), b"-");
    two(time.hour().into(), b"T");
    two(time.minute().into(), b":");
    two(time.second().into(), b":");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(clock: &mut Clock, seconds: u64, nanos: u32) -> String {
        let mut out = Vec::new();
        clock.system(UNIX_EPOCH + Duration::new(seconds, nanos), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_time_has_its_own_second_and_only_the_digits_it_needs() {
        let mut clock = Clock::default();
        assert_eq!(system(&mut clock, 1_767_323_045, 155_603_788), "2026-01-02T03:04:05.155603788Z");
        assert_eq!(system(&mut clock, 1_767_323_045, 155_929_000), "2026-01-02T03:04:05.155929Z");
        assert_eq!(system(&mut clock, 1_767_323_045, 0), "2026-01-02T03:04:05Z");
        assert_eq!(system(&mut clock, 1_767_323_046, 1), "2026-01-02T03:04:06.000000001Z");
    }

    #[test]
    fn the_servers_epoch_is_the_year_2000() {
        let mut clock = Clock::default();
        let mut server = |micros| {
            let mut out = Vec::new();
            clock.server(micros, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(server(0), "2000-01-01T00:00:00Z");
        assert_eq!(server(-1), "1999-12-31T23:59:59.999999Z");
        assert_eq!(server(820_638_245_678_901), "2026-01-02T03:04:05.678901Z");
        for extreme in [i64::MIN, i64::MAX] {
            assert_eq!(server(extreme).get(..11), Some("1970-01-01T"));
        }
    }
}
