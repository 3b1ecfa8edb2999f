//! A tree -> any type with serde's `Deserialize`, and everything that is in the way, each with its place.
//!
//! serde stops at the first error. So: note it, take what is wrong out of the tree, and read again. What a container
//! then lacks is not reported, because the writer did write it.

use serde::de::value::{StrDeserializer, U32Deserializer};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};

use crate::problem::{Problem, SourceSpan, suggestion};
use crate::tree::{YamlNode, YamlNodeKind};

/// Problems of one file that are told.
const MAX_PROBLEMS: usize = 50;
/// Name by which [`crate::placed::Placed`] asks for a place.
pub(crate) const SPANNED: &str = "$placed";

/// Reads all that can be read, and tells all that can't.
pub(crate) fn deserialize_all<T: DeserializeOwned>(root: &mut YamlNode) -> (Option<T>, Vec<Problem>) {
    let mut problems = Vec::new();
    while problems.len() < MAX_PROBLEMS {
        match T::deserialize(Reader { node: root }) {
            Ok(value) => return (Some(value), problems),
            Err(flaw) => {
                let at = flaw.node.unwrap_or(root.id);
                if !(flaw.lacking && is_pruned(root, at)) {
                    problems.push(flaw.problem());
                }
                if at == root.id || !remove_node(root, at) {
                    return (None, problems);
                }
            }
        }
    }
    (None, problems)
}

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

/// Takes the node out of its container, with its key or its value.
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

/// What stopped a reading.
#[derive(Debug)]
pub(crate) struct Flaw {
    node: Option<u32>,
    place: SourceSpan,
    message: String,
    help: Option<String>,
    /// Something is not there.
    lacking: bool,
}

impl Flaw {
    fn new(message: String) -> Flaw {
        Flaw { node: None, place: SourceSpan::default(), message, help: None, lacking: false }
    }

    /// The innermost node that it passes on its way out is its place.
    fn at(mut self, node: &YamlNode) -> Flaw {
        if self.node.is_none() {
            (self.node, self.place) = (Some(node.id), node.span);
        }
        self
    }

    fn problem(self) -> Problem {
        let problem = Problem::at(self.place, self.message);
        Problem { help: self.help, ..problem }
    }
}

impl std::fmt::Display for Flaw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Flaw {}

impl de::Error for Flaw {
    fn custom<T: std::fmt::Display>(message: T) -> Flaw {
        // Leaf types put advice behind a bar.
        let text = message.to_string();
        match text.split_once(" | ") {
            Some((message, help)) => Flaw { help: Some(help.into()), ..Flaw::new(message.into()) },
            None => Flaw::new(text),
        }
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Flaw {
        let help = suggestion(field, expected.iter().copied());
        Flaw { help: Some(help), ..Flaw::new(format!("unknown key `{field}`")) }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Flaw {
        let help = suggestion(variant, expected.iter().copied());
        Flaw { help: Some(help), ..Flaw::new(format!("`{variant}` is not known here")) }
    }

    fn missing_field(field: &'static str) -> Flaw {
        Flaw { lacking: true, ..Flaw::new(format!("`{field}` is missing")) }
    }

    fn invalid_type(_unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> Flaw {
        Flaw::new(format!("expected {expected}"))
    }
}

/// Reads one node.
#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a YamlNode,
}

impl<'a> Reader<'a> {
    fn text(self, expected: &str) -> Result<&'a str, Flaw> {
        match &self.node.kind {
            YamlNodeKind::Scalar { text, plain }
                if !(*plain && matches!(text.as_str(), "" | "~" | "null")) =>
            {
                Ok(text)
            }
            _ => Err(Flaw::new(format!("expected {expected}, found {}", self.node.describe())).at(self.node)),
        }
    }

    /// Only plain text is a number or a truth value.
    fn plain<T>(self, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, Flaw> {
        let text = self.text(expected)?;
        let plain = matches!(self.node.kind, YamlNodeKind::Scalar { plain: true, .. });
        let parsed = if plain { parse(text) } else { None };
        parsed.ok_or_else(|| Flaw::new(format!("expected {expected}, found `{text}`")).at(self.node))
    }

    fn unsigned(self) -> Result<u64, Flaw> {
        self.plain("a whole number", |text| {
            text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
        })
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty),*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
            let number = self.unsigned()?;
            let fitting = <$type>::try_from(number).map_err(|_| Flaw::new(format!("{number} is too large")).at(self.node))?;
            visitor.$visit(fitting).map_err(|flaw: Flaw| flaw.at(self.node))
        })*
    };
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Flaw;

    numbers!(deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16, deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64,
             deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32, deserialize_i64 visit_i64 i64);

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        match &self.node.kind {
            YamlNodeKind::Scalar { .. } => self.deserialize_str(visitor),
            YamlNodeKind::List(_) => self.deserialize_seq(visitor),
            YamlNodeKind::Map(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        let truth = self.plain("`true` or `false`", |text| text.parse().ok())?;
        visitor.visit_bool(truth).map_err(|flaw: Flaw| flaw.at(self.node))
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        let number =
            self.plain("a number", |text| text.parse::<f64>().ok().filter(|number| number.is_finite()))?;
        visitor.visit_f64(number).map_err(|flaw: Flaw| flaw.at(self.node))
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        visitor.visit_str(self.text("text")?).map_err(|flaw: Flaw| flaw.at(self.node))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Flaw> {
        if name == SPANNED {
            return visitor.visit_seq(SpannedSeqAccess { node: self.node, part: 0 });
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        let YamlNodeKind::List(items) = &self.node.kind else {
            return Err(Flaw::new(format!("expected a list, found {}", self.node.describe())).at(self.node));
        };
        visitor.visit_seq(NodeSeqAccess { items: items.iter() }).map_err(|flaw| flaw.at(self.node))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        let YamlNodeKind::Map(pairs) = &self.node.kind else {
            return Err(Flaw::new(format!("expected a map, found {}", self.node.describe())).at(self.node));
        };
        visitor
            .visit_map(NodeMapAccess { pairs: pairs.iter(), value: None })
            .map_err(|flaw| flaw.at(self.node))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Flaw> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Flaw> {
        let choice = match &self.node.kind {
            YamlNodeKind::Scalar { text, .. } if !text.is_empty() => {
                NodeEnumAccess { key: self.node, value: None }
            }
            YamlNodeKind::Map(pairs) if pairs.len() == 1 => {
                NodeEnumAccess { key: &pairs[0].0, value: Some(&pairs[0].1) }
            }
            _ => {
                let flaw = Flaw::new(format!("expected one of: {}", variants.join(", ")));
                return Err(Flaw { lacking: true, ..flaw }.at(self.node));
            }
        };
        visitor.visit_enum(choice).map_err(|flaw| flaw.at(self.node))
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct ignored_any
    }
}

struct SpannedSeqAccess<'a> {
    node: &'a YamlNode,
    part: u8,
}

impl<'de> SeqAccess<'de> for SpannedSeqAccess<'_> {
    type Error = Flaw;

    /// First offset, length, line and column, then the value.
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Flaw> {
        let place = self.node.span;
        let figures = [place.offset, place.length, place.line, place.column];
        self.part += 1;
        let figure =
            figures.get(usize::from(self.part) - 1).map(|figure| u32::try_from(*figure).unwrap_or(u32::MAX));
        match figure {
            Some(figure) => seed.deserialize(U32Deserializer::new(figure)).map(Some),
            None => seed.deserialize(Reader { node: self.node }).map(Some),
        }
    }
}

struct NodeSeqAccess<'a> {
    items: std::slice::Iter<'a, YamlNode>,
}

impl<'de> SeqAccess<'de> for NodeSeqAccess<'_> {
    type Error = Flaw;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Flaw> {
        let Some(node) = self.items.next() else { return Ok(None) };
        seed.deserialize(Reader { node }).map(Some).map_err(|flaw| flaw.at(node))
    }
}

struct NodeMapAccess<'a> {
    pairs: std::slice::Iter<'a, (YamlNode, YamlNode)>,
    value: Option<&'a YamlNode>,
}

impl<'de> MapAccess<'de> for NodeMapAccess<'_> {
    type Error = Flaw;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Flaw> {
        let Some((key, value)) = self.pairs.next() else { return Ok(None) };
        self.value = Some(value);
        seed.deserialize(Reader { node: key }).map(Some).map_err(|flaw| flaw.at(key))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Flaw> {
        let Some(node) = self.value.take() else { return Err(Flaw::new("a key without a value".into())) };
        seed.deserialize(Reader { node }).map_err(|flaw| flaw.at(node))
    }
}

/// A variant: a word, or a map with one key.
struct NodeEnumAccess<'a> {
    key: &'a YamlNode,
    value: Option<&'a YamlNode>,
}

impl<'a, 'de> EnumAccess<'de> for NodeEnumAccess<'a> {
    type Error = Flaw;
    type Variant = NodeEnumAccess<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, NodeEnumAccess<'a>), Flaw> {
        let word: StrDeserializer<'_, Flaw> = match &self.key.kind {
            YamlNodeKind::Scalar { text, .. } => text.as_str().into_deserializer(),
            _ => "".into_deserializer(),
        };
        let variant = seed.deserialize(word).map_err(|flaw| flaw.at(self.key))?;
        Ok((variant, self))
    }
}

impl<'de> VariantAccess<'de> for NodeEnumAccess<'_> {
    type Error = Flaw;

    fn unit_variant(self) -> Result<(), Flaw> {
        match self.value {
            None => Ok(()),
            Some(value) => {
                Err(Flaw::new(format!("`{}` stands alone, without a value", self.key.flow())).at(value))
            }
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Flaw> {
        match self.value {
            Some(node) => seed.deserialize(Reader { node }).map_err(|flaw| flaw.at(node)),
            None => {
                Err(Flaw::new(format!("`{}` needs a value: `{}: ...`", self.key.flow(), self.key.flow()))
                    .at(self.key))
            }
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Flaw> {
        match self.value {
            Some(node) => Reader { node }.deserialize_seq(visitor),
            None => self.unit_variant().and_then(|()| Err(Flaw::new("expected a list".into()))),
        }
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Flaw> {
        match self.value {
            Some(node) => Reader { node }.deserialize_map(visitor),
            None => Err(Flaw::new("expected a map".into()).at(self.key)),
        }
    }
}
