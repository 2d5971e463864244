//! How long ago something was, for people.

use chrono::{DateTime, Utc};
use serde_json::Value;

/// Time since an RFC 3339 time in JSON; a dash for anything else.
pub(crate) fn since(value: &Value) -> String {
    let at = value.as_str().and_then(|t| DateTime::parse_from_rfc3339(t).ok());
    at.map_or_else(|| "-".into(), |at| duration((Utc::now() - at.with_timezone(&Utc)).num_seconds()))
}

/// A number of seconds in its largest unit.
pub(crate) fn duration(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..=119 => format!("{s} s"),
        s @ 120..=7199 => format!("{} min", s / 60),
        s @ 7200..=172_799 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_unit_is_shown() {
        let shown: Vec<_> = [-5, 90, 600, 7200, 900_000].into_iter().map(duration).collect();
        assert_eq!(shown, ["0 s", "90 s", "10 min", "2 h", "10 d"]);
        assert_eq!(since(&Value::Null), "-");
    }
}
