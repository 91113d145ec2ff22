//! Listings of large directories that change, and page tokens that are not what they should be.

use super::*;

/// Entries that stand throughout: more than any page holds, and as many as bundles of the largest size.
const STANDING: usize = 16 * 256;
const PAGE: u32 = 250;

/// Goal: while a directory changes, a listing of it has every entry that stood throughout, once, and
/// nothing of what came later; or it fails with "list again". Method: names are made between any two
/// pages; another listing goes on at the same time.
/// Proves S9 of docs/semantics.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_directory_is_listed_while_it_changes() {
    let mut group = TestGroup::running(1).await;
    let channel = group.channel(0);
    let alice = User::registered(&group, 0, "alice").await;
    for bundle in 0..STANDING / 256 {
        let mut draft = Draft::default();
        for number in 0..256 {
            draft = draft.file(alice.home, &format!("{bundle} {number}"), &[], 0);
        }
        let (outcomes, _) = alice.send(&channel, alice.submission(draft)).await;
        assert!(outcomes.iter().all(Result::is_ok));
    }
    let list = async |token: &str| {
        let request = alice.request(alice.list_request(PAGE, token));
        directory(&channel).list(request).await.map(tonic::Response::into_inner)
    };
    let mut tokens = vec![String::new(); 2];
    let mut seen = vec![BTreeSet::new(); 2];
    let mut revisions = vec![BTreeSet::new(); 2];
    let mut turn = 0;
    while tokens.iter().any(|token| token != "end") {
        for at in 0..tokens.len() {
            if tokens[at] == "end" {
                continue;
            }
            let page = list(&tokens[at]).await.unwrap();
            for entry in &page.entries {
                let leaf = entry.entry.as_ref().unwrap();
                let ops = &page.proofs.as_ref().unwrap().ops;
                let op = &ops[usize::try_from(leaf.op).unwrap()];
                assert!(seen[at].insert((op.sequence, op.index)), "an entry came twice");
            }
            revisions[at].insert(page.revision);
            tokens[at] = match page.next_page_token.as_str() {
                "" => "end".to_owned(),
                more => more.to_owned(),
            };
            turn += 1;
            alice.create(&channel, &format!("later {turn}"), &[]).await;
        }
    }
    // The second listing began after the first name that came later.
    assert_eq!([seen[0].len(), seen[1].len()], [STANDING, STANDING + 1]);
    assert!(seen[0].is_subset(&seen[1]));
    assert!(revisions.iter().all(|of| of.len() == 1), "{revisions:?}");
    group.stop_all().await;
}

/// Goal: a page token gives nothing that the session does not have, whatever stands in it. Method: one
/// that is good, spoiled in each way there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spoiled_page_tokens_are_refused_with_a_reason() {
    let mut group = TestGroup::running(1).await;
    let channel = group.channel(0);
    let alice = User::registered(&group, 0, "alice").await;
    let bob = User::registered(&group, 0, "bob").await;
    for name in ["one", "two", "three"] {
        alice.create(&channel, name, &[]).await;
    }
    let list = async |by: &User, request: pb::ListRequest| {
        directory(&channel).list(by.request(request)).await.map(tonic::Response::into_inner)
    };
    let good = list(&alice, alice.list_request(1, "")).await.unwrap().next_page_token;
    let parts: Vec<&str> = good.split('.').collect();
    let [form, member, listing, tag] = parts[..] else { panic!("{good}") };

    // Another's session, with the right directory; and with one of their own.
    let refused = list(&bob, alice.list_request(1, &good)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "PAGE_TOKEN"));
    let refused = list(&bob, bob.list_request(1, &good)).await.unwrap_err();
    assert_eq!(reason(&refused), "PAGE_TOKEN");
    // Another question.
    let more = pb::ListRequest { want: Some(pb::Want::default()), ..alice.list_request(1, &good) };
    assert_eq!(reason(&list(&alice, more).await.unwrap_err()), "PAGE_TOKEN");

    let other = |digits: &str| digits.replace(|_: char| true, "9");
    let rows = [
        // Cut off anywhere.
        (good[..good.len() - 1].to_owned(), "PAGE_TOKEN"),
        (good[..good.len() / 2].to_owned(), "PAGE_TOKEN"),
        (format!("{form}.{member}.{listing}"), "PAGE_TOKEN"),
        (form.to_owned(), "PAGE_TOKEN"),
        (".".to_owned(), "PAGE_TOKEN"),
        // Too much of it.
        (format!("{good}0"), "PAGE_TOKEN"),
        (format!(" {good}"), "PAGE_TOKEN"),
        (good.repeat(1000), "PAGE_TOKEN"),
        (good.to_uppercase() + "\u{0}", "PAGE_TOKEN"),
        // A form that is to come.
        (format!("2.{member}.{listing}.{tag}"), "PAGE_TOKEN"),
        // Well made, of a listing or a member that is not there.
        (format!("{form}.{member}.{}.{tag}", other(listing)), "SNAPSHOT_GONE"),
        (format!("{form}.{}.{listing}.{tag}", other(member)), "SNAPSHOT_GONE"),
    ];
    for (token, expected) in rows {
        let refused = list(&alice, alice.list_request(1, &token)).await.unwrap_err();
        assert_eq!(reason(&refused), expected, "{token}");
    }
    // The place in the listing is the caller's own business: it is their listing.
    let last = format!("{form}.{member}.{listing}.{}", "f".repeat(tag.len()));
    let page = list(&alice, alice.list_request(1, &last)).await.unwrap();
    assert!(page.entries.is_empty() && page.next_page_token.is_empty());
    // After all of this the good one is still good.
    assert_eq!(list(&alice, alice.list_request(10, &good)).await.unwrap().entries.len(), 2);

    // Versions: the token names the file.
    let file = kit::inode(&format!("{}/one", alice.home));
    let versions = async |token: String| {
        let request = pb::ListVersionsRequest {
            inode: file.as_bytes().to_vec().into(),
            page_token: token,
            ..pb::ListVersionsRequest::default()
        };
        directory(&channel).list_versions(alice.request(request)).await
    };
    let other = kit::inode(&format!("{}/two", alice.home));
    assert!(versions(format!("1.{file}.1")).await.is_ok());
    for token in [
        format!("1.{other}.1"),
        format!("1.{file}."),
        format!("1.{file}"),
        format!("1.{file}.01"),
        format!("1.{file}.-1"),
        format!("1.{file}.18446744073709551616"),
        format!("2.{file}.1"),
        "rubbish".to_owned(),
    ] {
        let refused = versions(token.clone()).await.unwrap_err();
        assert_eq!(reason(&refused), "PAGE_TOKEN", "{token}");
    }
    group.stop_all().await;
}
