//! YAML text -> a tree of nodes that know their places, within fixed limits. Rejects anchors, aliases and
//! tags: no scenario needs them, and without them a file cannot expand to more than its text. Knows nothing
//! of scenarios.

use granit_parser::{Event, Parser, ScalarStyle, Span};

use crate::yaml::problem::{Problem, SourceSpan};

/// Largest file, in bytes.
const MAX_BYTES: usize = 1 << 20;
/// Largest number of keys and values in a file.
const MAX_NODES: u32 = 20_000;
/// Deepest nesting of lists and maps.
const MAX_DEPTH: usize = 64;

/// A part of the file.
#[derive(Debug, Clone)]
pub(crate) struct YamlNode {
    /// Unique in its tree.
    pub(crate) id: u32,
    pub(crate) span: SourceSpan,
    pub(crate) kind: YamlNodeKind,
    /// A wrong child has been removed. What is missing now is not an error of the user.
    pub(crate) pruned: bool,
}

/// What a node is.
#[derive(Debug, Clone)]
pub(crate) enum YamlNodeKind {
    /// A single value. `plain`: not quoted.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<YamlNode>),
    Map(Vec<(YamlNode, YamlNode)>),
}

impl YamlNode {
    /// What the node is, for error messages.
    pub(crate) fn describe(&self) -> &'static str {
        match &self.kind {
            YamlNodeKind::Scalar { text, plain: true } if text.is_empty() => "nothing",
            YamlNodeKind::Scalar { .. } => "a single value",
            YamlNodeKind::List(_) => "a list",
            YamlNodeKind::Map(_) => "a map",
        }
    }

    /// The node as one line of YAML, in flow style.
    pub(crate) fn flow(&self) -> String {
        match &self.kind {
            YamlNodeKind::Scalar { text, plain: true } => text.clone(),
            YamlNodeKind::Scalar { text, plain: false } => format!("'{}'", text.replace('\'', "''")),
            YamlNodeKind::List(items) => {
                format!("[{}]", items.iter().map(YamlNode::flow).collect::<Vec<_>>().join(", "))
            }
            YamlNodeKind::Map(pairs) => format!("{{{}}}", YamlNode::flow_pairs(pairs)),
        }
    }

    /// Like [`YamlNode::flow`], without the braces of a map.
    pub(crate) fn flow_pairs(pairs: &[(YamlNode, YamlNode)]) -> String {
        pairs
            .iter()
            .map(|(key, value)| format!("{}: {}", key.flow(), value.flow()))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// Parses a text with exactly one YAML document.
pub(crate) fn parse(text: &str) -> Result<YamlNode, Problem> {
    if text.len() > MAX_BYTES {
        let message = format!("the file has {} bytes; at most {MAX_BYTES} are allowed", text.len());
        return Err(Problem::at(SourceSpan { line: 1, column: 1, ..SourceSpan::default() }, message));
    }
    TreeBuilder { parser: Parser::new_from_str(text), nodes: 0, text }.document()
}

/// Builds the tree from the parser's events.
struct TreeBuilder<'a> {
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    nodes: u32,
    text: &'a str,
}

/// A list or map whose end has not been reached: its id, its place, its children, and a key that waits for
/// its value.
enum OpenContainer {
    List(u32, SourceSpan, Vec<YamlNode>),
    Map(u32, SourceSpan, Vec<(YamlNode, YamlNode)>, Option<YamlNode>),
}

impl<'a> TreeBuilder<'a> {
    /// Works without recursion, so that deep nesting cannot overflow the stack.
    fn document(mut self) -> Result<YamlNode, Problem> {
        let mut open: Vec<OpenContainer> = Vec::new();
        let mut root: Option<YamlNode> = None;
        while let Some((event, span)) = self.next()? {
            let done = match event {
                Event::DocumentStart(..) if root.is_some() => {
                    return Err(Problem::at(
                        span,
                        "a second document starts here; a file must have only one",
                    ));
                }
                Event::Scalar(text, style, anchor, tag) => {
                    reject_anchor_and_tag(span, anchor, tag.is_some())?;
                    let kind = YamlNodeKind::Scalar {
                        text: text.into_owned(),
                        plain: matches!(style, ScalarStyle::Plain),
                    };
                    Some(self.node(span, kind)?)
                }
                Event::SequenceStart(_, anchor, tag) => {
                    reject_anchor_and_tag(span, anchor, tag.is_some())?;
                    open.push(OpenContainer::List(self.next_id(span)?, span, Vec::new()));
                    None
                }
                Event::MappingStart(_, anchor, tag) => {
                    reject_anchor_and_tag(span, anchor, tag.is_some())?;
                    open.push(OpenContainer::Map(self.next_id(span)?, span, Vec::new(), None));
                    None
                }
                Event::SequenceEnd | Event::MappingEnd => open.pop().map(|container| close(container, span)),
                Event::Alias(..) | Event::UnresolvedAlias(..) | Event::Anchor(..) => {
                    return Err(alias_problem(span));
                }
                _ => None,
            };
            if open.len() > MAX_DEPTH {
                return Err(Problem::at(span, format!("nested more than {MAX_DEPTH} levels deep")));
            }
            if let Some(node) = done {
                match open.last_mut() {
                    Some(container) => add_child(container, node)?,
                    None => root = Some(node),
                }
            }
        }
        let empty =
            || Problem::at(SourceSpan { line: 1, column: 1, ..SourceSpan::default() }, "the file is empty");
        root.ok_or_else(empty)
    }

    fn next(&mut self) -> Result<Option<(Event<'a>, SourceSpan)>, Problem> {
        match self.parser.next() {
            None => Ok(None),
            Some(Ok((event, range))) => Ok(Some((event, self.source_span(&range)))),
            Some(Err(error)) => {
                let position = *error.marker();
                let span = self.source_span(&Span::new(position, position));
                Err(Problem::at(span, format!("not YAML: {}", error.info())))
            }
        }
    }

    fn source_span(&self, range: &Span) -> SourceSpan {
        let offset = range.start.byte_offset().unwrap_or(self.text.len()).min(self.text.len());
        let end = range.end.byte_offset().unwrap_or(offset).clamp(offset, self.text.len());
        // A container may span many lines. Underlining the first one is enough to show where it is.
        let first_line = self.text.get(offset..end).unwrap_or_default().lines().next().unwrap_or_default();
        SourceSpan {
            offset,
            length: first_line.trim_end().len(),
            line: range.start.line(),
            column: range.start.col() + 1,
        }
    }

    fn next_id(&mut self, span: SourceSpan) -> Result<u32, Problem> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(Problem::at(span, format!("the file has more than {MAX_NODES} keys and values")));
        }
        Ok(self.nodes)
    }

    fn node(&mut self, span: SourceSpan, kind: YamlNodeKind) -> Result<YamlNode, Problem> {
        Ok(YamlNode { id: self.next_id(span)?, span, kind, pruned: false })
    }
}

fn reject_anchor_and_tag(span: SourceSpan, anchor: usize, has_tag: bool) -> Result<(), Problem> {
    if anchor != 0 {
        return Err(alias_problem(span));
    }
    if has_tag {
        return Err(Problem::at(span, "tags (`!name`) are not allowed here").help("remove the tag"));
    }
    Ok(())
}

fn alias_problem(span: SourceSpan) -> Problem {
    Problem::at(span, "anchors (`&name`) and aliases (`*name`) are not allowed here")
        .help("write the value out")
}

fn close(container: OpenContainer, end: SourceSpan) -> YamlNode {
    let at_least_one_byte = |span: SourceSpan| {
        if span.length == 0 {
            SourceSpan { length: end.offset.saturating_sub(span.offset).min(1), ..span }
        } else {
            span
        }
    };
    match container {
        OpenContainer::List(id, span, items) => {
            YamlNode { id, span: at_least_one_byte(span), kind: YamlNodeKind::List(items), pruned: false }
        }
        OpenContainer::Map(id, span, pairs, _) => {
            YamlNode { id, span: at_least_one_byte(span), kind: YamlNodeKind::Map(pairs), pruned: false }
        }
    }
}

fn add_child(container: &mut OpenContainer, node: YamlNode) -> Result<(), Problem> {
    match container {
        OpenContainer::List(_, _, items) => items.push(node),
        OpenContainer::Map(_, _, pairs, key) => match key.take() {
            None if matches!(node.kind, YamlNodeKind::Scalar { .. }) => *key = Some(node),
            None => return Err(Problem::at(node.span, "a key must be a single value")),
            Some(map_key) => {
                let text = map_key.flow();
                if let Some((first, _)) = pairs.iter().find(|(other, _)| other.flow() == text) {
                    let message = format!("duplicate key `{text}`");
                    let help = format!("the first one is in line {}", first.span.line);
                    return Err(Problem::at(map_key.span, message).help(help));
                }
                pairs.push((map_key, node));
            }
        },
    }
    Ok(())
}
