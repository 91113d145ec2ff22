//! A map that cannot grow past its bound, for answers that are dear to compute and cheap to lose.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A bounded map with optional expiry, shared by threads.
///
/// It keeps two generations of at most half the capacity each. New and used entries are in the young
/// one; when that is full, it becomes the old one and the former old one is dropped whole. So at
/// least the last `capacity / 2` distinct entries used are there, never more than `capacity` in all,
/// and an operation costs one or two hash look-ups, with now and then the freeing of a generation.
///
/// An expired entry is never returned; its memory is freed when it is asked for or its generation
/// goes.
#[derive(Debug)]
pub struct BoundedCache<K, V> {
    generation_max: usize,
    ttl: Option<Duration>,
    generations: Mutex<Generations<K, V>>,
}

#[derive(Debug)]
struct Generations<K, V> {
    young: HashMap<K, Entry<V>>,
    old: HashMap<K, Entry<V>>,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    expires: Option<Instant>,
}

impl<V> Entry<V> {
    fn is_alive(&self, now: Instant) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }
}

impl<K: Hash + Eq + Clone, V: Clone> BoundedCache<K, V> {
    /// A cache of at most `capacity` entries (at least two), each of which is good for `ttl` from its
    /// insertion, or until it is pushed out.
    pub fn new(capacity: usize, ttl: Option<Duration>) -> Self {
        Self {
            generation_max: (capacity / 2).max(1),
            ttl,
            generations: Mutex::new(Generations { young: HashMap::new(), old: HashMap::new() }),
        }
    }

    /// The value of `key`, if it is there and has not expired. Using an entry keeps it from being
    /// pushed out, but does not lengthen its life.
    pub fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.get_at(key, Instant::now())
    }

    /// [`Self::get`] at a given time, for callers that have their own clock.
    pub fn get_at<Q>(&self, key: &Q, now: Instant) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.lock().get(key, now, self.generation_max)
    }

    /// Keeps `value` for `key`, in place of what was there.
    pub fn insert(&self, key: K, value: V) {
        let expires = self.ttl.and_then(|ttl| Instant::now().checked_add(ttl));
        self.lock().insert(key, Entry { value, expires }, self.generation_max);
    }

    /// Keeps `value` for `key` until `expires`, or for the cache's own time if that is shorter.
    pub fn insert_until(&self, key: K, value: V, expires: Instant) {
        let own = self.ttl.and_then(|ttl| Instant::now().checked_add(ttl));
        let expires = Some(own.map_or(expires, |own| own.min(expires)));
        self.lock().insert(key, Entry { value, expires }, self.generation_max);
    }

    /// The value of `key`, made by `make` if it is not there. `make` runs under the cache's lock, so
    /// that it runs once; it must be quick and must not use the cache.
    pub fn get_or_insert_with<E>(
        &self,
        key: K,
        make: impl FnOnce() -> Result<V, E>,
    ) -> Result<V, E> {
        let now = Instant::now();
        let mut generations = self.lock();
        if let Some(value) = generations.get(&key, now, self.generation_max) {
            return Ok(value);
        }
        let value = make()?;
        let expires = self.ttl.and_then(|ttl| now.checked_add(ttl));
        generations.insert(key, Entry { value: value.clone(), expires }, self.generation_max);
        Ok(value)
    }

    /// Forgets `key`.
    pub fn remove<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let mut generations = self.lock();
        generations.young.remove(key);
        generations.old.remove(key);
    }

    /// Forgets every entry that `keep` refuses, such as those a revocation has made wrong.
    pub fn retain(&self, mut keep: impl FnMut(&K, &V) -> bool) {
        let mut generations = self.lock();
        generations.young.retain(|key, entry| keep(key, &entry.value));
        generations.old.retain(|key, entry| keep(key, &entry.value));
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let mut generations = self.lock();
        generations.young.clear();
        generations.old.clear();
    }

    /// How many entries are held, expired ones included.
    pub fn len(&self) -> usize {
        let generations = self.lock();
        generations.young.len() + generations.old.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Generations<K, V>> {
        // A panic elsewhere leaves the maps whole: each step on them is complete or not begun.
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Generations<K, V> {
    fn get<Q>(&mut self, key: &Q, now: Instant, generation_max: usize) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if let Some(entry) = self.young.get(key) {
            if entry.is_alive(now) {
                return Some(entry.value.clone());
            }
            self.young.remove(key);
            return None;
        }
        let (key, entry) = self.old.remove_entry(key)?;
        if !entry.is_alive(now) {
            return None;
        }
        let value = entry.value.clone();
        self.insert(key, entry, generation_max);
        Some(value)
    }

    fn insert(&mut self, key: K, entry: Entry<V>, generation_max: usize) {
        self.old.remove(&key);
        if self.young.len() >= generation_max && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, entry);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_bound_holds_and_used_entries_stay() {
        let cache = BoundedCache::new(64, None);
        cache.insert(u32::MAX, 7);
        for key in 0..10_000u32 {
            cache.insert(key, key);
            assert!(cache.len() <= 64, "{}", cache.len());
            assert_eq!(
                cache.get(&u32::MAX),
                Some(7),
                "used after every insertion, so never pushed out"
            );
            // Since then 15 new entries and 14 older ones were used: less than half the capacity.
            let oldest = key.saturating_sub(14);
            assert_eq!(cache.get(&oldest), Some(oldest));
        }
        assert_eq!(cache.get(&0), None);
    }

    #[test]
    fn an_expired_entry_is_not_returned() {
        let cache = BoundedCache::new(8, Some(Duration::from_secs(60)));
        let start = Instant::now();
        cache.insert("long", 1);
        cache.insert_until("short", 2, start + Duration::from_secs(5));
        cache.insert_until("capped", 3, start + Duration::from_secs(3600));
        let at = |secs| start + Duration::from_secs(secs);
        assert_eq!(cache.get_at("short", at(4)), Some(2));
        assert_eq!(cache.get_at("short", at(5)), None);
        assert_eq!(cache.get_at("long", at(59)), Some(1));
        assert_eq!(cache.get_at("long", at(61)), None);
        assert_eq!(cache.get_at("capped", at(61)), None);
        assert!(cache.is_empty(), "asked for, so freed");
    }

    #[test]
    fn making_a_value_happens_once_and_its_failure_is_not_kept() {
        let cache = BoundedCache::new(4, None);
        assert_eq!(cache.get_or_insert_with("a", || Err("no")), Err("no"));
        assert_eq!(cache.get_or_insert_with("a", || Ok::<_, &str>(1)), Ok(1));
        assert_eq!(cache.get_or_insert_with("a", || Err("not called")), Ok(1));
    }

    #[test]
    fn entries_can_be_forgotten() {
        let cache = BoundedCache::new(4, None);
        for key in 0..4 {
            cache.insert(key, key);
        }
        cache.remove(&1);
        cache.retain(|key, _| *key != 2);
        assert_eq!([0, 1, 2, 3].map(|key| cache.get(&key)), [Some(0), None, None, Some(3)]);
        cache.clear();
        assert!(cache.is_empty());
    }

    #[test]
    fn a_changed_value_replaces_the_old_one_in_both_generations() {
        let cache = BoundedCache::new(4, None);
        cache.insert("a", 1);
        cache.insert("b", 1);
        cache.insert("c", 1); // "a" and "b" are old now
        cache.insert("a", 2);
        assert_eq!(cache.get("a"), Some(2));
        assert_eq!(cache.len(), 3);
    }
}
