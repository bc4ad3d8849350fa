//! Reading one value of TOML. The error says what is allowed.

use std::fmt;

use toml::de::DeValue;

/// What is wrong with a value: what is allowed and, where that helps, what was found.
#[derive(Clone, Debug)]
pub struct Unfit(pub(super) String);

impl Unfit {
    /// Says what is allowed and what was found instead.
    pub fn new(allowed: impl fmt::Display, found: impl fmt::Display) -> Self {
        Self(format!("{allowed} (got {found})"))
    }

    /// A message that is complete as it is.
    pub fn says(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// A value that can be read from TOML.
pub trait FromToml: Sized {
    /// Reads the value. The error says what is allowed.
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Unfit>;
}

/// A value as the operator wrote it.
pub(super) fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => number.as_str().to_owned(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

impl FromToml for String {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Unfit> {
        value.as_str().map(str::to_owned).ok_or_else(|| Unfit::new("a string", found(value)))
    }
}

impl FromToml for bool {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Unfit> {
        value.as_bool().ok_or_else(|| Unfit::new("true or false", found(value)))
    }
}

impl FromToml for u32 {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Unfit> {
        let unfit = || Unfit::new(format!("a whole number up to {}", u32::MAX), found(value));
        let number = value.as_integer().ok_or_else(unfit)?;
        u32::from_str_radix(number.as_str(), number.radix()).map_err(|_| unfit())
    }
}

impl FromToml for f64 {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Unfit> {
        let text = value.as_float().map(|number| number.as_str().to_owned());
        let text = text.or_else(|| value.as_integer().map(|number| number.as_str().to_owned()));
        text.and_then(|text| text.parse().ok()).ok_or_else(|| Unfit::new("a number", found(value)))
    }
}

impl<T: FromToml> FromToml for Vec<T> {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Unfit> {
        let items = value.as_array().ok_or_else(|| Unfit::new("an array", found(value)))?;
        items.iter().map(|item| T::from_toml(item.get_ref())).collect()
    }
}

/// One value or several: `key = "ip"` and `key = ["ip", "route"]`.
#[derive(Clone, Debug)]
pub struct OneOrMany<T>(pub Vec<T>);

impl<T: FromToml> FromToml for OneOrMany<T> {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Unfit> {
        if value.is_array() { Vec::from_toml(value) } else { T::from_toml(value).map(|one| vec![one]) }
            .map(Self)
    }
}

/// Implements [`FromToml`] for a type that is written as a string. The type's `FromStr` parses it, and its error says
/// what is allowed.
#[macro_export]
macro_rules! from_toml_str {
    ($($type:ty),+ $(,)?) => {$(
        impl $crate::document::value::FromToml for $type {
            fn from_toml(value: &toml::de::DeValue<'_>) -> Result<Self, $crate::document::value::Unfit> {
                let text = <String as $crate::document::value::FromToml>::from_toml(value)?;
                text.parse().map_err(|allowed| $crate::document::value::Unfit::new(allowed, format_args!("{text:?}")))
            }
        }
    )+};
}

/// Names the words of a setting that allows only a few: implements `FromStr` and [`FromToml`], and lists them in
/// `WORDS`.
#[macro_export]
macro_rules! words {
    ($type:ident { $($word:literal => $variant:ident),+ } or $allowed:literal) => {
        impl $type {
            /// The words that a policy may write.
            pub(crate) const WORDS: &'static [&'static str] = &[$($word),+];
        }

        impl std::str::FromStr for $type {
            type Err = &'static str;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text { $($word => Ok(Self::$variant),)+ _ => Err($allowed) }
            }
        }

        $crate::from_toml_str!($type);
    };
}
