//! `.nasd/` with the kernel in between. What a node tells is made up here; the transactions are a volume's.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Outcome, Scratch, raw_error};
use nasd_fusefs::{MountedVolume, NodeInfo, Subscription, mount, mount_with_special};
use nasd_volume::log::Retention;
use nasd_volume::txn::{Txn, seq_of_name};
use nasd_volume::{Access, Volume};
use parking_lot::{Mutex, RwLock};
use rustix::event::{PollFd, PollFlags, Timespec, epoll};
use rustix::fs::{CWD, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

/// A node that tells what it is told to tell.
#[derive(Clone, Default)]
struct Fake(Arc<Told>);

type Wake = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Told {
    lines: RwLock<Vec<String>>,
    wake: Mutex<Option<Wake>>,
    asked: AtomicU64,
}

impl Fake {
    fn tell(&self, line: &str) {
        self.0.lines.write().push(format!("{line}\n"));
        if let Some(wake) = &*self.0.wake.lock() {
            wake();
        }
    }
}

impl NodeInfo for Fake {
    fn status(&self) -> Vec<u8> {
        format!("asked {} times\n", self.0.asked.fetch_add(1, Ordering::SeqCst) + 1).into_bytes()
    }

    fn subscribe(&self) -> Box<dyn Subscription> {
        Box::new(Cursor { told: Arc::clone(&self.0), next: self.0.lines.read().len() })
    }

    fn on_news(&self, wake: Wake) -> Box<dyn Send + Sync> {
        *self.0.wake.lock() = Some(wake);
        Box::new(Quiet(Arc::clone(&self.0)))
    }
}

struct Quiet(Arc<Told>);

impl Drop for Quiet {
    fn drop(&mut self) {
        *self.0.wake.lock() = None;
    }
}

struct Cursor {
    told: Arc<Told>,
    next: usize,
}

impl Subscription for Cursor {
    fn next(&mut self) -> Vec<u8> {
        let lines = self.told.lines.read();
        let new: Vec<&String> = lines[self.next..].iter().take(3).collect();
        self.next += new.len();
        new.into_iter().flat_map(|line| line.bytes()).collect()
    }
}

/// A volume with a node that tells, mounted.
struct Stage {
    node: Fake,
    volume: Arc<Volume>,
    mounted: MountedVolume,
    _scratch: Scratch,
}

impl Stage {
    /// None where mounting is not possible.
    fn new(threads: usize) -> Option<Self> {
        let scratch = Scratch::new()?;
        let (node, volume) = (Fake::default(), scratch.volume("state").unwrap());
        let told = Arc::new(node.clone());
        let mounted = mount_with_special(Arc::clone(&volume), &scratch.mnt(), threads, told).unwrap();
        Some(Self { node, volume, mounted, _scratch: scratch })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mounted.mountpoint().join(name)
    }

    fn notify(&self) -> File {
        File::open(self.path(".nasd/notify")).unwrap()
    }

    /// A program that waits in a read.
    fn reader(&self) -> Child {
        let child =
            Command::new("cat").arg(self.path(".nasd/notify")).stdout(Stdio::piped()).spawn().unwrap();
        waits(child.id());
        child
    }
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until a thread waits for the answer to a request.
fn waits(tid: u32) {
    eventually("it waits in a read", || {
        let wchan = fs::read_to_string(format!("/proc/{tid}/wchan")).unwrap_or_default();
        wchan.contains("request_wait_answer")
    });
}

fn ends(child: &mut Child) -> ExitStatus {
    let mut status = None;
    eventually("it ends", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

fn my_tid() -> u32 {
    fs::read_link("/proc/thread-self").unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap()
}

/// Reads in a thread of its own, once it waits there.
fn read_in_thread(mut file: File) -> thread::JoinHandle<io::Result<String>> {
    let (sender, tid) = std::sync::mpsc::channel();
    let reader = thread::spawn(move || {
        sender.send(my_tid()).unwrap();
        let mut buffer = [0; 4096];
        let count = file.read(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
    });
    waits(tid.recv().unwrap());
    reader
}

fn lines_in(bytes: &[u8]) -> usize {
    bytes.split(|&byte| byte == b'\n').count() - 1
}

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn found_by_name_and_listed_nowhere() -> Outcome {
    let Some(stage) = Stage::new(2) else { return Ok(()) };
    fs::write(stage.path("f"), "")?;
    assert_eq!(names(stage.mounted.mountpoint()), ["f"]);
    let dir = stage.path(".nasd");
    assert_eq!(names(&dir), ["notify", "status", "log"]);
    for access in [Access::ReadWrite, Access::ReadOnly] {
        stage.volume.set_access(access);
        for (name, mode, size) in
            [("", 0o40755, 0), ("notify", 0o100_444, 0), ("status", 0o100_444, 0), ("log", 0o40700, 0)]
        {
            let found = fs::metadata(dir.join(name))?;
            assert_eq!((found.mode(), found.uid(), found.gid(), found.len()), (mode, 0, 0, size), "{name}");
        }
        assert_eq!(raw_error(fs::metadata(dir.join("other"))), Some(Errno::NOENT));
    }
    let numbers = |path: &Path| -> io::Result<Vec<u64>> {
        ["", "notify", "status", "log"].iter().map(|name| Ok(fs::metadata(path.join(name))?.ino())).collect()
    };
    let here = numbers(&dir)?;
    let Some(other) = Stage::new(2) else { return Ok(()) };
    assert_eq!(numbers(&other.path(".nasd"))?, here, "the same on both nodes");
    other.mounted.unmount()?;
    stage.mounted.unmount()?;
    Ok(())
}

#[test]
fn nobody_has_the_name_or_changes_what_is_there() -> Outcome {
    let Some(stage) = Stage::new(2) else { return Ok(()) };
    let (dir, file, sub) = (stage.path(".nasd"), stage.path("f"), stage.path("d"));
    let status = dir.join("status");
    fs::write(&file, "")?;
    fs::create_dir(&sub)?;
    let before = stage.volume.log.tail().seq;
    stage.volume.seal()?;
    let attempts: Vec<(&str, io::Result<()>, Errno)> = vec![
        ("create", File::create_new(&dir).map(drop), Errno::EXIST),
        ("mkdir", fs::create_dir(&dir), Errno::EXIST),
        ("symlink", std::os::unix::fs::symlink("f", &dir), Errno::EXIST),
        ("link", fs::hard_link(&file, &dir), Errno::EXIST),
        ("rename onto", fs::rename(&sub, &dir), Errno::PERM),
        ("rename away", fs::rename(&dir, stage.path("e")), Errno::PERM),
        (
            "exchange",
            rustix::fs::renameat_with(CWD, &sub, CWD, &dir, RenameFlags::EXCHANGE).map_err(Into::into),
            Errno::PERM,
        ),
        ("rmdir", fs::remove_dir(&dir), Errno::PERM),
        ("create inside", File::create_new(dir.join("x")).map(drop), Errno::PERM),
        ("mkdir inside", fs::DirBuilder::new().mode(0o700).create(dir.join("x")), Errno::PERM),
        ("rename into", fs::rename(&file, dir.join("x")), Errno::PERM),
        ("rename out of", fs::rename(&status, stage.path("x")), Errno::PERM),
        ("link out of", fs::hard_link(&status, stage.path("x")), Errno::PERM),
        ("unlink", fs::remove_file(&status), Errno::PERM),
        ("write", OpenOptions::new().write(true).open(&status).map(drop), Errno::PERM),
        ("truncate", OpenOptions::new().write(true).truncate(true).open(&status).map(drop), Errno::PERM),
        ("chmod", fs::set_permissions(&status, fs::Permissions::from_mode(0o777)), Errno::PERM),
        (
            "attribute",
            rustix::fs::setxattr(&status, "user.x", b"", XattrFlags::empty()).map_err(Into::into),
            Errno::PERM,
        ),
    ];
    for (what, result, expected) in attempts {
        assert_eq!(raw_error(result), Some(expected), "{what}");
    }
    let mut value = [0; 16];
    let attribute = rustix::fs::getxattr(&status, "user.x", &mut value);
    assert_eq!(attribute, Err(Errno::NODATA));
    assert_eq!(rustix::fs::listxattr(&status, &mut value), Ok(0));
    stage.volume.seal()?;
    assert_eq!(stage.volume.log.tail().seq, before + 1, "nothing of it is a change");
    stage.mounted.unmount()?;
    Ok(())
}

/// From before the name was taken.
#[test]
fn a_file_of_that_name_is_hidden_and_kept() -> Outcome {
    let Some(scratch) = Scratch::new() else { return Ok(()) };
    let volume = scratch.volume("state")?;
    let plain = mount(Arc::clone(&volume), &scratch.mnt(), 2)?;
    let own = plain.mountpoint().join(".nasd");
    fs::create_dir(&own)?;
    fs::write(own.join("status"), "mine")?;
    fs::write(plain.mountpoint().join("f"), "")?;
    plain.unmount()?;

    let told = Arc::new(Fake::default());
    let mounted = mount_with_special(Arc::clone(&volume), &scratch.mnt(), 2, told)?;
    assert_eq!(names(mounted.mountpoint()), ["f"]);
    assert_eq!(fs::read_to_string(own.join("status"))?, "asked 1 times\n");
    mounted.unmount()?;

    let plain = mount(volume, &scratch.mnt(), 2)?;
    assert_eq!(fs::read_to_string(own.join("status"))?, "mine");
    plain.unmount()?;
    Ok(())
}

#[test]
fn status_is_of_the_moment_of_the_open() -> Outcome {
    let Some(stage) = Stage::new(2) else { return Ok(()) };
    let path = stage.path(".nasd/status");
    let file = File::open(&path)?;
    let mut buffer = [0; 8];
    assert_eq!(file.read_at(&mut buffer, 3)?, 8);
    assert_eq!(&buffer, b"ed 1 tim");
    assert_eq!(fs::read_to_string(&path)?, "asked 2 times\n");
    assert_eq!(io::read_to_string(&file)?, "asked 1 times\n");
    assert_eq!(file.read_at(&mut buffer, 1 << 40)?, 0);
    // As programs copy, whichever way they choose.
    for tool in ["cat .nasd/status > f", "cp .nasd/status f", "head -n1 .nasd/status > f"] {
        let done = Command::new("sh").args(["-c", tool]).current_dir(stage.mounted.mountpoint()).status()?;
        assert!(done.success(), "{tool}");
        assert!(fs::read_to_string(stage.path("f"))?.starts_with("asked "), "{tool}");
    }
    stage.mounted.unmount()?;
    Ok(())
}

#[test]
fn a_read_waits_for_what_happens_after_the_open() -> Outcome {
    let Some(stage) = Stage::new(2) else { return Ok(()) };
    stage.node.tell("before");
    let file = stage.notify();
    let reader = read_in_thread(file.try_clone()?);
    stage.node.tell("one");
    assert_eq!(reader.join().unwrap()?, "one\n");
    stage.node.tell("two");
    stage.node.tell("three");
    let reader = BufReader::new(&file);
    let lines: Vec<String> = reader.lines().take(2).collect::<io::Result<_>>()?;
    assert_eq!(lines, ["two", "three"]);
    let mut buffer = [0; 8];
    assert_eq!(raw_error(file.read_at(&mut buffer, 0)), Some(Errno::SPIPE), "it has no position");
    drop(file);
    stage.mounted.unmount()?;
    Ok(())
}

#[test]
fn with_o_nonblock_a_read_does_not_wait() -> Outcome {
    let Some(stage) = Stage::new(2) else { return Ok(()) };
    let flags = OFlags::NONBLOCK.bits() as i32;
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(stage.path(".nasd/notify"))?;
    let mut buffer = [0; 100];
    assert_eq!(raw_error(file.read(&mut buffer)), Some(Errno::AGAIN));
    stage.node.tell("one");
    assert_eq!(file.read(&mut buffer)?, 4);
    assert_eq!(raw_error(file.read(&mut buffer)), Some(Errno::AGAIN));
    // The flag of now counts, not that of the open.
    rustix::fs::fcntl_setfl(&file, OFlags::empty())?;
    let reader = read_in_thread(file);
    stage.node.tell("two");
    assert_eq!(reader.join().unwrap()?, "two\n");
    stage.mounted.unmount()?;
    Ok(())
}

#[test]
fn a_small_buffer_gets_a_piece_and_then_the_rest() -> Outcome {
    let Some(stage) = Stage::new(2) else { return Ok(()) };
    let mut file = stage.notify();
    let long = "x".repeat(3 << 20);
    stage.node.tell("abcdefg");
    stage.node.tell("h");
    stage.node.tell(&long);
    let mut buffer = [0; 4];
    let mut read = |expected: &str| -> Outcome {
        let count = file.read(&mut buffer)?;
        assert_eq!(String::from_utf8_lossy(&buffer[..count]), expected);
        Ok(())
    };
    read("abcd")?;
    read("efg\n")?;
    read("h\n")?;
    // Of more than one request: what is there comes, and nobody waits for more.
    let mut rest = vec![0; 8 << 20];
    let mut count = 0;
    while count < long.len() + 1 {
        count += file.read(&mut rest[count..])?;
    }
    assert!(rest[..count] == *format!("{long}\n").as_bytes());
    // The same with many small pieces, which the kernel cuts into several requests.
    stage.node.tell(&"y".repeat(499));
    let mut pieces = vec![[0_u8; 1]; 1000];
    let mut slices: Vec<_> = pieces.iter_mut().map(|piece| io::IoSliceMut::new(piece)).collect();
    assert_eq!(file.read_vectored(&mut slices)?, 500);
    drop(file);
    stage.mounted.unmount()?;
    Ok(())
}

fn ready(file: &File, milliseconds: i64) -> io::Result<PollFlags> {
    let mut fds = [PollFd::new(file, PollFlags::IN)];
    let (tv_sec, tv_nsec) = (milliseconds / 1000, milliseconds % 1000 * 1_000_000);
    rustix::event::poll(&mut fds, Some(&Timespec { tv_sec, tv_nsec }))?;
    Ok(fds[0].revents())
}

#[test]
fn poll_says_when_there_is_something() -> Outcome {
    let Some(stage) = Stage::new(2) else { return Ok(()) };
    let mut file = stage.notify();
    assert_eq!(ready(&file, 0)?, PollFlags::empty());
    let began = Instant::now();
    assert_eq!(ready(&file, 50)?, PollFlags::empty());
    assert!(began.elapsed() >= Duration::from_millis(50));
    for line in ["one", "two"] {
        let teller = {
            let node = stage.node.clone();
            let tid = my_tid();
            thread::spawn(move || {
                eventually("it waits in poll", || {
                    let wchan = fs::read_to_string(format!("/proc/{tid}/wchan")).unwrap_or_default();
                    wchan.contains("poll")
                });
                node.tell(line);
            })
        };
        assert_eq!(ready(&file, 20_000)?, PollFlags::IN, "{line}");
        teller.join().unwrap();
        assert_eq!(ready(&file, 20_000)?, PollFlags::IN, "until it is read");
        let mut buffer = [0; 100];
        assert_eq!(file.read(&mut buffer)?, 4);
        assert_eq!(ready(&file, 0)?, PollFlags::empty());
    }
    fs::write(stage.path("f"), "")?;
    let ordinary = File::open(stage.path("f"))?;
    assert_eq!(ready(&ordinary, 0)?, PollFlags::IN, "other files are always ready");
    drop((file, ordinary));
    stage.mounted.unmount()?;
    Ok(())
}

#[test]
fn epoll_with_level_and_edge() -> Outcome {
    let Some(stage) = Stage::new(2) else { return Ok(()) };
    let (mut level, mut edge) = (stage.notify(), stage.notify());
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &level, epoll::EventData::new_u64(1), epoll::EventFlags::IN)?;
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&epoll, &edge, epoll::EventData::new_u64(2), flags)?;
    let wait = |milliseconds: i64| -> io::Result<Vec<u64>> {
        let mut events = Vec::with_capacity(8);
        let timeout = Timespec { tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000 };
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout))?;
        let mut who: Vec<u64> = events.iter().map(|event| event.data.u64()).collect();
        who.sort_unstable();
        Ok(who)
    };
    // Both of one kind can come by themselves: the two are woken one after the other.
    let collect = |expected: &[u64]| {
        let mut seen = std::collections::BTreeSet::new();
        eventually(&format!("{expected:?} are woken"), || {
            seen.extend(wait(1000).unwrap());
            expected.iter().all(|who| seen.contains(who))
        });
    };
    assert_eq!(wait(20)?, [] as [u64; 0]);
    stage.node.tell("one");
    collect(&[1, 2]);
    assert_eq!(wait(20)?, [1], "the edge is past, the level is there");
    stage.node.tell("two");
    collect(&[2]);
    let mut buffer = [0; 100];
    assert_eq!(level.read(&mut buffer)?, 4, "the first comes alone, having been there when it was looked at");
    assert_eq!(level.read(&mut buffer)?, 4);
    assert_eq!(wait(20)?, [] as [u64; 0]);
    stage.node.tell("three");
    collect(&[1, 2]);
    let mut all = Vec::new();
    while lines_in(&all) < 3 {
        let count = edge.read(&mut buffer)?;
        all.extend_from_slice(&buffer[..count]);
    }
    assert_eq!(all, b"one\ntwo\nthree\n");
    drop((level, edge));
    stage.mounted.unmount()?;
    Ok(())
}

/// More readers than the mount has threads, and files are still served.
#[test]
fn those_who_wait_occupy_no_thread() -> Outcome {
    let Some(stage) = Stage::new(1) else { return Ok(()) };
    let readers: Vec<_> = (0..40).map(|_| read_in_thread(stage.notify())).collect();
    // Several on one open file: each line goes to one of them.
    let shared = stage.notify();
    let sharing: Vec<_> = (0..3).map(|_| read_in_thread(shared.try_clone().unwrap())).collect();
    fs::write(stage.path("f"), "served")?;
    assert_eq!(fs::read_to_string(stage.path("f"))?, "served");
    stage.node.tell("one");
    for reader in readers {
        assert_eq!(reader.join().unwrap()?, "one\n");
    }
    for (answered, line) in [(1, "two"), (2, "three")] {
        eventually("one more of those who share is answered", || {
            sharing.iter().filter(|reader| reader.is_finished()).count() == answered
        });
        stage.node.tell(line);
    }
    let mut got: Vec<String> =
        sharing.into_iter().map(|reader| reader.join().unwrap()).collect::<io::Result<_>>()?;
    got.sort_unstable();
    assert_eq!(got, ["one\n", "three\n", "two\n"]);
    drop(shared);
    stage.mounted.unmount()?;
    Ok(())
}

/// The same for everybody: all lines, once, in order, whatever the buffer.
#[test]
fn each_open_file_gets_everything() -> Outcome {
    const LINES: usize = 300;
    let Some(stage) = Stage::new(3) else { return Ok(()) };
    let readers: Vec<_> = (0..16)
        .map(|n| {
            let mut file = stage.notify();
            thread::spawn(move || -> io::Result<Vec<u8>> {
                let mut buffer = vec![0; 1 + n * 7];
                let mut all = Vec::new();
                while lines_in(&all) < LINES {
                    let count = file.read(&mut buffer)?;
                    all.extend_from_slice(&buffer[..count]);
                }
                Ok(all)
            })
        })
        .collect();
    let expected: String = (0..LINES).map(|n| format!("line {n}\n")).collect();
    for line in expected.lines() {
        stage.node.tell(line);
    }
    for reader in readers {
        assert!(reader.join().unwrap()? == expected.as_bytes());
    }
    stage.mounted.unmount()?;
    Ok(())
}

#[test]
fn whoever_is_killed_ends_at_once() -> Outcome {
    let Some(stage) = Stage::new(2) else { return Ok(()) };
    let others: Vec<Child> = (0..20).map(|_| stage.reader()).collect();
    for signal in [Signal::KILL, Signal::TERM, Signal::INT] {
        let mut child = stage.reader();
        let began = Instant::now();
        rustix::process::kill_process(Pid::from_child(&child), signal).unwrap();
        let ended = ends(&mut child);
        assert_eq!(ended.signal(), Some(signal.as_raw()));
        assert!(began.elapsed() < Duration::from_secs(1), "{signal:?}: {:?}", began.elapsed());
    }
    // One that is handled interrupts as well, and the program goes on.
    let handler = format!(
        "import os,signal\nsignal.signal(signal.SIGUSR1, lambda *_: print('handled', flush=True))\n\
         print(os.read(os.open('{}', os.O_RDONLY), 100).decode(), flush=True)",
        stage.path(".nasd/notify").display()
    );
    let mut handles = Command::new("python3").args(["-c", &handler]).stdout(Stdio::piped()).spawn()?;
    waits(handles.id());
    rustix::process::kill_process(Pid::from_child(&handles), Signal::USR1)?;
    let mut said = BufReader::new(handles.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line)?;
    assert_eq!(line, "handled\n");
    waits(handles.id());
    stage.node.tell("one");
    line.clear();
    said.read_line(&mut line)?;
    assert_eq!(line, "one\n");
    assert!(handles.wait()?.success());
    for mut child in others {
        child.kill()?;
        child.wait()?;
    }
    stage.mounted.unmount()?;
    Ok(())
}

#[test]
fn unmount_lets_everybody_go() -> Outcome {
    let Some(stage) = Stage::new(2) else { return Ok(()) };
    let mut children: Vec<Child> = (0..3).map(|_| stage.reader()).collect();
    let reader = read_in_thread(stage.notify());
    let began = Instant::now();
    let Stage { node, mounted, _scratch, .. } = stage;
    let point = mounted.mountpoint().to_owned();
    mounted.unmount()?;
    assert!(began.elapsed() < Duration::from_millis(500), "nobody held it up: {:?}", began.elapsed());
    assert_eq!(reader.join().unwrap()?, "", "the end");
    for child in &mut children {
        assert!(ends(child).success(), "the end is no error");
    }
    assert!(node.0.wake.lock().is_none(), "nobody listens any more");
    assert!(names(&point).is_empty());
    Ok(())
}

/// Somebody who keeps the file open and polls is told as well; the mount is then taken away from him.
#[test]
fn unmount_hangs_up_on_who_polls() -> Outcome {
    let Some(stage) = Stage::new(2) else { return Ok(()) };
    let file = stage.notify();
    let (sender, tid) = std::sync::mpsc::channel();
    let poller = thread::spawn(move || {
        sender.send(my_tid()).unwrap();
        ready(&file, 20_000)
    });
    let tid = tid.recv()?;
    eventually("it waits in poll", || {
        fs::read_to_string(format!("/proc/{tid}/wchan")).unwrap_or_default().contains("poll")
    });
    let began = Instant::now();
    stage.mounted.unmount()?;
    assert!(poller.join().unwrap()?.contains(PollFlags::HUP));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    Ok(())
}

/// A commit of its own: one transaction.
fn commit(stage: &Stage, contents: &str) {
    let mut file = File::create(stage.path("f")).unwrap();
    file.write_all(contents.as_bytes()).unwrap();
    file.sync_all().unwrap();
}

fn on_disk(volume: &Volume) -> Vec<String> {
    let mut all = names(volume.log.dir());
    all.sort_unstable();
    all
}

#[test]
fn the_log_is_as_it_is_on_disk() -> Outcome {
    let Some(stage) = Stage::new(2) else { return Ok(()) };
    for n in 0..300 {
        commit(&stage, &n.to_string());
    }
    let log = stage.path(".nasd/log");
    let listed = names(&log);
    assert_eq!(listed, on_disk(&stage.volume), "in their order");
    for name in &listed {
        let found = fs::metadata(log.join(name))?;
        let kept = fs::metadata(stage.volume.log.dir().join(name))?;
        assert_eq!((found.mode(), found.len()), (0o100_400, kept.len()), "{name}");
        assert!(fs::read(log.join(name))? == fs::read(stage.volume.log.dir().join(name))?, "{name}");
    }
    let numbers: std::collections::BTreeSet<u64> =
        fs::read_dir(&log)?.map(|entry| Ok(entry?.metadata()?.ino())).collect::<io::Result<_>>()?;
    assert_eq!(numbers.len(), listed.len(), "each has a number of its own");
    let other = listed[0].replace("0000000000000001", "0000000000000002");
    for wrong in ["x", &other, &format!("{}x", listed[0])] {
        assert_eq!(raw_error(fs::metadata(log.join(wrong))), Some(Errno::NOENT), "{wrong}");
    }
    // As programs copy, within the mount and out of it.
    for target in ["copy", "/dev/stdout"] {
        let out = Command::new("cp")
            .arg(log.join(&listed[5]))
            .arg(target)
            .current_dir(stage.mounted.mountpoint())
            .stdout(Stdio::piped())
            .output()?;
        assert!(out.status.success(), "{out:?}");
        let copied = if target == "copy" { fs::read(stage.path("copy"))? } else { out.stdout };
        assert!(copied == fs::read(log.join(&listed[5]))?);
    }
    // It holds every file's bytes, so it is root's alone.
    let denied = Command::new("ls").arg(&log).uid(65534).gid(65534).stderr(Stdio::null()).status()?;
    assert!(!denied.success());
    let allowed = Command::new("cat").arg(stage.path(".nasd/status")).uid(65534).gid(65534).output()?;
    assert!(allowed.status.success() && allowed.stdout.starts_with(b"asked"));
    stage.mounted.unmount()?;
    Ok(())
}

/// Prunes everything, so that the next commits overwrite it.
fn prune_all(volume: &Volume) {
    volume.checkpoint().unwrap();
    let limits = Retention { age: 0, bytes: 0, files: 0 };
    volume.prune(&limits, u64::MAX, u64::MAX).unwrap();
}

#[test]
fn a_pruned_transaction_is_never_another_one() -> Outcome {
    let Some(stage) = Stage::new(2) else { return Ok(()) };
    commit(&stage, "one");
    let log = stage.path(".nasd/log");
    let name = names(&log).pop().unwrap();
    let file = File::open(log.join(&name))?;
    let mut buffer = [0; 4096];
    assert_eq!(file.read_at(&mut buffer, 0)?, 4096);
    assert_eq!(file.read_at(&mut buffer, 1 << 40)?, 0);
    prune_all(&stage.volume);
    assert_eq!(raw_error(file.read_at(&mut buffer, 0)), Some(Errno::STALE));
    commit(&stage, "two");
    assert_eq!(raw_error(file.read_at(&mut buffer, 0)), Some(Errno::STALE));
    assert_eq!(raw_error(File::open(log.join(&name))), Some(Errno::NOENT));
    drop(file);
    stage.mounted.unmount()?;
    Ok(())
}

/// While transactions come and go, and their files are overwritten, a reader sees each of them whole or not at all, and
/// misses none of those that are there.
#[test]
fn who_reads_while_the_log_is_pruned_sees_transactions_only() -> Outcome {
    let Some(stage) = Stage::new(4) else { return Ok(()) };
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let limits = Retention { age: i64::MAX, bytes: u64::MAX, files: 40 };
            for n in 1_u64.. {
                commit(&stage, &n.to_string());
                if n % 20 == 0 {
                    stage.volume.checkpoint().unwrap();
                    stage.volume.prune(&limits, u64::MAX, u64::MAX).unwrap();
                }
                if stop.load(Ordering::SeqCst) {
                    return;
                }
            }
        });
        let _stop = Stop(&stop);
        let end = Instant::now() + Duration::from_secs(3);
        let mut whole = 0;
        while Instant::now() < end {
            whole += read_all(&stage);
        }
        println!("{whole} transactions read");
        assert!(whole > 100);
    });
    stage.mounted.unmount()?;
    Ok(())
}

/// Ends the other thread, also when this one panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Reads every transaction that is listed; how many were there whole.
fn read_all(stage: &Stage) -> usize {
    let log = stage.path(".nasd/log");
    let there = stage.volume.applied().seq;
    let listed = names(&log);
    let numbers: Vec<u64> = listed.iter().map(|name| seq_of_name(name.as_bytes()).unwrap()).collect();
    let still = stage.volume.log.entries(1..=there, 1)[0].position.seq;
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "in order and without holes: {numbers:?}");
    assert!(numbers[0] <= still && *numbers.last().unwrap() >= there, "none is missing");
    let mut whole = Vec::new();
    for name in listed {
        let Ok(mut file) = File::open(log.join(&name)) else { continue };
        let mut bytes = Vec::new();
        match file.read_to_end(&mut bytes) {
            Ok(_) => {
                assert_eq!(Txn::from_file(bytes).unwrap().header.file_name(), name);
                whole.push(file);
            }
            Err(error) => assert_eq!(Errno::from_io_error(&error), Some(Errno::STALE), "{name}"),
        }
    }
    // Until all of them are others'.
    let newest = stage.volume.log.tail().seq;
    eventually("they are overwritten", || stage.volume.log.tail().seq > newest + 80);
    for file in &whole {
        assert_eq!(raw_error(file.read_at(&mut [0; 512], 0)), Some(Errno::STALE));
    }
    whole.len()
}
