//! Model tiers and ids (`agent-core.md` §6.5).

use std::collections::BTreeMap;

/// A text that names no model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a model: use fast, balanced, capable, or a model id of letters, digits and ._:/-")]
pub struct InvalidModel(pub String);

/// The model id for a tier, a synonym of a tier, or an id that passes through.
pub fn resolve(text: &str, models: &BTreeMap<String, String>) -> Result<String, InvalidModel> {
    let tier = match text {
        "haiku" => "fast",
        "sonnet" => "balanced",
        "opus" => "capable",
        other => other,
    };
    if let Some(id) = models.get(tier) {
        return Ok(id.clone());
    }
    let valid = (1..=100).contains(&text.len())
        && !text.starts_with('-')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'/' | b'-'));
    if valid { Ok(text.to_owned()) } else { Err(InvalidModel(text.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_synonyms_and_ids() {
        let models = BTreeMap::from([("balanced".to_owned(), "sonnet".to_owned())]);
        assert_eq!(resolve("balanced", &models).as_deref(), Ok("sonnet"));
        assert_eq!(resolve("sonnet", &models).as_deref(), Ok("sonnet"));
        assert_eq!(resolve("claude-x.1", &models).as_deref(), Ok("claude-x.1"));
        assert!(resolve("-p", &models).is_err());
        assert!(resolve("a b", &models).is_err());
    }
}
