//! JSON Canonicalization Scheme (RFC 8785) for values without fractional numbers.

use serde_json::Value;

/// Canonical text: keys sorted by UTF-16 code units at every level, no whitespace, ECMAScript string escapes. Numbers
/// print as `serde_json` does, which equals ECMAScript for integers up to 2^53; callers hash nothing else.
pub fn to_string(value: &Value) -> String {
    let mut out = String::new();
    write(value, true, &mut out);
    out
}

/// ECMAScript `JSON.stringify` of a value as it was received: nested keys keep their order.
pub(crate) fn stringify(value: &Value, out: &mut String) {
    write(value, false, out);
}

/// Appends a JSON string literal with ECMAScript escapes.
pub(crate) fn write_string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => {
                out.push_str("\\u00");
                out.push(char::from(if c < '\u{10}' { b'0' } else { b'1' }));
                out.push(char::from(b"0123456789abcdef"[usize::from(c as u8 & 15)]));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Order of object keys: UTF-16 code units.
pub(crate) fn key_order(a: &str, b: &str) -> std::cmp::Ordering {
    a.encode_utf16().cmp(b.encode_utf16())
}

fn write(value: &Value, sorted: bool, out: &mut String) {
    match value {
        Value::String(text) => write_string(text, out),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write(item, sorted, out);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            if sorted {
                fields.sort_by(|a, b| key_order(a.0, b.0));
            }
            out.push('{');
            for (i, (key, item)) in fields.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_string(key, out);
                out.push(':');
                write(item, sorted, out);
            }
            out.push('}');
        }
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => out.push_str(&number.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_sort_by_utf16() {
        let value =
            serde_json::json!({"\u{1F600}": 1, "\u{FFFF}": {"b": 1, "a": [true, null, "é"]}, "a": -5});
        assert_eq!(
            to_string(&value),
            "{\"a\":-5,\"\u{1F600}\":1,\"\u{FFFF}\":{\"a\":[true,null,\"é\"],\"b\":1}}"
        );
    }

    proptest! {
        #[test]
        fn strings_read_back(text in any::<String>()) {
            let mut out = String::new();
            write_string(&text, &mut out);
            prop_assert_eq!(serde_json::from_str::<String>(&out).expect("a JSON string"), text);
        }
    }
}
