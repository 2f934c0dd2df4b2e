//! YAML text to a tree of strings.
//!
//! Types come from the schema, never from how a scalar looks: `mac: 02:00:00:00:01:0a` and a port named `on`
//! are strings. Anchors, aliases, tags and several documents are refused, so a document says what it looks
//! like it says and cannot expand beyond its own size.

use std::collections::HashSet;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::problem::Problems;
use super::scalar::quote;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct Node {
    /// 1-based; 0: in no document.
    pub line: usize,
    pub kind: NodeKind,
}

/// What a value is made of.
#[derive(Clone, Debug)]
pub enum NodeKind {
    /// A single value, of whatever type.
    Scalar {
        /// As written, without quotes.
        text: String,
        /// Whether it was in quotes.
        quoted: bool,
    },
    /// A list.
    Sequence(Vec<Node>),
    /// In document order; keys are scalars and unique.
    Mapping(Vec<(Node, Node)>),
}

/// A step from a node to one inside it.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    Field(&'a str),
    Item(usize),
}

impl Node {
    /// Whether it says nothing: `key:`, `key: ~`, `key: null`.
    pub fn is_null(&self) -> bool {
        match &self.kind {
            NodeKind::Scalar { text, quoted: false } => matches!(text.as_str(), "" | "~" | "null"),
            _ => false,
        }
    }

    /// The text of a scalar.
    pub fn as_text(&self) -> Option<&str> {
        match &self.kind {
            NodeKind::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// The value of a mapping's field.
    pub fn field(&self, name: &str) -> Option<&Node> {
        match &self.kind {
            NodeKind::Mapping(fields) => {
                fields.iter().find(|(key, _)| key.as_text() == Some(name)).map(|(_, value)| value)
            }
            _ => None,
        }
    }

    /// The line of what `path` leads to, or of the last node on the way that exists.
    pub fn line_of(&self, path: &[Step<'_>]) -> usize {
        let mut node = self;
        for step in path {
            let next = match (step, &node.kind) {
                (Step::Field(name), _) => node.field(name),
                (Step::Item(index), NodeKind::Sequence(items)) => items.get(*index),
                (Step::Item(_), _) => None,
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node.line
    }
}

/// Reads the one document in `text`. `None`: it cannot be read, and `problems` says why. Duplicate keys are
/// reported but do not stop the reading; the first one counts.
pub fn read(text: &str, problems: &mut Problems) -> Option<Node> {
    match read_tree(text, problems) {
        Ok(root) => Some(root),
        Err(Refusal { line, message, remedy }) => {
            problems.push(line, "document", message, remedy);
            None
        }
    }
}

/// Largest document read, in bytes.
pub const MAX_BYTES: usize = 64 << 20;
/// Deepest nesting; the schema needs seven.
const MAX_DEPTH: usize = 32;
/// Most punctuation marks in a document, a pair of quotes being one: enough for 40,000 ports in JSON and
/// 100,000 in block style. The scanner holds all tokens of a flow collection in memory, some hundred bytes
/// each and up to three to a mark, before it hands out the first: this keeps them below a gigabyte.
const MAX_MARKS: usize = 1_500_000;

/// Why reading ended.
struct Refusal {
    line: usize,
    message: String,
    remedy: String,
}

impl Refusal {
    fn new(line: usize, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { line, message: message.into(), remedy: remedy.into() }
    }
}

fn read_tree(text: &str, problems: &mut Problems) -> Result<Node, Refusal> {
    check_size(text)?;
    let mut tree = Builder::default();
    let mut documents = 0;
    let mut parser = Parser::new_from_str(text);
    while let Some(next) = parser.next_event() {
        let (event, span) = next.map_err(|error| {
            Refusal::new(
                error.marker().line(),
                format!("this is not YAML: {} (column {})", error.info(), error.marker().col() + 1),
                "check the indentation, quotes and brackets here and just above",
            )
        })?;
        if matches!(event, Event::DocumentStart(_)) {
            documents += 1;
            if documents > 1 {
                return Err(Refusal::new(
                    span.start.line(),
                    "a second document starts here",
                    "write one document to a file, without a `---` in the middle",
                ));
            }
        }
        tree.take(event, span, problems)?;
    }
    tree.root.ok_or_else(|| {
        // An editor that truncates before it writes must not take every network down.
        Refusal::new(1, "the document is empty", "write `{}` if there is to be no network at all")
    })
}

fn check_size(text: &str) -> Result<(), Refusal> {
    if text.len() > MAX_BYTES {
        return Err(Refusal::new(
            1,
            format!("the document has {} bytes; at most {MAX_BYTES} are read", text.len()),
            "leave out what is not part of the topology",
        ));
    }
    let bytes = text.as_bytes();
    let ends_word =
        |i: usize| bytes.get(i + 1).is_none_or(|next| next.is_ascii_whitespace() || b",[]{}".contains(next));
    let (mut marks, mut quotes) = (0, 0);
    for (i, byte) in bytes.iter().enumerate() {
        match byte {
            b',' | b'[' | b']' | b'{' | b'}' | b'&' | b'*' | b'!' => marks += 1,
            b':' | b'?' | b'-' if ends_word(i) => marks += 1,
            b'"' | b'\'' => quotes += 1,
            _ => {}
        }
    }
    if marks + quotes / 2 > MAX_MARKS {
        return Err(Refusal::new(
            1,
            format!("the document has more than {MAX_MARKS} punctuation marks"),
            "leave out what is not part of the topology, and quotes that are not needed",
        ));
    }
    Ok(())
}

/// Builds the tree without recursion; `open` holds the collections not closed yet.
#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<Node>,
}

struct Open {
    node: Node,
    /// In a mapping: the key whose value comes next, and whether it was there before.
    key: Option<(Node, bool)>,
    keys: HashSet<String>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span, problems: &mut Problems) -> Result<(), Refusal> {
        let line = span.start.line();
        match event {
            Event::Alias(_) => Err(anchored(line)),
            Event::Scalar(_, _, anchor, _)
            | Event::SequenceStart(anchor, _)
            | Event::MappingStart(anchor, _)
                if anchor > 0 =>
            {
                Err(anchored(line))
            }
            Event::Scalar(_, _, _, Some(tag))
            | Event::SequenceStart(_, Some(tag))
            | Event::MappingStart(_, Some(tag)) => Err(Refusal::new(
                line,
                format!("the tag {} is not understood here", quote(&tag.to_string())),
                "write the value without a tag",
            )),
            Event::Scalar(text, style, ..) => {
                let quoted = style != ScalarStyle::Plain;
                let kind = NodeKind::Scalar { text: text.into_owned(), quoted };
                self.add(Node { line, kind }, problems)
            }
            Event::SequenceStart(..) => self.open(Node { line, kind: NodeKind::Sequence(Vec::new()) }),
            Event::MappingStart(..) => self.open(Node { line, kind: NodeKind::Mapping(Vec::new()) }),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(closed) => self.add(closed.node, problems),
                None => Ok(()),
            },
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    fn open(&mut self, node: Node) -> Result<(), Refusal> {
        if self.open.len() == MAX_DEPTH {
            return Err(Refusal::new(
                node.line,
                format!("the nesting is deeper than {MAX_DEPTH}"),
                "a topology needs seven levels; check the brackets and the indentation",
            ));
        }
        self.open.push(Open { node, key: None, keys: HashSet::new() });
        Ok(())
    }

    fn add(&mut self, node: Node, problems: &mut Problems) -> Result<(), Refusal> {
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut parent.node.kind {
            NodeKind::Sequence(items) => items.push(node),
            NodeKind::Mapping(fields) => match parent.key.take() {
                Some((key, repeated)) => {
                    if !repeated {
                        fields.push((key, node));
                    }
                }
                None => {
                    let Some(name) = node.as_text() else {
                        return Err(Refusal::new(
                            node.line,
                            "a field's name must be a word, and here it is a list or a mapping",
                            "write `name: value`; quote a value that starts with `{` or `[`",
                        ));
                    };
                    let repeated = !parent.keys.insert(name.to_owned());
                    if repeated {
                        problems.push(
                            node.line,
                            "document",
                            format!("the field {} is written twice in one place", quote(name)),
                            "keep one of the two",
                        );
                    }
                    parent.key = Some((node, repeated));
                }
            },
            NodeKind::Scalar { .. } => {}
        }
        Ok(())
    }
}

fn anchored(line: usize) -> Refusal {
    Refusal::new(
        line,
        "anchors (`&`) and aliases (`*`) are not supported",
        "write the value out; quote a text that starts with `&` or `*`",
    )
}
