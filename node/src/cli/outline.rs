//! A JSON answer as indented lines, for answers whose every member matters to a person.

use serde_json::Value;

use super::reply::one_line;
use super::session::word;

/// The lines, each ended by a newline.
pub(crate) fn outline(value: &Value) -> String {
    let mut lines = Vec::new();
    put(value, "", &mut lines);
    lines.into_iter().map(|line| line + "\n").collect()
}

fn put(value: &Value, pad: &str, lines: &mut Vec<String>) {
    let Value::Object(object) = value else {
        return lines.push(format!("{pad}{}", one_line(&word(value), 200)));
    };
    for (key, inner) in object {
        let key = one_line(key, 80);
        match inner {
            Value::Object(o) if !o.is_empty() => {
                lines.push(format!("{pad}{key}"));
                put(inner, &format!("{pad}  "), lines);
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                lines.push(format!("{pad}{key}"));
                for item in items {
                    let begin = lines.len();
                    put(item, &format!("{pad}    "), lines);
                    if let Some(first) = lines.get_mut(begin) {
                        *first = format!("{pad}  - {}", first.trim_start());
                    }
                }
            }
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(word).collect();
                lines.push(format!("{pad}{key}: {}", one_line(&items.join(", "), 200)));
            }
            other => lines.push(format!("{pad}{key}: {}", one_line(&word(other), 200))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nested_objects_are_indented_and_lists_have_dashes() {
        let value = json!({
            "link": {"state": "connected", "url": "ws://127.0.0.1:8787"},
            "queues": {}, "peers": [{"name": "bob", "rtt": 3}, {"name": "cy", "rtt": null}], "tags": ["a", "b"],
        });
        insta::assert_snapshot!(outline(&value));
    }
}
