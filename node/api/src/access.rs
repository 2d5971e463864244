//! Who may call a route: the auth column of `http-api.md` §0 as data.

use std::fmt;

use instar_state::ids::SessionId;

/// What a caller has proven about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// Nothing.
    Anonymous,
    /// A process of the same account on the unix socket that is no session.
    Local,
    /// The agent token.
    Agent,
    /// A session: its token, or a process below its runtime.
    Session(SessionId),
    /// The owner, for this one request.
    Owner,
}

impl Credential {
    /// Word for logs and `/whoami`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Local => "local",
            Self::Agent => "agent",
            Self::Session(_) => "session",
            Self::Owner => "owner",
        }
    }
}

/// Which sessions may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionAccess {
    /// None.
    No,
    /// Every session.
    Any,
    /// Only the session that this path parameter names, by id or name.
    Own(&'static str),
}

/// Whether the owner's proof is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerRule {
    /// Never.
    No,
    /// Nobody else gets in.
    Only,
    /// Others get in; the room decides what of the request only the owner may do.
    Some,
}

/// The auth class of one route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// No credential needed.
    pub public: bool,
    /// The route checks credentials of its own kind, which mean nothing elsewhere.
    pub own_kind: bool,
    /// Same uid on the socket, not a session.
    pub local: bool,
    /// Agent token.
    pub agent: bool,
    /// Session tokens.
    pub session: SessionAccess,
    /// User-verified actor.
    pub owner: OwnerRule,
}

impl Access {
    /// Nobody needs a credential.
    pub const PUBLIC: Self = Self {
        public: true,
        own_kind: false,
        local: true,
        agent: true,
        session: SessionAccess::Any,
        owner: OwnerRule::No,
    };
    /// The route checks credentials of its own kind.
    pub const OWN_KIND: Self = Self { own_kind: true, ..Self::PUBLIC };
    /// Any credential (the empty auth column).
    pub const ANY: Self = Self { public: false, ..Self::PUBLIC };
    /// Socket and agent token, no session.
    pub const LOCAL_AGENT: Self = Self { session: SessionAccess::No, ..Self::ANY };
    /// Socket and sessions: what hooks use.
    pub const HOOK: Self = Self { agent: false, ..Self::ANY };
    /// The owner alone.
    pub const OWNER: Self = Self {
        public: false,
        own_kind: false,
        local: false,
        agent: false,
        session: SessionAccess::No,
        owner: OwnerRule::Only,
    };
    /// Any credential; parts of it for the owner.
    pub const ANY_SOME_OWNER: Self = Self { owner: OwnerRule::Some, ..Self::ANY };

    /// Socket, agent token, and the session that `parameter` names.
    pub const fn own(parameter: &'static str) -> Self {
        Self { session: SessionAccess::Own(parameter), ..Self::LOCAL_AGENT }
    }

    /// Whether `credential` gets in, as far as the class alone can tell: for [`SessionAccess::Own`] the caller
    /// still has to compare the session.
    pub fn admits(&self, credential: &Credential) -> bool {
        match credential {
            Credential::Anonymous => self.public,
            Credential::Local => self.public || self.local,
            Credential::Agent => self.public || self.agent,
            Credential::Session(_) => self.public || self.session != SessionAccess::No,
            Credential::Owner => true,
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.own_kind {
            return f.write_str("own");
        }
        if self.public {
            return f.write_str("pub");
        }
        let mut words = Vec::new();
        if self.local {
            words.push("L");
        }
        if self.agent {
            words.push("A");
        }
        match self.session {
            SessionAccess::No => {}
            SessionAccess::Any => words.push("S"),
            SessionAccess::Own(_) => words.push("S-own"),
        }
        match self.owner {
            OwnerRule::No => {}
            OwnerRule::Only => words.push("O"),
            OwnerRule::Some => words.push("(O)"),
        }
        f.write_str(&words.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_classes_admit_whom_the_table_says() {
        let session = Credential::Session(SessionId::random());
        let all = [Credential::Anonymous, Credential::Local, Credential::Agent, session, Credential::Owner];
        let admitted = |access: Access| all.iter().map(|c| access.admits(c)).collect::<Vec<_>>();
        assert_eq!(admitted(Access::PUBLIC), [true; 5]);
        assert_eq!(admitted(Access::ANY), [false, true, true, true, true]);
        assert_eq!(admitted(Access::LOCAL_AGENT), [false, true, true, false, true]);
        assert_eq!(admitted(Access::HOOK), [false, true, false, true, true]);
        assert_eq!(admitted(Access::OWNER), [false, false, false, false, true]);
        assert_eq!(admitted(Access::own("id")), [false, true, true, true, true]);
    }
}
