//! YAML text -> a tree of nodes that know their places, within a budget. Anchors, aliases and tags are refused: no
//! scenario needs them, and without them a file can't be larger than it looks.

use granit_parser::{Event, Parser, ScalarStyle, Span};

use crate::problem::{Place, Problem};

const BYTES_MAX: usize = 1 << 20;
const NODES_MAX: u32 = 20_000;
const DEPTH_MAX: usize = 64;

/// A part of the file.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Unique in its tree.
    pub(crate) id: u32,
    pub(crate) place: Place,
    pub(crate) kind: Kind,
    /// Something wrong has been taken out of it: what it lacks now is not the writer's fault.
    pub(crate) mended: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// `plain`: not quoted.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// What it is, for a person.
    pub(crate) fn name(&self) -> &'static str {
        match &self.kind {
            Kind::Scalar { text, plain: true } if text.is_empty() => "nothing",
            Kind::Scalar { .. } => "a single value",
            Kind::List(_) => "a list",
            Kind::Map(_) => "a map",
        }
    }

    /// One line, flow style.
    pub(crate) fn flow(&self) -> String {
        match &self.kind {
            Kind::Scalar { text, plain: true } => text.clone(),
            Kind::Scalar { text, plain: false } => format!("'{}'", text.replace('\'', "''")),
            Kind::List(items) => format!("[{}]", items.iter().map(Node::flow).collect::<Vec<_>>().join(", ")),
            Kind::Map(pairs) => format!("{{{}}}", Node::flow_pairs(pairs)),
        }
    }

    /// As [`Node::flow`], without a map's braces.
    pub(crate) fn flow_pairs(pairs: &[(Node, Node)]) -> String {
        pairs
            .iter()
            .map(|(key, value)| format!("{}: {}", key.flow(), value.flow()))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// The tree of the only document in a text.
pub(crate) fn parse(text: &str) -> Result<Node, Problem> {
    if text.len() > BYTES_MAX {
        let message = format!("the file has {} bytes, and at most {BYTES_MAX} are read", text.len());
        return Err(Problem::at(Place { line: 1, column: 1, ..Place::default() }, message));
    }
    Builder { parser: Parser::new_from_str(text), nodes: 0, text }.document()
}

struct Builder<'a> {
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    nodes: u32,
    text: &'a str,
}

/// A container that is still open.
enum Open {
    List(u32, Place, Vec<Node>),
    Map(u32, Place, Vec<(Node, Node)>, Option<Node>),
}

impl<'a> Builder<'a> {
    /// Without recursion, so that depth costs no stack.
    fn document(mut self) -> Result<Node, Problem> {
        let mut open: Vec<Open> = Vec::new();
        let mut root: Option<Node> = None;
        while let Some((event, place)) = self.next()? {
            let done = match event {
                Event::DocumentStart(..) if root.is_some() => {
                    return Err(Problem::at(place, "a second document begins here, and a file holds one"));
                }
                Event::Scalar(text, style, anchor, tag) => {
                    refuse_extras(place, anchor, tag.is_some())?;
                    let kind =
                        Kind::Scalar { text: text.into_owned(), plain: matches!(style, ScalarStyle::Plain) };
                    Some(self.node(place, kind)?)
                }
                Event::SequenceStart(_, anchor, tag) => {
                    refuse_extras(place, anchor, tag.is_some())?;
                    open.push(Open::List(self.count(place)?, place, Vec::new()));
                    None
                }
                Event::MappingStart(_, anchor, tag) => {
                    refuse_extras(place, anchor, tag.is_some())?;
                    open.push(Open::Map(self.count(place)?, place, Vec::new(), None));
                    None
                }
                Event::SequenceEnd | Event::MappingEnd => {
                    open.pop().map(|container| closed(container, place))
                }
                Event::Alias(..) | Event::UnresolvedAlias(..) | Event::Anchor(..) => {
                    return Err(no_aliases(place));
                }
                _ => None,
            };
            if open.len() > DEPTH_MAX {
                return Err(Problem::at(place, format!("nested more than {DEPTH_MAX} deep")));
            }
            if let Some(node) = done {
                match open.last_mut() {
                    Some(container) => put(container, node)?,
                    None => root = Some(node),
                }
            }
        }
        let empty = || Problem::at(Place { line: 1, column: 1, ..Place::default() }, "the file is empty");
        root.ok_or_else(empty)
    }

    fn next(&mut self) -> Result<Option<(Event<'a>, Place)>, Problem> {
        match self.parser.next() {
            None => Ok(None),
            Some(Ok((event, span))) => Ok(Some((event, self.place(&span)))),
            Some(Err(error)) => {
                let at = *error.marker();
                let place = self.place(&Span::new(at, at));
                Err(Problem::at(place, format!("not YAML: {}", error.info())))
            }
        }
    }

    fn place(&self, span: &Span) -> Place {
        let offset = span.start.byte_offset().unwrap_or(self.text.len()).min(self.text.len());
        let end = span.end.byte_offset().unwrap_or(offset).clamp(offset, self.text.len());
        // What a container covers is too much to underline: its first line says where it is.
        let first_line = self.text.get(offset..end).unwrap_or_default().lines().next().unwrap_or_default();
        Place {
            offset,
            length: first_line.trim_end().len(),
            line: span.start.line(),
            column: span.start.col() + 1,
        }
    }

    fn count(&mut self, place: Place) -> Result<u32, Problem> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(Problem::at(place, format!("the file has more than {NODES_MAX} values")));
        }
        Ok(self.nodes)
    }

    fn node(&mut self, place: Place, kind: Kind) -> Result<Node, Problem> {
        Ok(Node { id: self.count(place)?, place, kind, mended: false })
    }
}

fn refuse_extras(place: Place, anchor: usize, tagged: bool) -> Result<(), Problem> {
    if anchor != 0 {
        return Err(no_aliases(place));
    }
    if tagged {
        return Err(Problem::at(place, "tags (`!name`) have no meaning here").help("take the tag away"));
    }
    Ok(())
}

fn no_aliases(place: Place) -> Problem {
    Problem::at(place, "anchors (`&name`) and aliases (`*name`) are not allowed here")
        .help("write the value out")
}

fn closed(container: Open, end: Place) -> Node {
    let reach = |place: Place| {
        if place.length == 0 {
            Place { length: end.offset.saturating_sub(place.offset).min(1), ..place }
        } else {
            place
        }
    };
    match container {
        Open::List(id, place, items) => {
            Node { id, place: reach(place), kind: Kind::List(items), mended: false }
        }
        Open::Map(id, place, pairs, _) => {
            Node { id, place: reach(place), kind: Kind::Map(pairs), mended: false }
        }
    }
}

fn put(container: &mut Open, node: Node) -> Result<(), Problem> {
    match container {
        Open::List(_, _, items) => items.push(node),
        Open::Map(_, _, pairs, key) => match key.take() {
            None if matches!(node.kind, Kind::Scalar { .. }) => *key = Some(node),
            None => return Err(Problem::at(node.place, "a key is a single word here")),
            Some(its_key) => {
                let text = its_key.flow();
                if let Some((first, _)) = pairs.iter().find(|(other, _)| other.flow() == text) {
                    let message = format!("`{text}` stands here a second time");
                    let help = format!("the first is in line {}", first.place.line);
                    return Err(Problem::at(its_key.place, message).help(help));
                }
                pairs.push((its_key, node));
            }
        },
    }
    Ok(())
}
