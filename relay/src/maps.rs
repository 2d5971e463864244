//! Hash tables on the way of every message.

use std::collections::{HashMap, HashSet};

use foldhash::{fast, quality};

/// By numbers that the relay gives out itself: nobody can choose keys that collide.
pub(crate) type NumberMap<K, V> = HashMap<K, V, fast::RandomState>;

/// Numbers of the same kind.
pub(crate) type NumberSet<K> = HashSet<K, fast::RandomState>;

/// By addresses. Each table has a seed of its own that never leaves the process, so nobody can look for addresses that
/// collide in it.
pub(crate) type AddressMap<K, V> = HashMap<K, V, quality::RandomState>;
