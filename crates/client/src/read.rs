//! Questions to the directory, with answers that are verified before anybody sees them.

use coffer_model::encoding::encode;
use coffer_model::id::{InodeId, NameTag};
use coffer_model::object::{EntryKey, Object};
use coffer_model::session::CertificateHash;
use coffer_proto::QUERIES_PER_READ;
use coffer_proto::v1 as pb;
use coffer_proto::v1::answer::Answer;
use coffer_proto::v1::query::Query;

use crate::error::ClientError;
use crate::node::{Directory, Found, Home, open_entry};
use crate::verify::Proven;
use crate::wire::Wire;

/// Answers whose authors are known; each leaf is checked as it is taken.
pub(crate) struct Reading {
    pub(crate) proven: Proven,
    pub(crate) answers: Vec<Answer>,
    pub(crate) revision: u64,
}

impl Reading {
    /// The only answer, if it is one about an object.
    pub(crate) fn into_object(mut self) -> Result<(Proven, Option<pb::ProvenLeaf>), ClientError> {
        match (self.answers.pop(), self.answers.is_empty()) {
            (Some(Answer::Object(answer)), true) => Ok((self.proven, answer.leaf)),
            _ => Err(ClientError::tampered("another answer than was asked for")),
        }
    }
}

impl Wire {
    /// Answers several questions at one revision.
    pub(crate) async fn read(&self, queries: Vec<Query>) -> Result<Reading, ClientError> {
        let reading = self.ask(queries).await?;
        self.admit_authors(&reading.proven).await?;
        Ok(reading)
    }

    /// As [`Self::read`], but the authors may still be unknown.
    async fn ask(&self, queries: Vec<Query>) -> Result<Reading, ClientError> {
        debug_assert!(queries.len() <= QUERIES_PER_READ);
        let asked = queries.len();
        let min_revision = self.seen.revision();
        let request = pb::ReadRequest {
            queries: queries.into_iter().map(|query| pb::Query { query: Some(query) }).collect(),
            min_revision,
        };
        let response = self
            .transport
            .read(&self.credentials, request)
            .await
            .map_err(|status| ClientError::of_status(&status))?;
        let proven = self.verifier.prove(&response.proofs.unwrap_or_default())?;
        self.seen.check_revision(response.revision, min_revision)?;
        self.clock.note(response.log_time_ms);
        let answers: Option<Vec<Answer>> =
            response.answers.into_iter().map(|answer| answer.answer).collect();
        match answers {
            Some(answers) if answers.len() == asked => {
                Ok(Reading { proven, answers, revision: response.revision })
            }
            _ => Err(ClientError::tampered("more or fewer answers than questions")),
        }
    }

    /// Fetches and checks the sessions that signed these ops, where they are new.
    pub(crate) async fn admit_authors(&self, proven: &Proven) -> Result<(), ClientError> {
        let unknown: Vec<CertificateHash> =
            self.verifier.unknown_sessions(proven).into_iter().collect();
        for some in unknown.chunks(QUERIES_PER_READ) {
            let queries = some.iter().map(|hash| object_query(&Object::Session(*hash))).collect();
            let reading = self.ask(queries).await?;
            for (hash, answer) in some.iter().zip(&reading.answers) {
                let Answer::Object(pb::ObjectAnswer { leaf: Some(leaf) }) = answer else {
                    return Err(ClientError::tampered("a session that signed is not there"));
                };
                self.verifier.admit_session(*hash, &reading.proven, leaf)?;
            }
        }
        Ok(())
    }

    /// Checks and opens one entry of an answer.
    pub(crate) fn open_found(
        &self,
        home: &Home,
        directory: &Directory,
        tag: Option<NameTag>,
        proven: &Proven,
        entry: pb::Entry,
        revision: u64,
    ) -> Result<Found, ClientError> {
        let missing = || ClientError::tampered("an entry without its leaf");
        let leaf = entry.entry.as_ref().ok_or_else(missing)?;
        let tag = match tag {
            Some(tag) => tag,
            None => proven.entry_tag(leaf, directory.inode)?,
        };
        let key = EntryKey { directory: directory.inode, tag };
        let checked = self.verifier.entry(proven, leaf, key, &home.vault)?;
        let inode = checked.leaf.inode;
        let (name, secret) =
            open_entry(&self.cluster, directory, key, &checked.leaf, &checked.payload)?;
        let attrs = entry.attrs.as_ref();
        let attrs = attrs.map(|leaf| self.verifier.attrs(proven, leaf, inode, &home.vault));
        let head = entry.head.as_ref();
        let head = head.map(|leaf| self.verifier.head(proven, leaf, inode, &home.vault));
        let head = head.transpose()?;
        if let Some(head) = &head {
            self.seen.check_head(inode, head.leaf.version, revision)?;
        }
        Ok(Found {
            key,
            hash: checked.hash,
            entry: checked.leaf,
            name,
            secret,
            attrs: attrs.transpose()?,
            head,
            pages: entry.pages,
            ticket: entry.ticket,
        })
    }
}

/// A question about one object.
pub(crate) fn object_query(object: &Object) -> Query {
    Query::Object(pb::ObjectQuery { object: encode(object).into() })
}

/// A question that follows names.
pub(crate) fn walk_query(directory: InodeId, tags: &[NameTag], want: pb::Want) -> Query {
    Query::Walk(pb::WalkQuery {
        directory: id_bytes(directory),
        tags: tags.iter().map(|tag| tag.as_bytes().to_vec().into()).collect(),
        want: Some(want),
    })
}

pub(crate) fn id_bytes(inode: InodeId) -> bytes::Bytes {
    inode.as_bytes().to_vec().into()
}
