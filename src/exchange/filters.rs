//! Many topic filters at once: a tree with one node per level, so that the cost of a match depends on the topic and not
//! on the number of filters.

use std::collections::HashMap;

/// Most levels of a filter or topic, so that walking the tree needs little stack. mosquitto's limit is the same.
pub const MAX_LEVELS: usize = 200;

/// Values found by the topic filters that they were inserted with.
#[derive(Debug)]
pub struct FilterTree<V> {
    root: Node<V>,
    len: usize,
}

#[derive(Debug)]
struct Node<V> {
    children: HashMap<Box<str>, Node<V>>,
    plus: Option<Box<Node<V>>>,
    /// Filters that end here.
    here: Vec<V>,
    /// Filters that end here with `#`.
    below: Vec<V>,
}

impl<V> Default for Node<V> {
    fn default() -> Self {
        Node { children: HashMap::new(), plus: None, here: Vec::new(), below: Vec::new() }
    }
}

impl<V> Node<V> {
    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.plus.is_none() && self.here.is_empty() && self.below.is_empty()
    }

    fn visit<'a>(&'a self, level: Option<&str>, rest: &str, all: bool, found: &mut impl FnMut(&'a V)) {
        if all {
            self.below.iter().for_each(&mut *found);
        }
        let Some(level) = level else {
            self.here.iter().for_each(found);
            return;
        };
        let (next, rest) = split(rest);
        if let Some(child) = self.children.get(level) {
            child.visit(next, rest, true, found);
        }
        if let Some(plus) = self.plus.as_ref().filter(|_| all) {
            plus.visit(next, rest, true, found);
        }
    }

    fn remove(&mut self, filter: Option<&str>, is_it: &mut impl FnMut(&V) -> bool) -> Option<V> {
        let Some(filter) = filter else {
            let at = self.here.iter().position(is_it)?;
            return Some(self.here.swap_remove(at));
        };
        if filter == "#" {
            let at = self.below.iter().position(is_it)?;
            return Some(self.below.swap_remove(at));
        }
        let (level, rest) = match filter.split_once('/') {
            Some((level, rest)) => (level, Some(rest)),
            None => (filter, None),
        };
        if level == "+" {
            let plus = self.plus.as_mut()?;
            let removed = plus.remove(rest, is_it);
            if plus.is_empty() {
                self.plus = None;
            }
            return removed;
        }
        let child = self.children.get_mut(level)?;
        let removed = child.remove(rest, is_it);
        if child.is_empty() {
            self.children.remove(level);
        }
        removed
    }
}

/// First level of what is left, and what is left after it. `rest` begins with the separator, if there is more.
fn split(rest: &str) -> (Option<&str>, &str) {
    let Some(rest) = rest.strip_prefix('/') else { return (None, "") };
    let end = rest.find('/').unwrap_or(rest.len());
    (Some(&rest[..end]), &rest[end..])
}

impl<V> Default for FilterTree<V> {
    fn default() -> Self {
        FilterTree { root: Node::default(), len: 0 }
    }
}

impl<V> FilterTree<V> {
    /// Values in the tree.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a value under a valid topic filter of at most [`MAX_LEVELS`] levels.
    pub fn insert(&mut self, filter: &str, value: V) {
        let mut node = &mut self.root;
        self.len += 1;
        for level in filter.split('/') {
            match level {
                "#" => {
                    node.below.push(value);
                    return;
                }
                "+" => node = node.plus.get_or_insert_default(),
                _ => node = node.children.entry(level.into()).or_default(),
            }
        }
        node.here.push(value);
    }

    /// Removes the first value under this filter that `is_it` accepts.
    pub fn remove(&mut self, filter: &str, mut is_it: impl FnMut(&V) -> bool) -> Option<V> {
        let removed = self.root.remove(Some(filter), &mut is_it);
        self.len -= usize::from(removed.is_some());
        removed
    }

    /// Calls `found` for every value whose filter selects `topic`; as with [`crate::message::matches`], filters that
    /// begin with a wildcard do not select topics that begin with `$`.
    pub fn matches<'a>(&'a self, topic: &str, mut found: impl FnMut(&'a V)) {
        let end = topic.find('/').unwrap_or(topic.len());
        self.root.visit(Some(&topic[..end]), &topic[end..], !topic.starts_with('$'), &mut found);
    }
}

/// Whether a filter names its first level: what a broker says of itself is for those who ask for it.
pub fn names_first_level(filter: &str) -> bool {
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
                prop_assert_eq!(tree.remove(filter, |value| *value == at), Some(at));
            }
            for topic in topics.iter().map(|levels| levels.join("/")).filter(|topic| !topic.is_empty()) {
                let mut found = Vec::new();
                tree.matches(&topic, |at| found.push(*at));
                found.sort_unstable();
                let expected: Vec<usize> =
                    (0..filters.len()).filter(|at| !gone[*at] && matches(filters[*at], &topic)).collect();
                prop_assert_eq!(found, expected, "{}", topic);
            }
            for at in (0..filters.len()).filter(|at| !gone[*at]) {
                tree.remove(filters[at], |value| *value == at);
            }
            prop_assert!(tree.is_empty() && tree.root.is_empty(), "nothing is left behind");
        }
    }
}
