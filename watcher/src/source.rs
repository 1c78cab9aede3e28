//! Where news of the log directory come from: inotify, or a look at its modification time.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::wake::Wake;
use crate::watch::WatchError;

/// About 800 events: one read is bounded, so that applying and stopping get their turn.
const BUFFER: usize = 64 << 10;

/// How long a directory's modification time must have stood still before it is believed: longer
/// than the coarsest timestamps of any filesystem, or a file that came in the same tick is missed.
const SETTLED: Duration = Duration::from_secs(2);

/// Some filesystems never change a directory's modification time: every so often we look anyway.
const LOOK_ANYWAY: u32 = 64;

/// What ended a [`Source::wait`].
#[derive(Default)]
pub(crate) struct Ready {
    pub poked: bool,
    pub events: bool,
}

/// What a [`Source::read`] saw besides names.
#[derive(Default)]
pub(crate) struct Seen {
    pub events: u64,
    pub overflow: bool,
    /// The directory itself was moved, removed or unmounted.
    pub lost: bool,
}

/// The source of news, in either mode, and the wake-up of the thread that waits for it.
pub(crate) struct Source {
    dir: PathBuf,
    wake: Arc<Wake>,
    kind: Kind,
}

enum Kind {
    Inotify(Notices),
    Poll(Look),
}

struct Notices {
    inotify: Inotify,
    watch: Option<WatchDescriptor>,
    buffer: Vec<u8>,
}

struct Look {
    modified: Option<SystemTime>,
    since: Instant,
    skipped: u32,
}

impl Source {
    /// With inotify the watch is in place when this returns.
    pub fn inotify(dir: &Path, wake: Arc<Wake>) -> Result<Source, WatchError> {
        let inotify = Inotify::init().map_err(|source| no_instance(dir, source))?;
        let mut source = Source {
            dir: dir.to_path_buf(),
            wake,
            kind: Kind::Inotify(Notices { inotify, watch: None, buffer: vec![0; BUFFER] }),
        };
        source.watch()?;
        Ok(source)
    }

    pub fn poll(dir: &Path, wake: Arc<Wake>) -> Result<Source, WatchError> {
        // A directory that cannot be read is better told now than looked at in vain for ever.
        std::fs::read_dir(dir).map_err(|source| no_watch(dir, source))?;
        Ok(Source {
            dir: dir.to_path_buf(),
            wake,
            kind: Kind::Poll(Look { modified: None, since: Instant::now(), skipped: 0 }),
        })
    }

    /// Puts the watch in place if it is not.
    pub fn watch(&mut self) -> Result<(), WatchError> {
        let Kind::Inotify(notices) = &mut self.kind else {
            return Ok(());
        };
        if notices.watch.is_none() {
            // Files come complete, by rename: no other event of a file matters.
            let mask =
                WatchMask::MOVED_TO | WatchMask::MOVE_SELF | WatchMask::DELETE_SELF | WatchMask::ONLYDIR;
            let watch = notices.inotify.watches().add(&self.dir, mask);
            notices.watch = Some(watch.map_err(|source| no_watch(&self.dir, source))?);
        }
        Ok(())
    }

    /// Takes the watch away, so that a node that does not follow pays nothing for each of its own
    /// transaction files.
    pub fn unwatch(&mut self) {
        if let Kind::Inotify(notices) = &mut self.kind
            && let Some(watch) = notices.watch.take()
        {
            // Fails when the directory is gone, and with it the watch.
            let _ = notices.inotify.watches().remove(watch);
        }
    }

    /// Waits for news, a poke or the deadline; without a deadline it costs nothing while it waits.
    pub fn wait(&self, deadline: Option<Instant>) -> Result<Ready, Errno> {
        let timeout = match deadline {
            Some(at) => Timespec::try_from(at.saturating_duration_since(Instant::now())).ok(),
            None => None,
        };
        let mut fds = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        if let Kind::Inotify(notices) = &self.kind {
            fds.push(PollFd::from_borrowed_fd(notices.inotify.as_fd(), PollFlags::IN));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(e) => return Err(e),
        }
        let ready = |fd: Option<&PollFd>| fd.is_some_and(|fd| !fd.revents().is_empty());
        let ready = Ready { poked: ready(fds.first()), events: ready(fds.get(1)) };
        if ready.poked {
            self.wake.drain();
        }
        Ok(ready)
    }

    /// Reads the events that wait, at most one buffer full, without blocking.
    pub fn read(&mut self, mut each: impl FnMut(&OsStr)) -> io::Result<Seen> {
        let mut seen = Seen::default();
        let Kind::Inotify(notices) = &mut self.kind else {
            return Ok(seen);
        };
        let events = match notices.inotify.read_events(&mut notices.buffer) {
            Ok(events) => events,
            Err(e) => {
                return match e.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(seen),
                    _ => Err(e),
                };
            }
        };
        let gone = EventMask::MOVE_SELF | EventMask::DELETE_SELF | EventMask::UNMOUNT | EventMask::IGNORED;
        for event in events {
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                seen.overflow = true;
            } else if notices.watch.as_ref() != Some(&event.wd) {
                // From a watch that was taken away meanwhile.
            } else if event.mask.intersects(gone) {
                seen.lost = true;
            } else if let Some(name) = event.name
                && !event.mask.contains(EventMask::ISDIR)
            {
                seen.events += 1;
                each(name);
            }
        }
        Ok(seen)
    }

    /// In poll mode: whether the directory may hold anything that the scan before this look did
    /// not see. Reading 20,000 names ten times a second would keep a fifth of a core busy.
    pub fn may_have_changed(&mut self) -> bool {
        let Kind::Poll(look) = &mut self.kind else {
            return true;
        };
        let modified = std::fs::metadata(&self.dir).and_then(|m| m.modified()).ok();
        if modified.is_none() || modified != look.modified {
            look.modified = modified;
            look.since = Instant::now();
        } else if look.since.elapsed() >= SETTLED && look.skipped < LOOK_ANYWAY {
            look.skipped += 1;
            return false;
        }
        look.skipped = 0;
        true
    }
}

fn no_instance(dir: &Path, source: io::Error) -> WatchError {
    let dir = dir.to_path_buf();
    match Errno::from_io_error(&source) {
        Some(Errno::MFILE | Errno::NFILE) => WatchError::Instances { dir, source },
        _ => WatchError::Inotify { dir, source },
    }
}

fn no_watch(dir: &Path, source: io::Error) -> WatchError {
    let dir = dir.to_path_buf();
    match Errno::from_io_error(&source) {
        Some(Errno::NOSPC) => WatchError::Watches { dir, source },
        Some(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => WatchError::Directory { dir, source },
        _ => WatchError::Inotify { dir, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_names_the_directory_and_its_own_remedy() {
        let dir = Path::new("/var/lib/nasd/log");
        for (error, remedy) in [
            (no_watch(dir, Errno::NOSPC.into()), "max_user_watches"),
            (no_instance(dir, Errno::MFILE.into()), "max_user_instances"),
            (no_watch(dir, Errno::NOENT.into()), "create the directory"),
            (no_watch(dir, Errno::NOSYS.into()), "mode = \"poll\""),
        ] {
            let text = error.to_string();
            assert!(text.contains("/var/lib/nasd/log") && text.contains(remedy), "{text}");
        }
    }
}
