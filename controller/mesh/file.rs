//! The form of a mesh file: which keys it has, and where in it each text stands.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Error, MessageFormatter, Spanned, UserMessageFormatter};

use super::read::Reader;
use super::{Fault, Mesh};
use crate::proto::model::Invalid;

/// The longest file, in bytes: what a message of gRPC carries.
const LONGEST: usize = 4 << 20;
/// The levels of lists and maps within each other; a mesh has five.
const DEEPEST: usize = 16;

/// Parses a mesh file.
///
/// # Errors
/// Everything that is wrong with it; of a file that is no YAML or has unknown keys, the first.
pub fn parse(content: &str) -> Result<Mesh, Vec<Fault>> {
    if content.len() > LONGEST {
        let problem = format!("the file has {} bytes", content.len());
        return Err(vec![of_file(Invalid::new(problem, format!("use at most {LONGEST}")))]);
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: DEEPEST, flow_nesting_limit: DEEPEST },
        with_snippet: false,
    };
    let raw = serde_saphyr::from_str_with_options::<Option<RawMesh>>(content, options);
    match raw {
        Err(error) => Err(vec![of_yaml(&error, content)]),
        Ok(None) => {
            Err(vec![of_file(Invalid::new("the file is empty", "write a mesh: its name, overlay and nodes"))])
        }
        Ok(Some(raw)) => Reader::default().mesh(raw),
    }
}

pub(super) type Text = Spanned<String>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mesh")]
pub(super) struct RawMesh {
    pub(super) mesh: Option<Text>,
    pub(super) overlay: Option<Spanned<OneOrMore>>,
    pub(super) device: Option<Text>,
    pub(super) topology: Option<Text>,
    pub(super) security: Option<Text>,
    pub(super) mtu: Option<Text>,
    pub(super) without: Option<Spanned<OneOrMore>>,
    pub(super) nodes: Option<Entries<Option<RawNode>>>,
    pub(super) members: Option<Vec<Spanned<RawSelector>>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, expecting = "a node, as {endpoint: 172.100.1.2}")]
pub(super) struct RawNode {
    pub(super) kind: Option<Text>,
    pub(super) public_key: Option<Text>,
    pub(super) peers: Option<Spanned<OneOrMore>>,
    pub(super) endpoint: Option<Spanned<OneOrMore>>,
    pub(super) address: Option<Spanned<OneOrMore>>,
    pub(super) addresses: Option<Spanned<OneOrMore>>,
    pub(super) routes: Option<Vec<Text>>,
    pub(super) labels: Option<Entries<Text>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a selector, as {labels: {role: web}}")]
pub(super) struct RawSelector {
    pub(super) labels: Option<Entries<Text>>,
}

/// A text, or a list of texts.
pub(super) enum OneOrMore {
    One(String),
    More(Vec<Text>),
}

impl<'de> Deserialize<'de> for OneOrMore {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;

        impl<'de> Visitor<'de> for Texts {
            type Value = OneOrMore;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E>(self, text: &str) -> Result<OneOrMore, E> {
                Ok(OneOrMore::One(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<OneOrMore, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = list.next_element()? {
                    texts.push(text);
                }
                Ok(OneOrMore::More(texts))
            }
        }

        deserializer.deserialize_any(Texts)
    }
}

/// A map in the order of the file, with the places of its keys.
pub(super) struct Entries<V>(pub(super) Vec<(Text, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Entries<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for Map<V> {
            type Value = Entries<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("names with values, as {name: value}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<V>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(Map(PhantomData))
    }
}

fn of_file(fault: Invalid) -> Fault {
    Fault { place: None, field: String::new(), value: String::new(), fault }
}

/// A fault that is found before there are fields.
fn of_yaml(error: &Error, content: &str) -> Fault {
    const FORM: &str = "write YAML or JSON in the form of a mesh file";
    const SYNTAX: &str = "see here and the line before: what belongs together begins in one column, behind a name come a \
                          colon and a space, and what is opened is closed";
    let place = error.location().and_then(|location| number(location.line(), location.column()));
    // What an alias leads to is at fault, where it is used.
    let error = if let Error::AliasError { error, .. } = error { error } else { error };
    let (field, fault) = if let Error::SerdeUnknownField { field, expected, .. } = error {
        (field.clone(), Invalid::new("is not known here", format!("use {}", expected.join(", "))))
    } else if let Error::DuplicateMappingKey { key, .. } = error {
        (key.clone().unwrap_or_default(), Invalid::new("is there twice", "write each key once"))
    } else if let Error::Budget { .. } = error {
        let remedy = format!("write a mesh of at most {DEEPEST} levels, without heaps of aliases");
        (String::new(), Invalid::new("the file has too many or too deep values", remedy))
    } else {
        // What the parser finds, before it is looked at as a mesh.
        let is_syntax = matches!(error, Error::ExternalMessage { .. });
        if let Some(tab) = place.filter(|_| is_syntax).and_then(|(line, _)| tab(content, line)) {
            let fault = Invalid::new("the line is indented with a tab", "indent with spaces alone");
            return Fault { place: Some(tab), ..of_file(fault) };
        }
        let problem = UserMessageFormatter
            .format_message(error)
            .replace("mapping start", "a map, as {name: value}")
            .replace("sequence start", "a list, as [one, two]")
            .replace("string scalar", "a single value");
        (String::new(), Invalid::new(printable(&problem), if is_syntax { SYNTAX } else { FORM }))
    };
    Fault { place, field: printable(&field), value: String::new(), fault }
}

/// The tab in the indentation of a line, from 1, or the next. Where the whole file stands between brackets a tab is no
/// fault.
fn tab(content: &str, line: usize) -> Option<(usize, usize)> {
    if content.trim_start().starts_with(['{', '[']) {
        return None;
    }
    content.lines().enumerate().skip(line.checked_sub(1)?).take(2).find_map(|(at, text)| {
        let mut indentation = text.chars().take_while(|character| character.is_whitespace());
        indentation.position(|character| character == '\t').map(|column| (at + 1, column + 1))
    })
}

/// A text of the file without what moves a terminal's cursor.
fn printable(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

fn number(line: u64, column: u64) -> Option<(usize, usize)> {
    // Lines are counted from 1; 0 stands for an unknown place.
    (line > 0).then_some((usize::try_from(line).ok()?, usize::try_from(column).ok()?))
}

/// Where a value is used, line and column from 1.
pub(super) fn place<T>(spanned: &Spanned<T>) -> Option<(usize, usize)> {
    number(spanned.referenced.line(), spanned.referenced.column())
}
