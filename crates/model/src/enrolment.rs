//! What a process says of itself when it applies to the authority for a certificate, and for its place in a
//! cluster that is to be founded (docs/formats/enrolment.md).

use borsh::{BorshDeserialize, BorshSerialize};

use crate::id::ClusterId;
use crate::signing::PublicKey;

/// The version of [`Statement`].
pub const STATEMENT_VERSION: u16 = 1;
/// There may be no cluster yet, so a statement is signed for this one.
pub const NO_CLUSTER: ClusterId = ClusterId::from_bytes([0; 32]);
/// An encoded statement is no longer than this.
pub const STATEMENT_BYTES_MAX: usize = 16 * 1024;
/// The most host names a certificate is asked for.
pub const NAMES_MAX: usize = 64;

/// What kind of process applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub enum Applicant {
    /// A metadata member.
    Member,
    /// A storage node.
    Node,
    /// A gateway.
    Gateway,
}

impl Applicant {
    /// The role in the certificate, and in the identity on the volume.
    pub const fn role(self) -> &'static str {
        match self {
            Self::Member => "metadata",
            Self::Node => "storage",
            Self::Gateway => "gateway",
        }
    }
}

/// An application. The process's own key and the join token sign its encoding.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Statement {
    /// [`STATEMENT_VERSION`].
    pub version: u16,
    /// What applies.
    pub applicant: Applicant,
    /// The random id on its volume.
    pub id: [u8; 16],
    /// The public key on its volume.
    pub key: PublicKey,
    /// Where it is reached, `host:port`; empty for a gateway.
    pub address: String,
    /// The zone of a storage node.
    pub zone: String,
    /// The weight of a storage node.
    pub weight: u32,
    /// The host names the certificate shall be good for.
    pub names: Vec<String>,
    /// A PKCS #10 request (RFC 2986) with the public key of the certificate; nothing else of it counts.
    pub request: Vec<u8>,
    /// The cluster its volume belongs to, if it belongs to one.
    pub cluster: Option<ClusterId>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::encoding::{decode, encode};

    /// The vector of docs/formats/enrolment.md.
    #[test]
    fn the_encoding_is_fixed() {
        let statement = Statement {
            version: STATEMENT_VERSION,
            applicant: Applicant::Node,
            id: [0x11; 16],
            key: PublicKey::from_bytes([0x22; 32]),
            address: "n-0:7422".into(),
            zone: "a".into(),
            weight: 1,
            names: vec!["n-0".into()],
            request: vec![0x30, 0x00],
            cluster: Some(ClusterId::from_bytes([0x33; 32])),
        };
        let wanted = format!(
            "010001{}{}08000000{}01000000610100000001000000030000006e2d30020000003000{}{}",
            "11".repeat(16),
            "22".repeat(32),
            "6e2d303a37343232",
            "01",
            "33".repeat(32),
        );
        let bytes = encode(&statement);
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digits, wanted);
        assert_eq!(decode::<Statement>("statement", &bytes).unwrap(), statement);
        assert!(decode::<Statement>("statement", &bytes[..bytes.len() - 1]).is_err());
    }
}
