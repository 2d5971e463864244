//! Time as text: ISO 8601 in UTC with milliseconds and `Z`.

use chrono::{DateTime, SecondsFormat, Utc};

/// `2026-01-15T12:00:00.000Z` for Unix milliseconds. Times outside the calendar print as the epoch.
pub fn iso_ms(unix_ms: i64) -> String {
    DateTime::<Utc>::from_timestamp_millis(unix_ms)
        .unwrap_or(DateTime::UNIX_EPOCH)
        .to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Unix milliseconds of an RFC 3339 text.
pub fn parse_iso(text: &str) -> Option<i64> {
    DateTime::parse_from_rfc3339(text).ok().map(|t| t.timestamp_millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_recorded_clock() {
        assert_eq!(iso_ms(1_768_478_400_000), "2026-01-15T12:00:00.000Z");
        assert_eq!(parse_iso("2026-01-15T13:00:00.000+01:00"), Some(1_768_478_400_000));
        assert_eq!(parse_iso("2026-01-15"), None);
    }

    proptest! {
        #[test]
        fn texts_come_back(ms in 0i64..4_102_444_800_000) {
            prop_assert_eq!(parse_iso(&iso_ms(ms)), Some(ms));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = parse_iso(&text);
        }
    }
}
