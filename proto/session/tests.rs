use proptest::prelude::*;

use super::*;

fn item(id: &str, content: &[u8]) -> Arc<Item> {
    Arc::new(Item { id: id.parse().unwrap(), tag: Tag::of(content), content: content.to_vec() })
}

prop_compose! {
    fn items()(
        chosen in proptest::collection::btree_map((any::<bool>(), 0..6_u8), 0..3_u8, 0..12)
    ) -> Items {
        Items::new(chosen.into_iter().map(|((is_device, name), content)| {
            item(&format!("{} n{name}", if is_device { "device" } else { "tunnel" }), &[content])
        }))
    }
}

/// What an agent does with a delta, as a map.
fn with(base: &Items, set: &[Arc<Item>], deleted: &BTreeSet<ItemId>) -> Items {
    Items::new(base.iter().filter(|item| !deleted.contains(&item.id)).chain(set).cloned())
}

proptest! {
    #[test]
    fn changes_lead_from_one_to_the_other_and_are_no_more_than_needed(one in items(), other in items()) {
        let (set, deleted) = one.changes_to(&other);
        prop_assert_eq!(&with(&one, &set, &deleted), &other);
        for item in &set {
            prop_assert!(!one.iter().any(|before| before == item));
        }
        for id in &deleted {
            prop_assert!(one.iter().any(|before| before.id == *id));
        }
    }

    #[test]
    fn a_digest_tells_different_items_apart(one in items(), other in items()) {
        prop_assert_eq!(one.digest() == other.digest(), one == other);
    }

    #[test]
    fn hashes_survive_as_text(random: u128) {
        let id = RunId::new(random);
        prop_assert_eq!(RunId::try_from(String::from(id)).unwrap(), id);
        prop_assert_eq!(RunId::from_bytes(id.as_bytes()), Some(id));
    }
}

#[test]
fn a_digest_does_not_run_names_together() {
    let tag = Tag::of(b"");
    let (a, b) = ("tunnel ab".parse().unwrap(), "tunnel a".parse().unwrap());
    assert_ne!(Digest::of([(&a, tag)]), Digest::of([(&b, tag)]));
}

/// Agents keep digests: what one release worked out the next must, too.
#[test]
fn digests_are_the_same_in_every_release() {
    let digest = Items::new([item("device prod", b"d"), item("tunnel prod.minion-2", b"t")]).digest();
    assert_eq!(digest.to_string(), "52d6f1c5ca6efbcb8bb2d9ee57f613a9");
}

#[test]
fn generations_are_ordered_by_incarnation_first() {
    let generation = |incarnation, revision| Generation { incarnation, revision };
    assert!(generation(2, 1) > generation(1, 9));
    assert!(generation(1, 2) > generation(1, 1));
}
