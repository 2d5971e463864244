//! What the node says in an open session.

use super::{ClientSession, NotReady};
use crate::v2::frames::{
    BlobOpen, FORMAT_V2, Frame, KeysClaim, KeysPut, Lookup, MAX_TAKEN, NotTaken, PresenceSet, Search, Send,
    Taken, Target, Watch,
};
use crate::v2::{Bin, Blob, Code, Id, Key};

impl ClientSession {
    /// Hands a sealed message to the relay.
    #[allow(clippy::too_many_arguments, reason = "the members of one frame, and the time")]
    pub fn send(
        &mut self,
        to: Key,
        id: Id,
        tag: Bin<8>,
        env: Blob,
        ttl_s: u64,
        priority: u8,
        now_ms: u64,
    ) -> Result<(), NotReady> {
        let rid = self.request_number();
        let frame = Send {
            rid,
            id: id.into(),
            to: Target::Key(to),
            tt: Some(tag),
            fmt: FORMAT_V2,
            env,
            ttl: ttl_s,
            pri: priority,
        };
        self.say(frame.into())?;
        self.sends.insert(rid, (to, id));
        if let Some(live) = &mut self.live {
            live.gave_at.get_or_insert(now_ms);
        }
        Ok(())
    }

    /// Deliveries are stored: gives them back as taken.
    pub fn taken(&mut self, deliveries: &[u64]) -> Result<(), NotReady> {
        deliveries.chunks(MAX_TAKEN).try_for_each(|part| self.say(Taken { dids: part.to_vec() }.into()))
    }

    /// A delivery is not taken.
    pub fn not_taken(&mut self, delivery: u64, code: Code) -> Result<(), NotReady> {
        self.say(NotTaken { did: delivery, code }.into())
    }

    /// Leaves keys at the relay; it answers with [`SessionEffect::KeysOk`].
    pub fn put_keys(&mut self, keys: KeysPut) -> Result<(), NotReady> {
        self.say(keys.into())
    }

    /// Asks for keys of a peer's devices; the number comes back with the answer.
    pub fn claim_keys(&mut self, to: Key) -> Result<u32, NotReady> {
        let rid = self.request_number();
        self.say(KeysClaim { rid, to: Target::Key(to) }.into()).map(|()| rid)
    }

    /// Asks for one agent; the number comes back with the answer.
    pub fn lookup(&mut self, to: Target) -> Result<u32, NotReady> {
        let rid = self.request_number();
        self.say(Lookup { rid, to }.into()).map(|()| rid)
    }

    /// Asks the directory; the number comes back with the answer.
    pub fn search(&mut self, search: Search) -> Result<u32, NotReady> {
        let rid = self.request_number();
        self.say(Search { rid, ..search }.into()).map(|()| rid)
    }

    /// Asks for presence.
    pub fn watch(&mut self, keys: Vec<Key>, all: bool) -> Result<(), NotReady> {
        self.say(Watch { keys, all }.into())
    }

    /// Changes this session's standing.
    pub fn set_presence(&mut self, presence: PresenceSet) -> Result<(), NotReady> {
        self.say(presence.into())
    }

    /// Asks the relay to pass on a blob; a refusal comes back with the number.
    pub fn open_blob(&mut self, open: BlobOpen) -> Result<u32, NotReady> {
        let rid = self.request_number();
        self.say(BlobOpen { rid: Some(rid), ..open }.into()).map(|()| rid)
    }

    /// Says what follows about a blob.
    pub fn blob(&mut self, frame: Frame) -> Result<(), NotReady> {
        self.say(frame)
    }

    pub(super) fn say(&mut self, frame: Frame) -> Result<(), NotReady> {
        let live = self.live.as_mut().ok_or(NotReady)?;
        live.busy |= !matches!(frame, Frame::Pong(_));
        let connection = live.connection;
        self.write(connection, frame);
        Ok(())
    }

    pub(super) fn request_number(&mut self) -> u32 {
        self.next_request = self.next_request.wrapping_add(1);
        self.next_request
    }
}
