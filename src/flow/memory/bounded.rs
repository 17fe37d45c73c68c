//! A map with a bound.

use std::borrow::Borrow;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// A map that forgets what was put in first.
#[derive(Debug)]
pub(super) struct Bounded<K, V> {
    map: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K, V> Default for Bounded<K, V> {
    fn default() -> Self {
        Self {
            map: HashMap::new(),
            order: VecDeque::new(),
        }
    }
}

impl<K: Clone + Eq + Hash, V> Bounded<K, V> {
    pub fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.map.get(key)
    }

    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.map.get_mut(key)
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.map.values()
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.map.remove(key)
    }

    /// Inserts a value. Returns the value that had to be forgotten for it.
    pub fn insert(&mut self, key: K, value: V, bound: usize) -> Option<V> {
        if self.map.insert(key.clone(), value).is_none() {
            self.order.push_back(key);
        }
        let mut forgotten = None;
        // Keys that were removed in between are still in the order.
        while self.map.len() > bound || self.order.len() > bound * 2 {
            let Some(oldest) = self.order.pop_front() else { break };
            if let Some(value) = self.map.remove(&oldest) {
                forgotten = Some(value);
            }
        }
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_is_bounded() {
        let mut bounded = Bounded::default();
        for n in 0..1000 {
            bounded.insert(n, n, 10);
            if n % 2 == 0 {
                bounded.remove(&n);
            }
        }
        assert!(bounded.map.len() <= 10 && bounded.order.len() <= 20);
        assert_eq!(bounded.get(&999), Some(&999));
    }
}
