//! What an agent keeps of its controller.

use serde::{Deserialize, Serialize};

use crate::proto::session::{Generation, Have, Item, ItemId, Items, Removals};

/// The most tunnels that go without anyone's consent, however many there are.
const FEW: usize = 3;

/// All that the controller wants of this node, as it said it: also what this release does not understand. Its serde
/// form is a part of the state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The store that it comes from.
    pub store_id: String,
    /// Its version.
    pub generation: Generation,
    /// The controller's start in which it was sent; empty: an earlier release did not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub timeline: String,
    /// What is wanted.
    #[serde(with = "kept")]
    pub items: Items,
    /// The revision after which consents count, where that is not the generation's: since then removals are held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consents_after: Option<u64>,
    /// What is not wanted any more, and is kept all the same.
    #[serde(with = "kept", default)]
    pub held: Items,
}

impl Base {
    /// All items that are to be real, by id.
    pub fn all(&self) -> Items {
        if self.held.is_empty() {
            return self.items.clone();
        }
        Items::new(self.items.iter().chain(self.held.iter()).cloned())
    }

    /// What a Hello says. What is held counts, so that the answer is a snapshot: only that says what has been
    /// consented to.
    pub fn have(&self) -> Have {
        let digest = self.all().digest();
        Have {
            store_id: self.store_id.clone(),
            generation: self.generation,
            digest,
            timeline: self.timeline.clone(),
        }
    }

    /// What follows `base` when `items` are wanted. More than half of the tunnels, and more than three, go only with
    /// consent that is younger than `base`; so do those that were held before. Nobody can have consented to the removal
    /// of what an older copy of the store knows nothing of: in another incarnation the numbers say nothing. Where removals
    /// are held nothing goes at all, and who consents meanwhile does so to what follows. The timeline is the session's to say.
    pub(super) fn next(
        base: Option<&Self>,
        store_id: String,
        generation: Generation,
        items: Items,
        removals: Removals,
    ) -> Self {
        let seen = base.map(|base| base.consents_after.unwrap_or(base.generation.revision));
        let is_same = base.is_some_and(|base| base.generation.incarnation == generation.incarnation);
        let consents_after = match is_same {
            true => seen,
            false => Some(generation.revision),
        };
        let held = match base {
            Some(base) if removals.are_held => Items::new(base.all().missing_in(&items).cloned()),
            Some(base) if !is_same || seen >= Some(removals.consent) => base.held_without(&items),
            Some(_) | None => Items::default(),
        };
        let consents_after = consents_after.filter(|_| removals.are_held);
        Self { store_id, generation, timeline: String::new(), items, consents_after, held }
    }

    /// What of this stays beside `wanted` without consent.
    fn held_without(&self, wanted: &Items) -> Items {
        let is_tunnel = |item: &Item| matches!(item.id, ItemId::Tunnel(_));
        // Devices as well: those that stay may need them.
        let going: Vec<_> = self.items.missing_in(wanted).collect();
        let tunnels = going.iter().filter(|item| is_tunnel(item)).count();
        let had = || self.items.iter().filter(|item| is_tunnel(item)).count();
        let is_mass = tunnels > FEW && tunnels * 2 > had();
        let held = self.held.missing_in(wanted);
        Items::new(held.chain(going.into_iter().filter(|_| is_mass)).cloned())
    }
}

/// Items in the state file: a map by id.
mod kept {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::proto::session::{Item, ItemId, Items, Tag};

    #[derive(Serialize, Deserialize)]
    struct Kept {
        tag: Tag,
        /// Base64.
        content: String,
    }

    pub(super) fn serialize<S: Serializer>(items: &Items, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(
            items
                .iter()
                .map(|item| (&item.id, Kept { tag: item.tag, content: STANDARD.encode(&item.content) })),
        )
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Items, D::Error> {
        let kept = BTreeMap::<ItemId, Kept>::deserialize(deserializer)?;
        let items = kept.into_iter().map(|(id, Kept { tag, content })| {
            let content = STANDARD.decode(content).map_err(D::Error::custom)?;
            Ok(Arc::new(Item { id, tag, content }))
        });
        items.collect::<Result<Vec<_>, _>>().map(Items::new)
    }
}
