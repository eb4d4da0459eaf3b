use proptest::prelude::*;

use super::*;
use crate::proto::trust::Asker;

const HOUR: Duration = Duration::from_secs(3_600);
const NOW: Duration = Duration::from_secs(1_800_000_000);

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn key(name: &str) -> KeyId {
    KeyId::of(name.as_bytes())
}

fn id(number: u64) -> TokenId {
    TokenId::random(number)
}

fn secret(number: u64) -> Secret {
    Secret::random(number.into())
}

fn token(number: u64, uses: u32) -> Token {
    Token {
        hash: secret(number).hash(),
        names: "web-*".parse().unwrap(),
        labels: [("role".to_owned(), "web".to_owned())].into(),
        expires: NOW + HOUR,
        uses,
        used: 0,
        made_by: "root".to_owned(),
    }
}

fn proof(number: u64) -> Proof {
    Proof::Token(id(number), secret(number))
}

fn draft(uses: u32) -> Draft {
    let mut draft = Draft::new(&Arc::default());
    draft.create_token(id(1), token(1, uses), NOW).unwrap();
    draft
}

/// What a draft refuses leaves it as it was.
fn refused<T: std::fmt::Debug>(
    draft: &mut Draft,
    ask: impl FnOnce(&mut Draft) -> Result<T, Denial>,
) -> Denial {
    let before = (draft.trust.clone(), draft.touched.clone());
    let denial = ask(draft).unwrap_err();
    assert_eq!(before, (draft.trust.clone(), draft.touched.clone()), "{denial}");
    denial
}

#[test]
fn a_token_lets_those_in_that_it_is_for() {
    let mut draft = draft(2);
    let web = draft.enrol(&node("web-1"), key("a"), proof(1), NOW).unwrap();
    assert_eq!(web.labels.as_ref().unwrap()["role"], "web");
    assert_eq!((web.expires, web.via), (NOW + CERTIFICATE, Via::Token(id(1))));
    let other = refused(&mut draft, |draft| draft.enrol(&node("db-1"), key("b"), proof(1), NOW));
    assert!(matches!(other, Denial::OtherName { .. }), "{other}");
    let unknown = refused(&mut draft, |draft| draft.enrol(&node("web-2"), key("b"), proof(2), NOW));
    assert_eq!(unknown, Denial::UnknownToken(id(2)));
    let guessed = Proof::Token(id(1), secret(2));
    let guess = refused(&mut draft, |draft| draft.enrol(&node("web-2"), key("b"), guessed, NOW));
    assert_eq!(guess, Denial::UnknownToken(id(1)), "as if there were none");
    let late = refused(&mut draft, |draft| draft.enrol(&node("web-2"), key("b"), proof(1), NOW + HOUR));
    assert_eq!(late, Denial::ExpiredToken(id(1)));
    draft.enrol(&node("web-2"), key("b"), proof(1), NOW).unwrap();
    let third = refused(&mut draft, |draft| draft.enrol(&node("web-3"), key("c"), proof(1), NOW));
    assert_eq!(third, Denial::UsedToken(id(1), 2));
    draft.revoke_token(&id(1)).unwrap();
    let revoked = refused(&mut draft, |draft| draft.enrol(&node("web-3"), key("c"), proof(1), NOW));
    assert_eq!(revoked, Denial::UnknownToken(id(1)));
    assert_eq!(draft.trust.identities.len(), 2, "those who have joined stay");
}

#[test]
fn the_same_again_gives_the_same_identity_and_uses_nothing_up() {
    let mut draft = draft(1);
    let first = draft.enrol(&node("web-1"), key("a"), proof(1), NOW).unwrap();
    assert_eq!(draft.enrol(&node("web-1"), key("a"), proof(1), NOW).unwrap(), first);
    draft.revoke_token(&id(1)).unwrap();
    let later = draft.enrol(&node("web-1"), key("a"), proof(1), NOW + HOUR * 24).unwrap();
    assert_eq!((later.key, later.since), (first.key, first.since));
    let taken = refused(&mut draft, |draft| draft.enrol(&node("web-1"), key("b"), Proof::Network, NOW));
    assert_eq!(taken, Denial::TakenName(node("web-1")));
}

#[test]
fn a_certificate_is_renewed_for_its_key_until_its_grace_is_over() {
    let mut draft = draft(1);
    let name = node("web-1");
    draft.enrol(&name, key("a"), proof(1), NOW).unwrap();
    let stranger = refused(&mut draft, |draft| draft.renew(&name, key("b"), NOW));
    assert_eq!(stranger, Denial::UnknownNode(name.clone()));
    let end = NOW + CERTIFICATE + GRACE;
    let late = refused(&mut draft, |draft| draft.renew(&name, key("a"), end));
    assert_eq!(late, Denial::TooLate(name.clone()));
    let unproven = refused(&mut draft, |draft| draft.enrol(&name, key("a"), proof(1), end));
    assert_eq!(unproven, Denial::ExpiredToken(id(1)), "it joins again as any other host");
    let last = end - Duration::from_secs(1);
    assert_eq!(draft.renew(&name, key("a"), last).unwrap().expires, last + CERTIFICATE);
    draft.touched.clear();
    draft.renew(&name, key("a"), last + HOUR).unwrap();
    assert!(draft.touched.is_empty(), "one that asks again and again writes nothing");
}

/// What TLS does not tell apart is not two nodes.
#[test]
fn names_that_differ_in_capitals_alone_are_one() {
    let mut draft = draft(3);
    draft.enrol(&node("web-a"), key("a"), proof(1), NOW).unwrap();
    let alike = refused(&mut draft, |draft| draft.enrol(&node("web-A"), key("b"), proof(1), NOW));
    assert_eq!(alike, Denial::AlikeName(node("web-A"), node("web-a")));
    draft.enrol(&node("web-aa"), key("b"), proof(1), NOW).unwrap();
}

#[test]
fn a_removed_node_comes_back_only_as_any_other_host() {
    let mut draft = draft(2);
    let name = node("web-1");
    draft.enrol(&name, key("a"), proof(1), NOW).unwrap();
    draft.remove_node(&name, &BTreeSet::new()).unwrap();
    assert!(draft.trust.removed.contains(&name));
    let renewal = refused(&mut draft, |draft| draft.renew(&name, key("a"), NOW));
    assert_eq!(renewal, Denial::UnknownNode(name.clone()));
    let again = refused(&mut draft, Draft::remove_removed);
    assert_eq!(again, Denial::UnknownNode(name.clone()));
    draft.enrol(&name, key("a"), proof(1), NOW).unwrap();
    assert!(draft.trust.removed.is_empty());
    assert_eq!(draft.trust.tokens[&id(1)].used, 2);
}

impl Draft {
    fn remove_removed(&mut self) -> Result<(), Denial> {
        self.remove_node(&node("web-1"), &BTreeSet::new())
    }
}

#[test]
fn where_it_comes_from_is_not_enough_for_a_node_that_was_removed() {
    let mut draft = draft(1);
    let name = node("web-1");
    draft.enrol(&name, key("a"), Proof::Network, NOW).unwrap();
    draft.remove_node(&name, &BTreeSet::new()).unwrap();
    let again = refused(&mut draft, |draft| draft.enrol(&name, key("b"), Proof::Network, NOW));
    assert_eq!(again, Denial::RemovedName(name.clone()));
    draft.enrol(&name, key("b"), proof(1), NOW).unwrap();
}

#[test]
fn what_an_operator_types_again_counts() {
    let mut draft = Draft::new(&Arc::default());
    let name = node("web-1");
    let approval = |word: u8, role: &str| Proof::Approval {
        by: "root".to_owned(),
        word: [word; 5],
        labels: [("role".to_owned(), role.to_owned())].into(),
    };
    draft.enrol(&name, key("a"), approval(1, "db"), NOW).unwrap();
    draft.touched.clear();
    let again = draft.enrol(&name, key("a"), approval(2, "web"), NOW).unwrap();
    assert_eq!((again.word, again.labels.unwrap()["role"].as_str()), (Some([2; 5]), "web"));
    assert!(draft.touched.contains(&Item::Identity(name.clone())));
    let other = refused(&mut draft, |draft| draft.enrol(&name, key("b"), approval(3, "web"), NOW));
    assert_eq!(other, Denial::TakenName(name));
}

#[test]
fn nobody_is_a_node_of_which_what_is_stored_cannot_be_read() {
    let name = node("web-1");
    let trust = Trust { damaged: [name.clone()].into(), ..Trust::default() };
    let mut draft = Draft::new(&Arc::new(trust));
    draft.create_token(id(1), token(1, 1), NOW).unwrap();
    let taken = refused(&mut draft, |draft| draft.enrol(&name, key("a"), proof(1), NOW));
    assert_eq!(taken, Denial::TakenName(name));
}

#[test]
fn what_changes_something_is_told_once_and_what_does_not_never() {
    let mut draft = draft(1);
    let deed = Deed { asker: Asker::default(), method: "Enrol", what: "web-1".to_owned() };
    for _ in 0..3 {
        let enrol = |draft: &mut Draft| draft.enrol(&node("web-1"), key("a"), proof(1), NOW);
        draft.attempt(Some(&deed), enrol).unwrap();
        let late = |draft: &mut Draft| draft.enrol(&node("web-2"), key("b"), proof(1), NOW);
        draft.attempt(Some(&deed), late).unwrap_err();
    }
    assert_eq!(draft.deeds, [deed]);
}

#[test]
fn operators_are_one_of_a_name() {
    let mut draft = Draft::new(&Arc::default());
    let name: OperatorName = "anna".parse().unwrap();
    let viewer =
        Operator { role: Role::Viewer, key: key("a"), expires: NOW + HOUR, made_by: "root".to_owned() };
    draft.create_operator(&name, viewer.clone()).unwrap();
    draft.create_operator(&name, viewer.clone()).unwrap();
    for other in [Operator { role: Role::Admin, ..viewer.clone() }, Operator { key: key("b"), ..viewer }] {
        let taken = refused(&mut draft, |draft| draft.create_operator(&name, other));
        assert_eq!(taken, Denial::TakenOperator(name.clone()));
    }
    draft.remove_operator(&name).unwrap();
    let gone = refused(&mut draft, |draft| draft.remove_operator(&name));
    assert_eq!(gone, Denial::UnknownOperator(name.clone()));
}

#[test]
fn tokens_that_nobody_can_use_for_long_are_forgotten() {
    let mut draft = draft(1);
    draft.create_token(id(2), token(2, 1), NOW + HOUR + LISTED - Duration::from_secs(1)).unwrap();
    assert!(draft.trust.tokens.contains_key(&id(1)));
    let later = Token { expires: NOW + LISTED * 3, ..token(3, 1) };
    draft.create_token(id(3), later, NOW + HOUR + LISTED).unwrap();
    assert_eq!(draft.trust.tokens.keys().collect::<Vec<_>>(), [&id(3)]);
}

#[derive(Debug, Clone)]
enum Step {
    Enrol { node: u8, key: u8, token: u64 },
    Renew { node: u8, key: u8 },
    Remove { node: u8 },
    Create { token: u64, uses: u32 },
    Revoke { token: u64 },
    Wait { hours: u32 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_u8, 0..3_u8, 0..3_u64).prop_map(|(node, key, token)| Step::Enrol { node, key, token }),
        2 => (0..3_u8, 0..3_u8).prop_map(|(node, key)| Step::Renew { node, key }),
        1 => (0..3_u8).prop_map(|node| Step::Remove { node }),
        2 => (0..3_u64, 1..3_u32).prop_map(|(token, uses)| Step::Create { token, uses }),
        1 => (0..3_u64).prop_map(|token| Step::Revoke { token }),
        1 => (0..200_u32).prop_map(|hours| Step::Wait { hours }),
    ]
}

proptest! {
    /// Whatever happens: nobody is in whom nothing let in, no token lets in more than it may, nobody has the name of
    /// another, and what is touched is all that differs.
    #[test]
    fn nobody_is_in_whom_nothing_let_in(steps in proptest::collection::vec(step(), 0..40)) {
        let mut stored = Trust::default();
        let mut wall = NOW;
        // Whom tokens have let in, and has not been removed since.
        let mut inside: BTreeMap<NodeName, KeyId> = BTreeMap::new();
        for step in steps {
            let mut draft = Draft::new(&Arc::new(stored.clone()));
            match step {
                Step::Enrol { node: number, key: of, token } => {
                    let (name, key) = (node(&format!("web-{number}")), key(&of.to_string()));
                    let known = stored.tokens.get(&id(token));
                    let may = known.is_some_and(|token| wall < token.expires && token.used < token.uses);
                    let outcome = draft.enrol(&name, key, proof(token), wall);
                    let in_time = stored.identities.get(&name).is_some_and(|known| wall < known.expires + GRACE);
                    let is_same = inside.get(&name) == Some(&key);
                    let is_other = inside.contains_key(&name) && !is_same;
                    prop_assert_eq!(outcome.is_ok(), (is_same && in_time) || (may && !is_other));
                    if outcome.is_ok() {
                        inside.insert(name, key);
                    }
                }
                Step::Renew { node: number, key: of } => {
                    let (name, key) = (node(&format!("web-{number}")), key(&of.to_string()));
                    let in_time = stored.identities.get(&name).is_some_and(|known| wall < known.expires + GRACE);
                    let may = inside.get(&name) == Some(&key) && in_time;
                    prop_assert_eq!(draft.renew(&name, key, wall).is_ok(), may);
                }
                Step::Remove { node: number } => {
                    let name = node(&format!("web-{number}"));
                    prop_assert_eq!(draft.remove_node(&name, &BTreeSet::new()).is_ok(), inside.remove(&name).is_some());
                }
                Step::Create { token: number, uses } => {
                    let fresh = Token { expires: wall + HOUR * 50, ..token(number, uses) };
                    draft.create_token(id(number), fresh, wall).unwrap();
                }
                Step::Revoke { token } => {
                    let was = stored.tokens.contains_key(&id(token));
                    prop_assert_eq!(draft.revoke_token(&id(token)).is_ok(), was);
                }
                Step::Wait { hours } => wall += HOUR * hours,
            }
            let keys = draft.trust.identities.iter().map(|(name, identity)| (name.clone(), identity.key));
            prop_assert_eq!(keys.collect::<BTreeMap<_, _>>(), inside.clone());
            prop_assert!(draft.trust.tokens.values().all(|token| token.used <= token.uses));
            prop_assert!(draft.trust.removed.iter().all(|name| !inside.contains_key(name)));
            // Only what is touched is written.
            for item in &draft.touched {
                match item {
                    Item::Token(id) => copy(&mut stored.tokens, &draft.trust.tokens, id),
                    Item::Identity(node) => copy(&mut stored.identities, &draft.trust.identities, node),
                    Item::Operator(name) => copy(&mut stored.operators, &draft.trust.operators, name),
                    Item::Removed(node) => {
                        stored.removed.remove(node);
                        stored.removed.extend(draft.trust.removed.get(node).cloned());
                    }
                }
            }
            prop_assert_eq!(&stored, &*draft.trust);
        }
    }
}

fn copy<K: Ord + Clone, V: Clone>(to: &mut BTreeMap<K, V>, from: &BTreeMap<K, V>, key: &K) {
    to.remove(key);
    to.extend(from.get_key_value(key).map(|(key, value)| (key.clone(), value.clone())));
}
