//! Who a process says it is in its certificate: `coffer://<role>/<32 hex digits>`, as a URI among the
//! certificate's alternative names.
//!
//! It is a claim that a certificate authority vouches for. Whether its holder belongs to the cluster
//! is decided elsewhere: a certificate alone admits nobody.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

/// The scheme of the URI.
const SCHEME: &str = "coffer://";
/// The longest name of a role.
pub const ROLE_BYTES_MAX: usize = 32;

/// A role and the id of the process that has it. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId {
    role: Arc<str>,
    id: [u8; 16],
}

/// Text that does not name a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a peer id: expected coffer://<role>/<32 lower-case hexadecimal digits>")]
pub struct InvalidPeerId;

impl PeerId {
    /// Names a process. A role is 1 to 32 lower-case letters, digits and `-`.
    pub fn new(role: &str, id: [u8; 16]) -> Result<Self, InvalidPeerId> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if role.is_empty() || role.len() > ROLE_BYTES_MAX || !role.bytes().all(plain) {
            return Err(InvalidPeerId);
        }
        Ok(Self { role: role.into(), id })
    }

    /// What the process does.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// The random id the process keeps on its volume.
    pub const fn id(&self) -> &[u8; 16] {
        &self.id
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/", self.role)?;
        for byte in &self.id {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PeerId {
    type Err = InvalidPeerId;

    fn from_str(text: &str) -> Result<Self, InvalidPeerId> {
        let (role, digits) =
            text.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/')).ok_or(InvalidPeerId)?;
        // The digits have the same form as any 16-byte id.
        let id: coffer_model::id::NodeId = digits.parse().map_err(|_| InvalidPeerId)?;
        Self::new(role, *id.as_bytes())
    }
}

/// Who the first certificate of a verified chain belongs to. `None` if it does not say, says it in a
/// form that is not ours, or says it twice.
pub fn peer_uri_id(certs: &[CertificateDer<'_>]) -> Option<PeerId> {
    let (_, leaf) = x509_parser::parse_x509_certificate(certs.first()?).ok()?;
    let names = leaf.subject_alternative_name().ok()??;
    let mut ours = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
        _ => None,
    });
    let uri = ours.next()?;
    if ours.next().is_some() {
        return None;
    }
    uri.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn text_and_value_agree() {
        let peer = PeerId::new("storage-node", [0xab; 16]).unwrap();
        let text = "coffer://storage-node/abababababababababababababababab";
        assert_eq!(peer.to_string(), text);
        assert_eq!(text.parse(), Ok(peer));
    }

    #[test]
    fn anything_else_is_refused() {
        let digits = "abababababababababababababababab";
        for text in [
            String::new(),
            format!("spiffe://node/{digits}"),
            format!("coffer:///{digits}"),
            format!("coffer://Node/{digits}"),
            format!("coffer://node/{}", digits.to_uppercase()),
            format!("coffer://node/{digits}00"),
            format!("coffer://node/{digits}/"),
            format!("coffer://a/b/{digits}"),
            format!("coffer://{}/{digits}", "r".repeat(33)),
            "coffer://node".to_owned(),
        ] {
            assert_eq!(text.parse::<PeerId>(), Err(InvalidPeerId), "{text}");
        }
        assert_eq!(peer_uri_id(&[]), None);
        assert_eq!(peer_uri_id(&[CertificateDer::from(vec![0x30, 0x80, 1])]), None);
    }
}
