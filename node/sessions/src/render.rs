//! Events of the streaming mode as text for people.

use crate::stream::{self, StreamEvent};

/// What was said and done, a line each.
pub(crate) fn events(lines: &[String]) -> String {
    let mut out = Vec::new();
    for event in lines.iter().filter_map(|line| stream::parse(line)) {
        match event {
            StreamEvent::Assistant { text, tools } => {
                out.extend((!text.is_empty()).then_some(text));
                out.extend(tools.iter().map(|tool| format!("[tool] {tool}")));
            }
            StreamEvent::Result(result) if result.is_error => {
                out.push(format!("[turn failed] {}", result.text));
            }
            StreamEvent::Result(_) => out.push("[turn ended]".to_owned()),
            StreamEvent::Stderr { text } => out.push(format!("[stderr] {text}")),
            _ => {}
        }
    }
    out.join("\n")
}

/// The last lines, without empty ones at the end.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}
