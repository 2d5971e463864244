//! The first frame of a v2 session, for clients that are written by hand.

use threadline::identity::Identity;
use threadline::v2::frames::{Hello, Role};
use threadline::v2::objects::{DeviceCert, DeviceList, Signed};
use threadline::v2::{Bin, Blob, DeviceId};

/// Introduces a machine with one certified device that publishes nothing of itself; the certificate holds from a second
/// before `now` (Unix milliseconds) for a day.
pub fn hello(identity: &Identity, device: DeviceId, name: &str, now: u64) -> Hello {
    let key = identity.public().into();
    let cert = DeviceCert {
        version: 1,
        key,
        device,
        curve: Bin([9; 32]),
        name: name.into(),
        not_before: now.saturating_sub(1_000),
        not_after: now + 86_400_000,
        seq: 1,
        caps: Vec::new(),
    };
    let list =
        DeviceList { version: 1, key, seq: 1, issued_at: now, devices: vec![device], removed: Vec::new() };
    let cert = Signed::<DeviceCert>::issue(identity, cert);
    let list = Signed::<DeviceList>::issue(identity, list);
    Hello {
        v: 2,
        dev: device,
        cert: Blob(cert.bytes().to_vec()),
        cs: *cert.signature(),
        list: Blob(list.bytes().to_vec()),
        ls: *list.signature(),
        name: name.into(),
        fw: None,
        ver: None,
        caps: Vec::new(),
        bio: None,
        tags: Vec::new(),
        vis: None,
        listed: false,
        role: Role::Active,
        sib: Vec::new(),
        vouch: None,
        win: None,
        ep: 0,
        nov1: false,
        feat: Vec::new(),
    }
}
