//! Names: of files, of users, and the absolute paths made of both. This is the only validator.

use std::fmt;
use std::str::FromStr;

use borsh::{BorshDeserialize, BorshSerialize};
use unicode_normalization::{UnicodeNormalization, is_nfc};

/// The longest file name, in bytes of UTF-8.
pub const NAME_BYTES_MAX: usize = 255;
/// The deepest path, in components below `/`. It bounds every walk to the root.
pub const PATH_DEPTH_MAX: usize = 256;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No bytes at all.
    #[error("a name cannot be empty")]
    Empty,
    /// More than 255 bytes.
    #[error("a name has at most {NAME_BYTES_MAX} bytes of UTF-8, this one {0}")]
    TooLong(usize),
    /// Not UTF-8.
    #[error("a name must be valid UTF-8")]
    NotUtf8,
    /// `.` or `..`.
    #[error("`.` and `..` are not names")]
    Dots,
    /// A slash inside a name.
    #[error("a name cannot contain `/`")]
    Slash,
    /// NUL, a control character or a bidirectional override.
    #[error("a name cannot contain the character U+{0:04X}")]
    Character(u32),
    /// Not in Unicode normalization form C.
    #[error("the name is not in Unicode form NFC; its NFC form is {0:?}")]
    NotNfc(String),
    /// A user or group name outside its alphabet.
    #[error(
        "a user name has 2 to 32 lower-case letters, digits, `.`, `_` or `-` and starts with a letter or digit"
    )]
    UserName,
    /// A path that does not start with `/`.
    #[error("a remote path is absolute: /user/folder/file")]
    NotAbsolute,
    /// More components than the depth bound.
    #[error("a path has at most {PATH_DEPTH_MAX} components")]
    TooDeep,
}

/// A file or directory name: 1–255 bytes of UTF-8 in NFC, without `/`, NUL, control characters or
/// bidirectional overrides, and neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileName(String);

impl FileName {
    /// Takes bytes from a file system.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NameError> {
        std::str::from_utf8(bytes).map_err(|_| NameError::NotUtf8)?.parse()
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FileName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong(text.len()));
        }
        if text == "." || text == ".." {
            return Err(NameError::Dots);
        }
        for character in text.chars() {
            if character == '/' {
                return Err(NameError::Slash);
            }
            let bidi = matches!(character, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
            if character.is_control() || bidi {
                return Err(NameError::Character(character.into()));
            }
        }
        if !is_nfc(text) {
            return Err(NameError::NotNfc(text.nfc().collect()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The unique name of a user or group.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, BorshSerialize)]
pub struct UserName(String);

impl UserName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UserName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let allowed = |byte: u8| inner(byte) || matches!(byte, b'.' | b'_' | b'-');
        let bytes = text.as_bytes();
        if (2..=32).contains(&bytes.len()) && inner(bytes[0]) && bytes.iter().copied().all(allowed)
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::UserName)
        }
    }
}

impl BorshDeserialize for UserName {
    fn deserialize_reader<R: std::io::Read>(reader: &mut R) -> std::io::Result<Self> {
        String::deserialize_reader(reader)?
            .parse()
            .map_err(|error: NameError| std::io::Error::new(std::io::ErrorKind::InvalidData, error))
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An absolute remote path: `/`, `/alice`, `/alice/docs/report.pdf`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RemotePath {
    home: Option<UserName>,
    names: Vec<FileName>,
}

impl RemotePath {
    /// The user or group whose tree this is; none for `/` itself.
    pub fn home(&self) -> Option<&UserName> {
        self.home.as_ref()
    }

    /// The names below the home.
    pub fn names(&self) -> &[FileName] {
        &self.names
    }

    /// The directory above and the last name; none for `/` and for a home.
    pub fn split(&self) -> Option<(Self, &FileName)> {
        let (last, above) = self.names.split_last()?;
        Some((Self { home: self.home.clone(), names: above.to_vec() }, last))
    }

    /// This path with one more name; below `/` that is the name of a home.
    pub fn join(&self, name: FileName) -> Result<Self, NameError> {
        if self.home.is_none() {
            return Ok(Self { home: Some(name.as_str().parse()?), names: Vec::new() });
        }
        if self.names.len() + 1 >= PATH_DEPTH_MAX {
            return Err(NameError::TooDeep);
        }
        let mut path = self.clone();
        path.names.push(name);
        Ok(path)
    }

    /// Whether `other` is this path or lies below it.
    pub fn contains(&self, other: &Self) -> bool {
        match &self.home {
            None => true,
            home => *home == other.home && other.names.starts_with(&self.names),
        }
    }
}

impl FromStr for RemotePath {
    type Err = NameError;

    /// Reads a path; a trailing slash is accepted, an empty component is not.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let below = text.strip_prefix('/').ok_or(NameError::NotAbsolute)?;
        let below = below.strip_suffix('/').unwrap_or(below);
        if below.is_empty() {
            return if text == "/" {
                Ok(Self { home: None, names: Vec::new() })
            } else {
                Err(NameError::Empty)
            };
        }
        let mut components = below.split('/');
        let home = components.next().expect("split gives at least one part").parse()?;
        let names = components.map(str::parse).collect::<Result<Vec<FileName>, _>>()?;
        if names.len() >= PATH_DEPTH_MAX {
            return Err(NameError::TooDeep);
        }
        Ok(Self { home: Some(home), names })
    }
}

impl fmt::Display for RemotePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(home) = &self.home else { return f.write_str("/") };
        write!(f, "/{home}")?;
        for name in &self.names {
            write!(f, "/{name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_hurt_are_refused_and_say_why() {
        let long = "x".repeat(256);
        let rows: &[(&[u8], NameError)] = &[
            (b"", NameError::Empty),
            (long.as_bytes(), NameError::TooLong(256)),
            (b".", NameError::Dots),
            (b"..", NameError::Dots),
            (b"a/b", NameError::Slash),
            (b"a\0b", NameError::Character(0)),
            (b"a\nb", NameError::Character(10)),
            (b"\xff\xfe", NameError::NotUtf8),
            (b"\xc0\xaf", NameError::NotUtf8),
            ("a\u{202E}b".as_bytes(), NameError::Character(0x202E)),
            ("u\u{308}".as_bytes(), NameError::NotNfc("ü".into())),
        ];
        for (bytes, expected) in rows {
            assert_eq!(FileName::from_bytes(bytes).as_ref(), Err(expected), "{bytes:?}");
        }
        for good in ["a", "ü", "...", "con", "a b", &"x".repeat(255)] {
            assert_eq!(good.parse::<FileName>().map(|name| name.to_string()), Ok(good.to_owned()));
        }
    }

    #[test]
    fn paths_are_absolute_and_cannot_climb() {
        for bad in ["", "alice", "/alice/../bob", "/alice//x", "/Alice", "//", "/a", "/alice/./x"] {
            assert!(bad.parse::<RemotePath>().is_err(), "{bad}");
        }
        for (text, shown) in [("/", "/"), ("/alice/", "/alice"), ("/alice/a/b", "/alice/a/b")] {
            assert_eq!(text.parse::<RemotePath>().map(|path| path.to_string()), Ok(shown.into()));
        }
    }
}
