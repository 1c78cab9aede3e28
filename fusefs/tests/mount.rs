//! The mount itself, with the kernel in between: what a program sees, what is committed, and what
//! may be mounted where. Needs root and `/dev/fuse`; says so and passes where they are missing.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::sync::Arc;

use common::{Outcome, Scratch, raw_error};
use nasd_fusefs::{MountError, mount};
use nasd_volume::Access;
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::{Errno, ReadWriteFlags};
use rustix::mount::{MountFlags, UnmountFlags};

fn mounts_of(scratch: &Scratch) -> io::Result<usize> {
    let point = scratch.mnt().display().to_string().replace(' ', "\\040");
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts.matches(&format!(" {point} ")).count())
}

#[test]
fn a_program_finds_a_filesystem() -> Outcome {
    let Some(scratch) = Scratch::new() else {
        return Ok(());
    };
    let mounted = mount(scratch.volume("state")?, &scratch.mnt(), 4)?;
    let root = mounted.mountpoint().to_owned();
    let mounts = fs::read_to_string("/proc/mounts")?;
    assert!(mounts.contains("fusefs") && mounts.contains("fuse.nasd"));

    let (a, b) = (root.join("a"), root.join("b"));
    let big: Vec<u8> = (0..3_000_001_u32).map(|n| n as u8).collect();
    fs::write(&a, &big)?;
    fs::hard_link(&a, &b)?;
    std::os::unix::fs::symlink("a", root.join("l"))?;
    assert_eq!(fs::metadata(&a)?.ino(), fs::metadata(&b)?.ino());
    assert_eq!(fs::metadata(&a)?.nlink(), 2);
    assert!(fs::read(root.join("l"))? == big);

    // Times before the epoch, to the nanosecond.
    let early = std::time::UNIX_EPOCH - std::time::Duration::new(1, 200_000_000);
    let file = File::open(&a)?;
    file.set_times(fs::FileTimes::new().set_modified(early))?;
    assert_eq!(fs::metadata(&b)?.modified()?, early);

    // Open files outlive their names.
    fs::remove_file(&a)?;
    fs::rename(&b, root.join("c"))?;
    fs::remove_file(root.join("c"))?;
    let mut tail = [0; 2];
    file.read_exact_at(&mut tail, big.len() as u64 - 2)?;
    assert_eq!(tail, big[big.len() - 2..]);
    drop(file);

    let many = root.join("many");
    fs::create_dir(&many)?;
    for n in 0..500 {
        fs::write(many.join(format!("a rather long name, so that one READDIR is not enough: {n}")), "")?;
    }
    let mut listing = fs::read_dir(&many)?;
    // Removing while reading, as rm -r does.
    while let Some(entry) = listing.next().transpose()? {
        fs::remove_file(entry.path())?;
    }
    fs::remove_dir(&many)?;
    File::open(&root)?.sync_all()?;
    mounted.unmount()?;
    assert_eq!(mounts_of(&scratch)?, 0);
    Ok(())
}

/// What POSIX calls synchronous I/O makes a transaction, and what it does not call so makes none.
#[test]
fn synchronous_writes_commit() -> Outcome {
    let Some(scratch) = Scratch::new() else {
        return Ok(());
    };
    let volume = scratch.volume("state")?;
    let mounted = mount(Arc::clone(&volume), &scratch.mnt(), 2)?;
    let path = mounted.mountpoint().join("f");
    let mut byte = 0;
    let mut commits = |what: &dyn Fn(&[u8]) -> io::Result<()>| -> io::Result<u64> {
        byte += 1;
        let before = volume.log.tail().seq;
        what(&[byte; 512])?;
        Ok(volume.log.tail().seq - before)
    };
    let open = |flags: OFlags| {
        let flags = flags.bits() as i32;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.custom_flags(flags).open(&path)
    };
    let plain = open(OFlags::empty())?;
    assert_eq!(commits(&|data| plain.write_all_at(data, 0))?, 0);
    assert_eq!(commits(&|_| plain.sync_data())?, 1);
    for flags in [OFlags::DSYNC, OFlags::SYNC] {
        let file = open(flags)?;
        assert_eq!(commits(&|data| file.write_all_at(data, 0))?, 1, "{flags:?}");
        let allocate = |_: &[u8]| {
            let flags = FallocateFlags::KEEP_SIZE;
            Ok(rustix::fs::fallocate(&file, flags, 1 << 20, 4096)?)
        };
        assert_eq!(commits(&allocate)?, 1, "fallocate, {flags:?}");
        let copy = |_: &[u8]| {
            let (mut from, mut to) = (0, 8192);
            rustix::fs::copy_file_range(&file, Some(&mut from), &file, Some(&mut to), 512)?;
            Ok(())
        };
        assert_eq!(commits(&copy)?, 1, "copy_file_range, {flags:?}");
    }
    let once = |data: &[u8]| {
        let data = [IoSlice::new(data)];
        rustix::io::pwritev2(&plain, &data, 0, ReadWriteFlags::DSYNC)?;
        Ok(())
    };
    assert_eq!(commits(&once)?, 1, "RWF_DSYNC");
    let append = |data: &[u8]| {
        let flags = (OFlags::DSYNC | OFlags::APPEND).bits() as i32;
        let mut options = OpenOptions::new();
        options.append(true).custom_flags(flags).open(&path)?.write_all(data)
    };
    assert_eq!(commits(&append)?, 1, "O_APPEND");
    let directory = File::open(mounted.mountpoint())?;
    fs::write(mounted.mountpoint().join("g"), "")?;
    assert_eq!(commits(&|_| directory.sync_all())?, 1, "directory");
    drop((plain, directory));
    mounted.unmount()?;
    Ok(())
}

#[test]
fn a_secondary_reads() -> Outcome {
    let Some(scratch) = Scratch::new() else {
        return Ok(());
    };
    let volume = scratch.volume("state")?;
    let mounted = mount(Arc::clone(&volume), &scratch.mnt(), 2)?;
    let path = mounted.mountpoint().join("f");
    fs::write(&path, "before")?;
    let kept = OpenOptions::new().read(true).write(true).open(&path)?;
    volume.set_access(Access::ReadOnly);
    assert_eq!(fs::read(&path)?, b"before");
    assert_eq!(raw_error(kept.write_at(b"x", 0)), Some(Errno::ROFS));
    assert_eq!(raw_error(File::create_new(path.with_extension("new"))), Some(Errno::ROFS));
    // The same mount and the same open file, promoted.
    volume.set_access(Access::ReadWrite);
    kept.write_all_at(b"after ", 0)?;
    assert_eq!(fs::read(&path)?, b"after ");
    drop(kept);
    mounted.unmount()?;
    Ok(())
}

/// What was written through it may be gone, whatever has become durable since.
#[test]
fn a_handle_of_a_lost_term_commits_nothing() -> Outcome {
    let Some(scratch) = Scratch::new() else {
        return Ok(());
    };
    let volume = scratch.volume("state")?;
    let mounted = mount(Arc::clone(&volume), &scratch.mnt(), 2)?;
    let path = mounted.mountpoint().join("f");
    let (file, directory) = (File::create(&path)?, File::open(mounted.mountpoint())?);
    file.write_all_at(b"old", 0)?;
    file.sync_all()?;
    directory.sync_all()?;

    volume.forsake();
    file.write_all_at(b"new", 0)?;
    assert_eq!(raw_error(file.sync_all()), Some(Errno::IO));
    assert_eq!(raw_error(file.sync_data()), Some(Errno::IO));
    assert_eq!(raw_error(directory.sync_all()), Some(Errno::IO));
    let before = volume.log.tail().seq;
    File::open(&path)?.sync_all()?;
    File::open(mounted.mountpoint())?.sync_all()?;
    assert_eq!(volume.log.tail().seq, before + 1, "what was written is committed by a handle of this term");
    // And stays so.
    assert_eq!(raw_error(file.sync_all()), Some(Errno::IO));
    assert_eq!(raw_error(directory.sync_all()), Some(Errno::IO));
    drop((file, directory));
    mounted.unmount()?;
    Ok(())
}

#[test]
fn only_an_empty_directory_is_mounted_on() -> Outcome {
    let Some(scratch) = Scratch::new() else {
        return Ok(());
    };
    let volume = scratch.volume("state")?;
    let mnt = scratch.mnt();
    let refused = |path| mount(Arc::clone(&volume), path, 1).err();

    fs::write(mnt.join("file"), "")?;
    assert!(matches!(refused(&mnt), Some(MountError::NotEmpty { .. })));
    let file = mnt.join("file");
    assert!(matches!(refused(&file), Some(MountError::NotADirectory { .. })));
    fs::remove_file(&file)?;
    assert!(matches!(refused(&file), Some(MountError::NotADirectory { .. })));

    let first = mount(Arc::clone(&volume), &mnt, 1)?;
    assert!(matches!(refused(&mnt), Some(MountError::AlreadyMounted { .. })));
    assert!(first.is_serving());
    first.unmount()?;

    rustix::mount::mount("none", &mnt, "tmpfs", MountFlags::empty(), None)?;
    assert!(matches!(refused(&mnt), Some(MountError::AlreadyMounted { .. })));
    rustix::mount::unmount(&mnt, UnmountFlags::empty())?;
    Ok(())
}

#[test]
fn dead_mounts_are_taken_down() -> Outcome {
    let Some(scratch) = Scratch::new() else {
        return Ok(());
    };
    let mnt = scratch.mnt();
    // A mount whose server went away, as after SIGKILL.
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
    let fd = device.as_raw_fd();
    let data = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other");
    let data = std::ffi::CString::new(data)?;
    rustix::mount::mount("nasd", &mnt, "fuse.nasd", MountFlags::empty(), data.as_c_str())?;
    drop(device);
    assert_eq!(raw_error(fs::metadata(&mnt)), Some(Errno::NOTCONN));

    let mounted = mount(scratch.volume("state")?, &mnt, 2)?;
    assert_eq!(mounts_of(&scratch)?, 1);
    fs::write(mounted.mountpoint().join("f"), "served")?;
    mounted.unmount()?;
    Ok(())
}

#[test]
fn unmount_ends_even_while_files_are_open() -> Outcome {
    let Some(scratch) = Scratch::new() else {
        return Ok(());
    };
    let mounted = mount(scratch.volume("state")?, &scratch.mnt(), 3)?;
    let file = File::create(mounted.mountpoint().join("f"))?;
    mounted.unmount()?;
    assert_eq!(mounts_of(&scratch)?, 0);
    assert_eq!(raw_error(file.metadata()), Some(Errno::NOTCONN));
    Ok(())
}

/// The operator unmounts, a new nasd starts, and only then the old one stops.
#[test]
fn unmount_leaves_the_next_mount_alone() -> Outcome {
    let Some(scratch) = Scratch::new() else {
        return Ok(());
    };
    let old = mount(scratch.volume("old")?, &scratch.mnt(), 2)?;
    rustix::mount::unmount(scratch.mnt(), UnmountFlags::empty())?;
    let new = mount(scratch.volume("new")?, &scratch.mnt(), 2)?;
    old.unmount()?;
    assert_eq!(mounts_of(&scratch)?, 1);
    fs::write(new.mountpoint().join("f"), "served")?;
    new.unmount()?;
    Ok(())
}
