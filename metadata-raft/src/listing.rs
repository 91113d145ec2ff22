//! Listings under way: the pages of one listing are all from one moment, so the view of its first page
//! is kept for the next ones, a few at a time and not for long.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use coffer_metadata_core::query::Want;
use coffer_model::id::{InodeId, MemberId, NameTag, PrincipalId};
use coffer_service::status::status;
use tonic::{Code, Status};

use crate::access::invalid;
use crate::store::View;

/// Views kept for listings. Each keeps compaction from dropping what it still sees.
const LISTINGS_MAX: usize = 32;
/// A listing that nobody continued for this long is forgotten.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// A listing is forgotten after this long, however busy it is.
const AGE_MAX: Duration = Duration::from_secs(600);

/// One listing: what is listed for whom, at which moment.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) view: View,
    pub(crate) revision: u64,
    pub(crate) principal: PrincipalId,
    pub(crate) directory: InodeId,
    pub(crate) want: Want,
    pub(crate) deleted: bool,
}

/// Where to go on: `1.<member>.<listing>.<tag>`, hexadecimal. It grants nothing, so it needs no
/// signature: the caller's session and the listing's own content are checked with every page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Token {
    pub(crate) member: MemberId,
    pub(crate) listing: u64,
    pub(crate) after: NameTag,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1.{}.{:016x}.{}", self.member, self.listing, self.after)
    }
}

impl Token {
    pub(crate) fn parse(text: &str) -> Result<Self, Status> {
        let refused = || invalid("PAGE_TOKEN", "this is not a page token");
        let parts: Vec<&str> = text.split('.').collect();
        let &["1", member, listing, after] = parts.as_slice() else { return Err(refused()) };
        let number = |digits: &str| u64::from_str_radix(digits, 16).map_err(|_| refused());
        let token = Self {
            member: MemberId::from_u64(number(member)?),
            listing: number(listing)?,
            after: after.parse().map_err(|_| refused())?,
        };
        // One token, one text.
        if token.to_string() == text { Ok(token) } else { Err(refused()) }
    }
}

/// The listings under way at one member.
#[derive(Debug)]
pub(crate) struct Listings {
    me: MemberId,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next: u64,
    /// The least recently used first.
    kept: VecDeque<Kept>,
}

#[derive(Debug)]
struct Kept {
    id: u64,
    begun: Instant,
    used: Instant,
    listing: Arc<Listing>,
}

impl Listings {
    /// `first` is the number of the first listing; a random one makes tokens of an earlier run
    /// strangers.
    pub(crate) fn new(me: MemberId, first: u64) -> Self {
        Self { me, state: Mutex::new(State { next: first, kept: VecDeque::new() }) }
    }

    /// Keeps a listing for its next page, which begins after `after`.
    pub(crate) fn keep(&self, listing: Arc<Listing>, after: NameTag) -> Token {
        self.keep_at(listing, after, Instant::now())
    }

    fn keep_at(&self, listing: Arc<Listing>, after: NameTag, now: Instant) -> Token {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.forget_old(now);
        if state.kept.len() >= LISTINGS_MAX {
            state.kept.pop_front();
        }
        let id = state.next;
        state.next = id.wrapping_add(1);
        state.kept.push_back(Kept { id, begun: now, used: now, listing });
        Token { member: self.me, listing: id, after }
    }

    /// The listing a token continues.
    pub(crate) fn find(&self, token: &Token) -> Result<Arc<Listing>, Status> {
        self.find_at(token, Instant::now())
    }

    fn find_at(&self, token: &Token, now: Instant) -> Result<Arc<Listing>, Status> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.forget_old(now);
        let place = state.kept.iter().position(|kept| kept.id == token.listing);
        let found = place.filter(|_| token.member == self.me);
        let Some(mut kept) = found.and_then(|place| state.kept.remove(place)) else {
            let text = "the snapshot of this listing is gone: list again from the first page";
            return Err(status(Code::Aborted, "SNAPSHOT_GONE", text, &[]));
        };
        kept.used = now;
        let listing = Arc::clone(&kept.listing);
        state.kept.push_back(kept);
        Ok(listing)
    }

    /// Forgets what is too old, so that its views do not outlive their time by much.
    pub(crate) fn sweep(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).forget_old(Instant::now());
    }
}

impl State {
    fn forget_old(&mut self, now: Instant) {
        self.kept.retain(|kept| {
            now.saturating_duration_since(kept.used) < IDLE_MAX
                && now.saturating_duration_since(kept.begun) < AGE_MAX
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use coffer_model::id::ClusterId;

    use super::*;
    use crate::store::Store;

    const ME: MemberId = MemberId::from_u64(7);

    fn listing(store: &Arc<Store>, number: u8) -> Arc<Listing> {
        Arc::new(Listing {
            view: View::of(store),
            revision: number.into(),
            principal: PrincipalId::from_bytes([number; 16]),
            directory: InodeId::from_bytes([1; 16]),
            want: Want::default(),
            deleted: false,
        })
    }

    #[test]
    fn listings_are_few_and_short_lived() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &ClusterId::from_bytes([1; 32]), ME).unwrap();
        let listings = Listings::new(ME, u64::MAX);
        let after = NameTag::from_bytes([3; 32]);
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);

        let first = listings.keep_at(listing(&store, 0), after, at(0));
        let tokens: Vec<Token> =
            (1..32).map(|number| listings.keep_at(listing(&store, number), after, at(0))).collect();
        assert_eq!(listings.find_at(&first, at(1)).unwrap().revision, 0);
        // One more pushes out the least recently used, which is not the first any more.
        listings.keep_at(listing(&store, 32), after, at(1));
        assert_eq!(listings.find_at(&tokens[0], at(1)).unwrap_err().code(), Code::Aborted);
        assert_eq!(listings.find_at(&tokens[1], at(1)).unwrap().revision, 2);
        // Idle for a minute.
        listings.find_at(&first, at(50)).unwrap();
        assert_eq!(listings.find_at(&tokens[1], at(61)).unwrap_err().code(), Code::Aborted);
        // Busy, but too old.
        for secs in (100..600).step_by(50) {
            listings.find_at(&first, at(secs)).unwrap();
        }
        assert_eq!(listings.find_at(&first, at(600)).unwrap_err().code(), Code::Aborted);
    }

    #[test]
    fn a_token_has_one_text() {
        let token = Token { member: ME, listing: 5, after: NameTag::from_bytes([0xab; 32]) };
        let text = token.to_string();
        assert_eq!(Token::parse(&text).unwrap(), token);
        let tag = "ab".repeat(32);
        for wrong in [
            String::new(),
            text.to_uppercase(),
            text.replacen("1.", "2.", 1),
            format!("{text}.0"),
            format!("1.7.5.{tag}"),
            format!("1.+000000000000007.0000000000000005.{tag}"),
        ] {
            assert_eq!(Token::parse(&wrong).unwrap_err().code(), Code::InvalidArgument, "{wrong}");
        }
    }
}
