//! Deserializes a tree with serde into any type, and collects every error, each with its place in the file.
//!
//! serde stops at the first error. So this module notes the error, removes the wrong node from the tree, and
//! deserializes again. A key that is then missing because its node was removed is not reported: the user did
//! write it.

use serde::de::value::{StrDeserializer, U32Deserializer};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};

use crate::yaml::problem::{Problem, SourceSpan, suggestion};
use crate::yaml::tree::{YamlNode, YamlNodeKind};

/// Largest number of problems that are reported of one file.
const MAX_PROBLEMS: usize = 50;
/// Name of the newtype struct with which [`crate::yaml::spanned::Spanned`] asks for a node's place.
pub(crate) const SPANNED: &str = "$spanned";

/// Deserializes a tree and returns every problem. The value is `None` if not even the rest of the tree could
/// be read.
pub(crate) fn deserialize_all<T: DeserializeOwned>(root: &mut YamlNode) -> (Option<T>, Vec<Problem>) {
    let mut problems = Vec::new();
    while problems.len() < MAX_PROBLEMS {
        match T::deserialize(NodeDeserializer { node: root }) {
            Ok(value) => return (Some(value), problems),
            Err(error) => {
                let id = error.node.unwrap_or(root.id);
                if !(error.is_missing && is_pruned(root, id)) {
                    problems.push(error.problem());
                }
                if id == root.id || !remove_node(root, id) {
                    return (None, problems);
                }
            }
        }
    }
    (None, problems)
}

/// Whether a child of the node with this id has been removed.
fn is_pruned(node: &YamlNode, id: u32) -> bool {
    if node.id == id {
        return node.pruned;
    }
    match &node.kind {
        YamlNodeKind::Scalar { .. } => false,
        YamlNodeKind::List(items) => items.iter().any(|item| is_pruned(item, id)),
        YamlNodeKind::Map(pairs) => {
            pairs.iter().any(|(key, value)| is_pruned(key, id) || is_pruned(value, id))
        }
    }
}

/// Removes the node with this id from its container, together with its key or value. Returns whether it was
/// found.
fn remove_node(node: &mut YamlNode, id: u32) -> bool {
    let (before, after) = match &mut node.kind {
        YamlNodeKind::Scalar { .. } => return false,
        YamlNodeKind::List(items) => {
            let before = items.len();
            items.retain(|item| item.id != id);
            (before, items.len())
        }
        YamlNodeKind::Map(pairs) => {
            let before = pairs.len();
            pairs.retain(|(key, value)| key.id != id && value.id != id);
            (before, pairs.len())
        }
    };
    if after < before {
        node.pruned = true;
        return true;
    }
    match &mut node.kind {
        YamlNodeKind::Scalar { .. } => false,
        YamlNodeKind::List(items) => items.iter_mut().any(|item| remove_node(item, id)),
        YamlNodeKind::Map(pairs) => pairs.iter_mut().any(|(_, value)| remove_node(value, id)),
    }
}

/// Why a value could not be deserialized.
#[derive(Debug)]
pub(crate) struct ReadError {
    node: Option<u32>,
    span: SourceSpan,
    message: String,
    help: Option<String>,
    /// A key or a value is missing, not wrong.
    is_missing: bool,
}

impl ReadError {
    fn new(message: String) -> ReadError {
        ReadError { node: None, span: SourceSpan::default(), message, help: None, is_missing: false }
    }

    /// Places the error at a node, unless a node inside it has already been named.
    fn at(mut self, node: &YamlNode) -> ReadError {
        if self.node.is_none() {
            (self.node, self.span) = (Some(node.id), node.span);
        }
        self
    }

    fn problem(self) -> Problem {
        let problem = Problem::at(self.span, self.message);
        Problem { help: self.help, ..problem }
    }
}

impl std::fmt::Display for ReadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ReadError {}

impl de::Error for ReadError {
    fn custom<T: std::fmt::Display>(message: T) -> ReadError {
        // The types in `leaf` separate the message from the help with a bar.
        let text = message.to_string();
        match text.split_once(" | ") {
            Some((message, help)) => ReadError { help: Some(help.into()), ..ReadError::new(message.into()) },
            None => ReadError::new(text),
        }
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> ReadError {
        let help = suggestion(field, expected.iter().copied());
        ReadError { help: Some(help), ..ReadError::new(format!("unknown key `{field}`")) }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> ReadError {
        let help = suggestion(variant, expected.iter().copied());
        ReadError { help: Some(help), ..ReadError::new(format!("`{variant}` is not known here")) }
    }

    fn missing_field(field: &'static str) -> ReadError {
        ReadError { is_missing: true, ..ReadError::new(format!("`{field}` is missing")) }
    }

    fn invalid_type(_unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> ReadError {
        ReadError::new(format!("expected {expected}"))
    }
}

/// Deserializes one node.
#[derive(Clone, Copy)]
struct NodeDeserializer<'a> {
    node: &'a YamlNode,
}

impl<'a> NodeDeserializer<'a> {
    fn text(self, expected: &str) -> Result<&'a str, ReadError> {
        match &self.node.kind {
            YamlNodeKind::Scalar { text, plain }
                if !(*plain && matches!(text.as_str(), "" | "~" | "null")) =>
            {
                Ok(text)
            }
            _ => {
                Err(ReadError::new(format!("expected {expected}, found {}", self.node.describe()))
                    .at(self.node))
            }
        }
    }

    /// A value of plain (unquoted) text: a number or a boolean.
    fn plain<T>(self, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, ReadError> {
        let text = self.text(expected)?;
        let is_plain = matches!(self.node.kind, YamlNodeKind::Scalar { plain: true, .. });
        let parsed = if is_plain { parse(text) } else { None };
        parsed.ok_or_else(|| ReadError::new(format!("expected {expected}, found `{text}`")).at(self.node))
    }

    fn unsigned(self) -> Result<u64, ReadError> {
        self.plain("a whole number", |text| {
            text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
        })
    }

    fn signed(self) -> Result<i64, ReadError> {
        self.plain("a whole number", |text| {
            let digits = text.strip_prefix('-').unwrap_or(text);
            digits.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
        })
    }
}

macro_rules! numbers {
    ($read:ident: $($method:ident $visit:ident $type:ty),*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
            let number = self.$read()?;
            let side = if number > 0 { "large" } else { "small" };
            let number = <$type>::try_from(number)
                .map_err(|_| ReadError::new(format!("{number} is too {side}")).at(self.node))?;
            visitor.$visit(number).map_err(|error: ReadError| error.at(self.node))
        })*
    };
}

impl<'de> Deserializer<'de> for NodeDeserializer<'_> {
    type Error = ReadError;

    numbers!(
        unsigned:
        deserialize_u8 visit_u8 u8,
        deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64
    );

    numbers!(
        signed:
        deserialize_i8 visit_i8 i8,
        deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64
    );

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.node.kind {
            YamlNodeKind::Scalar { .. } => self.deserialize_str(visitor),
            YamlNodeKind::List(_) => self.deserialize_seq(visitor),
            YamlNodeKind::Map(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let value = self.plain("`true` or `false`", |text| text.parse().ok())?;
        visitor.visit_bool(value).map_err(|error: ReadError| error.at(self.node))
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let number =
            self.plain("a number", |text| text.parse::<f64>().ok().filter(|number| number.is_finite()))?;
        visitor.visit_f64(number).map_err(|error: ReadError| error.at(self.node))
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_str(self.text("text")?).map_err(|error: ReadError| error.at(self.node))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        if name == SPANNED {
            return visitor.visit_seq(SpannedSeqAccess { node: self.node, part: 0 });
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let YamlNodeKind::List(items) = &self.node.kind else {
            return Err(
                ReadError::new(format!("expected a list, found {}", self.node.describe())).at(self.node)
            );
        };
        visitor.visit_seq(NodeSeqAccess { items: items.iter() }).map_err(|error| error.at(self.node))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let YamlNodeKind::Map(pairs) = &self.node.kind else {
            return Err(
                ReadError::new(format!("expected a map, found {}", self.node.describe())).at(self.node)
            );
        };
        visitor
            .visit_map(NodeMapAccess { pairs: pairs.iter(), value: None })
            .map_err(|error| error.at(self.node))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let access = match &self.node.kind {
            YamlNodeKind::Scalar { text, .. } if !text.is_empty() => {
                NodeEnumAccess { key: self.node, value: None }
            }
            YamlNodeKind::Map(pairs) if pairs.len() == 1 => {
                NodeEnumAccess { key: &pairs[0].0, value: Some(&pairs[0].1) }
            }
            _ => {
                let error = ReadError::new(format!("expected one of: {}", variants.join(", ")));
                return Err(ReadError { is_missing: true, ..error }.at(self.node));
            }
        };
        visitor.visit_enum(access).map_err(|error| error.at(self.node))
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct ignored_any
    }
}

/// The parts of a [`crate::yaml::spanned::Spanned`].
struct SpannedSeqAccess<'a> {
    node: &'a YamlNode,
    part: u8,
}

impl<'de> SeqAccess<'de> for SpannedSeqAccess<'_> {
    type Error = ReadError;

    /// Yields the offset, length, line and column, then the value.
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadError> {
        let span = self.node.span;
        let numbers = [span.offset, span.length, span.line, span.column];
        self.part += 1;
        let number =
            numbers.get(usize::from(self.part) - 1).map(|number| u32::try_from(*number).unwrap_or(u32::MAX));
        match number {
            Some(number) => seed.deserialize(U32Deserializer::new(number)).map(Some),
            None => seed.deserialize(NodeDeserializer { node: self.node }).map(Some),
        }
    }
}

struct NodeSeqAccess<'a> {
    items: std::slice::Iter<'a, YamlNode>,
}

impl<'de> SeqAccess<'de> for NodeSeqAccess<'_> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadError> {
        let Some(node) = self.items.next() else { return Ok(None) };
        seed.deserialize(NodeDeserializer { node }).map(Some).map_err(|error| error.at(node))
    }
}

struct NodeMapAccess<'a> {
    pairs: std::slice::Iter<'a, (YamlNode, YamlNode)>,
    value: Option<&'a YamlNode>,
}

impl<'de> MapAccess<'de> for NodeMapAccess<'_> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ReadError> {
        let Some((key, value)) = self.pairs.next() else { return Ok(None) };
        self.value = Some(value);
        seed.deserialize(NodeDeserializer { node: key }).map(Some).map_err(|error| error.at(key))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ReadError> {
        let Some(node) = self.value.take() else {
            return Err(ReadError::new("a key without a value".into()));
        };
        seed.deserialize(NodeDeserializer { node }).map_err(|error| error.at(node))
    }
}

/// A variant of an enum: a single value, or a map with one key.
struct NodeEnumAccess<'a> {
    key: &'a YamlNode,
    value: Option<&'a YamlNode>,
}

impl<'a, 'de> EnumAccess<'de> for NodeEnumAccess<'a> {
    type Error = ReadError;
    type Variant = NodeEnumAccess<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, NodeEnumAccess<'a>), ReadError> {
        let name: StrDeserializer<'_, ReadError> = match &self.key.kind {
            YamlNodeKind::Scalar { text, .. } => text.as_str().into_deserializer(),
            _ => "".into_deserializer(),
        };
        let variant = seed.deserialize(name).map_err(|error| error.at(self.key))?;
        Ok((variant, self))
    }
}

impl<'de> VariantAccess<'de> for NodeEnumAccess<'_> {
    type Error = ReadError;

    fn unit_variant(self) -> Result<(), ReadError> {
        match self.value {
            None => Ok(()),
            Some(value) => Err(ReadError::new(format!("`{}` takes no value", self.key.flow())).at(value)),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, ReadError> {
        match self.value {
            Some(node) => seed.deserialize(NodeDeserializer { node }).map_err(|error| error.at(node)),
            None => Err(ReadError::new(format!(
                "`{}` needs a value: `{}: ...`",
                self.key.flow(),
                self.key.flow()
            ))
            .at(self.key)),
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, ReadError> {
        match self.value {
            Some(node) => NodeDeserializer { node }.deserialize_seq(visitor),
            None => self.unit_variant().and_then(|()| Err(ReadError::new("expected a list".into()))),
        }
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match self.value {
            Some(node) => NodeDeserializer { node }.deserialize_map(visitor),
            None => Err(ReadError::new("expected a map".into()).at(self.key)),
        }
    }
}
