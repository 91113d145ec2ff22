//! The wire: code generated from `coffer/v1` (the sealed API) and `coffer/internal/v1` (what the
//! processes say to each other), and the one mapping between our errors and gRPC statuses.

/// The sealed API.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("coffer.v1");
}

/// Messages with passwords, tokens or content in them (`PRIVATE` in build.rs), printed without.
macro_rules! printed_by_name_only {
    ($($message:ident),*) => {$(
        impl std::fmt::Debug for v1::$message {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($message)).finish_non_exhaustive()
            }
        }
    )*};
}

printed_by_name_only!(
    RegisterRequest,
    RegisterResponse,
    LoginRequest,
    LoginResponse,
    SessionToken,
    PutRequest,
    GetResponse,
    WriteUploadRequest,
    PutStreamRequest,
    GetStreamResponse
);

/// What the processes of a cluster say to each other.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod internal {
    tonic::include_proto!("coffer.internal.v1");
}

/// The encoded descriptors of all files, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The largest message either side takes: 4 MiB of payload and what stands around it.
pub const MESSAGE_BYTES_MAX: usize = 6 << 20;
/// The most chunk bytes in one call.
pub const CHUNK_BYTES_PER_CALL: usize = 4 << 20;
/// The most chunks in one call.
pub const CHUNKS_PER_CALL: usize = 256;
/// The most chunk ids in one `RenewReceipts` call.
pub const RENEWALS_PER_CALL: usize = 4096;
/// The most queries in one `Read`.
pub const QUERIES_PER_READ: usize = 64;
/// The most slots in one range of a query.
pub const SLOTS_PER_QUERY: u64 = 1024;
/// The most entries in one page.
pub const PAGE_SIZE_MAX: u32 = 1000;
/// The most bytes one write ticket allows.
pub const TICKET_BYTES_MAX: u64 = 1 << 30;

/// The most bytes of plain content in one call of the files API.
pub const CONTENT_BYTES_MAX: usize = 4 << 20;

/// The reasons of refusals that tell of an attack, a fault or overload. Each has a counter from the start, and
/// stands in docs/operations.md.
pub const REFUSALS: [&str; 52] = [
    "AMBIGUOUS_SEAT",
    "BUNDLE_REJECTED",
    "CAPACITY_FULL",
    "CHUNK_ID_INVALID",
    "CHUNK_TOO_LARGE",
    "CLOCKS_DIFFER",
    "DATA_TAMPERED",
    "DISK_FAILED",
    "DISK_FULL",
    "DISMISSED",
    "ENROLMENT_DENIED",
    "FOREIGN_VOLUME",
    "GATEWAY_CLOCK",
    "ID_TAKEN",
    "LOCAL_CUSTODY",
    "LOGIN_EXPIRED",
    "NAME_NOT_ALLOWED",
    "NOT_AN_ADMINISTRATOR",
    "NOT_A_HOLDER",
    "NOT_A_MEMBER",
    "NOT_A_SIBLING",
    "NOT_IN_DESCRIPTOR",
    "NOT_LEADER",
    "NOT_READY",
    "NOT_SILENT",
    "NOT_YOURS",
    "NO_POLICY",
    "NO_QUORUM",
    "OVERLOADED",
    "ROLLED_BACK",
    "SESSION_CLOSED",
    "SESSION_ENDED",
    "SESSION_PROOF_EXPIRED",
    "SESSION_PROOF_INVALID",
    "SESSION_REQUIRED",
    "STORE_DAMAGED",
    "STORE_FAILED",
    "STORE_POISONED",
    "TICKET_BUDGET",
    "TICKET_EXPIRED",
    "TICKET_FOREIGN",
    "TICKET_FORGED",
    "TICKET_NOT_ALLOWED",
    "TOKEN_MALFORMED",
    "TOKEN_REQUIRED",
    "TOKEN_UNKNOWN",
    "TOKEN_WRONG",
    "TOO_FEW_NODES",
    "TOO_MANY_ATTEMPTS",
    "TOO_SLOW",
    "WRONG_PASSWORD",
    "WRONG_TOKEN",
];

/// The other reasons: mistakes of callers, and answers that belong to normal work. They are counted together.
pub const OTHER_REASONS: [&str; 89] = [
    "ANSWER_TOO_LARGE",
    "ANSWER_UNREADABLE",
    "ARGUMENT_INVALID",
    "AUTHORITY_FAILED",
    "BEHIND",
    "BUSY",
    "CHUNK_EMPTY",
    "CLUSTER_UNAVAILABLE",
    "CONTENT_MISSING",
    "CONTENT_TOO_LARGE",
    "CORE_VERSION",
    "DENIED",
    "DESCRIPTOR_TOO_LARGE",
    "DIRECTORY_NOT_EMPTY",
    "ENGINE_FAILED",
    "ENROLMENT_INVALID",
    "FILE_EXISTS",
    "FILE_NOT_FOUND",
    "HASH_INVALID",
    "INODE",
    "INTO_ITSELF",
    "INVALID",
    "INVITE_MALFORMED",
    "INVITE_REQUIRED",
    "IS_A_DIRECTORY",
    "LAYOUTS_PENDING",
    "LAYOUT_CHANGED",
    "LAYOUT_UNSIGNED",
    "LISTING_GONE",
    "LOGIN_MESSAGE",
    "MALFORMED",
    "NAME",
    "NAME_INVALID",
    "NAME_TAKEN",
    "NODE",
    "NODE_IN_USE",
    "NOT_APPLIED",
    "NOT_A_DIRECTORY",
    "NOT_A_FILE",
    "NOT_A_REPLACEMENT",
    "NOT_FOUND",
    "NOT_NEXT",
    "NO_CLUSTER",
    "NO_MEMBER",
    "NO_RANDOMNESS",
    "NO_SNAPSHOTS",
    "NO_SUCH_SEAT",
    "OBJECT",
    "ORDER_TOO_LARGE",
    "OTHER_HOME",
    "PAGE_SIZE",
    "PAGE_TOKEN",
    "PAGE_TOKEN_INVALID",
    "PASSWORD_INVALID",
    "PATH_INVALID",
    "PATTERN_TOO_LONG",
    "PEER_UNREACHABLE",
    "PROOF_REFUSED",
    "QUERIES",
    "QUOTA_EXCEEDED",
    "READ_FAILED",
    "RECORD_REFUSED",
    "REFUSED",
    "REPLY",
    "REPORT",
    "REQUEST_ID_TOO_LONG",
    "SESSION_UNKNOWN",
    "SIGNATURE_INVALID",
    "SLOT_RANGE",
    "SNAPSHOT_DAMAGED",
    "SNAPSHOT_FOREIGN",
    "SNAPSHOT_GONE",
    "SNAPSHOT_STALLED",
    "SNAPSHOT_UNDER_WAY",
    "SNAPSHOT_VERSION",
    "STALE_REPORT",
    "STOPPING",
    "STREAM_MALFORMED",
    "TAGS",
    "TICKET_BYTES",
    "TOO_DEEP",
    "TOO_MANY_CHUNKS",
    "UNSUPPORTED",
    "UPLOAD_FINISHED",
    "UPLOAD_GAP",
    "UPLOAD_INCOMPLETE",
    "UPLOAD_UNKNOWN",
    "USER_UNKNOWN",
    "VERSION_CONFLICT",
];

/// Every method there is, as it stands in a call: `/package.Service/Method`.
pub fn methods() -> Vec<String> {
    use prost::Message;
    // The bytes are made by our own build.
    let files = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap_or_default();
    let mut methods = vec!["/grpc.health.v1.Health/Check".to_owned()];
    for file in &files.file {
        for service in &file.service {
            for method in &service.method {
                methods.push(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    methods
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_named_as_calls_name_them() {
        let methods = methods();
        for wanted in ["/coffer.v1.ChunkService/PutChunks", "/coffer.v1.DirectoryService/Read"] {
            assert!(methods.iter().any(|method| method == wanted), "{methods:?}");
        }
        assert!(REFUSALS.is_sorted() && OTHER_REASONS.is_sorted());
        assert!(OTHER_REASONS.iter().all(|reason| !REFUSALS.contains(reason)));
    }
}
