//! Points in time and the seam through which they are read.

use serde::{Deserialize, Serialize};

/// Nanoseconds on a monotonic clock that starts with the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Milliseconds from `earlier` to `self`, 0 if `earlier` is later.
    pub fn millis_since(self, earlier: Timestamp) -> f64 {
        self.0.saturating_sub(earlier.0) as f64 / 1e6
    }

    /// This point plus `millis` milliseconds.
    pub fn plus_millis(self, millis: u64) -> Timestamp {
        Timestamp(self.0.saturating_add(millis.saturating_mul(1_000_000)))
    }
}

/// The only way in which the library reads time.
pub trait Clock: Send + Sync {
    /// Monotonic time, for intervals and deadlines.
    fn now(&self) -> Timestamp;
    /// Nanoseconds since the Unix epoch, for people and records.
    fn wall_nanos(&self) -> u64;
}

/// Nanoseconds since the Unix epoch as RFC 3339 in UTC with milliseconds.
pub fn rfc3339(nanos: u64) -> String {
    let (seconds, millis) = (nanos / 1_000_000_000, nanos / 1_000_000 % 1_000);
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a civil date (H. Hinnant, "chrono-compatible low-level date algorithms").
    let z = days as i64 + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{millis:03}Z", rest / 3_600, rest / 60 % 60, rest % 60)
}

/// Nanoseconds since the Unix epoch of a time of UTC, as `2026-11-26`, `2026-11-26T06:00:00Z` or with a fraction of a second; `None` for
/// anything else.
pub fn parse_rfc3339(text: &str) -> Option<u64> {
    let digits = |from: usize, to: usize| {
        let part = text.get(from..to)?;
        part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse::<u64>().ok())?
    };
    let (year, month, day) = (digits(0, 4)?, digits(5, 7)?, digits(8, 10)?);
    let known = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !known || text.get(4..5)? != "-" || text.get(7..8)? != "-" {
        return None;
    }
    // The same algorithm, the other way.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year_of_era) = (y / 400, y % 400);
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + (153 * m + 2) / 5 + day - 1;
    let mut nanos = (era * 146_097 + day_of_era - 719_468) * 86_400 * 1_000_000_000;
    if text.len() > 10 {
        let (hour, minute, second) = (digits(11, 13)?, digits(14, 16)?, digits(17, 19)?);
        let marks = [(10, "T"), (13, ":"), (16, ":")].iter().all(|(at, mark)| text.get(*at..at + 1) == Some(mark));
        let rest = text.get(19..)?.strip_suffix('Z')?;
        let fraction = match rest.strip_prefix('.') {
            Some(digits) if (1..=9).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                format!("{digits:0<9}").parse::<u64>().ok()?
            }
            None if rest.is_empty() => 0,
            _ => return None,
        };
        if !marks || hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        nanos += (hour * 3_600 + minute * 60 + second) * 1_000_000_000 + fraction;
    }
    // A day that the month has not comes back as another.
    (rfc3339(nanos)[..10] == text[..10]).then_some(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_civil() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_000_000_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(rfc3339(1_795_435_199_250_000_000), "2026-11-23T11:59:59.250Z");
    }

    #[test]
    fn what_is_written_is_read_again() {
        for nanos in [0, 951_782_400_000_000_000, 1_795_435_199_250_000_000, 2_147_483_648_000_000_000] {
            assert_eq!(parse_rfc3339(&rfc3339(nanos)), Some(nanos));
        }
        assert_eq!(parse_rfc3339("1970-01-02"), Some(86_400_000_000_000));
        assert_eq!(
            parse_rfc3339("2026-11-26T06:00:00Z"),
            parse_rfc3339("2026-11-26").map(|day| day + 21_600_000_000_000)
        );
        for wrong in [
            "",
            "2026",
            "2026-02-30",
            "2026-11-26T06:00",
            "2026-11-26 06:00:00Z",
            "2026-11-26T25:00:00Z",
            "2026-1-026",
            "2026-11-26T06:00:00.Z",
            "x026-11-26",
        ] {
            assert_eq!(parse_rfc3339(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn intervals_are_milliseconds_and_never_negative() {
        assert_eq!(Timestamp(3_500_000).millis_since(Timestamp(1_000_000)), 2.5);
        assert_eq!(Timestamp(1).millis_since(Timestamp(2)), 0.0);
        assert_eq!(Timestamp(5).plus_millis(2), Timestamp(2_000_005));
    }
}
