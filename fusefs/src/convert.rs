//! Between the volume's types and those of `fuser`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};
use nasd_volume::{Attr, FileId, FsError, Kind, SetTime, Time};

const MAX_NANOS: u32 = 999_999_999;

pub(crate) fn id(ino: INodeNo) -> FileId {
    FileId(ino.0)
}

pub(crate) fn ino(id: FileId) -> INodeNo {
    INodeNo(id.0)
}

pub(crate) fn errno(error: FsError) -> Errno {
    Errno::from_i32(error.errno().raw_os_error())
}

pub(crate) fn kind(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::Char => FileType::CharDevice,
        Kind::Block => FileType::BlockDevice,
    }
}

pub(crate) fn attr(attr: &Attr) -> FileAttr {
    let ctime = to_system_time(attr.ctime);
    FileAttr {
        ino: ino(attr.id),
        size: attr.size,
        blocks: attr.blocks,
        atime: to_system_time(attr.atime),
        mtime: to_system_time(attr.mtime),
        ctime,
        // Not sent on Linux.
        crtime: ctime,
        kind: kind(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

/// Nanoseconds since 1970 UTC.
pub(crate) fn from_nanos(nanos: i64) -> SystemTime {
    const SECOND: i64 = 1_000_000_000;
    to_system_time(Time { secs: nanos.div_euclid(SECOND), nanos: nanos.rem_euclid(SECOND) as u32 })
}

/// What no `SystemTime` can hold is no time that a filesystem stores either; it becomes the epoch
/// rather than a panic.
fn to_system_time(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let whole = if time.secs < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    let nanos = Duration::from_nanos(u64::from(time.nanos.min(MAX_NANOS)));
    whole.and_then(|whole| whole.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// The inverse of what `fuser` 0.18 does to the times of a SETATTR, not of [`to_system_time`]:
/// before the epoch it *subtracts* the nanoseconds, so -1.2 s, which the kernel sends as
/// (-2, 800 000 000), arrives as epoch - 2.8 s. Undone here, the kernel's pair is exact again.
fn from_setattr(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => {
            Time { secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos: since.subsec_nanos() }
        }
        Err(before) => Time {
            secs: 0_i64.checked_sub_unsigned(before.duration().as_secs()).unwrap_or(i64::MIN),
            nanos: before.duration().subsec_nanos(),
        },
    }
}

pub(crate) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(from_setattr(time)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `fuser::time::system_time_from_time`, which is private.
    fn as_fuser_does(secs: i64, nanos: u32) -> SystemTime {
        if secs >= 0 {
            UNIX_EPOCH + Duration::new(secs as u64, nanos)
        } else {
            UNIX_EPOCH - Duration::new(secs.unsigned_abs(), nanos)
        }
    }

    #[test]
    fn times_survive_the_way_in() {
        for (secs, nanos) in [
            (0, 0),
            (1, 999_999_999),
            (-1, 0),
            (-1, 1),
            (-2, 800_000_000),
            (4_294_967_296, 5),
            (-2_147_483_649, 7),
        ] {
            let time = from_setattr(as_fuser_does(secs, nanos));
            assert_eq!((time.secs, time.nanos), (secs, nanos));
        }
    }

    #[test]
    fn times_before_the_epoch_go_out_as_they_are() {
        let time = to_system_time(Time { secs: -2, nanos: 800_000_000 });
        assert_eq!(time, UNIX_EPOCH - Duration::new(1, 200_000_000));
    }

    #[test]
    fn no_time_panics() {
        for secs in [i64::MIN, i64::MAX] {
            to_system_time(Time { secs, nanos: u32::MAX });
        }
    }
}
