//! What happens on the nodes when one state follows another. In a mesh most of it is the same on all of them, and is
//! worked out and kept once.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::words;
use crate::proto::model::NodeName;
use crate::proto::session::{Item, ItemId, Items, Tag};

/// What happens to one item of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Which item.
    pub item: ItemId,
    /// What it is now, in words; absent: it is added.
    pub before: Option<String>,
    /// What it will be, in words; absent: it is removed.
    pub after: Option<String>,
    /// On how many nodes it happens.
    pub nodes: usize,
    tags: Tags,
}

/// The tags of an item before and after, which name all of it.
type Tags = [Option<Tag>; 2];

/// The operations on all nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Operations {
    /// Each once, in the order of the first node that has it.
    each: Vec<Operation>,
    /// By node, only nodes with some, the places of its operations in `each`, in the order of the items' ids.
    nodes: BTreeMap<NodeName, Vec<u32>>,
}

/// The operations of one node, in the order of the items' ids.
#[derive(Debug, Clone)]
pub struct OfNode<'a> {
    each: &'a [Operation],
    places: std::slice::Iter<'a, u32>,
}

impl<'a> Iterator for OfNode<'a> {
    type Item = &'a Operation;

    fn next(&mut self) -> Option<&'a Operation> {
        self.each.get(usize::try_from(*self.places.next()?).ok()?)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.places.size_hint()
    }
}

impl ExactSizeIterator for OfNode<'_> {}

impl Operations {
    /// What leads from one state to the other.
    pub fn between(before: &BTreeMap<NodeName, Items>, after: &BTreeMap<NodeName, Items>) -> Self {
        let nothing = Items::default();
        let mut operations = Self::default();
        let mut known: HashMap<Tags, u32> = HashMap::new();
        let nodes: BTreeSet<&NodeName> = before.keys().chain(after.keys()).collect();
        for node in nodes {
            let [old, new] = [before, after].map(|views| views.get(node).unwrap_or(&nothing));
            let places: Vec<u32> =
                old.differences(new).filter_map(|items| operations.count(items, &mut known)).collect();
            if !places.is_empty() {
                operations.nodes.insert(node.clone(), places);
            }
        }
        operations
    }

    /// Counts an operation of one more node. Returns its place.
    fn count(&mut self, items: [Option<&Arc<Item>>; 2], known: &mut HashMap<Tags, u32>) -> Option<u32> {
        let tags = items.map(|item| item.map(|item| item.tag));
        let place = match known.entry(tags) {
            Entry::Occupied(place) => *place.get(),
            Entry::Vacant(entry) => {
                let [before, after] = match items {
                    [Some(before), Some(after)] => words::of_change(before, after).map(Some),
                    one => one.map(|item| item.map(|item| words::of(item))),
                };
                let item = items.into_iter().flatten().next()?.id.clone();
                let place = u32::try_from(self.each.len()).ok()?;
                self.each.push(Operation { item, before, after, nodes: 0, tags });
                *entry.insert(place)
            }
        };
        self.each.get_mut(usize::try_from(place).ok()?)?.nodes += 1;
        Some(place)
    }

    /// Whether no node has anything to do.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Each operation once, in the order of the first node that has it.
    pub fn each(&self) -> &[Operation] {
        &self.each
    }

    /// By node, only nodes with some.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = (&NodeName, OfNode<'_>)> {
        self.nodes.iter().map(|(node, places)| (node, self.of_node(places)))
    }

    /// Those of one node.
    pub fn of(&self, node: &NodeName) -> OfNode<'_> {
        self.of_node(self.nodes.get(node).map_or(&[], Vec::as_slice))
    }

    fn of_node<'a>(&'a self, places: &'a [u32]) -> OfNode<'a> {
        OfNode { each: &self.each, places: places.iter() }
    }

    /// Puts into `hash` what happens on which node.
    pub(super) fn hash(&self, hash: &mut Sha256) {
        hash.update(self.each.len().to_le_bytes());
        // A tag covers the item's name.
        for tag in self.each.iter().flat_map(|operation| operation.tags) {
            hash.update(tag.as_ref().map_or(&[0; 16], Tag::as_bytes));
        }
        for (node, places) in &self.nodes {
            hash.update(node.as_str());
            hash.update([0]);
            hash.update(places.len().to_le_bytes());
            hash.update(places.iter().flat_map(|place| place.to_le_bytes()).collect::<Vec<u8>>());
        }
    }
}
