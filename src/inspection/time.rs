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
    fn intervals_are_milliseconds_and_never_negative() {
        assert_eq!(Timestamp(3_500_000).millis_since(Timestamp(1_000_000)), 2.5);
        assert_eq!(Timestamp(1).millis_since(Timestamp(2)), 0.0);
        assert_eq!(Timestamp(5).plus_millis(2), Timestamp(2_000_005));
    }
}
