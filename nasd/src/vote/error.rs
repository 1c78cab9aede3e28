//! Why etcd gave no vote, and who has to do something about it.

use std::error::Error;

use tonic::{Code, Status};

/// What can go wrong with a call to etcd.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VoteError {
    /// No answer in time, nobody there, no leader: it passes, or the network has to be mended.
    ///
    /// **After a write it is not known whether it was done, nor whether it still will be**: it may lie in etcd's queue.
    /// To read again is not enough to know that it was not: what settles it is another conditional write. If that one
    /// is done, the one before never will be, since its revision is gone; if it is told [`super::Put::Changed`], the
    /// value says whose it was, and it may be one's own.
    #[error("etcd does not answer: {reason}; look at its members and at the network between")]
    Unreachable {
        /// What each endpoint said, or that there was nothing.
        reason: String,
    },
    /// It does not take us for who we are, or we not it, or it does not allow this: nothing was written, and it will
    /// be the same until somebody mends it.
    #[error("etcd at {endpoint}: {reason}; {remedy}")]
    Refused {
        /// Which of the endpoints.
        endpoint: String,
        /// What it or we did not like.
        reason: String,
        /// What the operator can do.
        remedy: String,
    },
}

impl VoteError {
    /// Without it being known which endpoint, or when it is one of several.
    pub(super) fn unreachable(reason: impl Into<String>) -> Self {
        Self::Unreachable { reason: reason.into() }
    }

    pub(super) fn refused(endpoint: &str, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Refused { endpoint: endpoint.to_owned(), reason: reason.into(), remedy: remedy.into() }
    }

    /// What a call on an open connection ended with.
    pub(super) fn from_client(endpoint: &str, error: &etcd_client::Error) -> Self {
        match error {
            etcd_client::Error::GRpcStatus(status) => from_status(endpoint, status),
            etcd_client::Error::TransportError(error) => Self::from_transport(endpoint, error),
            error => Self::unreachable(format!("{endpoint}: {error}")),
        }
    }

    /// What the way to etcd ended with.
    pub(super) fn from_transport(endpoint: &str, error: &(dyn Error + 'static)) -> Self {
        Self::unreachable(format!("{endpoint}: {}", causes(error)))
    }
}

/// Who has to act is in the text for some: etcd gives "wrong password" and "out of date" the same code.
fn from_status(endpoint: &str, status: &Status) -> VoteError {
    let said = status.message();
    let credentials = "correct `user` and `password_file` in [failover.etcd], or the user in etcd";
    match status.code() {
        Code::PermissionDenied => VoteError::refused(
            endpoint,
            format!("it does not permit it ({said})"),
            "grant the user's role `readwrite` on the prefix that [failover.etcd] names (etcdctl role grant-permission)",
        ),
        Code::InvalidArgument if said.contains("authentication failed") => {
            VoteError::refused(endpoint, format!("wrong user or password ({said})"), credentials)
        }
        Code::InvalidArgument if said.contains("user name is empty") => {
            VoteError::refused(endpoint, format!("it wants a user ({said})"), credentials)
        }
        Code::FailedPrecondition if said.contains("authentication is not enabled") => VoteError::refused(
            endpoint,
            format!("it has no users ({said})"),
            "remove `user` from [failover.etcd], or enable authentication in etcd (etcdctl auth enable)",
        ),
        Code::ResourceExhausted if said.contains("space exceeded") => VoteError::refused(
            endpoint,
            format!("it is full ({said})"),
            "compact and defragment etcd, then etcdctl alarm disarm",
        ),
        Code::Unimplemented => VoteError::refused(
            endpoint,
            format!("it does not know the request ({said})"),
            "check that `endpoints` in [failover.etcd] are the client URLs of an etcd 3.4 or newer",
        ),
        // `Unauthenticated` too: a login has expired, or etcd was started anew and has forgotten it. The next connection
        // makes a new one, and what is wrong for good is told then.
        _ => VoteError::from_transport(endpoint, status),
    }
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&e| e.source())
}

/// All that is known, on one line: the first of the causes alone says "transport error".
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut said: Vec<String> = Vec::new();
    for error in chain(error) {
        // The whole of a status is a page of metadata.
        let text =
            error.downcast_ref::<Status>().map_or_else(|| error.to_string(), |s| s.message().to_owned());
        if !text.is_empty() && !said.iter().any(|s| s.contains(&text)) {
            said.push(text);
        }
    }
    said.join(": ")
}
