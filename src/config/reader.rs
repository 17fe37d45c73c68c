//! Reads typed values from the layers, and collects all mistakes.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use toml::Value;
use url::Url;

use super::broker::{broker, is_cut};
use super::layers::{ConfigError, Layers, Origin};
use super::tls::{Authorities, Identity, KeyFiles};

pub struct Reader {
    layers: Layers,
    asked: BTreeSet<String>,
    mistakes: Vec<ConfigError>,
}

impl Reader {
    pub fn new(mut layers: Layers) -> Self {
        Self {
            mistakes: layers.take_mistakes(),
            layers,
            asked: BTreeSet::new(),
        }
    }

    /// The configuration, or all mistakes. A key that the code never read is a mistake, because most such keys are typing errors.
    pub fn finish<T>(mut self, config: T) -> Result<T, Vec<ConfigError>> {
        let unknown: Vec<ConfigError> = self
            .layers
            .keys()
            .filter(|(key, _)| !self.asked.contains(*key))
            .map(|(key, origin)| ConfigError {
                key: key.to_owned(),
                origin: origin.clone(),
                problem: "is not a key that we know".into(),
            })
            .collect();
        self.mistakes.extend(unknown);
        if self.mistakes.is_empty() {
            Ok(config)
        } else {
            Err(self.mistakes)
        }
    }

    pub fn mistake(&mut self, key: &str, problem: impl Into<String>) {
        let origin = self.origin(key);
        self.mistakes.push(ConfigError {
            key: key.to_owned(),
            origin,
            problem: problem.into(),
        });
    }

    fn origin(&self, key: &str) -> Origin {
        self.layers
            .get(key)
            .map_or(Origin::Default, |(_, origin)| origin.clone())
    }

    fn value(&mut self, key: &str) -> Option<Value> {
        self.asked.insert(key.to_owned());
        self.layers.get(key).map(|(value, _)| value.clone())
    }

    /// A text value. A number gives its decimal form.
    pub fn text(&mut self, key: &str) -> String {
        match self.value(key) {
            Some(Value::String(text)) => text.trim().to_owned(),
            Some(Value::Integer(number)) => number.to_string(),
            Some(_) => {
                self.mistake(key, "is not text");
                String::new()
            }
            None => String::new(),
        }
    }

    pub fn required_text(&mut self, key: &str) -> String {
        let text = self.text(key);
        if text.is_empty() {
            self.mistake(key, "is empty");
        }
        text
    }

    /// An integer between `min` and `max`, both included.
    pub fn number<T>(&mut self, key: &str, min: T, max: T) -> T
    where
        T: TryFrom<u64> + Copy + std::fmt::Display + PartialOrd,
    {
        let number = match self.value(key) {
            Some(Value::Integer(number)) => u64::try_from(number).ok(),
            Some(Value::String(text)) => text.trim().parse().ok(),
            _ => None,
        };
        let inside = number
            .and_then(|n| T::try_from(n).ok())
            .filter(|n| *n >= min && *n <= max);
        inside.unwrap_or_else(|| {
            self.mistake(key, format!("is not a whole number between {min} and {max}"));
            min
        })
    }

    pub fn millis(&mut self, key: &str, min: u64, max: u64) -> Duration {
        Duration::from_millis(self.wide(key, min, max))
    }

    pub fn seconds(&mut self, key: &str, min: u64, max: u64) -> Duration {
        Duration::from_secs(self.wide(key, min, max))
    }

    pub fn days(&mut self, key: &str, min: u64, max: u64) -> Duration {
        Duration::from_secs(self.wide(key, min, max) * 86_400)
    }

    fn wide(&mut self, key: &str, min: u64, max: u64) -> u64 {
        self.number(key, min, max)
    }

    /// A list of milliseconds: a TOML array, or numbers separated by blanks or commas.
    pub fn millis_list(&mut self, key: &str) -> Vec<Duration> {
        let numbers: Option<Vec<u64>> = match self.value(key) {
            Some(Value::Array(items)) => items
                .iter()
                .map(|i| i.as_integer().and_then(|i| u64::try_from(i).ok()))
                .collect(),
            Some(Value::String(text)) => words(&text).map(|word| word.parse().ok()).collect(),
            _ => None,
        };
        match numbers {
            Some(numbers) if !numbers.is_empty() => numbers.into_iter().map(Duration::from_millis).collect(),
            _ => {
                self.mistake(key, "is not a list of at least one whole number");
                vec![Duration::from_secs(5)]
            }
        }
    }

    /// A list whose items are parsed as `T`: a TOML array of texts, or words separated by blanks or commas.
    pub fn list_of<T>(&mut self, key: &str) -> Vec<T>
    where
        T: std::str::FromStr<Err: std::fmt::Display>,
    {
        let separate = |text: String| words(&text).map(str::to_owned).collect();
        self.parsed(key, separate, |_, text| format!("an item {text:?}"))
    }

    /// As `list_of`. The items may be secrets, and may contain blanks and commas: a text is one item.
    pub fn list_of_secrets<T>(&mut self, key: &str) -> Vec<T>
    where
        T: std::str::FromStr<Err: std::fmt::Display>,
    {
        let one = |text: String| if text.trim().is_empty() { Vec::new() } else { vec![text] };
        self.parsed(key, one, |n, _| format!("an item (number {n})"))
    }

    /// As `list_of_secrets`, for secrets without blanks and commas: a text can have several of them.
    pub fn several_secrets<T>(&mut self, key: &str) -> Vec<T>
    where
        T: std::str::FromStr<Err: std::fmt::Display>,
    {
        if !self.has(key) {
            return Vec::new();
        }
        let separate = |text: String| words(&text).map(str::to_owned).collect();
        self.parsed(key, separate, |n, _| format!("an item (number {n})"))
    }

    /// Whether a source sets the key.
    pub fn has(&self, key: &str) -> bool {
        self.layers.get(key).is_some()
    }

    /// The names of the tables in this one.
    pub fn tables(&self, key: &str) -> BTreeSet<String> {
        let below = self
            .layers
            .keys()
            .filter_map(|(known, _)| known.strip_prefix(key)?.strip_prefix('.'));
        below
            .filter_map(|rest| Some(rest.rsplit_once('.')?.0.to_owned()))
            .collect()
    }

    fn parsed<T>(
        &mut self,
        key: &str,
        of_text: impl Fn(String) -> Vec<String>,
        item: impl Fn(usize, &str) -> String,
    ) -> Vec<T>
    where
        T: std::str::FromStr<Err: std::fmt::Display>,
    {
        let texts: Option<Vec<String>> = match self.value(key) {
            Some(Value::Array(items)) => items.iter().map(|i| i.as_str().map(str::to_owned)).collect(),
            Some(Value::String(text)) => Some(of_text(text)),
            _ => None,
        };
        let Some(texts) = texts else {
            self.mistake(key, "is not a list of texts");
            return Vec::new();
        };
        let mut read = Vec::with_capacity(texts.len());
        for (n, text) in texts.iter().enumerate() {
            match text.trim().parse() {
                Ok(parsed) => read.push(parsed),
                Err(error) => self.mistake(key, format!("has {}: {error}", item(n + 1, text))),
            }
        }
        read
    }

    pub fn flag(&mut self, key: &str) -> bool {
        match self.value(key) {
            Some(Value::Boolean(flag)) => flag,
            Some(Value::String(text)) if text.trim() == "true" => true,
            Some(Value::String(text)) if text.trim() == "false" => false,
            _ => {
                self.mistake(key, "is neither true nor false");
                false
            }
        }
    }

    pub fn one_of<T: Copy>(&mut self, key: &str, known: &[(&str, T)]) -> T {
        let text = self.text(key);
        let found = known.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        found.unwrap_or_else(|| {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            self.mistake(key, format!("is not one of {}", names.join(", ")));
            known[0].1
        })
    }

    pub fn socket(&mut self, key: &str) -> SocketAddr {
        let text = self.text(key);
        text.parse().unwrap_or_else(|_| {
            self.mistake(key, "is not an address and a port, such as 0.0.0.0:24530 or [::]:24530");
            SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
        })
    }

    pub fn optional_url(&mut self, key: &str) -> Option<Url> {
        let text = self.text(key);
        if text.is_empty() {
            return None;
        }
        match Url::parse(&text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Some(url),
            _ => {
                self.mistake(key, "is not an http or https URL");
                None
            }
        }
    }

    /// A file with certificates of authorities. An empty value means none.
    pub fn authorities(&mut self, key: &str) -> Option<Authorities> {
        let path = self.path(key)?;
        Authorities::read(&path)
            .map_err(|why| self.mistake(key, why.to_string()))
            .ok()
    }

    /// A certificate of our own, and its key. Two empty values mean none.
    pub fn identity(&mut self, certificate: &str, key: &str) -> Option<Identity> {
        let files = self.both(certificate, key)?;
        let read = Identity::read(&files.certificate, &files.key);
        read.map_err(|why| self.mistake(certificate, why.to_string())).ok()
    }

    /// As `identity`, for files that are read again later. They are read once here, to find mistakes.
    pub fn key_files(&mut self, certificate: &str, key: &str) -> Option<KeyFiles> {
        let files = self.both(certificate, key)?;
        if let Err(why) = files.load() {
            self.mistake(certificate, why.to_string());
        }
        Some(files)
    }

    fn both(&mut self, certificate: &str, key: &str) -> Option<KeyFiles> {
        match (self.path(certificate), self.path(key)) {
            (Some(certificate), Some(key)) => Some(KeyFiles { certificate, key }),
            (None, None) => None,
            (Some(_), None) => {
                self.mistake(key, format!("is empty, and {certificate} is not"));
                None
            }
            (None, Some(_)) => {
                self.mistake(certificate, format!("is empty, and {key} is not"));
                None
            }
        }
    }

    /// A file that can be read now. An empty value means none.
    pub fn file(&mut self, key: &str) -> Option<PathBuf> {
        let path = self.path(key)?;
        if let Err(why) = std::fs::File::open(&path) {
            self.mistake(key, format!("{} cannot be read: {why}", path.display()));
        }
        Some(path)
    }

    fn path(&mut self, key: &str) -> Option<PathBuf> {
        Some(self.text(key)).filter(|path| !path.is_empty()).map(PathBuf::from)
    }

    pub fn secret(&mut self, key: &str, min: usize) -> Option<SecretString> {
        let text = self.text(key);
        if !text.is_empty() && text.len() < min {
            self.mistake(key, format!("has less than {min} characters"));
        }
        (!text.is_empty()).then(|| SecretString::from(text))
    }

    pub fn amqp_uris(&mut self, key: &str) -> Vec<SecretString> {
        let list: Vec<String> = match self.value(key) {
            Some(Value::Array(items)) => items
                .iter()
                .map(|i| i.as_str().unwrap_or_default().to_owned())
                .collect(),
            Some(Value::String(text)) => words(&text).map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        if list.is_empty() {
            self.mistake(key, "is not an amqp:// or amqps:// URI, or several");
        }
        for (index, uri) in list.iter().enumerate() {
            if let Err(why) = broker(uri) {
                let which = if list.len() > 1 {
                    format!("number {}: ", index + 1)
                } else {
                    String::new()
                };
                self.mistake(key, format!("{which}is {why}"));
            }
        }
        list.into_iter().map(SecretString::from).collect()
    }

    /// The database server's URL without credentials, and the credentials.
    pub fn couchdb(&mut self) -> (Url, String, SecretString) {
        let (mut username, mut password) = (self.text("couchdb.username"), self.text("couchdb.password"));
        let text = self.text("couchdb.url");
        let mut url = match Url::parse(&text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => url,
            _ => {
                let hint = match is_cut(&text) {
                    true => "; in a user's name and password write %23 for #, %2F for /, %3F for ?, %40 for @",
                    false => "",
                };
                self.mistake("couchdb.url", format!("is not an http or https URL{hint}"));
                #[allow(clippy::expect_used)]
                Url::parse("http://127.0.0.1:5984").expect("a URL")
            }
        };
        if !matches!(url.path(), "" | "/") {
            self.mistake("couchdb.url", "has a path; databases are expected right under the host");
        }
        let decoded = |text: &str| {
            percent_encoding::percent_decode_str(text)
                .decode_utf8_lossy()
                .into_owned()
        };
        // Separate settings for credentials win over those in the URL, unless the URL's origin has a higher rank.
        let nearer = self.origin("couchdb.url").rank() > self.origin("couchdb.username").rank();
        if !url.username().is_empty() && (username.is_empty() || nearer) {
            username = decoded(url.username());
            password = url.password().map(decoded).unwrap_or(password);
        }
        // Neither call fails for a URL with a host.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        (url, username, SecretString::from(password))
    }

    pub fn database_prefix(&mut self, key: &str) -> String {
        let text = self.text(key);
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
        let good = text.is_empty() || (text.starts_with(|c: char| c.is_ascii_lowercase()) && text.bytes().all(legal));
        if !good {
            self.mistake(key, "is not made of a-z, 0-9, _ and -, with a letter first");
        }
        text
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', ' ', '\t', '\n']).filter(|word| !word.is_empty())
}
