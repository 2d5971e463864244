//! Fuzz bodies of v2: everything a relay or a stranger can send in MessagePack.

use sha2::Digest as _;
use threadline::identity::Identity;
use threadline::v2::Bin;
use threadline::v2::blob::{BlobDesk, BlobStep, BlobWord, open};
use threadline::v2::content::{Attachment, Body, Content};
use threadline::v2::envelope::{Envelope, Header};
use threadline::v2::frames::{Frame, FrameBuffer, FramePhase};
use threadline::v2::login::{SignedWellKnown, WellKnown};
use threadline::v2::mail::{Dispatched, InboxRow, Marker};
use threadline::v2::objects::{
    AddressRecord, DeviceCert, DeviceList, Lease, Object, Prekey, Revocation, Signed,
};
use threadline::v2::opened::OpenedMessage;
use threadline::v2::raw_key::{key_of, spki};
use threadline::v2::strict::{Limits, strict_scan};
use threadline::v2::vouch::{Complaint, Staple, Vouch};

/// A frame of either end: reading, and what was read comes back.
///
/// # Panics
/// If a frame that was read does not read again, or a stream is cut differently than a message.
pub fn v2_frame(data: &[u8]) {
    for phase in [FramePhase::Early, FramePhase::Open] {
        let whole = Frame::decode(data, phase);
        let mut buffer = FrameBuffer::default();
        data.chunks(7).for_each(|chunk| buffer.extend(chunk));
        if let Ok(frame) = &whole {
            assert_eq!(buffer.next(phase).as_ref(), Ok(&Some(frame.clone())));
            let again = frame.encode();
            if again.len() <= data.len() {
                assert_eq!(Frame::decode(&again, phase).as_ref(), Ok(frame));
            }
        }
    }
}

/// A key as TLS shows it: what is read is written again in the same way, and is a key that somebody can own.
///
/// # Panics
/// If another form of a key is taken, or one that belongs to nobody.
pub fn v2_raw_key(data: &[u8]) {
    if let Some(key) = key_of(data) {
        assert_eq!(spki(&key.0), data);
        assert!(threadline::identity::PublicIdentity::from_bytes(&key.0).is_ok());
    }
}

/// A blob and what is said about one: nothing opens that was not sealed under the key, whatever its hash, and whatever a
/// relay says, the node takes no byte too many.
///
/// # Panics
/// If made-up bytes open, arrive, or a word about a blob does not come back.
pub fn v2_blob(data: &[u8]) {
    let mut desk = BlobDesk::default();
    let (id, size) = (Bin(sha2::Sha256::digest(data).into()), data.len() as u64);
    let reference = Attachment { id, size, key: Bin([7; 32]), name: String::new(), mime: String::new() };
    assert!(open(&reference, data).is_err());
    desk.want(Bin([1; 32]), Bin([0; 32]), size, 0);
    let mut buffer = FrameBuffer::default();
    buffer.extend(data);
    while let Ok(Some(frame)) = buffer.next(FramePhase::Open) {
        let steps = desk.handle(0, frame, 0);
        assert!(!steps.iter().any(|step| matches!(step, BlobStep::Arrived(..))));
    }
    if let Some(word) = BlobWord::of(&Body::Other(data.to_vec())) {
        assert_eq!(BlobWord::of(&word.to_body()), Some(word));
    }
}

/// An envelope: strict, and never believed without its signature.
///
/// # Panics
/// If a header does not come back.
pub fn v2_envelope(data: &[u8]) {
    if let Ok(envelope) = Envelope::parse(data) {
        assert!(strict_scan(data, Limits::default()).is_ok());
        let header = envelope.header;
        assert_eq!(Header::parse(&header.to_bytes()), Ok(header));
        let _ = envelope.verify();
    }
    let _ = Header::parse(data);
}

fn object<T: Object + PartialEq + std::fmt::Debug>(bytes: &[u8], signature: &[u8]) {
    if let Ok(signed) = Signed::<T>::parse(bytes, signature) {
        assert_eq!(signed.bytes(), bytes);
        assert!(signed.object().is_well_formed());
    }
}

/// Certificates, lists, prekeys, address records, leases, vouches, revocations: 64 bytes of signature, then the object.
///
/// # Panics
/// If an object that breaks its rules is accepted.
pub fn v2_object(data: &[u8]) {
    let Some((signature, bytes)) = data.split_at_checked(64) else { return };
    object::<DeviceCert>(bytes, signature);
    object::<DeviceList>(bytes, signature);
    object::<Prekey>(bytes, signature);
    object::<AddressRecord>(bytes, signature);
    object::<Lease>(bytes, signature);
    object::<Vouch>(bytes, signature);
    object::<Staple>(bytes, signature);
    object::<Complaint>(bytes, signature);
    let _ = Revocation::parse(bytes, signature, signature);
}

/// The content of a message.
///
/// # Panics
/// If a content that was read does not read again.
pub fn v2_content(data: &[u8]) {
    if let Ok(content) = Content::parse(data) {
        assert!(content.is_within_limits());
        assert_eq!(Content::parse(&content.to_bytes()).as_ref(), Ok(&content));
        let row = InboxRow {
            peer: Identity::from_seed(&[1; 32]).public().into(),
            device: Bin([1; 16]),
            id: Bin([2; 16]),
            content,
            hash: Bin([3; 32]),
            created: 0,
            opened_at: 0,
        };
        let message = Dispatched { row, marker: Marker::InOrder, diverged: false };
        let opened = OpenedMessage::of(&message).expect("the key is a good one");
        let again = OpenedMessage::from_bytes(&opened.to_bytes()).expect("what was stored is read");
        assert_eq!(again, opened);
        let us = Identity::from_seed(&[2; 32]).fingerprint();
        let sender = again.sender().expect("the key is a good one");
        let _ = again.incoming(&sender, us).class();
    }
}

/// The document of a relay.
pub fn v2_well_known(data: &[u8]) {
    if let Ok(signed) = serde_json::from_slice::<SignedWellKnown>(data) {
        let _ = WellKnown::parse(&signed).map(|document| document.may_pin("relay.example", 0));
    }
}
