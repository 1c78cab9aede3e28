//! A small filesystem of its own, in a file; its disk can fill up, and its power can be cut.

use crate::wait::eventually;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A filesystem in a file, loop-mounted; unmounted when dropped.
#[derive(Debug)]
pub struct Image {
    /// Where it is mounted.
    pub path: PathBuf,
    /// What it is in, if it has a disk.
    file: PathBuf,
}

impl Image {
    /// Makes and mounts an ext4 of `mib` MiB below `dir`; an error says why this machine can't.
    pub fn ext4(dir: &Path, name: &str, mib: u64) -> Result<Image, String> {
        Image::new(dir, name, mib, "ext4", &["-m", "0"])
    }

    /// The same with XFS, which refuses to be smaller than 300 MiB.
    pub fn xfs(dir: &Path, name: &str, mib: u64) -> Result<Image, String> {
        Image::new(dir, name, mib, "xfs", &[])
    }

    fn new(dir: &Path, name: &str, mib: u64, fs: &str, options: &[&str]) -> Result<Image, String> {
        let file = dir.join(format!("{name}.img"));
        let path = dir.join(format!("{name}.fs"));
        std::fs::create_dir(&path).unwrap();
        std::fs::File::create(&file).unwrap().set_len(mib << 20).unwrap();
        run(Command::new(format!("mkfs.{fs}")).arg("-q").args(options).arg(&file))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(&path))?;
        Ok(Image { path, file })
    }

    /// A filesystem without extended attributes.
    pub fn ramfs(dir: &Path, name: &str) -> Result<Image, String> {
        let path = dir.join(format!("{name}.fs"));
        std::fs::create_dir(&path).unwrap();
        run(Command::new("mount").args(["-t", "ramfs", "none"]).arg(&path))?;
        Ok(Image { path, file: PathBuf::new() })
    }

    /// The filesystem stops as if its machine had lost its power: what is not on the disk never gets there, the last
    /// part of the journal is not flushed, and every access fails from now on.
    pub fn cut(&self) {
        run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(&self.path)).unwrap();
    }

    /// Power is back: the journal is recovered. Nobody may use the filesystem.
    pub fn power_on(&self) {
        // The kernel lets go of a killed process's files a little after its end.
        eventually("the dead filesystem can be unmounted", || {
            rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::empty()).ok()
        });
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.file).arg(&self.path)).unwrap();
    }

    /// Free bytes.
    pub fn free(&self) -> u64 {
        let s = rustix::fs::statvfs(&self.path).unwrap();
        s.f_bavail * s.f_frsize
    }

    /// Takes space with a file beside everything else until only `leave` bytes are free.
    pub fn fill(&self, leave: u64) -> PathBuf {
        let ballast = self.path.join("ballast");
        let mut f = std::fs::File::create(&ballast).unwrap();
        while self.free() > leave {
            let n = (self.free() - leave).min(1 << 20);
            if std::io::Write::write_all(&mut f, &vec![7; n as usize]).is_err() {
                break;
            }
            // Delayed allocation would take the space later.
            f.sync_all().unwrap();
        }
        ballast
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).output();
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let out = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if out.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&out.stderr).trim()))
}
