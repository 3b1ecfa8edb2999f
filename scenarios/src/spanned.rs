//! A value that remembers where it stood, for errors that are found only later.

use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

use crate::problem::{Problem, SourceSpan};
use crate::read::SPANNED;

/// `T`, and its place in the file.
#[derive(Debug, Clone)]
pub(crate) struct Placed<T> {
    pub(crate) value: T,
    pub(crate) span: SourceSpan,
}

impl<T> Placed<T> {
    pub(crate) fn problem(&self, message: impl Into<String>) -> Problem {
        Problem::at(self.span, message)
    }
}

struct SpannedVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for SpannedVisitor<T> {
    type Value = Placed<T>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value with its place")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Placed<T>, A::Error> {
        let mut figure =
            || parts.next_element::<u32>()?.map(|n| n as usize).ok_or_else(|| A::Error::custom("no place"));
        let place = SourceSpan { offset: figure()?, length: figure()?, line: figure()?, column: figure()? };
        let value = parts.next_element()?.ok_or_else(|| A::Error::custom("no value"))?;
        Ok(Placed { value, span: place })
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Placed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Placed<T>, D::Error> {
        deserializer.deserialize_newtype_struct(SPANNED, SpannedVisitor(PhantomData))
    }
}

impl<T: schemars::JsonSchema> schemars::JsonSchema for Placed<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        T::json_schema(generator)
    }
}
