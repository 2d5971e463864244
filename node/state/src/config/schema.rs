//! What a key of `config.json` is: its type, default, range, class and meaning, as data.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

/// Who may change a key, from the loosest on (`agent-core.md` §2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// API and command line.
    Open,
    /// Only with proof of the owner.
    Operator,
    /// A person who edits the file, or the command line with proof of the owner; never the API.
    FileOnly,
}

/// Shape and range of a value.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Int {
        /// Smallest.
        min: i64,
        /// Largest.
        max: i64,
    },
    /// Text of 1 to this many characters.
    Text(usize),
    /// Name of an agent: `^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`.
    AgentName,
    /// Absolute path.
    Path,
    /// URL with one of these schemes.
    Url(&'static [&'static str]),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// At most `items` texts of 1 to `chars` characters.
    List {
        /// Most entries.
        items: usize,
        /// Longest entry.
        chars: usize,
    },
    /// Stored in the secret store; the file holds `{"secret": true}`.
    Secret,
    /// A text or list with a rule of its own; the text says what is allowed.
    Checked(&'static str, fn(&Value) -> bool),
}

/// What holds when the file says nothing.
#[derive(Debug, Clone, Copy)]
pub enum Preset {
    /// Nothing.
    None,
    /// A switch.
    Bool(bool),
    /// A number.
    Int(i64),
    /// A text.
    Text(&'static str),
    /// A list of texts.
    List(&'static [&'static str]),
}

/// One row of the table.
#[derive(Debug)]
pub struct KeySpec {
    /// Dot path; a `*` segment stands for any one name.
    pub path: &'static str,
    /// Shape.
    pub kind: Kind,
    /// Default.
    pub preset: Preset,
    /// Who may change it.
    pub class: Class,
    /// Whether a change needs a restart.
    pub restart: bool,
    /// One line.
    pub doc: &'static str,
}

impl KeySpec {
    /// A live key of class open.
    pub const fn new(path: &'static str, kind: Kind, preset: Preset, doc: &'static str) -> Self {
        Self { path, kind, preset, class: Class::Open, restart: false, doc }
    }

    /// Of class operator.
    #[must_use]
    pub const fn operator(mut self) -> Self {
        self.class = Class::Operator;
        self
    }

    /// Of class file-only.
    #[must_use]
    pub const fn file_only(mut self) -> Self {
        self.class = Class::FileOnly;
        self
    }

    /// Read at start only.
    #[must_use]
    pub const fn restart(mut self) -> Self {
        self.restart = true;
        self
    }

    /// Whether this row describes the key at `path`.
    pub fn matches(&self, path: &[&str]) -> bool {
        let mut mine = self.path.split('.');
        path.iter().all(|segment| mine.next().is_some_and(|m| m == "*" || m == *segment))
            && mine.next().is_none()
    }

    /// Whether keys of this row lie below `path`.
    pub fn is_below(&self, path: &[&str]) -> bool {
        let mut mine = self.path.split('.');
        path.iter().all(|segment| mine.next().is_some_and(|m| m == "*" || m == *segment))
            && mine.next().is_some()
    }

    /// The default as JSON.
    pub fn default_value(&self) -> Option<Value> {
        Some(match self.preset {
            Preset::None => return None,
            Preset::Bool(b) => b.into(),
            Preset::Int(n) => n.into(),
            Preset::Text(text) => text.into(),
            Preset::List(list) => list.iter().copied().collect(),
        })
    }

    /// What a value of this key must look like, for people.
    pub fn expected(&self) -> String {
        match self.kind {
            Kind::Bool => "true or false".into(),
            Kind::Int { min, max: i64::MAX } => format!("a whole number from {min}"),
            Kind::Int { min, max } => format!("a whole number from {min} to {max}"),
            Kind::Text(max) => format!("a text of 1 to {max} characters"),
            Kind::AgentName => "a name: a letter or digit, then at most 63 letters, digits, _ or -".into(),
            Kind::Path => "an absolute path".into(),
            Kind::Url(schemes) => format!("a URL that begins with {}", schemes.join(" or ")),
            Kind::Choice(words) => format!("one of {}", words.join(", ")),
            Kind::List { items, chars } => {
                format!("a list of at most {items} texts of 1 to {chars} characters")
            }
            Kind::Secret => "a text, or {\"secret\": true} for one in the secret store".into(),
            Kind::Checked(expected, _) => expected.into(),
        }
    }

    /// Whether the value fits.
    pub fn accepts(&self, value: &Value) -> bool {
        let text = |limit: usize| {
            value
                .as_str()
                .is_some_and(|t| !t.trim().is_empty() && t.chars().count() <= limit && !has_control(t))
        };
        match self.kind {
            Kind::Bool => value.is_boolean(),
            Kind::Int { min, max } => value.as_i64().is_some_and(|n| (min..=max).contains(&n)),
            Kind::Text(limit) => text(limit),
            Kind::AgentName => value.as_str().is_some_and(is_agent_name),
            Kind::Path => text(4096) && value.as_str().is_some_and(|p| p.starts_with('/')),
            Kind::Url(schemes) => {
                text(2048)
                    && value.as_str().is_some_and(|url| {
                        schemes.iter().any(|s| {
                            url.strip_prefix(s).is_some_and(|rest| {
                                !rest.is_empty()
                                    && !rest.starts_with('/')
                                    && !rest.contains(char::is_whitespace)
                            })
                        })
                    })
            }
            Kind::Choice(words) => value.as_str().is_some_and(|w| words.contains(&w)),
            Kind::List { items, chars } => value.as_array().is_some_and(|list| {
                list.len() <= items
                    && list.iter().all(|entry| {
                        entry.as_str().is_some_and(|t| {
                            !t.trim().is_empty() && t.chars().count() <= chars && !has_control(t)
                        })
                    })
            }),
            Kind::Secret => is_placeholder(value) || text(16_384),
            Kind::Checked(_, check) => check(value),
        }
    }
}

fn has_control(text: &str) -> bool {
    text.chars().any(char::is_control)
}

/// Whether the value says that the real one is in the secret store.
pub fn is_placeholder(value: &Value) -> bool {
    value.as_object().is_some_and(|o| o.len() == 1 && o.get("secret") == Some(&Value::Bool(true)))
}

/// Whether the text can name an agent.
pub fn is_agent_name(text: &str) -> bool {
    text.len() <= 64
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// A row of the table together with the type that its values have in code.
#[derive(Debug)]
pub struct Key<T> {
    spec: &'static KeySpec,
    of: std::marker::PhantomData<fn() -> T>,
}

impl<T> Clone for Key<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Key<T> {}

impl<T: KeyType> Key<T> {
    /// A row whose values have type `T`. Does not compile for a row without default whose type has no "not set".
    pub(crate) const fn new(spec: &'static KeySpec) -> Self {
        assert!(
            T::CAN_BE_ABSENT || !matches!(spec.preset, Preset::None),
            "a key without default must be an Option"
        );
        Self { spec, of: std::marker::PhantomData }
    }
}

impl<T> Key<T> {
    /// The row.
    pub const fn spec(self) -> &'static KeySpec {
        self.spec
    }

    /// Dot path.
    pub const fn path(self) -> &'static str {
        self.spec.path
    }
}

/// A type that a key can have.
pub trait KeyType {
    /// Whether the type has a value for a key that is not set.
    const CAN_BE_ABSENT: bool = false;
}

/// A type that a checked value turns into.
pub trait FromValue: KeyType + Sized {
    /// The value in this type; `None` stands for a key without value and default.
    fn from_value(value: Option<&Value>) -> Option<Self>;
}

impl KeyType for bool {}

impl FromValue for bool {
    fn from_value(value: Option<&Value>) -> Option<Self> {
        value?.as_bool()
    }
}

macro_rules! from_int {
    ($($int:ty),*) => {$(
        impl KeyType for $int {}

        impl FromValue for $int {
            fn from_value(value: Option<&Value>) -> Option<Self> {
                value?.as_i64()?.try_into().ok()
            }
        }
    )*};
}

from_int!(u8, u16, u32, u64, usize, i64);

impl KeyType for Duration {}

/// Keys of this type hold milliseconds.
impl FromValue for Duration {
    fn from_value(value: Option<&Value>) -> Option<Self> {
        u64::try_from(value?.as_i64()?).ok().map(Self::from_millis)
    }
}

impl KeyType for String {}

impl FromValue for String {
    fn from_value(value: Option<&Value>) -> Option<Self> {
        Some(value?.as_str()?.to_owned())
    }
}

impl KeyType for PathBuf {}

impl FromValue for PathBuf {
    fn from_value(value: Option<&Value>) -> Option<Self> {
        Some(value?.as_str()?.into())
    }
}

impl KeyType for Vec<String> {}

impl FromValue for Vec<String> {
    fn from_value(value: Option<&Value>) -> Option<Self> {
        value?.as_array()?.iter().map(|v| Some(v.as_str()?.to_owned())).collect()
    }
}

impl<T: FromValue> KeyType for Option<T> {
    const CAN_BE_ABSENT: bool = true;
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: Option<&Value>) -> Option<Self> {
        Some(T::from_value(value))
    }
}

/// A key whose value is only reachable through the secrets of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretValue {}

impl KeyType for SecretValue {
    const CAN_BE_ABSENT: bool = true;
}
