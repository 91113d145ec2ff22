//! Configuration: one typed file per role, read once, with all its faults reported together.
//!
//! A role describes what it reads by asking a [`Reader`] for it; nothing else describes it. Where a
//! value is missing or wrong, the reader notes a fault and hands out a stand-in, so that the role goes
//! on asking; [`read`] returns the configuration only if there was no fault, so no stand-in is ever
//! used. Keys that nobody asked for are faults too.
//!
//! ```
//! # use std::path::PathBuf;
//! struct Config { listen: std::net::SocketAddr, cache_bytes: u64, tls: PathBuf }
//! let text = "cache = 3\n[tls]\nkey = 7";
//! let faults = coffer_service::config::parse(text, [], "EXAMPLE", |reader| Config {
//!     listen: reader.socket_addr("listen"),
//!     cache_bytes: reader.bytes_size("cache_bytes", 1 << 20..=1 << 40, 64 << 20),
//!     tls: reader.table("tls", |tls| tls.path("key")),
//! });
//! assert_eq!(faults.err().map(|error| error.to_string().lines().count()), Some(3));
//! ```
//!
//! Each value can be set from the environment: `tls.key` of a role with the prefix `COFFER_NODE` is
//! `COFFER_NODE__TLS__KEY`, and wins over the file. Levels are parted by two underscores, also after
//! the prefix, because Kubernetes sets `COFFER_NODE_PORT` and its like by itself wherever there is a
//! service called `coffer-node`. Lists are written with commas there; lists of tables have to stand in
//! the file.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use toml::{Table, Value};

/// A configuration file longer than this is not one.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// No list in a configuration is longer than this.
const LIST_MAX: usize = 1024;
/// A value longer than this is cut in a report.
const SHOWN_CHARS_MAX: usize = 60;
/// What parts the levels of a key in the name of an environment variable.
const LEVEL: &str = "__";

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML, so nothing more can be said about it.
    #[error("the configuration is not TOML: {reason}")]
    Syntax {
        /// Line, column and what is wrong there.
        reason: String,
    },
    /// The file can be read, but not everything in it is right.
    #[error(transparent)]
    Faults(#[from] ConfigFaults),
}

/// Everything that is wrong with a configuration; its text has one line for each fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFaults(Vec<Fault>);

impl ConfigFaults {
    /// The faults, in the order in which they were met.
    pub fn faults(&self) -> &[Fault] {
        &self.0
    }
}

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fmt::Display::fmt(fault, f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigFaults {}

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where: the key with the tables it is in, such as `tls.key` or `disks[1].path`.
    pub key: String,
    /// What.
    pub kind: FaultKind,
    /// The environment variable that set the value, if it was one.
    pub variable: Option<String>,
}

/// What is wrong at a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultKind {
    /// The key is required and absent.
    Missing {
        /// What it is expected to be.
        expected: String,
    },
    /// The value is not what it should be.
    Wrong {
        /// The value as written.
        value: String,
        /// What is expected instead.
        expected: String,
    },
    /// Nobody knows the key.
    Unknown {
        /// The known key that looks most like it.
        meant: Option<String>,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            FaultKind::Missing { expected } => {
                write!(f, "{}: is missing, expected {expected}", self.key)?
            }
            FaultKind::Wrong { value, expected } => {
                write!(f, "{}: is {value}, expected {expected}", self.key)?;
            }
            FaultKind::Unknown { meant: Some(meant) } => {
                write!(f, "{}: is not a known key, did you mean {meant}?", self.key)?;
            }
            FaultKind::Unknown { meant: None } => write!(f, "{}: is not a known key", self.key)?,
        }
        match &self.variable {
            Some(variable) => write!(f, " (set by {variable})"),
            None => Ok(()),
        }
    }
}

/// Reads a configuration from a file, if there is one, and the environment of this process.
pub fn read<T>(
    file: Option<&Path>,
    env_prefix: &str,
    build: impl FnOnce(&Reader<'_>) -> T,
) -> Result<T, ConfigError> {
    let text = file.map_or_else(|| Ok(String::new()), read_text)?;
    let folder = file.and_then(Path::parent);
    let variables = std::env::vars_os().map(|(name, value)| {
        (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
    });
    parse_in(folder, &text, variables, env_prefix, build)
}

/// Reads a configuration from text and the given environment.
pub fn parse<T>(
    text: &str,
    variables: impl IntoIterator<Item = (String, String)>,
    env_prefix: &str,
    build: impl FnOnce(&Reader<'_>) -> T,
) -> Result<T, ConfigError> {
    parse_in(None, text, variables, env_prefix, build)
}

fn parse_in<T>(
    folder: Option<&Path>,
    text: &str,
    variables: impl IntoIterator<Item = (String, String)>,
    env_prefix: &str,
    build: impl FnOnce(&Reader<'_>) -> T,
) -> Result<T, ConfigError> {
    let mut table: Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
        reason: error.to_string().trim_end().to_owned(),
    })?;
    let mut notes = Notes { folder: folder.map(Path::to_owned), ..Notes::default() };
    let prefix = format!("{env_prefix}{LEVEL}");
    // Sorted, so that the same faults are always reported in the same order.
    let variables: BTreeMap<_, _> =
        variables.into_iter().filter(|(name, _)| name.starts_with(&prefix)).collect();
    for (name, value) in variables {
        overlay(&mut table, &name, &name[prefix.len()..], value, &mut notes);
    }
    let reader =
        Reader { table: &table, path: String::new(), asked: RefCell::default(), notes: &notes };
    let built = build(&reader);
    reader.note_unknown_keys();
    let faults = notes.faults.into_inner();
    if faults.is_empty() { Ok(built) } else { Err(ConfigFaults(faults).into()) }
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let bytes = fs::metadata(path).map_err(failed)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, "it is longer than 1 MiB")));
    }
    fs::read_to_string(path).map_err(failed)
}

/// Puts the value of a variable into the place its name speaks of.
fn overlay(table: &mut Table, variable: &str, levels: &str, value: String, notes: &mut Notes) {
    let path: Vec<String> = levels.split(LEVEL).map(str::to_ascii_lowercase).collect();
    let key = path.join(".");
    let (last, above) = path.split_last().expect("splitting gives at least one part");
    let mut table = table;
    for level in above {
        let below = table.entry(level.clone()).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(below) = below else {
            let expected = format!("{level} to be a table; it is set otherwise in the file");
            notes.variables.insert(key.clone(), variable.to_owned());
            notes.fault(&key, FaultKind::Wrong { value: shown(&Value::String(value)), expected });
            return;
        };
        table = below;
    }
    table.insert(last.clone(), Value::String(value));
    notes.variables.insert(key, variable.to_owned());
}

/// What the readers of one configuration share.
#[derive(Default)]
struct Notes {
    /// Where relative paths in the file begin.
    folder: Option<PathBuf>,
    faults: RefCell<Vec<Fault>>,
    /// The variable that set a key.
    variables: BTreeMap<String, String>,
}

impl Notes {
    fn fault(&self, key: &str, kind: FaultKind) {
        let variable = self.variables.get(key).cloned();
        self.faults.borrow_mut().push(Fault { key: key.to_owned(), kind, variable });
    }
}

/// One table of a configuration. It remembers what it was asked for.
pub struct Reader<'a> {
    table: &'a Table,
    path: String,
    asked: RefCell<BTreeSet<String>>,
    notes: &'a Notes,
}

impl<'t> Reader<'t> {
    /// Text that has to be there and not be empty.
    pub fn required_string(&self, key: &str) -> String {
        self.required(key, "a text", some_text).unwrap_or_default()
    }

    /// Text that may be left out.
    pub fn string_or(&self, key: &str, default: &str) -> String {
        self.optional(key, "a text", some_text).unwrap_or_else(|| default.to_owned())
    }

    /// Text that may be left out, or be empty, which is the same.
    pub fn string_or_empty(&self, key: &str) -> String {
        self.optional(key, "a text", |found| found.text().map(str::to_owned)).unwrap_or_default()
    }

    /// Text that may be left out, without a default.
    pub fn optional_string(&self, key: &str) -> Option<String> {
        self.optional(key, "a text", some_text)
    }

    /// One of a few words.
    pub fn one_of<T: Clone>(&self, key: &str, choices: &[(&str, T)], default: T) -> T {
        let words: Vec<_> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
        let expected = format!("one of {}", words.join(", "));
        let choose = |found: Found<'t>| {
            let word = found.text()?;
            choices.iter().find(|(choice, _)| *choice == word).map(|(_, value)| value.clone())
        };
        self.optional(key, &expected, choose).unwrap_or(default)
    }

    /// True or false.
    pub fn bool_or(&self, key: &str, default: bool) -> bool {
        self.optional(key, "true or false", Found::boolean).unwrap_or(default)
    }

    /// An IP address and a port to listen on, which has to be there.
    pub fn socket_addr(&self, key: &str) -> SocketAddr {
        self.required(key, ADDRESS, Found::parsed)
            .unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)))
    }

    /// An IP address and a port to listen on.
    pub fn socket_addr_or(&self, key: &str, default: SocketAddr) -> SocketAddr {
        self.optional(key, ADDRESS, Found::parsed).unwrap_or(default)
    }

    /// A host (name or address) and a port to connect to, which has to be there.
    pub fn host_port(&self, key: &str) -> String {
        self.required(key, HOST_PORT, |found| host_port(found.text()?)).unwrap_or_default()
    }

    /// Hosts and ports to connect to; none if the key is left out.
    pub fn list_of_host_ports(&self, key: &str) -> Vec<String> {
        self.list(key, "a list of addresses such as [\"node-0.example:7443\"]", host_port)
    }

    /// A path, which has to be there. Whether anything stands there is not looked at. A relative one in a
    /// file begins at the file's folder, so that the folder can be put anywhere; one in a variable begins
    /// where the process was started.
    pub fn path(&self, key: &str) -> PathBuf {
        self.located(key, self.required(key, "a path", some_text).unwrap_or_default())
    }

    /// A path that may be left out.
    pub fn path_or(&self, key: &str, default: &Path) -> PathBuf {
        self.optional_path(key).unwrap_or_else(|| default.to_owned())
    }

    /// A path that may be left out, without a default.
    pub fn optional_path(&self, key: &str) -> Option<PathBuf> {
        self.optional(key, "a path", some_text).map(|path| self.located(key, path))
    }

    fn located(&self, key: &str, path: String) -> PathBuf {
        let from_variable = self.notes.variables.contains_key(&self.full(key));
        match &self.notes.folder {
            Some(folder) if !from_variable => folder.join(path),
            _ => path.into(),
        }
    }

    /// A whole number.
    pub fn u64_in(&self, key: &str, range: RangeInclusive<u64>, default: u64) -> u64 {
        self.optional(key, &number_in(&range), |found| found.number().filter(|n| range.contains(n)))
            .unwrap_or(default)
    }

    /// A whole number, which has to be there.
    pub fn required_u64_in(&self, key: &str, range: RangeInclusive<u64>) -> u64 {
        self.required(key, &number_in(&range), |found| found.number().filter(|n| range.contains(n)))
            .unwrap_or(*range.start())
    }

    /// A number of bytes: a whole number, or text with a unit (B, KiB, MiB, GiB, TiB).
    pub fn bytes_size(&self, key: &str, range: RangeInclusive<u64>, default: u64) -> u64 {
        self.optional(key, &size_in(&range), |found| found.bytes().filter(|n| range.contains(n)))
            .unwrap_or(default)
    }

    /// A number of bytes, which has to be there.
    pub fn required_bytes_size(&self, key: &str, range: RangeInclusive<u64>) -> u64 {
        self.required(key, &size_in(&range), |found| found.bytes().filter(|n| range.contains(n)))
            .unwrap_or(*range.start())
    }

    /// A span of time: a whole number of milliseconds, or text with a unit (ms, s, m, h, d).
    pub fn duration_ms(
        &self,
        key: &str,
        range_ms: RangeInclusive<u64>,
        default_ms: u64,
    ) -> Duration {
        let expected = format!(
            "a time from {} to {}, such as 1500 (milliseconds), \"30s\" or \"12h\"",
            shown_ms(*range_ms.start()),
            shown_ms(*range_ms.end())
        );
        let ms = self.optional(key, &expected, |found| {
            found.milliseconds().filter(|n| range_ms.contains(n))
        });
        Duration::from_millis(ms.unwrap_or(default_ms))
    }

    /// A list of texts; empty if the key is left out.
    pub fn list_of_strings(&self, key: &str) -> Vec<String> {
        self.list(key, "a list of texts", |text| (!text.is_empty()).then(|| text.to_owned()))
    }

    /// Text in the form of a type of its own, such as an id; `expected` says in words what it is.
    pub fn optional_parsed<T: FromStr>(&self, key: &str, expected: &str) -> Option<T> {
        self.optional(key, expected, Found::parsed)
    }

    /// Text in the form of a type of its own, which has to be there. `stand_in` is what the reader
    /// hands out after a fault; it is never used.
    pub fn required_parsed<T: FromStr>(&self, key: &str, expected: &str, stand_in: T) -> T {
        self.required(key, expected, Found::parsed).unwrap_or(stand_in)
    }

    /// A list of texts in the form of a type of its own; empty if the key is left out.
    pub fn list_of_parsed<T: FromStr>(&self, key: &str, expected: &str) -> Vec<T> {
        self.list(key, expected, |text| text.parse().ok())
    }

    /// A table. One that is left out is read as an empty one.
    pub fn table<T>(&self, key: &str, build: impl FnOnce(&Reader<'_>) -> T) -> T {
        let empty = Table::new();
        let table = self.optional_ref(key, "a table", Value::as_table).unwrap_or(&empty);
        self.below(table, self.full(key), build)
    }

    /// A table that may be left out.
    pub fn optional_table<T>(&self, key: &str, build: impl FnOnce(&Reader<'_>) -> T) -> Option<T> {
        let table = self.optional_ref(key, "a table", Value::as_table)?;
        Some(self.below(table, self.full(key), build))
    }

    /// A list of tables (`[[key]]`); empty if the key is left out.
    pub fn table_list<T>(&self, key: &str, mut build: impl FnMut(&Reader<'_>) -> T) -> Vec<T> {
        let expected = format!("a list of at most {LIST_MAX} tables, [[{}]]", self.full(key));
        let tables = self.optional_ref(key, &expected, |value| {
            let list = value.as_array().filter(|list| list.len() <= LIST_MAX)?;
            list.iter().map(Value::as_table).collect::<Option<Vec<_>>>()
        });
        let mut built = Vec::new();
        for (index, table) in tables.unwrap_or_default().into_iter().enumerate() {
            built.push(self.below(table, format!("{}[{index}]", self.full(key)), &mut build));
        }
        built
    }

    /// Whether the key is there at all. This does not count as asking for it.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Notes a fault that only the caller can see, such as two values that exclude each other.
    pub fn fault(&self, key: &str, expected: &str) {
        self.asked.borrow_mut().insert(key.to_owned());
        let expected = expected.to_owned();
        let kind = match self.table.get(key) {
            Some(value) => FaultKind::Wrong { value: shown(value), expected },
            None => FaultKind::Missing { expected },
        };
        self.notes.fault(&self.full(key), kind);
    }

    fn required<T>(
        &self,
        key: &str,
        expected: &str,
        take: impl FnOnce(Found<'t>) -> Option<T>,
    ) -> Option<T> {
        if !self.has(key) {
            self.fault(key, expected);
            return None;
        }
        self.optional(key, expected, take)
    }

    fn optional<T>(
        &self,
        key: &str,
        expected: &str,
        take: impl FnOnce(Found<'t>) -> Option<T>,
    ) -> Option<T> {
        let from_variable = self.notes.variables.contains_key(&self.full(key));
        self.optional_ref(key, expected, |value| take(Found { value, from_variable }))
    }

    fn optional_ref<T>(
        &self,
        key: &str,
        expected: &str,
        take: impl FnOnce(&'t Value) -> Option<T>,
    ) -> Option<T> {
        self.asked.borrow_mut().insert(key.to_owned());
        let taken = take(self.table.get(key)?);
        if taken.is_none() {
            self.fault(key, expected);
        }
        taken
    }

    fn list<T>(&self, key: &str, expected: &str, take: impl Fn(&str) -> Option<T>) -> Vec<T> {
        let all = |found: Found<'t>| {
            let texts = found.texts().filter(|texts| texts.len() <= LIST_MAX)?;
            texts.into_iter().map(&take).collect()
        };
        self.optional(key, expected, all).unwrap_or_default()
    }

    fn below<T>(&self, table: &Table, path: String, build: impl FnOnce(&Reader<'_>) -> T) -> T {
        let reader = Reader { table, path, asked: RefCell::default(), notes: self.notes };
        let built = build(&reader);
        reader.note_unknown_keys();
        built
    }

    fn note_unknown_keys(&self) {
        let asked = self.asked.borrow();
        for (key, value) in self.table {
            if asked.contains(key) {
                continue;
            }
            let meant = asked
                .iter()
                .filter(|known| !self.has(known))
                .map(|known| (edits(key, known), known))
                .min();
            let meant = meant
                .filter(|(edits, _)| *edits <= 1 + key.len() / 4)
                .map(|(_, known)| self.full(known));
            for key in self.leaves(key, value) {
                self.notes.fault(&key, FaultKind::Unknown { meant: meant.clone() });
            }
        }
    }

    /// The key to name for something unknown: the variables that made it, if it was variables.
    fn leaves(&self, key: &str, value: &Value) -> Vec<String> {
        let full = self.full(key);
        let below = format!("{full}.");
        let set: Vec<_> =
            self.notes.variables.keys().filter(|set| set.starts_with(&below)).cloned().collect();
        if value.is_table() && !set.is_empty() { set } else { vec![full] }
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

const ADDRESS: &str = "an IP address with a port, such as \"0.0.0.0:7443\"";
const HOST_PORT: &str = "a host with a port, such as \"node-0.example:7443\"";

/// A value, and whether it is text only because a variable set it.
#[derive(Clone, Copy)]
struct Found<'a> {
    value: &'a Value,
    from_variable: bool,
}

impl<'a> Found<'a> {
    fn text(self) -> Option<&'a str> {
        self.value.as_str()
    }

    fn parsed<T: FromStr>(self) -> Option<T> {
        self.text()?.parse().ok()
    }

    fn boolean(self) -> Option<bool> {
        match self.value {
            Value::Boolean(value) => Some(*value),
            Value::String(text) if self.from_variable => text.parse().ok(),
            _ => None,
        }
    }

    fn number(self) -> Option<u64> {
        match self.value {
            Value::Integer(number) => u64::try_from(*number).ok(),
            Value::String(text) if self.from_variable => text.parse().ok(),
            _ => None,
        }
    }

    fn bytes(self) -> Option<u64> {
        self.number().or_else(|| with_unit(self.text()?, &SIZES))
    }

    fn milliseconds(self) -> Option<u64> {
        self.number().or_else(|| with_unit(self.text()?, &TIMES))
    }

    fn texts(self) -> Option<Vec<&'a str>> {
        match self.value {
            Value::Array(list) => list.iter().map(Value::as_str).collect(),
            Value::String(text) if self.from_variable && text.is_empty() => Some(Vec::new()),
            Value::String(text) if self.from_variable => {
                Some(text.split(',').map(str::trim).collect())
            }
            _ => None,
        }
    }
}

/// Units with what they are in the smallest one, longer names before their endings.
const SIZES: [(&str, u64); 5] =
    [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40), ("B", 1)];
const TIMES: [(&str, u64); 5] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (digits, scale) = units
        .iter()
        .find_map(|(unit, scale)| text.strip_suffix(unit).map(|digits| (digits, *scale)))?;
    let digits = digits.trim_end();
    // `parse` would take a sign.
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(scale)
}

fn some_text(found: Found<'_>) -> Option<String> {
    found.text().filter(|text| !text.is_empty()).map(str::to_owned)
}

fn host_port(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_fits = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
        }
    };
    let port_fits = port.parse::<u16>().is_ok_and(|port| port != 0);
    (host_fits && port_fits).then(|| text.to_owned())
}

fn number_in(range: &RangeInclusive<u64>) -> String {
    format!("a whole number from {} to {}", range.start(), range.end())
}

fn size_in(range: &RangeInclusive<u64>) -> String {
    let (start, end) = (shown_in(*range.start(), &SIZES), shown_in(*range.end(), &SIZES));
    format!("a size from {start} to {end}, such as \"256MiB\"")
}

fn shown_ms(ms: u64) -> String {
    shown_in(ms, &TIMES)
}

/// The number in the largest unit that leaves no rest.
fn shown_in(number: u64, units: &[(&str, u64)]) -> String {
    let fits = units.iter().filter(|(_, scale)| number >= *scale && number.is_multiple_of(*scale));
    match fits.max_by_key(|(_, scale)| *scale) {
        Some((unit, scale)) => format!("{}{unit}", number / scale),
        None => number.to_string(),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Table(_) => "a table".to_owned(),
        Value::Array(list) if list.iter().any(Value::is_table) => "a list of tables".to_owned(),
        value => {
            let text = value.to_string();
            match text.char_indices().nth(SHOWN_CHARS_MAX) {
                Some((at, _)) => format!("{}...", &text[..at]),
                None => text,
            }
        }
    }
}

/// How many letters have to be put in, taken out or replaced to make one word of the other.
fn edits(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, against) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *against);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests;
