//! Looking for names below a directory, a bounded number of names at a time.

use coffer_client::{ClientError, Session};
use coffer_model::name::RemotePath;
use coffer_model::object::Kind;
use coffer_proto::v1 as pb;
use tonic::Status;

use super::answers::{entry, invalid, refusal};

/// Names one call looks at.
const NAMES_MAX: usize = 20_000;
/// Names asked for at a time.
const PAGE: u32 = 500;
/// The longest pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 256;

/// How a name has to be.
pub(crate) enum Wanted {
    Contains(String),
    Like(Vec<char>),
}

impl Wanted {
    pub(crate) fn parse(matching: Option<pb::find_request::Matching>) -> Result<Self, Status> {
        use pb::find_request::Matching;
        let (wanted, text_bytes) = match matching {
            Some(Matching::Contains(part)) => {
                let bytes = part.len();
                (Self::Contains(part), bytes)
            }
            Some(Matching::Glob(pattern)) => (Self::Like(pattern.chars().collect()), pattern.len()),
            None => (Self::Contains(String::new()), 0),
        };
        if text_bytes > PATTERN_BYTES_MAX {
            return Err(invalid("PATTERN_TOO_LONG", "a pattern has at most 256 bytes"));
        }
        Ok(wanted)
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Contains(part) => name.contains(part),
            Self::Like(pattern) => is_like(pattern, &name.chars().collect::<Vec<_>>()),
        }
    }
}

/// Whether a name is like a pattern: `*` stands for any characters, `?` for one. Only the last `*` is
/// ever taken up again, so it takes at most pattern times name steps.
fn is_like(pattern: &[char], name: &[char]) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while from < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(wanted) if *wanted == '?' || *wanted == name[from] => {
                (at, from) = (at + 1, from + 1);
            }
            _ => match star {
                Some((star_at, taken)) => {
                    star = Some((star_at, taken + 1));
                    (at, from) = (star_at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|rest| *rest == '*')
}

/// Looks below a directory; says whether everything was looked at.
pub(crate) async fn find(
    session: &Session,
    below: RemotePath,
    wanted: &Wanted,
    limit: usize,
) -> Result<(Vec<pb::File>, bool), Status> {
    let mut found = Vec::new();
    let mut names = 0;
    let mut open = vec![below.clone()];
    while let Some(directory) = open.pop() {
        let mut token: Option<String> = None;
        loop {
            let page = session.list_page(&directory, false, PAGE, token.as_deref()).await;
            let page = match page {
                Ok(page) => page,
                // It was removed or replaced while the search was on its way there.
                Err(ClientError::NotFound { .. } | ClientError::NotADirectory { .. })
                    if directory != below =>
                {
                    break;
                }
                Err(error) => return Err(refusal(&error)),
            };
            for item in page.items {
                if names == NAMES_MAX {
                    return Ok((found, false));
                }
                names += 1;
                let (is_wanted, kind) = (wanted.matches(item.name.as_str()), item.stat.kind);
                let file = entry(&directory, item)?;
                if kind == Kind::Directory {
                    open.push(super::answers::remote_path(&file.path)?);
                }
                if is_wanted {
                    if found.len() == limit {
                        return Ok((found, false));
                    }
                    found.push(file);
                }
            }
            token = page.next;
            if token.is_none() {
                break;
            }
        }
    }
    Ok((found, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_like_patterns() {
        let rows = [
            ("*", "", true),
            ("*", "a", true),
            ("", "", true),
            ("", "a", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("?", "ü", true),
            ("*.txt", "a.txt", true),
            ("*.txt", "a.txt.bak", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-d", false),
            ("**", "anything", true),
            ("*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ];
        for (pattern, name, expected) in rows {
            let pattern_chars: Vec<char> = pattern.chars().collect();
            let name_chars: Vec<char> = name.chars().collect();
            assert_eq!(is_like(&pattern_chars, &name_chars), expected, "{pattern} {name}");
        }
    }
}
