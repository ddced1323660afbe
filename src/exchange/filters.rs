//! A tree of topic filters. The cost of finding those that match a topic depends on the topic and on how many filters differ
//! by wildcards, and not on the number of filters.
//!
//! Levels at which no other filter branches off share a node, so the size of the tree follows from the length of its
//! filters, however many levels they have. A search counts the nodes it visits, which a test limits.

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::meter::Walk;
pub use super::values::FilterValue;
use super::values::FilterValues;

/// The most levels of a filter or topic, so that a search needs little stack. mosquitto has the same limit.
pub const MAX_LEVELS: usize = 200;
/// The number of bytes of levels that are compared in one step.
const STEP: usize = 16;

/// Values by topic filter.
#[derive(Debug)]
pub struct FilterTree<V: FilterValue> {
    root: FilterNode<V>,
    len: usize,
}

#[derive(Debug)]
struct FilterNode<V: FilterValue> {
    /// The levels from the parent to this node, joined by `/`. Those of the root are not used.
    levels: Box<str>,
    has_wildcard: bool,
    /// Children by their first level.
    children: Option<Box<Children<V>>>,
    /// The child whose first level is `+`.
    plus: Option<Box<FilterNode<V>>>,
    /// Values of filters that end here.
    here: FilterValues<V>,
    /// Values of filters that end here with `#`.
    below: FilterValues<V>,
}

type Children<V> = HashMap<Box<str>, Box<FilterNode<V>>>;

/// Whether a filter has the wildcard `+`, because only that makes a search branch.
fn branches(filter: &str) -> bool {
    filter.split('/').any(|level| level == "+")
}

/// The filter without a final `/#`, and whether it ended with `#`. `None` means that the filter is `#` alone.
fn ends(filter: &str) -> (Option<&str>, bool) {
    match filter.strip_suffix('#') {
        Some(rest) => (rest.strip_suffix('/'), true),
        None => (Some(filter), false),
    }
}

fn first_level(levels: &str) -> &str {
    levels.split_once('/').map_or(levels, |(first, _)| first)
}

/// The number of bytes of the complete levels with which both begin.
fn common(a: &str, b: &str) -> usize {
    let mut end = 0;
    for (at, (level, other)) in a.split('/').zip(b.split('/')).enumerate() {
        if level != other {
            break;
        }
        end += level.len() + usize::from(at > 0);
    }
    end
}

/// The levels after the first `count` bytes, which must be complete levels.
fn after(levels: &str, count: usize) -> Option<&str> {
    levels.get(count + 1..)
}

impl<V: FilterValue> FilterNode<V> {
    fn new(levels: &str) -> FilterNode<V> {
        FilterNode {
            levels: levels.into(),
            has_wildcard: branches(levels),
            children: None,
            plus: None,
            here: FilterValues::none(),
            below: FilterValues::none(),
        }
    }

    fn is_empty(&self) -> bool {
        self.children.is_none() && self.plus.is_none() && self.has_no_values()
    }

    fn has_no_values(&self) -> bool {
        self.here.as_slice().is_empty() && self.below.as_slice().is_empty()
    }

    fn values(&mut self, has_hash: bool) -> &mut FilterValues<V> {
        if has_hash { &mut self.below } else { &mut self.here }
    }

    /// The rest of a topic after this node's levels. `None` means that nothing is left, `Break` that the topic does not
    /// begin with them.
    fn follow<'t>(&self, topic: &'t str) -> ControlFlow<(), Option<&'t str>> {
        let (bytes, topic_bytes) = (self.levels.as_bytes(), topic.as_bytes());
        let end = if self.has_wildcard {
            let mut at = 0;
            for byte in bytes {
                // a filter has `+` only as a whole level, and a topic has none [MQTT-4.7.1-3]
                if *byte == b'+' {
                    let level = topic_bytes[at..].iter().position(|byte| *byte == b'/');
                    at += level.unwrap_or(topic_bytes.len() - at);
                } else if topic_bytes.get(at) == Some(byte) {
                    at += 1;
                } else {
                    return ControlFlow::Break(());
                }
            }
            at
        } else if topic_bytes.starts_with(bytes) {
            bytes.len()
        } else {
            return ControlFlow::Break(());
        };
        match topic_bytes.get(end) {
            None => ControlFlow::Continue(None),
            Some(b'/') => ControlFlow::Continue(Some(&topic[end + 1..])),
            Some(_) => ControlFlow::Break(()),
        }
    }

    fn enter<'a>(&'a self, topic: &str, walk: &mut Walk, found: &mut impl FnMut(&'a V)) {
        walk.visits(1 + self.levels.len() / STEP);
        if let ControlFlow::Continue(rest) = self.follow(topic) {
            self.visit(rest, true, walk, found);
        }
    }

    fn visit<'a>(&'a self, rest: Option<&str>, all: bool, walk: &mut Walk, found: &mut impl FnMut(&'a V)) {
        let (here, below) = (self.here.as_slice(), self.below.as_slice());
        if all && !below.is_empty() {
            walk.visits(below.len());
            below.iter().for_each(&mut *found);
        }
        let Some(rest) = rest else {
            walk.visits(here.len());
            here.iter().for_each(found);
            return;
        };
        if let Some(child) = self.children.as_ref().and_then(|children| children.get(first_level(rest))) {
            child.enter(rest, walk, found);
        }
        if let Some(plus) = self.plus.as_ref().filter(|_| all) {
            plus.enter(rest, walk, found);
        }
    }

    fn child(&mut self, first: &str) -> Option<&mut Box<FilterNode<V>>> {
        match first {
            "+" => self.plus.as_mut(),
            _ => self.children.as_mut()?.get_mut(first),
        }
    }

    fn adopt(&mut self, child: Box<FilterNode<V>>) {
        match first_level(&child.levels) {
            "+" => self.plus = Some(child),
            first => {
                let first = first.into();
                self.children.get_or_insert_default().insert(first, child);
            }
        }
    }

    fn disown(&mut self, first: &str) -> Option<Box<FilterNode<V>>> {
        if first == "+" {
            return self.plus.take();
        }
        let children = self.children.as_mut()?;
        let child = children.remove(first);
        if children.is_empty() {
            self.children = None;
        }
        child
    }

    /// Splits a node after the first `count` bytes of its levels. Its contents move to a child.
    fn split(self: &mut Box<FilterNode<V>>, count: usize) {
        let below = after(&self.levels, count).unwrap_or_default();
        let mut child = Box::new(FilterNode::new(below));
        let upper = Box::new(FilterNode::new(&self.levels[..count]));
        let old = std::mem::replace(self, upper);
        let FilterNode { children, plus, here, below, .. } = *old;
        (child.children, child.plus, child.here, child.below) = (children, plus, here, below);
        self.adopt(child);
    }

    /// Joins a node with its only child, if no filter ends or branches here.
    fn join(self: &mut Box<FilterNode<V>>) {
        let count = self.children.as_ref().map_or(0, |children| children.len()) + usize::from(self.plus.is_some());
        if count != 1 || !self.has_no_values() {
            return;
        }
        let only = self.plus.take().or_else(|| self.children.take()?.into_values().next());
        if let Some(mut only) = only {
            only.levels = format!("{}/{}", self.levels, only.levels).into();
            only.has_wildcard |= self.has_wildcard;
            *self = only;
        }
    }

    fn remove(&mut self, levels: Option<&str>, has_hash: bool, key: &V::Key) -> Option<V> {
        let Some(levels) = levels else { return self.values(has_hash).remove(key) };
        let first = first_level(levels);
        let child = self.child(first)?;
        let count = child.levels.len();
        let is_below = levels.starts_with(&*child.levels) && matches!(levels.as_bytes().get(count), None | Some(b'/'));
        let removed = if is_below { child.remove(after(levels, count), has_hash, key) } else { None };
        if child.is_empty() {
            self.disown(first);
        } else {
            child.join();
        }
        removed
    }
}

impl<V: FilterValue> Default for FilterTree<V> {
    fn default() -> Self {
        FilterTree { root: FilterNode::new(""), len: 0 }
    }
}

impl<V: FilterValue> FilterTree<V> {
    /// Whether the tree has no values.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number of values.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds a value with a valid topic filter of at most [`MAX_LEVELS`] levels.
    pub fn insert(&mut self, filter: &str, value: V) {
        self.len += 1;
        let (mut rest, has_hash) = ends(filter);
        let mut node = &mut self.root;
        while let Some(levels) = rest {
            let first = first_level(levels);
            if node.child(first).is_none() {
                node.adopt(Box::new(FilterNode::new(levels)));
            }
            let Some(child) = node.child(first) else { return };
            let count = common(&child.levels, levels);
            if count < child.levels.len() {
                child.split(count);
            }
            rest = after(levels, count);
            node = child;
        }
        node.values(has_hash).push(value);
    }

    /// Removes a value of this filter with this key.
    pub fn remove(&mut self, filter: &str, key: &V::Key) -> Option<V> {
        let (levels, has_hash) = ends(filter);
        let removed = self.root.remove(levels, has_hash, key);
        self.len -= usize::from(removed.is_some());
        removed
    }

    /// Calls `found` for every value whose filter matches `topic`. As in [`crate::message::matches`], filters that begin
    /// with a wildcard do not match topics that begin with `$`. `walk` counts the visited nodes and values.
    pub fn matches<'a>(&'a self, topic: &str, walk: &mut Walk, mut found: impl FnMut(&'a V)) {
        self.root.visit(Some(topic), !topic.starts_with('$'), walk, &mut found);
    }
}

/// Whether a filter names its first level explicitly, which messages of the broker about itself require.
pub(crate) fn names_first_level(filter: &str) -> bool {
    !filter.starts_with(['+', '#'])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{check_filter, matches};

    fn level() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["a", "b", "", "$S", "ü"])
    }

    fn wild() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["a", "b", "", "$S", "ü", "+", "#"])
    }

    proptest! {
        #[test]
        fn finds_just_what_each_filter_selects(
            filters in prop::collection::vec(prop::collection::vec(wild(), 1..5), 1..20),
            topics in prop::collection::vec(prop::collection::vec(level(), 1..5), 1..10),
            gone in prop::collection::vec(any::<bool>(), 20),
        ) {
            let filters: Vec<String> = filters.iter().map(|levels| levels.join("/")).collect();
            let filters: Vec<&String> = filters.iter().filter(|filter| check_filter(filter).is_ok()).collect();
            let mut tree = FilterTree::default();
            for (at, filter) in filters.iter().enumerate() {
                tree.insert(filter, at);
            }
            for (at, filter) in filters.iter().enumerate().filter(|(at, _)| gone[*at]) {
                prop_assert_eq!(tree.remove(filter, &at), Some(at));
            }
            for topic in topics.iter().map(|levels| levels.join("/")).filter(|topic| !topic.is_empty()) {
                let mut found = Vec::new();
                tree.matches(&topic, &mut Walk::default(), |at| found.push(*at));
                found.sort_unstable();
                let expected: Vec<usize> =
                    (0..filters.len()).filter(|at| !gone[*at] && matches(filters[*at], &topic)).collect();
                prop_assert_eq!(found, expected, "{}", topic);
            }
            for at in (0..filters.len()).filter(|at| !gone[*at]) {
                tree.remove(filters[at], &at);
            }
            prop_assert!(tree.is_empty() && tree.root.is_empty(), "nothing is left behind");
        }
    }

    #[test]
    fn levels_that_nothing_branches_off_from_share_a_node() {
        fn nodes<V: FilterValue>(node: &FilterNode<V>) -> usize {
            let children = node.children.iter().flat_map(|children| children.values());
            1 + children.chain(&node.plus).map(|child| nodes(child)).sum::<usize>()
        }
        let deep = |first: &str, last: &str| format!("{first}{}{last}", "/a/+".repeat(99));
        let mut tree = FilterTree::default();
        for number in 0..100 {
            tree.insert(&deep(&number.to_string(), "/x"), number);
            tree.insert(&deep(&number.to_string(), "/#"), number);
        }
        assert_eq!(nodes(&tree.root), 201);
        let mut found = 0;
        let mut walk = Walk::default();
        tree.matches(&format!("7{}/x", "/a/b".repeat(99)), &mut walk, |_| found += 1);
        assert_eq!(found, 2);
        assert!(walk.steps < 40, "{walk:?}");
        for number in 0..100_usize {
            assert!(tree.remove(&deep(&number.to_string(), "/#"), &number).is_some());
        }
        assert_eq!(nodes(&tree.root), 101);
    }
}
