//! An entry as fields: JSON has them as they are, people get them as words.

use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::Value;

/// Names and values, in order.
#[derive(Clone, Debug, Default)]
pub struct Fields(pub Vec<(&'static str, Value)>);

/// `fields![name: value, ...]`.
macro_rules! fields {
    ($($name:ident: $value:expr),* $(,)?) => {
        $crate::commands::map_dump::entry::Fields(vec![
            $((stringify!($name), $crate::commands::map_dump::entry::value(&$value)),)*
        ])
    };
}
pub(super) use fields;

/// A field's value. Numbers, texts and lists stay what they are.
pub fn value(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// An entry of a map.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// `in force`, or `other`: of the bank no packet reads. Empty where there are no banks.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub bank: &'static str,
    pub key: Fields,
    pub value: Fields,
    /// The key for people, where joining its fields would not be readable.
    #[serde(skip)]
    pub key_text: Option<String>,
}

impl Entry {
    /// An entry.
    pub fn new(key: Fields, value: Fields) -> Self {
        Self { bank: "", key, value, key_text: None }
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// Names and values in turn. What is empty, absent or false is left out; what is true is only named.
impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        for (name, value) in &self.0 {
            let text = match value {
                Value::Null | Value::Bool(false) => continue,
                Value::Bool(true) => String::new(),
                Value::String(text) if text.is_empty() => continue,
                Value::String(text) => format!(" {text}"),
                Value::Array(values) if values.is_empty() => continue,
                Value::Array(values) => {
                    let words: Vec<_> = values
                        .iter()
                        .map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
                        .collect();
                    format!(" {}", words.join(","))
                }
                value => format!(" {value}"),
            };
            write!(f, "{between}{}{text}", name.replace('_', " "))?;
            between = " ";
        }
        Ok(())
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bank == "other" {
            f.write_str("(not in force) ")?;
        }
        match &self.key_text {
            Some(text) => f.write_str(text)?,
            None => write!(f, "{}", self.key)?,
        }
        write!(f, " -> {}", self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_get_fields_and_people_words() {
        let entry = Entry::new(
            fields![router: "r1", destination: "10.0.0.0/8"],
            fields![kind: "via", mtu: 1450, src_mac: "02:00", nothing: "", list: [1, 2], on: true, off: false],
        );
        let json = serde_json::to_string(&Entry { bank: "other", ..entry.clone() }).expect("JSON");
        assert_eq!(
            json,
            "{\"bank\":\"other\",\"key\":{\"router\":\"r1\",\"destination\":\"10.0.0.0/8\"},\"value\":{\"kind\":\"via\",\
             \"mtu\":1450,\"src_mac\":\"02:00\",\"nothing\":\"\",\"list\":[1,2],\"on\":true,\"off\":false}}"
        );
        assert_eq!(
            entry.to_string(),
            "router r1 destination 10.0.0.0/8 -> kind via mtu 1450 src mac 02:00 list 1,2 on"
        );
    }
}
