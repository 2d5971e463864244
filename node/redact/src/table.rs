//! The table of secrets as static data, made from `rules.toml` by the build script.

/// One kind of secret.
#[derive(Debug)]
pub struct Rule {
    /// Name in reports and placeholders.
    pub id: &'static str,
    /// What it is, for people.
    pub description: &'static str,
    /// Literals of which at least one occurs in every match.
    pub keywords: &'static [&'static str],
    /// How bad it is if it leaves.
    pub severity: Severity,
    /// What a gate does about it.
    pub action: Action,
    pub(crate) regex: &'static str,
    pub(crate) ignore_case: bool,
    pub(crate) validate: Validate,
    pub(crate) min_entropy: Option<f64>,
}

/// Gravity of a secret, gravest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Gives full access to an account by itself.
    Critical,
    /// Gives access, or is one by its form with little doubt.
    High,
    /// Looks like a secret by its surroundings.
    Medium,
}

/// What a gate does about a hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The text does not pass.
    Block,
    /// The span is masked.
    Redact,
    /// A note, nothing more.
    Warn,
}

/// Check on a match that a regular expression cannot express.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Validate {
    None,
    NotAnthropic,
    Pem,
    Assignment,
    NotPlaceholder,
    HexNearSecretWord,
    Jwt,
}

/// All rules of the table.
pub fn rules() -> &'static [Rule] {
    RULES
}

pub(crate) static RULES: &[Rule] = include!(concat!(env!("OUT_DIR"), "/rules.rs"));
