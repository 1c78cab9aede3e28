//! A small filesystem of its own, in a file.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A filesystem in a file, loop-mounted; unmounted when dropped.
#[derive(Debug)]
pub struct Image {
    /// Where it is mounted.
    pub path: PathBuf,
}

impl Image {
    /// Makes and mounts an ext4 of `mib` MiB below `dir`; an error says why this machine can't.
    pub fn ext4(dir: &Path, name: &str, mib: u64) -> Result<Image, String> {
        let file = dir.join(format!("{name}.img"));
        let path = dir.join(format!("{name}.fs"));
        std::fs::create_dir(&path).unwrap();
        std::fs::File::create(&file).unwrap().set_len(mib << 20).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&file))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(&path))?;
        Ok(Image { path })
    }

    /// A filesystem without extended attributes.
    pub fn ramfs(dir: &Path, name: &str) -> Result<Image, String> {
        let path = dir.join(format!("{name}.fs"));
        std::fs::create_dir(&path).unwrap();
        run(Command::new("mount").args(["-t", "ramfs", "none"]).arg(&path))?;
        Ok(Image { path })
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
