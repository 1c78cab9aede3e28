//! What is mounted where, from `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// One mount.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// Where.
    pub point: PathBuf,
    /// Of what type: `ext4`, `fuse.sshfs`.
    pub fstype: String,
    /// Of what: a device, or whatever the filesystem put there.
    pub source: String,
}

/// All mounts of this process's namespace, in the order in which they were made.
pub(super) fn all() -> io::Result<Vec<Mount>> {
    let text = fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse).collect())
}

/// The mount that is at `path` itself; the one on top if there are several.
pub(super) fn at<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mounts.iter().rev().find(|m| m.point == path)
}

/// The mount that `path` lies in.
pub(super) fn around<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    path.ancestors().find_map(|p| at(mounts, p))
}

/// `36 35 98:0 /root /point options … - type source options`, see proc(5).
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let point = fields.nth(4)?;
    // There are optional fields before the dash, none or several.
    fields.find(|f| *f == b"-")?;
    let fstype = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = String::from_utf8_lossy(fields.next()?).into_owned();
    Some(Mount { point: PathBuf::from(OsString::from_vec(unescape(point))), fstype, source })
}

/// Blanks, tabs, line feeds and backslashes are written as `\` and three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|_| *first == b'\\');
        let byte =
            digits.and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 8).ok());
        plain.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[3..] } else { tail };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(point: &str, fstype: &str, source: &str) -> Mount {
        Mount { point: point.into(), fstype: fstype.to_owned(), source: source.to_owned() }
    }

    #[test]
    fn lines_are_read() {
        let line = b"36 35 98:0 /mnt1 /mnt\\0402\\134 rw,noatime master:1 shared:2 - ext3 /dev/root rw";
        assert_eq!(parse(line), Some(mount("/mnt 2\\", "ext3", "/dev/root")));
        assert_eq!(parse(b"1 0 0:1 / / rw - fuse.nasd nasd rw"), Some(mount("/", "fuse.nasd", "nasd")));
        for broken in [&b""[..], b"1 0 0:1 / /", b"1 0 0:1 / / rw ext4 x"] {
            assert_eq!(parse(broken), None);
        }
    }

    #[test]
    fn the_nearest_and_topmost_counts() {
        let mounts = [mount("/", "ext4", "a"), mount("/srv", "xfs", "b"), mount("/srv", "tmpfs", "c")];
        let find = |path: &str| around(&mounts, Path::new(path)).map(|m| m.source.as_str());
        assert_eq!(find("/srv/nas"), Some("c"));
        assert_eq!(find("/srvx"), Some("a"));
        assert_eq!(at(&mounts, Path::new("/srv/nas")), None);
    }

    #[test]
    fn this_machine_has_a_root() {
        let mounts = all().expect("proc is mounted");
        assert!(around(&mounts, Path::new("/no/such/place")).is_some());
    }
}
