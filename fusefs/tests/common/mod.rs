//! What the tests of this crate share.
#![allow(dead_code, missing_docs)] // Each uses a part of it.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nasd_volume::Volume;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

pub type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A directory with an empty mount point, `mnt with space`, and room for state directories.
pub struct Scratch(PathBuf);

impl Scratch {
    /// None where mounting is not possible.
    pub fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() || File::open("/dev/fuse").is_err() {
            eprintln!("skipped: needs root and /dev/fuse");
            return None;
        }
        let unique = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let scratch = Self(path.join(format!("fusefs-{}-{}", unique.0, unique.1)));
        fs::create_dir_all(scratch.mnt()).ok()?;
        Some(scratch)
    }

    pub fn mnt(&self) -> PathBuf {
        self.0.join("mnt with space")
    }

    pub fn volume(&self, name: &str) -> Result<Arc<Volume>, Box<dyn std::error::Error>> {
        Ok(Volume::create_at(&self.0.join(name))?)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // After a failed assertion the mount may be there still.
        while rustix::mount::unmount(self.mnt(), UnmountFlags::DETACH).is_ok() {}
        fs::remove_dir_all(&self.0).ok();
    }
}

pub fn raw_error<T>(result: io::Result<T>) -> Option<Errno> {
    Errno::from_io_error(&result.err()?)
}
