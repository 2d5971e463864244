//! One key per fingerprint: the first one that was proven wins (`threadline-wire.md` §1.1).

use super::PublicIdentity;
use crate::Fingerprint;

/// The pinned key of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// The full key.
    pub key: PublicIdentity,
    /// When it was first proven, Unix ms.
    pub pinned_at: i64,
}

/// What a newly learnt key means for a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinOutcome {
    /// No key was known: pin it.
    New,
    /// The pinned key again.
    Same,
    /// `fingerprint_conflict`: another key with the same address. Keep the old pin, refuse the newcomer, tell the owner.
    Conflict,
    /// The key does not belong to the address that was claimed.
    WrongAddress,
}

/// Decides about `key`, learnt for `claimed`, next to the pin that is stored for that address.
pub fn check_pin(stored: Option<&Pin>, claimed: &Fingerprint, key: &PublicIdentity) -> PinOutcome {
    if key.fingerprint() != *claimed {
        return PinOutcome::WrongAddress;
    }
    match stored {
        None => PinOutcome::New,
        Some(pin) if pin.key == *key => PinOutcome::Same,
        Some(_) => PinOutcome::Conflict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    #[test]
    fn a_second_key_never_replaces_a_pin() {
        let (a, b) = (Identity::from_seed(&[1; 32]), Identity::from_seed(&[2; 32]));
        let pin = Pin { key: *a.public(), pinned_at: 0 };
        assert_eq!(check_pin(None, &a.fingerprint(), a.public()), PinOutcome::New);
        assert_eq!(check_pin(Some(&pin), &a.fingerprint(), a.public()), PinOutcome::Same);
        assert_eq!(check_pin(None, &a.fingerprint(), b.public()), PinOutcome::WrongAddress);
        // Two keys that share 16 bytes cost 2^64 work, so the stored pin is put under the other address instead.
        assert_eq!(check_pin(Some(&pin), &b.fingerprint(), b.public()), PinOutcome::Conflict);
    }
}
