//! Options of sources, sinks and streams: a JSON object, read key by key, where what nobody has asked for is a mistake of the
//! operator's and is named. Runs in the backend that defines them, and again in the worker that uses them.

use serde_json::{Map, Value};
use std::time::Duration;

/// What is wrong with which option. Its text is shown to who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("option \"{option}\" {why}")]
pub struct OptionError {
    pub option: String,
    /// Continues the sentence: "must be …", "is required".
    pub why: String,
}

impl OptionError {
    pub fn new(option: impl Into<String>, why: impl Into<String>) -> Self {
        Self { option: option.into(), why: why.into() }
    }
}

/// Takes options out of an object by name. What is left at the end was misspelt.
#[derive(Debug, Clone)]
pub struct Options {
    left: Map<String, Value>,
}

impl Options {
    pub fn new(options: &Map<String, Value>) -> Self {
        Self { left: options.clone() }
    }

    /// The option as it stands; null is as if it were absent.
    pub fn value(&mut self, name: &str) -> Option<Value> {
        self.left.remove(name).filter(|value| !value.is_null())
    }

    /// It is there and not null.
    pub fn has(&self, name: &str) -> bool {
        self.left.get(name).is_some_and(|value| !value.is_null())
    }

    /// Which of an option's two names was used.
    ///
    /// # Errors
    /// When both were.
    pub fn either(&self, name: &'static str, other: &'static str) -> Result<&'static str, OptionError> {
        match (self.has(name), self.has(other)) {
            (true, true) => Err(OptionError::new(other, format!("is another name of \"{name}\": give one"))),
            (false, true) => Ok(other),
            _ => Ok(name),
        }
    }

    /// # Errors
    /// When it is no string.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, OptionError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(OptionError::new(name, "must be a string")),
        }
    }

    /// # Errors
    /// When it is absent or empty or no string.
    pub fn required(&mut self, name: &str) -> Result<String, OptionError> {
        match self.text(name)? {
            Some(text) if !text.is_empty() => Ok(text),
            _ => Err(OptionError::new(name, "is required")),
        }
    }

    /// # Errors
    /// When it is neither true nor false.
    pub fn flag(&mut self, name: &str, default: bool) -> Result<bool, OptionError> {
        match self.value(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(_) => Err(OptionError::new(name, "must be true or false")),
        }
    }

    /// # Errors
    /// When it is no whole number within the bounds.
    pub fn number(&mut self, name: &str, default: u64, least: u64, most: u64) -> Result<u64, OptionError> {
        match self.value(name) {
            None => Ok(default),
            Some(value) => value.as_u64().filter(|number| (least..=most).contains(number)).ok_or_else(|| {
                OptionError::new(name, format!("must be a whole number from {least} to {most}"))
            }),
        }
    }

    /// Milliseconds as a number, or text with a unit as in postgresql.conf (`100ms`, `5s`, `2min`, `1h`).
    ///
    /// # Errors
    /// When it is neither.
    pub fn time(&mut self, name: &str, default: Duration) -> Result<Duration, OptionError> {
        let wrong =
            || OptionError::new(name, "must be a time such as \"100ms\", \"5s\", \"2min\" or milliseconds");
        match self.value(name) {
            None => Ok(default),
            Some(Value::Number(number)) => number.as_u64().map(Duration::from_millis).ok_or_else(wrong),
            Some(Value::String(text)) => {
                let (number, unit) = split_unit(&text).ok_or_else(wrong)?;
                let unit = match unit {
                    "ms" | "" => 1,
                    "s" => 1_000,
                    "min" => 60_000,
                    "h" => 3_600_000,
                    "d" => 86_400_000,
                    _ => return Err(wrong()),
                };
                number.checked_mul(unit).map(Duration::from_millis).ok_or_else(wrong)
            }
            Some(_) => Err(wrong()),
        }
    }

    /// Bytes as a number, or text with a unit as in postgresql.conf (`64kB`, `16MB`, `1GB`).
    ///
    /// # Errors
    /// When it is neither.
    pub fn bytes(&mut self, name: &str, default: u64) -> Result<u64, OptionError> {
        let wrong = || OptionError::new(name, "must be a size such as \"64kB\", \"16MB\", \"1GB\" or bytes");
        match self.value(name) {
            None => Ok(default),
            Some(Value::Number(number)) => number.as_u64().ok_or_else(wrong),
            Some(Value::String(text)) => {
                let (number, unit) = split_unit(&text).ok_or_else(wrong)?;
                let unit = match unit {
                    "B" | "" => 1,
                    "kB" => 1 << 10,
                    "MB" => 1 << 20,
                    "GB" => 1 << 30,
                    "TB" => 1 << 40,
                    _ => return Err(wrong()),
                };
                number.checked_mul(unit).ok_or_else(wrong)
            }
            Some(_) => Err(wrong()),
        }
    }

    /// One of a few words.
    ///
    /// # Errors
    /// When it is none of them.
    pub fn one_of<T: Copy>(&mut self, name: &str, words: &[(&str, T)], default: T) -> Result<T, OptionError> {
        let wrong = || {
            let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            OptionError::new(name, format!("must be one of {}", words.join(", ")))
        };
        match self.value(name) {
            None => Ok(default),
            Some(Value::String(text)) => {
                words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(wrong)
            }
            Some(_) => Err(wrong()),
        }
    }

    /// A list of strings; one string alone is a list of one.
    ///
    /// # Errors
    /// When it is something else.
    pub fn list(&mut self, name: &str) -> Result<Vec<String>, OptionError> {
        let wrong = || OptionError::new(name, "must be a string or a list of strings");
        match self.value(name) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text]),
            Some(Value::Array(values)) => values
                .into_iter()
                .map(|value| if let Value::String(text) = value { Ok(text) } else { Err(wrong()) })
                .collect(),
            Some(_) => Err(wrong()),
        }
    }

    /// An object whose values are strings, numbers or flags, all given as text.
    ///
    /// # Errors
    /// When it is something else.
    pub fn map(&mut self, name: &str) -> Result<Vec<(String, String)>, OptionError> {
        let wrong = || OptionError::new(name, "must be an object of strings");
        match self.value(name) {
            None => Ok(Vec::new()),
            Some(Value::Object(values)) => values
                .into_iter()
                .map(|(key, value)| match value {
                    Value::String(text) => Ok((key, text)),
                    Value::Number(_) | Value::Bool(_) => Ok((key, value.to_string())),
                    _ => Err(wrong()),
                })
                .collect(),
            Some(_) => Err(wrong()),
        }
    }

    /// Nothing may be left.
    ///
    /// # Errors
    /// Names the first option that nobody has asked for.
    pub fn finish(self) -> Result<(), OptionError> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(name) => Err(OptionError::new(name.clone(), "is not known")),
        }
    }
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    Some((text[..digits].parse().ok()?, text[digits..].trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(json: &str) -> Options {
        match serde_json::from_str(json).unwrap() {
            Value::Object(map) => Options::new(&map),
            _ => panic!("no object"),
        }
    }

    #[test]
    fn each_kind_is_read_and_what_is_left_is_named() {
        let mut o = options(
            r#"{"t":"x","f":true,"n":7,"d":"5s","m":100,"b":"16MB","w":"all","l":["a","b"],"one":"a",
                "o":{"a":"b","c":1},"null":null,"left":1}"#,
        );
        assert_eq!(o.required("t").unwrap(), "x");
        assert!(o.flag("f", false).unwrap() && !o.flag("absent", false).unwrap());
        assert_eq!(o.number("n", 1, 0, 7).unwrap(), 7);
        assert_eq!(o.time("d", Duration::ZERO).unwrap(), Duration::from_secs(5));
        assert_eq!(o.time("m", Duration::ZERO).unwrap(), Duration::from_millis(100));
        assert_eq!(o.bytes("b", 0).unwrap(), 16 << 20);
        assert_eq!(o.one_of("w", &[("all", -1), ("1", 1)], 1).unwrap(), -1);
        assert_eq!(o.list("l").unwrap(), ["a", "b"]);
        assert_eq!(o.list("one").unwrap(), ["a"]);
        assert_eq!(o.map("o").unwrap(), [("a".into(), "b".into()), ("c".into(), "1".into())]);
        assert_eq!(o.text("null").unwrap(), None);
        assert_eq!(o.finish().unwrap_err().to_string(), "option \"left\" is not known");
    }

    #[test]
    fn what_is_wrong_says_what_would_be_right() {
        let wrong = |json: &str, read: fn(&mut Options) -> Option<OptionError>| {
            read(&mut options(json)).unwrap().to_string()
        };
        assert_eq!(wrong("{}", |o| o.required("a").err()), "option \"a\" is required");
        assert_eq!(wrong(r#"{"a":""}"#, |o| o.required("a").err()), "option \"a\" is required");
        assert_eq!(wrong(r#"{"a":1}"#, |o| o.text("a").err()), "option \"a\" must be a string");
        let number = "option \"a\" must be a whole number from 2 to 3";
        assert_eq!(wrong(r#"{"a":1}"#, |o| o.number("a", 2, 2, 3).err()), number);
        assert_eq!(wrong(r#"{"a":4}"#, |o| o.number("a", 2, 2, 3).err()), number);
        assert_eq!(wrong(r#"{"a":2.5}"#, |o| o.number("a", 2, 2, 3).err()), number);
        for bad in [r#"{"a":"5 parsecs"}"#, r#"{"a":"s"}"#, r#"{"a":-1}"#, r#"{"a":"99999999999999999999s"}"#]
        {
            assert!(wrong(bad, |o| o.time("a", Duration::ZERO).err()).contains("must be a time"));
            assert!(wrong(bad, |o| o.bytes("a", 0).err()).contains("must be a size"));
        }
        let one_of = wrong(r#"{"a":"c"}"#, |o| o.one_of("a", &[("x", 1), ("y", 2)], 1).err());
        assert_eq!(one_of, "option \"a\" must be one of x, y");
        assert!(wrong(r#"{"a":[1]}"#, |o| o.list("a").err()).contains("list of strings"));
        assert!(wrong(r#"{"a":{"b":[]}}"#, |o| o.map("a").err()).contains("object of strings"));
    }
}
