//! What is wrong with a document: every problem with its place, its object and its mend.

use std::fmt;

use serde::Serialize;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// 1-based; 0 when the document could not be read at all.
    pub line: usize,
    /// The object in the document's words: `port vm1`, or `ports[3]` while it has no usable name.
    pub object: String,
    pub message: String,
    /// What to write instead.
    pub remedy: String,
}

/// Everything that is wrong with one document, in the order of its lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Problems {
    /// The document's name as the user gave it.
    pub file: String,
    #[serde(rename = "problems")]
    list: Vec<Problem>,
    /// How many were found beyond [`KEPT`].
    omitted: usize,
}

/// Nobody reads more; and a hostile document must not turn into gigabytes of complaints.
const KEPT: usize = 1000;

impl Problems {
    /// No problems yet with the document of this name.
    #[must_use]
    pub fn new(file: &str) -> Self {
        Self { file: file.to_owned(), ..Self::default() }
    }

    /// Only this problem, which left nothing else to look at.
    #[must_use]
    pub fn of_document(file: &str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        let mut problems = Self::new(file);
        problems.push(0, "document", message, remedy);
        problems
    }

    /// Adds a problem.
    pub fn push(
        &mut self,
        line: usize,
        object: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        if self.list.len() == KEPT {
            self.omitted += 1;
            return;
        }
        let (object, message, remedy) = (object.into(), message.into(), remedy.into());
        self.list.push(Problem { line, object, message, remedy });
    }

    /// Puts them in the order of the document.
    pub fn sort(&mut self) {
        self.list.sort_by_key(|problem| problem.line);
    }

    /// The problems, without those beyond the first thousand.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.list.iter()
    }

    /// How many there are, those beyond the first thousand included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.list.len() + self.omitted
    }

    /// Whether the document is in order.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Problem { line, object, message, remedy }) in self.list.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:", self.file)?;
            if *line > 0 {
                write!(f, "{line}:")?;
            }
            write!(f, " {object}: {message}\n    mend: {remedy}")?;
        }
        if self.omitted > 0 {
            write!(f, "\nand {} more", self.omitted)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
