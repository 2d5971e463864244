//! A table of numbers in parts: a part that grows moves 64 times less than the whole would, and holds up the queue that
//! much shorter.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

const PARTS: usize = 64;
/// Parts that give memory back at a time.
const SHRUNK_AT_ONCE: usize = 8;

/// Keys are parts of a hash already.
#[derive(Default)]
struct Given(u64);

impl Hasher for Given {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

type Part = HashMap<u64, u64, BuildHasherDefault<Given>>;

/// Keys must be spread evenly over all their bits.
pub(super) struct Table {
    parts: Box<[Part; PARTS]>,
}

impl Default for Table {
    fn default() -> Self {
        Self { parts: Box::new(std::array::from_fn(|_| Part::default())) }
    }
}

impl Table {
    pub(super) fn get(&self, key: u64) -> Option<u64> {
        self.parts[part_of(key)].get(&key).copied()
    }

    pub(super) fn insert(&mut self, key: u64, value: u64) {
        self.parts[part_of(key)].insert(key, value);
    }

    pub(super) fn remove(&mut self, key: u64) {
        self.parts[part_of(key)].remove(&key);
    }

    /// Gives back memory of some parts that are mostly empty.
    pub(super) fn shrink(&mut self) {
        let empty = |part: &&mut Part| part.capacity() > 64 && part.len() < part.capacity() / 4;
        for part in self.parts.iter_mut().filter(empty).take(SHRUNK_AT_ONCE) {
            part.shrink_to(part.len() * 2);
        }
    }
}

/// The maps use the lowest and the highest bits.
fn part_of(key: u64) -> usize {
    (key >> 40) as usize % PARTS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map(steps in proptest::collection::vec((0u64..40, any::<Option<u64>>()), 0..400)) {
            let (mut table, mut map) = (Table::default(), HashMap::new());
            for (key, value) in steps {
                let key = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                if let Some(value) = value {
                    table.insert(key, value);
                    map.insert(key, value);
                } else {
                    table.remove(key);
                    map.remove(&key);
                    table.shrink();
                }
                prop_assert_eq!(table.get(key), map.get(&key).copied());
            }
            prop_assert!(map.iter().all(|(key, value)| table.get(*key) == Some(*value)));
        }
    }

    #[test]
    fn memory_is_given_back() {
        let mut table = Table::default();
        let key = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (0..100_000).for_each(|n| table.insert(key(n), n));
        (1000..100_000).for_each(|n| table.remove(key(n)));
        (0..PARTS / SHRUNK_AT_ONCE).for_each(|_| table.shrink());
        assert!(table.parts.iter().map(HashMap::capacity).sum::<usize>() < 10_000);
        assert!((0..1000).all(|n| table.get(key(n)) == Some(n)));
    }
}
