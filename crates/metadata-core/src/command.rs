//! What Raft replicates, and what comes of it.

use borsh::{BorshDeserialize, BorshSerialize};
use coffer_model::bundle::{Bundle, BundleRejection, Outcomes, Payloads, Submission};
use coffer_model::encoding::decode;
use coffer_model::id::ClusterId;
use coffer_model::log::SystemOp;
use coffer_model::signing::Verified;

/// One replicated command.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum Command {
    /// A system op.
    System(SystemOp),
    /// A user's submission: the encoding of a [`Submission`].
    Submission(Vec<u8>),
}

/// A command after everything that needs no state was checked: decoding, limits, hashes, signature.
/// Preparing is the dear part and can run on many threads; applying is serial.
#[derive(Clone, Debug)]
pub enum Prepared {
    /// A system op.
    System(SystemOp),
    /// A good submission.
    Submission(Box<(Verified<Bundle>, Payloads)>),
    /// A submission that cannot be applied whatever the state.
    Refused(BundleRejection),
}

impl Prepared {
    /// Prepares a command for the given cluster. Pure, the same on every replica.
    pub fn new(cluster: &ClusterId, command: Command) -> Self {
        match command {
            Command::System(op) => Self::System(op),
            Command::Submission(bytes) => match Self::submission(cluster, &bytes) {
                Ok(prepared) => prepared,
                Err(rejection) => Self::Refused(rejection),
            },
        }
    }

    fn submission(cluster: &ClusterId, bytes: &[u8]) -> Result<Self, BundleRejection> {
        if bytes.len() > coffer_model::bundle::SUBMISSION_BYTES_MAX {
            return Err(BundleRejection::Malformed("a submission has at most 4 MiB".to_owned()));
        }
        let submission: Submission = decode("submission", bytes)?;
        let bundle = submission.bundle.verify(cluster)?;
        let slots = &submission.payloads.slots;
        let in_order = slots.windows(2).all(|pair| pair[0].op < pair[1].op)
            && slots.last().is_none_or(|last| usize::from(last.op) < bundle.ops.len());
        if !in_order {
            let why = "changed slots come with ops of the bundle, once each and in their order";
            return Err(BundleRejection::Malformed(why.to_owned()));
        }
        Ok(Self::Submission(Box::new((bundle, submission.payloads))))
    }
}

/// What a command led to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// A system op was applied, or had nothing to say.
    System,
    /// A bundle was applied now, or had been before (then this is the first answer again), or was a
    /// newcomer's who was not let in (then nothing changed and nothing was logged).
    Bundle {
        /// What became of each op.
        outcomes: Outcomes,
        /// The log sequence after it.
        revision: u64,
        /// Whether this is a repeated answer.
        repeated: bool,
    },
    /// The whole bundle was refused; nothing changed and nothing was logged.
    Refused(BundleRejection),
}
