//! A hand on the shoulder of a thread that sits in `poll`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

pub(crate) struct Wake(OwnedFd);

impl Wake {
    pub fn new() -> Result<Wake, Errno> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Wake)
    }

    /// Makes the descriptor readable until [`Wake::drain`].
    pub fn wake(&self) {
        // The only failure possible is a full counter, and then it is readable anyway.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    pub fn drain(&self) {
        // An eventfd gives its whole count in one read; that there is none is as good.
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
