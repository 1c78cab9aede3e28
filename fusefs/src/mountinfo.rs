//! What `/proc/self/mountinfo` says about a path.
//!
//! Asked instead of the path itself, since a request to a dead or a stopped file server fails or
//! waits.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    id: u32,
    parent: u32,
    /// Names the file system instance; FUSE's are anonymous devices, 0:n.
    pub(crate) device: (u32, u32),
    point: PathBuf,
    pub(crate) fstype: String,
    pub(crate) source: String,
}

/// All mounts, in the order of the file. Lines of another shape are passed over: better to find a
/// mount that later kernels describe in more words than to refuse to start.
pub(crate) fn parse(mountinfo: &[u8]) -> Vec<Mount> {
    mountinfo.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /point rw,noatime shared:1 master:2 - ext4 /dev/sda1 rw`; how many fields
/// stand before the dash varies.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut number = || str::from_utf8(fields.next()?).ok()?.parse().ok();
    let (id, parent) = (number()?, number()?);
    let (major, minor) = str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let point = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let mut text = || fields.next().map(|field| String::from_utf8_lossy(&unescape(field)).into_owned());
    Some(Mount { id, parent, device, point, fstype: text()?, source: text()? })
}

/// The kernel writes space, tab, newline, backslash and number sign as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        if let [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] = rest {
            bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    bytes
}

/// The mount that a look at exactly this path meets: of several on top of each other, the one that
/// carries no other.
pub(crate) fn topmost<'a>(mounts: &'a [Mount], point: &Path) -> Option<&'a Mount> {
    let here = || mounts.iter().filter(|mount| mount.point == point);
    here().rfind(|mount| !here().any(|above| above.parent == mount.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] = b"\
21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
22 21 0:20 / /proc rw,nosuid shared:12 - proc proc rw
40 21 0:45 / /srv/nas rw,noatime shared:1 master:2 - fuse.nasd nasd rw,user_id=0,allow_other
41 40 0:46 / /srv/nas rw,noatime - ext4 /dev/loop0 rw
42 21 0:47 / /srv/with\\040space\\011tab\\134and\\043\\303\\251 rw - fuse.nasd na\\040sd rw
nonsense
43 21 0:48
44 21 nonsense / /x rw - ext4 y rw
45 21 0:49 / /srv/odd\\09\\477 rw - tmpfs none rw";

    #[test]
    fn reads_all_but_nonsense() {
        let mounts = parse(SAMPLE);
        assert_eq!(mounts.len(), 6);
        let nasd = &mounts[2];
        assert_eq!((nasd.id, nasd.parent, nasd.device), (40, 21, (0, 45)));
        assert_eq!(nasd.fstype, "fuse.nasd");
        assert_eq!(nasd.source, "nasd");
    }

    #[test]
    fn undoes_octal_escapes_and_only_those() {
        let mounts = parse(SAMPLE);
        assert_eq!(mounts[4].point, Path::new("/srv/with space\ttab\\and#é"));
        assert_eq!(mounts[4].source, "na sd");
        assert_eq!(mounts[5].point, Path::new("/srv/odd\\09\\477"));
        assert_eq!(unescape(b"\\377\\04"), b"\xff\\04");
    }

    #[test]
    fn finds_the_topmost_whatever_the_order() {
        let mut mounts = parse(SAMPLE);
        let top = |mounts: &[Mount]| topmost(mounts, Path::new("/srv/nas")).map(|mount| mount.id);
        assert_eq!(top(&mounts), Some(41));
        mounts.reverse();
        assert_eq!(top(&mounts), Some(41));
        assert_eq!(topmost(&mounts, Path::new("/srv")), None);
        assert_eq!(topmost(&mounts, Path::new("/srv/nas/x")), None);
    }
}
