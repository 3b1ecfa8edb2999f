//! YAML text -> a tree of nodes that know their places, within a budget. Anchors, aliases and tags are refused: no
//! scenario needs them, and without them a file can't be larger than it looks.

use granit_parser::{Event, Parser, ScalarStyle, Span};

use crate::problem::{Problem, SourceSpan};

const MAX_BYTES: usize = 1 << 20;
const MAX_NODES: u32 = 20_000;
const MAX_DEPTH: usize = 64;

/// A part of the file.
#[derive(Debug, Clone)]
pub(crate) struct YamlNode {
    /// Unique in its tree.
    pub(crate) id: u32,
    pub(crate) span: SourceSpan,
    pub(crate) kind: YamlNodeKind,
    /// Something wrong has been taken out of it: what it lacks now is not the writer's fault.
    pub(crate) pruned: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum YamlNodeKind {
    /// `plain`: not quoted.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<YamlNode>),
    Map(Vec<(YamlNode, YamlNode)>),
}

impl YamlNode {
    /// What it is, for a person.
    pub(crate) fn describe(&self) -> &'static str {
        match &self.kind {
            YamlNodeKind::Scalar { text, plain: true } if text.is_empty() => "nothing",
            YamlNodeKind::Scalar { .. } => "a single value",
            YamlNodeKind::List(_) => "a list",
            YamlNodeKind::Map(_) => "a map",
        }
    }

    /// One line, flow style.
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

    /// As [`Node::flow`], without a map's braces.
    pub(crate) fn flow_pairs(pairs: &[(YamlNode, YamlNode)]) -> String {
        pairs
            .iter()
            .map(|(key, value)| format!("{}: {}", key.flow(), value.flow()))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// The tree of the only document in a text.
pub(crate) fn parse(text: &str) -> Result<YamlNode, Problem> {
    if text.len() > MAX_BYTES {
        let message = format!("the file has {} bytes, and at most {MAX_BYTES} are read", text.len());
        return Err(Problem::at(SourceSpan { line: 1, column: 1, ..SourceSpan::default() }, message));
    }
    TreeBuilder { parser: Parser::new_from_str(text), nodes: 0, text }.document()
}

struct TreeBuilder<'a> {
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    nodes: u32,
    text: &'a str,
}

/// A container that is still open.
enum OpenContainer {
    List(u32, SourceSpan, Vec<YamlNode>),
    Map(u32, SourceSpan, Vec<(YamlNode, YamlNode)>, Option<YamlNode>),
}

impl<'a> TreeBuilder<'a> {
    /// Without recursion, so that depth costs no stack.
    fn document(mut self) -> Result<YamlNode, Problem> {
        let mut open: Vec<OpenContainer> = Vec::new();
        let mut root: Option<YamlNode> = None;
        while let Some((event, place)) = self.next()? {
            let done = match event {
                Event::DocumentStart(..) if root.is_some() => {
                    return Err(Problem::at(place, "a second document begins here, and a file holds one"));
                }
                Event::Scalar(text, style, anchor, tag) => {
                    reject_anchor_and_tag(place, anchor, tag.is_some())?;
                    let kind = YamlNodeKind::Scalar {
                        text: text.into_owned(),
                        plain: matches!(style, ScalarStyle::Plain),
                    };
                    Some(self.node(place, kind)?)
                }
                Event::SequenceStart(_, anchor, tag) => {
                    reject_anchor_and_tag(place, anchor, tag.is_some())?;
                    open.push(OpenContainer::List(self.next_id(place)?, place, Vec::new()));
                    None
                }
                Event::MappingStart(_, anchor, tag) => {
                    reject_anchor_and_tag(place, anchor, tag.is_some())?;
                    open.push(OpenContainer::Map(self.next_id(place)?, place, Vec::new(), None));
                    None
                }
                Event::SequenceEnd | Event::MappingEnd => open.pop().map(|container| close(container, place)),
                Event::Alias(..) | Event::UnresolvedAlias(..) | Event::Anchor(..) => {
                    return Err(alias_problem(place));
                }
                _ => None,
            };
            if open.len() > MAX_DEPTH {
                return Err(Problem::at(place, format!("nested more than {MAX_DEPTH} deep")));
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
            Some(Ok((event, span))) => Ok(Some((event, self.source_span(&span)))),
            Some(Err(error)) => {
                let at = *error.marker();
                let place = self.source_span(&Span::new(at, at));
                Err(Problem::at(place, format!("not YAML: {}", error.info())))
            }
        }
    }

    fn source_span(&self, span: &Span) -> SourceSpan {
        let offset = span.start.byte_offset().unwrap_or(self.text.len()).min(self.text.len());
        let end = span.end.byte_offset().unwrap_or(offset).clamp(offset, self.text.len());
        // What a container covers is too much to underline: its first line says where it is.
        let first_line = self.text.get(offset..end).unwrap_or_default().lines().next().unwrap_or_default();
        SourceSpan {
            offset,
            length: first_line.trim_end().len(),
            line: span.start.line(),
            column: span.start.col() + 1,
        }
    }

    fn next_id(&mut self, place: SourceSpan) -> Result<u32, Problem> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(Problem::at(place, format!("the file has more than {MAX_NODES} values")));
        }
        Ok(self.nodes)
    }

    fn node(&mut self, place: SourceSpan, kind: YamlNodeKind) -> Result<YamlNode, Problem> {
        Ok(YamlNode { id: self.next_id(place)?, span: place, kind, pruned: false })
    }
}

fn reject_anchor_and_tag(place: SourceSpan, anchor: usize, tagged: bool) -> Result<(), Problem> {
    if anchor != 0 {
        return Err(alias_problem(place));
    }
    if tagged {
        return Err(Problem::at(place, "tags (`!name`) have no meaning here").help("take the tag away"));
    }
    Ok(())
}

fn alias_problem(place: SourceSpan) -> Problem {
    Problem::at(place, "anchors (`&name`) and aliases (`*name`) are not allowed here")
        .help("write the value out")
}

fn close(container: OpenContainer, end: SourceSpan) -> YamlNode {
    let reach = |place: SourceSpan| {
        if place.length == 0 {
            SourceSpan { length: end.offset.saturating_sub(place.offset).min(1), ..place }
        } else {
            place
        }
    };
    match container {
        OpenContainer::List(id, place, items) => {
            YamlNode { id, span: reach(place), kind: YamlNodeKind::List(items), pruned: false }
        }
        OpenContainer::Map(id, place, pairs, _) => {
            YamlNode { id, span: reach(place), kind: YamlNodeKind::Map(pairs), pruned: false }
        }
    }
}

fn add_child(container: &mut OpenContainer, node: YamlNode) -> Result<(), Problem> {
    match container {
        OpenContainer::List(_, _, items) => items.push(node),
        OpenContainer::Map(_, _, pairs, key) => match key.take() {
            None if matches!(node.kind, YamlNodeKind::Scalar { .. }) => *key = Some(node),
            None => return Err(Problem::at(node.span, "a key is a single word here")),
            Some(its_key) => {
                let text = its_key.flow();
                if let Some((first, _)) = pairs.iter().find(|(other, _)| other.flow() == text) {
                    let message = format!("`{text}` stands here a second time");
                    let help = format!("the first is in line {}", first.span.line);
                    return Err(Problem::at(its_key.span, message).help(help));
                }
                pairs.push((its_key, node));
            }
        },
    }
    Ok(())
}
