//! Reads frames of v2 and checks the signatures in them, before the core sees them.

use threadline::v1::envelope::Header;
use threadline::v2::envelope::Envelope;
use threadline::v2::frames::{
    AddrPut, FORMAT_V1, Frame, FrameError, FrameId, FramePhase, Hello, KeysPut, Send, SignedBytes, Target,
};
use threadline::v2::objects::{AddressRecord, DeviceCert, DeviceList, FALLBACK, ONE_TIME, Prekey, Signed};
use threadline::v2::objects::{ObjectError, VerifiedDevice};
use threadline::v2::session::check_send;
use threadline::v2::{Bin, Blob, Code, Key};
use threadline::{Fingerprint, v1};

use super::unsigned;
use crate::core::pipeline::version_id;
use crate::core::{Signature, Submission};
use crate::store::registry::devices::{DeviceFacts, Numbered, StoredKey};

/// Most one-time keys whose signatures are checked.
const ONE_TIME_KEYS: usize = threadline::v2::frames::MAX_ONE_TIME_KEYS;
/// Largest signed prekey, bytes.
const PREKEY: usize = 200;
/// Numbers above this do not fit the tables; nobody counts that far.
const MOST: u64 = 1 << 62;

/// A frame of v2 that arrived, with everything in it that can be checked without the core.
#[derive(Debug)]
pub struct V2Frame {
    pub(super) frame: Result<Frame, FrameError>,
    pub(super) prepared: Prepared,
    /// The stream it came on, where the carrier has several and it is not the one of the session.
    pub(super) stream: Option<u64>,
}

/// What was found out about a frame.
#[derive(Debug)]
pub(super) enum Prepared {
    Nothing,
    Send(Box<PreparedSend>),
    Keys(Result<Box<PreparedKeys>, Code>),
    Address(Result<(Key, Box<Numbered>, u64), Code>),
}

/// The envelope of a SEND.
#[derive(Debug)]
pub(super) struct PreparedSend {
    pub(super) submission: Submission,
    /// The key in the header of an envelope of v2.
    pub(super) from: Option<Key>,
    pub(super) fault: Option<Code>,
}

/// The objects of a KEYS_PUT.
#[derive(Debug)]
pub(super) struct PreparedKeys {
    pub(super) facts: DeviceFacts,
    pub(super) one_time: Vec<StoredKey>,
    pub(super) fallback: Option<StoredKey>,
}

impl V2Frame {
    /// Reads one frame with its length.
    pub fn read(bytes: &[u8], phase: FramePhase, now_ms: i64) -> Self {
        Self::of(Frame::decode(bytes, phase), now_ms)
    }

    /// Notes the stream that the frame came on; 0 is the one of the session.
    #[must_use]
    pub fn on_stream(self, number: u64) -> Self {
        Self { stream: (number > 0).then_some(number), ..self }
    }

    /// Checks what a frame carries.
    pub fn of(mut frame: Result<Frame, FrameError>, now_ms: i64) -> Self {
        let now = unsigned(now_ms);
        let prepared = match &mut frame {
            Ok(Frame::Send(send)) => Prepared::Send(Box::new(prepare_send(send, now))),
            Ok(Frame::KeysPut(put)) => Prepared::Keys(prepare_keys(put, now).map(Box::new)),
            Ok(Frame::AddrPut(put)) => Prepared::Address(prepare_address(put, now)),
            _ => Prepared::Nothing,
        };
        Self { frame, prepared, stream: None }
    }
}

/// Takes the envelope out of a SEND.
fn prepare_send(send: &mut Send, now: u64) -> PreparedSend {
    if send.fmt == FORMAT_V1 {
        return prepare_clear(send);
    }
    let header = Envelope::parse(&send.env.0).map(|envelope| envelope.header).ok();
    let checked = header.as_ref().map_or(Err(Code::BadRequest), |header| {
        check_send(send, &header.from, now).map(|envelope| envelope.verify().is_ok())
    });
    // What is no envelope at all may still be one that is too large.
    let fault = match (&header, &checked) {
        (None, _) => check_send(send, &Bin([0; 32]), now).err(),
        (Some(_), checked) => checked.as_ref().err().copied(),
    };
    let recipient = match send.to {
        Target::Key(key) => fingerprint(&key.0),
        Target::Address(address) => Some(Fingerprint::from_bytes(address.0)),
    };
    let from = header.as_ref().and_then(|header| fingerprint(&header.from.0));
    let known = from.zip(recipient).zip(version_id(&send.id, 1));
    let header_v1 = known.map(|((from, to), message_id)| Header {
        from,
        to,
        thread_id: None,
        message_id,
        timestamp: i64::try_from(now).unwrap_or(i64::MAX),
    });
    let signature = Signature::V2(checked.is_ok_and(|holds| holds));
    let body = std::mem::take(&mut send.env.0);
    let submission = Submission::of_bytes(header_v1.ok_or(None), signature, body);
    PreparedSend { submission, from: header.map(|header| header.from), fault }
}

fn prepare_clear(send: &mut Send) -> PreparedSend {
    let bytes = std::mem::take(&mut send.env.0);
    let submission = match v1::envelope::Envelope::parse(&bytes) {
        Ok(envelope) => Submission::new(envelope),
        Err(_) => Submission::of_bytes(Err(None), Signature::None, bytes),
    };
    let fits = submission.header.as_ref().is_ok_and(|header| {
        let named = match send.to {
            Target::Key(key) => fingerprint(&key.0),
            Target::Address(address) => Some(Fingerprint::from_bytes(address.0)),
        };
        let id = matches!(&send.id, FrameId::Text(id) if id == header.message_id.as_str());
        id && named == Some(header.to) && send.pri <= 3
    });
    PreparedSend { submission, from: None, fault: (!fits).then_some(Code::BadRequest) }
}

fn fingerprint(key: &[u8; 32]) -> Option<Fingerprint> {
    key.first_chunk().map(|bytes| Fingerprint::from_bytes(*bytes))
}

/// What a device that logs in brought; its objects were checked by the session.
pub(super) fn facts_of(device: &VerifiedDevice) -> DeviceFacts {
    let (cert, list) = (&device.cert, &device.list);
    let signed = |bytes: &[u8], signature: &Bin<64>| (Blob(bytes.to_vec()), *signature);
    DeviceFacts {
        key: cert.object().key.0,
        device: cert.object().device,
        cert: Numbered { signed: signed(cert.bytes(), cert.signature()), seq: cert.object().seq },
        list: Numbered { signed: signed(list.bytes(), list.signature()), seq: list.object().seq },
        listed: list.object().devices.clone(),
    }
}

fn prepare_keys(put: &KeysPut, now: u64) -> Result<PreparedKeys, Code> {
    if put.otks.len() > ONE_TIME_KEYS {
        return Err(Code::BadRequest);
    }
    let parse = || -> Result<VerifiedDevice, ObjectError> {
        let cert = Signed::<DeviceCert>::parse(&put.cert.0, &put.cs.0)?;
        let list = Signed::<DeviceList>::parse(&put.list.0, &put.ls.0)?;
        let key = cert.object().key;
        VerifiedDevice::new(&key, cert, list, now)
    };
    let device = parse().map_err(|error| match error {
        ObjectError::Future => Code::ClockSkew,
        ObjectError::Expired => Code::Expired,
        _ => Code::BadDevice,
    })?;
    let key = |signed: &SignedBytes, kind: u8| -> Result<StoredKey, Code> {
        let prekey = Signed::<Prekey>::parse(&signed.0.0, &signed.1.0).map_err(|_| Code::BadDevice)?;
        device.check_prekey(&prekey, now).map_err(|error| match error {
            ObjectError::Expired => Code::Expired,
            _ => Code::BadDevice,
        })?;
        let Prekey { key_id, not_after, kind: is, .. } = *prekey.object();
        if signed.0.0.len() > PREKEY || is != kind || key_id > MOST {
            return Err(Code::BadRequest);
        }
        Ok(StoredKey { key_id, signed: signed.clone(), not_after })
    };
    let one_time = put.otks.iter().map(|signed| key(signed, ONE_TIME)).collect::<Result<_, _>>()?;
    let fallback = put.fb.as_ref().map(|signed| key(signed, FALLBACK)).transpose()?;
    Ok(PreparedKeys { facts: facts_of(&device), one_time, fallback })
}

fn prepare_address(put: &AddrPut, now: u64) -> Result<(Key, Box<Numbered>, u64), Code> {
    let record = Signed::<AddressRecord>::parse(&put.rec.0, &put.s.0).map_err(|_| Code::BadSignature)?;
    record.object().check_time(now).map_err(|error| match error {
        ObjectError::Expired => Code::Expired,
        _ => Code::ClockSkew,
    })?;
    let AddressRecord { key, seq, expires, .. } = *record.object();
    Ok((key, Box::new(Numbered { signed: (put.rec.clone(), put.s), seq }), expires))
}

/// What a HELLO says in the words of v1, so that both are cleaned and listed in one way.
pub(super) fn metadata_of(hello: &Hello) -> v1::frames::Metadata {
    v1::frames::Metadata {
        name: hello.name.clone(),
        framework: hello.fw.clone(),
        capabilities: Some(hello.caps.clone()),
        bio: hello.bio.clone(),
        interests: Some(hello.tags.clone()),
        version: hello.ver.clone(),
        agent_card_url: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), open: bool) {
            let phase = if open { FramePhase::Open } else { FramePhase::Early };
            let read = V2Frame::read(&bytes, phase, 1_768_478_400_000);
            prop_assert!(read.frame.is_err() || !bytes.is_empty());
        }

        #[test]
        fn no_envelope_panics(env in proptest::collection::vec(any::<u8>(), 0..300), fmt in 0_u8..4) {
            let send = Send {
                rid: 1, id: FrameId::Bin(Bin([1; 16])), to: Target::Key(Bin([2; 32])), tt: None, fmt,
                env: Blob(env), ttl: 60, pri: 1,
            };
            let read = V2Frame::of(Ok(send.into()), 1_768_478_400_000);
            let Prepared::Send(send) = read.prepared else { panic!("prepared") };
            prop_assert!(send.fault.is_some());
        }
    }
}
