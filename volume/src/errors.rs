//! What a request on the volume can fail with, and the one table from there to an errno.

use rustix::io::Errno;

/// Why a request on the volume failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FsError {
    /// The filesystem below, or the rules of POSIX, say so.
    #[error("{0}")]
    Os(#[from] Errno),
    /// This node is a secondary.
    #[error("this node is a secondary: its mount is read-only; write on the primary")]
    ReadOnly,
    /// The replica is being compared with the primary and is between two states.
    #[error("this node is being brought up to date; try again when `nasd status` says so")]
    NotReady,
    /// This node may not acknowledge any more: it stops, or another took over.
    #[error("this node does not acknowledge any more: it stops or another node took over")]
    Stopped,
}

impl FsError {
    /// The errno that the kernel is given.
    pub fn errno(&self) -> Errno {
        match self {
            FsError::Os(e) => *e,
            FsError::ReadOnly => Errno::ROFS,
            FsError::NotReady => Errno::AGAIN,
            FsError::Stopped => Errno::IO,
        }
    }
}
