//! Putting a volume at a mount point, and taking it away again.
//!
//! The mount system calls are made here rather than by `fuser` 0.18. It mounts with the type `fuse`,
//! so that a subtype never shows in `/proc/mounts`, and when its session is dropped it unmounts *by
//! path* even if that mount is gone: by then the path can be the mount of the next nasd.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Config, INodeNo, Notifier, Session, SessionACL};
use nasd_volume::{FileId, KernelCache, Volume};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use tracing::{debug, info, warn};

use crate::mountinfo::{self, Mount};
use crate::shim::{MAX_TRANSFER, Shim};
use crate::special::{self, NodeInfo, Special};

const DEVICE: &str = "/dev/fuse";
const FSTYPE: &str = "fuse.nasd";
const SOURCE: &str = "nasd";

/// How long a mount may take to say that it is alive, before it counts as alive but stuck.
const PROBE: Duration = Duration::from_secs(5);
/// How long an unmount waits for programs that are just closing their files.
const BUSY: Duration = Duration::from_millis(500);
/// How long the FUSE threads may take to end after the unmount.
const JOIN: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(10);

/// Why a volume could not be mounted or unmounted, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point is missing or something else.
    #[error("the mount point {} is not a directory: create it (mkdir -p), or name another one", path.display())]
    NotADirectory {
        /// The mount point.
        path: PathBuf,
    },
    /// The mount would hide files.
    #[error("the mount point {} is not empty: move its files away (they would be hidden), or name another one", path.display())]
    NotEmpty {
        /// The mount point.
        path: PathBuf,
    },
    /// Something is mounted there, and it is alive or not ours to take down.
    #[error("{} is already mounted or served ({what}): stop what serves it and unmount it (umount), or name another mount point", path.display())]
    AlreadyMounted {
        /// The mount point.
        path: PathBuf,
        /// File system type, source, and what is known of its state.
        what: String,
    },
    /// No way to the kernel's FUSE.
    #[error(
        "cannot open /dev/fuse ({error}): run as root; load the module (modprobe fuse); in a container, pass --device /dev/fuse"
    )]
    NoFuseDevice {
        /// What opening it said.
        error: io::Error,
    },
    /// A system call failed.
    #[error("cannot {action} {}: {error}; {remedy}", path.display())]
    Os {
        /// What was tried.
        action: &'static str,
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
        /// What may help.
        remedy: &'static str,
    },
}

impl MountError {
    fn os(action: &'static str, path: &Path, error: impl Into<io::Error>, remedy: &'static str) -> Self {
        Self::Os { action, path: path.to_owned(), error: error.into(), remedy }
    }
}

/// A volume at its mount point, served by threads of this process until it is unmounted.
///
/// Dropping it unmounts as well, with errors only logged.
pub struct MountedVolume {
    volume: Arc<Volume>,
    mountpoint: PathBuf,
    /// The file system instance, to unmount no other. None if the kernel did not list it.
    device: Option<(u32, u32)>,
    /// The connection to the kernel, to ask whether it still is one.
    connection: OwnedFd,
    session: Option<BackgroundSession>,
    special: Option<Arc<Special>>,
}

/// What the volume may ask of the kernel's caches.
///
/// The kernel takes its own locks for this, which it also holds while it waits for the answer to a
/// request: a page's for READ, a directory's for LOOKUP, CREATE, UNLINK and so on. So the caller
/// must hold no lock that the answer to *any* request can need, and must not be a FUSE thread in the
/// middle of one. Otherwise both wait for ever.
struct Invalidations(Notifier);

impl KernelCache for Invalidations {
    fn invalidate_inode(&self, id: FileId) {
        // Offset and length 0: the attributes, the ACLs and all data. An error means that the
        // kernel has no such inode or the mount is gone; nothing is cached then.
        self.0.inval_inode(INodeNo(id.0), 0, 0).ok();
    }

    fn invalidate_entry(&self, parent: FileId, name: &[u8]) {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(name);
        self.0.inval_entry(INodeNo(parent.0), name).ok();
    }
}

/// Mounts the volume and serves it with this many threads (at least one).
///
/// A dead mount that a killed nasd left at the mount point is taken down first. Needs
/// `CAP_SYS_ADMIN`: the mount is everybody's, with devices and set-user-id.
pub fn mount(volume: Arc<Volume>, mountpoint: &Path, threads: usize) -> Result<MountedVolume, MountError> {
    mount_showing(volume, mountpoint, threads, None)
}

/// [`mount`] with a directory `.nasd`, in which `node` tells of itself.
pub fn mount_with_special(
    volume: Arc<Volume>,
    mountpoint: &Path,
    threads: usize,
    node: Arc<dyn NodeInfo>,
) -> Result<MountedVolume, MountError> {
    mount_showing(volume, mountpoint, threads, Some(node))
}

fn mount_showing(
    volume: Arc<Volume>,
    mountpoint: &Path,
    threads: usize,
    node: Option<Arc<dyn NodeInfo>>,
) -> Result<MountedVolume, MountError> {
    let mountpoint = absolute(mountpoint)?;
    make_way(&mountpoint)?;
    let device = mount_device(&mountpoint)?;
    let serving = device.try_clone().and_then(|connection| {
        let special = node.map(|node| Special::new(Arc::clone(&volume), node)).transpose()?.map(Arc::new);
        let session = serve(&volume, special.clone(), device, threads)?;
        Ok((connection, special, session))
    });
    match serving {
        Ok((connection, special, session)) => {
            // Asked of mountinfo and not of the mount: this thread may be one that a request to
            // ourselves would wait for.
            let device = mount_at(&mountpoint).map(|mount| mount.device);
            if let Some(device) = device {
                raise_readahead(device);
            }
            if special.is_some() && special::hides_a_file(&volume) {
                warn!(
                    "the volume has a .nasd of its own, which is hidden: its files are below data/.nasd in {}",
                    volume.state_dir().display()
                );
            }
            info!("mounted at {}", mountpoint.display());
            Ok(MountedVolume { volume, mountpoint, device, connection, session: Some(session), special })
        }
        Err(error) => {
            volume.set_kernel_cache(None);
            rustix::mount::unmount(&mountpoint, UnmountFlags::DETACH).ok();
            Err(MountError::os(
                "serve",
                &mountpoint,
                error,
                "the kernel's FUSE must speak protocol 7.31 or later (Linux 5.4)",
            ))
        }
    }
}

/// Looks whether a volume can be mounted here, and takes down a dead mount that a killed nasd left.
pub fn prepare(mountpoint: &Path) -> Result<(), MountError> {
    make_way(&absolute(mountpoint)?)
}

/// The mount point as mountinfo spells it.
fn absolute(path: &Path) -> Result<PathBuf, MountError> {
    let error = match path.canonicalize() {
        Ok(path) => return Ok(path),
        Err(error) => error,
    };
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            return Err(MountError::NotADirectory { path: path.to_owned() });
        }
        // The mount point itself may be dead; what is above it is not.
        io::ErrorKind::NotConnected => {
            if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
                let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                if let Ok(parent) = parent.canonicalize() {
                    return Ok(parent.join(name));
                }
            }
        }
        _ => {}
    }
    Err(MountError::os("find the mount point", path, error, "check the path"))
}

fn mount_at(path: &Path) -> Option<Mount> {
    let mountinfo = fs::read("/proc/self/mountinfo").ok()?;
    mountinfo::topmost(&mountinfo::parse(&mountinfo), path).cloned()
}

enum Health {
    Dead,
    Alive,
    Stuck,
}

/// Asks from a thread of its own, since a stopped file server does not answer at all. What it asks must be nothing
/// that the kernel may answer from its caches: stat(2) of the root succeeds for a second after its server was killed,
/// just when a supervisor starts the next one.
fn probe(path: &Path) -> Health {
    let (answer, answered) = mpsc::channel();
    let path = path.to_owned();
    thread::spawn(move || {
        // Not stat(2): the kernel answers that from its cache, also for a server that is gone.
        let answer_to = rustix::fs::statfs(&path).err();
        // The second: the connection ended while the question was under way.
        let dead = matches!(answer_to, Some(Errno::NOTCONN | Errno::CONNABORTED));
        // Nobody listens any more after the time-out.
        answer.send(dead).ok();
    });
    match answered.recv_timeout(PROBE) {
        Ok(true) => Health::Dead,
        Ok(false) => Health::Alive,
        Err(_) => Health::Stuck,
    }
}

/// Takes down what dead nasds left, and makes sure that nothing else is there.
fn make_way(mountpoint: &Path) -> Result<(), MountError> {
    // Each round removes a mount, and several can lie on top of each other.
    while let Some(mount) = mount_at(mountpoint) {
        let health = match probe(mountpoint) {
            Health::Dead if mount.fstype == FSTYPE => {
                warn!("taking down the dead mount that a killed nasd left at {}", mountpoint.display());
                rustix::mount::unmount(mountpoint, UnmountFlags::DETACH).map_err(|error| {
                    MountError::os(
                        "take down the dead mount",
                        mountpoint,
                        error,
                        "run as root, or do it by hand: umount -l",
                    )
                })?;
                continue;
            }
            Health::Dead => ", dead",
            Health::Stuck => ", does not answer",
            Health::Alive => "",
        };
        return Err(MountError::AlreadyMounted {
            path: mountpoint.to_owned(),
            what: format!("{} from {}{health}", mount.fstype, mount.source),
        });
    }
    if !mountpoint.is_dir() {
        return Err(MountError::NotADirectory { path: mountpoint.to_owned() });
    }
    let mut entries =
        fs::read_dir(mountpoint).map_err(|error| MountError::os("read", mountpoint, error, "run as root"))?;
    if entries.next().is_some() {
        return Err(MountError::NotEmpty { path: mountpoint.to_owned() });
    }
    Ok(())
}

/// Mounts, with nobody serving yet: requests wait.
fn mount_device(mountpoint: &Path) -> Result<OwnedFd, MountError> {
    // std opens with O_CLOEXEC, so no program that nasd starts keeps the mount alive.
    let device: File = OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(|error| MountError::NoFuseDevice { error })?;
    let failed = |error: io::Error| {
        MountError::os(
            "mount at",
            mountpoint,
            error,
            "run as root, or with CAP_SYS_ADMIN (in a container: --cap-add SYS_ADMIN \
             --security-opt apparmor=unconfined)",
        )
    };
    let options = CString::new(format!(
        "fd={},rootmode=40000,user_id={},group_id={},allow_other,default_permissions",
        device.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    ))
    .map_err(|error| failed(error.into()))?;
    // Neither NODEV nor NOSUID: the volume has what its files say. Access times would make every
    // read a change to ship.
    rustix::mount::mount(SOURCE, mountpoint, FSTYPE, MountFlags::NOATIME, options.as_c_str())
        .map_err(|error| failed(error.into()))?;
    Ok(device.into())
}

fn serve(
    volume: &Arc<Volume>,
    special: Option<Arc<Special>>,
    device: OwnedFd,
    threads: usize,
) -> io::Result<BackgroundSession> {
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(threads.max(1));
    // A queue for each thread's replies, instead of one lock for all.
    config.clone_fd = true;
    let shim = Shim::new(Arc::clone(volume), special);
    let session = Session::from_fd(shim, device, SessionACL::All, config)?;
    // Before the first request, so that nothing is cached of which the volume cannot take it back.
    volume.set_kernel_cache(Some(Arc::new(Invalidations(session.notifier()))));
    session.spawn()
}

/// INIT can only lower the readahead, 128 KiB by default, to where a sequential read waits for a
/// round trip each 128 KiB. The limit itself is an attribute of the mount's backing device.
fn raise_readahead((major, minor): (u32, u32)) {
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = fs::write(&path, (MAX_TRANSFER / 1024).to_string()) {
        // A container's /sys is read-only.
        info!("sequential reads will be slower: cannot set {path}: {error}");
    }
}

impl MountedVolume {
    /// Where the volume is, as an absolute path without symbolic links.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Whether the FUSE threads still run. They end when somebody else unmounts the volume.
    pub fn is_serving(&self) -> bool {
        let session = self.session.as_ref();
        session.is_some_and(|session| !session.guard.is_finished())
    }

    /// Unmounts and ends the FUSE threads.
    ///
    /// Where files are still open after a short while the mount is detached and the connection
    /// aborted; what is done with those files then fails with `ENOTCONN`. Commits whose reply is
    /// still outstanding fail as well, so finish them first.
    pub fn unmount(mut self) -> Result<(), MountError> {
        self.take_down()
    }

    /// False once the kernel has ended the connection: the last mount of it is gone, or somebody
    /// aborted it.
    fn is_connected(&self) -> bool {
        let mut fds = [PollFd::new(&self.connection, PollFlags::empty())];
        let polled = rustix::event::poll(&mut fds, Some(&Timespec::default()));
        // Any error of poll itself says nothing about the connection.
        polled.is_err() || !fds[0].revents().contains(PollFlags::ERR)
    }

    /// Unmounts what is ours and nothing else: the operator may have unmounted the volume before, and
    /// the next nasd may be there by now. The number of the file system instance tells, but only
    /// while it is alive; afterwards the kernel gives it to the next.
    fn unmount_path(&self) -> Result<(), MountError> {
        let Some(mount) = mount_at(&self.mountpoint) else {
            return Ok(());
        };
        let result = if self.is_connected() {
            if Some(mount.device) != self.device {
                return Ok(());
            }
            self.unmount_alive()
        } else if mount.fstype == FSTYPE && matches!(probe(&self.mountpoint), Health::Dead) {
            // Aborted but still mounted; and even if it is somebody else's, it serves nobody.
            rustix::mount::unmount(&self.mountpoint, UnmountFlags::DETACH)
        } else {
            return Ok(());
        };
        result.map_err(|error| MountError::os("unmount", &self.mountpoint, error, "do it by hand: umount -l"))
    }

    fn unmount_alive(&self) -> rustix::io::Result<()> {
        let deadline = Instant::now() + BUSY;
        loop {
            match rustix::mount::unmount(&self.mountpoint, UnmountFlags::empty()) {
                Err(Errno::BUSY) if Instant::now() < deadline => thread::sleep(STEP),
                Err(Errno::BUSY) => {
                    warn!(
                        "{} is in use: detaching it; open files there fail from now on",
                        self.mountpoint.display()
                    );
                    // FORCE aborts the connection. A detached mount alone would be served for as
                    // long as one file is open, and the threads would not end.
                    return rustix::mount::unmount(
                        &self.mountpoint,
                        UnmountFlags::DETACH | UnmountFlags::FORCE,
                    );
                }
                result => return result,
            }
        }
    }

    fn take_down(&mut self) -> Result<(), MountError> {
        let Some(session) = self.session.take() else {
            return Ok(());
        };
        self.volume.set_kernel_cache(None);
        // Whoever waits for news would keep the mount busy.
        if let Some(special) = &self.special {
            special.close();
        }
        self.unmount_path()?;
        let wait = |session: &BackgroundSession| {
            let deadline = Instant::now() + JOIN;
            while !session.guard.is_finished() && Instant::now() < deadline {
                thread::sleep(STEP);
            }
            session.guard.is_finished()
        };
        if !wait(&session) {
            // The mount lives on in another mount namespace.
            abort(self.device);
            if !wait(&session) {
                warn!(
                    "the mount at {} is still used elsewhere; it ends with this process",
                    self.mountpoint.display()
                );
                return Ok(());
            }
        }
        session.join().map_err(|error| {
            MountError::os(
                "stop serving",
                &self.mountpoint,
                error,
                "the volume is unmounted; start nasd again",
            )
        })
    }
}

impl Drop for MountedVolume {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            warn!("{error}");
        }
    }
}

/// Cuts a FUSE connection, where fusectl is mounted.
fn abort(device: Option<(u32, u32)>) {
    let Some((_, minor)) = device else { return };
    let path = format!("/sys/fs/fuse/connections/{minor}/abort");
    if let Err(error) = fs::write(&path, "1") {
        debug!("cannot write {path}: {error}");
    }
}
