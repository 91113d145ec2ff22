//! Which host names a process may have in its certificate.

use std::str::FromStr;

use coffer_model::enrolment::Applicant;

/// A host name whose labels may be `*`, which stands for one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<String>);

/// Text that is no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a host name whose labels may be *")]
pub struct InvalidPattern;

fn is_label(label: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=63).contains(&label.len()) && label.bytes().all(plain)
}

impl FromStr for Pattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let labels: Vec<String> = text.split('.').map(str::to_ascii_lowercase).collect();
        let fits = labels.iter().all(|label| label == "*" || is_label(label));
        if fits && text.len() <= 253 { Ok(Self(labels)) } else { Err(InvalidPattern) }
    }
}

impl Pattern {
    fn fits(&self, name: &str) -> bool {
        let labels: Vec<&str> = name.split('.').collect();
        let fits = |(label, pattern): (&&str, &String)| {
            is_label(label) && (pattern == "*" || label.eq_ignore_ascii_case(pattern))
        };
        labels.len() == self.0.len() && labels.iter().zip(&self.0).all(fits)
    }
}

/// The names that the processes of each role may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamesOf {
    /// Metadata members.
    pub member: Vec<Pattern>,
    /// Storage nodes.
    pub node: Vec<Pattern>,
    /// Gateways.
    pub gateway: Vec<Pattern>,
}

impl NamesOf {
    /// Whether such a process may have this name.
    pub(crate) fn allow(&self, applicant: Applicant, name: &str) -> bool {
        let patterns = match applicant {
            Applicant::Member => &self.member,
            Applicant::Node => &self.node,
            Applicant::Gateway => &self.gateway,
        };
        patterns.iter().any(|pattern| pattern.fits(name))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_star_is_one_label() {
        let pattern: Pattern = "*.storage.here.svc".parse().unwrap();
        for name in ["storage-0.storage.here.svc", "STORAGE-0.Storage.here.svc"] {
            assert!(pattern.fits(name), "{name}");
        }
        for name in [
            "storage.here.svc",
            "a.b.storage.here.svc",
            ".storage.here.svc",
            "*.storage.here.svc",
            "storage-0.metadata.here.svc",
            "storage-0.storage.here.svc.",
            "storage-0.storage.here.svc.evil",
        ] {
            assert!(!pattern.fits(name), "{name}");
        }
        for text in ["", "a..b", "a*.b", "a b", ".a"] {
            assert_eq!(text.parse::<Pattern>(), Err(InvalidPattern), "{text}");
        }
    }

    #[test]
    fn each_role_has_its_own() {
        let names = NamesOf { gateway: vec!["localhost".parse().unwrap()], ..NamesOf::default() };
        assert!(names.allow(Applicant::Gateway, "localhost"));
        assert!(!names.allow(Applicant::Node, "localhost"));
    }
}
