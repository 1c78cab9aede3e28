//! Real PostgreSQL, without a volume: two views of one directory, of which the standby's is read-only, stand for the
//! two mounts. Needs root and PostgreSQL; says so and passes where they are missing.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use common::{DEADLINE, wait_until};
use nasd_watcher::postgresql::{
    CloneOptions, Cluster, Lsn, Need, PostgresError, Stop, Waker, Woke, adopt, clone_from, is_wal_file,
    release, settings,
};
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};
use tempfile::TempDir;

const USER: &str = "postgres";

/// Room for clusters, which are stopped when this goes.
struct Bed {
    dir: TempDir,
    clusters: Vec<Cluster>,
    mounts: Vec<PathBuf>,
}

impl Bed {
    /// None where PostgreSQL can't be tried.
    fn new() -> Option<Bed> {
        let nowhere = Cluster::new("/nonexistent".into(), None, USER.to_owned());
        let user = Command::new("id").arg(USER).output().unwrap().status.success();
        if !rustix::process::geteuid().is_root() || !user || nowhere.bin_dir().is_err() {
            println!("skipped: needs root, and PostgreSQL with its user {USER}");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        // The database has to get through.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        Some(Bed { dir, clusters: Vec::new(), mounts: Vec::new() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn cluster(&mut self, name: &str) -> Cluster {
        let cluster = Cluster::new(self.path(name), None, USER.to_owned());
        self.clusters.push(cluster.clone());
        cluster
    }

    /// A new cluster with its socket in the bed's directory.
    fn initdb(&mut self, name: &str, port: u16) -> Cluster {
        let cluster = self.cluster(name);
        let initdb = cluster.bin_dir().unwrap().join("initdb");
        run(Command::new("setpriv")
            .args(["--reuid", USER, "--regid", USER, "--init-groups", "--"])
            .arg(initdb)
            .args(["-A", "trust", "-N", "--wal-segsize=1", "-D"])
            .arg(cluster.data_dir())
            .current_dir("/"));
        let lines = format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nport = {port}\nfsync = off\n\
             shared_buffers = 16MB\nmin_wal_size = 2MB\nmax_wal_size = 64MB\nautovacuum = off\n",
            self.dir.path().display()
        );
        append(&cluster.data_dir().join("postgresql.conf"), &lines);
        cluster
    }

    /// The directory `name`, empty and the database's.
    fn dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        run(Command::new("chown").arg(USER).arg(&path));
        path
    }

    /// A view of a directory that is read-only until [`writable`].
    fn read_only_view(&mut self, of: &Path, name: &str) -> PathBuf {
        let view = self.dir(name);
        mount_bind(of, &view).unwrap();
        self.mounts.push(view.clone());
        mount_remount(&view, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
        view
    }

    /// A primary with its WAL in `nas-a/pg_wal`, running, and a clone with its WAL in the read-only `nas-b/pg_wal`,
    /// which is the same directory. The clone is not started.
    fn pair(&mut self) -> (Cluster, Cluster) {
        let primary = self.initdb("primary", 5432);
        let volume = self.dir("nas-a");
        primary.start_primary(DEADLINE).unwrap();
        primary.stop(Stop::Fast, DEADLINE).unwrap();
        adopt(&primary, &volume, "pg_wal").unwrap();
        primary.start_primary(DEADLINE).unwrap();
        primary.sql("CREATE TABLE t (n bigint)").unwrap();
        let view = self.read_only_view(&volume, "nas-b");
        let standby = self.cluster("standby");
        self.clone_to(&standby, &view);
        (primary, standby)
    }

    fn clone_to(&self, standby: &Cluster, view: &Path) -> Vec<String> {
        let options = self.clone_options(&view.join("pg_wal"));
        let mut said = String::new();
        let done = clone_from(standby, &options, |line| said.push_str(line)).unwrap();
        assert!(said.contains("base backup completed"), "{said}");
        // On one machine both would have one socket.
        append(&standby.data_dir().join("postgresql.conf"), "port = 5433\n");
        done
    }

    fn clone_options(&self, wal_target: &Path) -> CloneOptions {
        let from = format!("host={} port=5432 user={USER}", self.dir.path().display());
        CloneOptions { from, wal_target: wal_target.to_path_buf() }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for cluster in &self.clusters {
            let _ = cluster.stop(Stop::Immediate, Duration::from_secs(10));
            if std::thread::panicking() {
                let log = fs::read_to_string(cluster.log_file()).unwrap_or_default();
                eprintln!("--- {}\n{log}", cluster.log_file().display());
            }
        }
        for mount in &self.mounts {
            let _ = unmount(mount, UnmountFlags::DETACH);
        }
    }
}

fn writable(view: &Path) {
    mount_remount(view, MountFlags::BIND, "").unwrap();
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn append(path: &Path, text: &str) {
    fs::OpenOptions::new().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

fn one(cluster: &Cluster, query: &str) -> String {
    cluster.sql(query).unwrap().concat().concat()
}

/// A connection that stays: a psql for each question would take longer than the answer.
struct Session {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Session {
    fn new(cluster: &Cluster) -> Session {
        let server = cluster.running().unwrap();
        let mut child = Command::new(cluster.bin_dir().unwrap().join("psql"))
            .args(["-XAtq", "-U", USER, "-d", "postgres", "-p", &server.port().unwrap().to_string(), "-h"])
            .arg(server.socket_dir().unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Session { child, stdin, stdout }
    }

    /// The one line that this gives.
    fn ask(&mut self, query: &str) -> String {
        writeln!(self.stdin, "{query};").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn a_cluster_is_started_asked_and_stopped() {
    let Some(mut bed) = Bed::new() else { return };
    let cluster = bed.cluster("data");
    assert!(!cluster.exists());
    assert_eq!(cluster.needed_from().unwrap(), None);
    assert!(matches!(cluster.control(), Err(PostgresError::NoCluster(_))));
    assert!(matches!(cluster.start_primary(DEADLINE), Err(PostgresError::NoCluster(_))));
    cluster.stop(Stop::Fast, DEADLINE).unwrap();

    let cluster = bed.initdb("data", 5432);
    assert!(cluster.exists() && cluster.running().is_none() && !cluster.is_standby());
    assert!(matches!(cluster.wal_link(), Err(PostgresError::NoLink(_))));
    assert!(matches!(cluster.sql("SELECT 1"), Err(PostgresError::NotRunning(_))));
    assert!(matches!(cluster.promote(DEADLINE), Err(PostgresError::NotRunning(_))));
    assert!(cluster.control().unwrap().shut_down());

    cluster.start_primary(DEADLINE).unwrap();
    cluster.start_primary(DEADLINE).unwrap();
    cluster.promote(DEADLINE).unwrap();
    let control = cluster.control().unwrap();
    assert!(control.in_production() && !control.checksums && control.segment_bytes == 1 << 20);
    assert_eq!(
        one(&cluster, "SELECT system_identifier FROM pg_control_system()"),
        control.system_id.to_string()
    );
    let rows = cluster.sql("VALUES ('a|b', NULL), (E'c\\nd', 'e')").unwrap();
    assert_eq!(rows, [["a|b", ""], ["c\nd", "e"]]);
    let refused = cluster.sql("SELECT nonsense").unwrap_err().to_string();
    assert!(refused.contains("nonsense"), "{refused}");
    let server = cluster.running().unwrap();
    assert!(
        matches!(cluster.start_standby(DEADLINE), Err(PostgresError::Running { .. })),
        "not while it runs"
    );
    assert_eq!(Waker::new(cluster.clone()).wake(), Woke::NotReplaying);

    cluster.stop(Stop::Immediate, DEADLINE).unwrap();
    assert!(cluster.control().unwrap().in_production(), "as by a crash");
    cluster.start_primary(DEADLINE).unwrap();
    assert_ne!(cluster.running().unwrap().pid(), server.pid());
    cluster.stop(Stop::Fast, DEADLINE).unwrap();
    assert!(cluster.control().unwrap().shut_down() && cluster.running().is_none());
}

#[test]
fn a_server_that_does_not_end_is_killed_with_all_its_processes() {
    let Some(mut bed) = Bed::new() else { return };
    let cluster = bed.initdb("data", 5432);
    cluster.start_primary(DEADLINE).unwrap();
    let server = cluster.running().unwrap();
    let backend: i32 = one(&cluster, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
        .parse()
        .unwrap();
    // It hears nothing any more, but to be killed.
    run(Command::new("kill").args(["-STOP", &server.pid().to_string()]));
    cluster.stop(Stop::Fast, Duration::from_millis(100)).unwrap();
    assert!(cluster.running().is_none());
    for pid in [server.pid(), backend] {
        let cwd = fs::metadata(format!("/proc/{pid}/cwd")).ok();
        assert!(cwd.is_none_or(|cwd| cwd.ino() != fs::metadata(cluster.data_dir()).unwrap().ino()));
    }
    cluster.start_primary(DEADLINE).unwrap();
}

#[test]
fn a_start_that_fails_says_what_the_server_said() {
    let Some(mut bed) = Bed::new() else { return };
    let cluster = bed.initdb("data", 5432);
    append(&cluster.data_dir().join("postgresql.conf"), "no_such_setting = 1\n");
    let why = cluster.start_primary(DEADLINE).unwrap_err();
    assert!(matches!(why, PostgresError::NotStarted { .. }));
    assert!(why.to_string().contains("no_such_setting"), "{why}");
    assert!(!why.to_string().contains('\n'), "{why}");
}

#[test]
fn the_number_of_a_dead_server_is_nobody_elses() {
    let Some(mut bed) = Bed::new() else { return };
    let cluster = bed.initdb("data", 5432);
    let other = bed.initdb("other", 5433);
    other.start_primary(DEADLINE).unwrap();
    let pid_file = fs::read_to_string(other.data_dir().join("postmaster.pid")).unwrap();
    let (number, rest) = pid_file.split_once('\n').unwrap();
    // A server, but another cluster's; an administrator's shell in this directory; nobody; nonsense.
    let mut shell = Command::new("sleep").arg("1000").current_dir(cluster.data_dir()).spawn().unwrap();
    for pid in [number, &shell.id().to_string(), "999999999", "0", "-1", "1", "x", ""] {
        fs::write(cluster.data_dir().join("postmaster.pid"), format!("{pid}\n{rest}")).unwrap();
        assert!(cluster.running().is_none(), "{pid}");
        assert_eq!(Waker::new(cluster.clone()).wake(), Woke::NotRunning, "{pid}");
        cluster.stop(Stop::Immediate, Duration::from_millis(10)).unwrap();
    }
    assert!(shell.try_wait().unwrap().is_none(), "still there");
    assert!(other.running().is_some());
    shell.kill().unwrap();
    shell.wait().unwrap();
    // And a server starts in spite of such a file.
    fs::write(cluster.data_dir().join("postmaster.pid"), format!("{}\n{rest}", shell.id())).unwrap();
    cluster.start_primary(DEADLINE).unwrap();
}

#[test]
fn what_is_needed_moves_with_the_checkpoints_and_costs_next_to_nothing_to_ask() {
    let Some(mut bed) = Bed::new() else { return };
    let cluster = bed.initdb("data", 5432);
    cluster.start_primary(DEADLINE).unwrap();
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 20000) n").unwrap();
    let mut last = 0;
    for _ in 0..5 {
        cluster.sql("INSERT INTO t SELECT generate_series(1, 20000)").unwrap();
        cluster.sql("SELECT pg_switch_wal()").unwrap();
        cluster.sql("CHECKPOINT").unwrap();
        let redo: Lsn = one(&cluster, "SELECT redo_lsn FROM pg_control_checkpoint()").parse().unwrap();
        let file = one(&cluster, "SELECT redo_wal_file FROM pg_control_checkpoint()");
        let need = cluster.needed_from().unwrap().unwrap();
        assert_eq!(need, Need { segment: redo.0 >> 20, segment_bytes: 1 << 20 });
        assert!(need.needs(file.as_bytes()));
        assert!(need.segment > last, "it moves on");
        last = need.segment;
    }
    // What it says it needs is there, and it removed only what it says it does not.
    let wal = fs::read_dir(cluster.data_dir().join("pg_wal")).unwrap();
    let names: Vec<_> = wal.map(|entry| entry.unwrap().file_name().into_encoded_bytes()).collect();
    let need = cluster.needed_from().unwrap().unwrap();
    assert!(names.iter().any(|name| need.needs(name)));
    assert!(names.iter().all(|name| is_wal_file(name) || name == b"archive_status"));

    // Old enough to be kept.
    std::thread::sleep(Duration::from_millis(50));
    cluster.needed_from().unwrap();
    let start = Instant::now();
    for _ in 0..1000 {
        assert_eq!(cluster.needed_from().unwrap(), Some(need));
    }
    let each = start.elapsed() / 1000;
    println!("needed_from: {each:?}");
    assert!(each < Duration::from_millis(1), "{each:?}: no program is run");

    // A base backup starts where its label says.
    let label = "START WAL LOCATION: 0/100028 (file 000000010000000000000001)\n";
    fs::write(cluster.data_dir().join("backup_label"), label).unwrap();
    assert_eq!(cluster.needed_from().unwrap().unwrap().segment, 1);
    fs::write(cluster.data_dir().join("backup_label"), "START WAL").unwrap();
    assert!(matches!(cluster.needed_from(), Err(PostgresError::Damaged { .. })));
    fs::remove_file(cluster.data_dir().join("backup_label")).unwrap();
    assert_eq!(cluster.needed_from().unwrap(), Some(need));
}

#[test]
fn a_cluster_is_adopted_and_released() {
    let Some(mut bed) = Bed::new() else { return };
    let cluster = bed.initdb("data", 5432);
    let volume = bed.dir("nas");
    cluster.start_primary(DEADLINE).unwrap();
    cluster.sql("CREATE TABLE t AS SELECT 7 n").unwrap();
    assert!(matches!(adopt(&cluster, &volume, "pg_wal"), Err(PostgresError::Running { .. })));
    cluster.stop(Stop::Immediate, DEADLINE).unwrap();
    let refused = adopt(&cluster, &volume, "pg_wal").unwrap_err();
    assert!(matches!(refused, PostgresError::NotShutDown { .. }), "{refused}");
    cluster.start_primary(DEADLINE).unwrap();
    cluster.stop(Stop::Fast, DEADLINE).unwrap();

    let wal = bed.dir("nas/pg_wal");
    fs::write(wal.join("precious"), "").unwrap();
    assert!(matches!(adopt(&cluster, &volume, "pg_wal"), Err(PostgresError::NotEmpty(_))));
    fs::remove_file(wal.join("precious")).unwrap();

    append(&cluster.data_dir().join("postgresql.auto.conf"), "work_mem = '5MB'\nwal_recycle = on\n");
    println!("{:#?}", adopt(&cluster, &volume, "pg_wal").unwrap());
    assert_eq!(cluster.wal_link().unwrap(), wal);
    assert_eq!(adopt(&cluster, &volume, "pg_wal").unwrap().len(), 1, "nothing is left to do");
    cluster.start_primary(DEADLINE).unwrap();
    for (name, value, _) in settings() {
        assert_eq!(one(&cluster, &format!("SHOW {name}")), value);
    }
    assert_eq!(one(&cluster, "SHOW work_mem") + &one(&cluster, "SELECT n FROM t"), "5MB7");
    assert_eq!(fs::metadata(cluster.data_dir().join("postgresql.auto.conf")).unwrap().mode() & 0o777, 0o600);
    assert!(matches!(release(&cluster, &volume, "pg_wal"), Err(PostgresError::Running { .. })));
    cluster.stop(Stop::Fast, DEADLINE).unwrap();
    assert!(matches!(release(&cluster, &bed.path("other"), "pg_wal"), Err(PostgresError::OtherLink { .. })));

    println!("{:#?}", release(&cluster, &volume, "pg_wal").unwrap());
    assert!(matches!(cluster.wal_link(), Err(PostgresError::NoLink(_))));
    assert_eq!(fs::read_dir(&volume).unwrap().count(), 0);
    release(&cluster, &volume, "pg_wal").unwrap();
    cluster.start_primary(DEADLINE).unwrap();
    assert_eq!(one(&cluster, "SHOW wal_recycle") + &one(&cluster, "SELECT n FROM t"), "on7");
}

/// Copies as `cp -a` does.
fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").arg(from).arg(to));
}

/// The cluster starts, has its row, and is stopped in order.
#[track_caller]
fn works(cluster: &Cluster, state: &str) {
    cluster.start_primary(DEADLINE).unwrap_or_else(|e| panic!("{state}: {e}"));
    assert_eq!(one(cluster, "SELECT n FROM t"), "7", "{state}");
    cluster.stop(Stop::Fast, DEADLINE).unwrap();
}

#[test]
fn an_interrupted_adoption_leaves_a_cluster_that_works_and_is_completed() {
    let Some(mut bed) = Bed::new() else { return };
    let origin = bed.initdb("origin", 5432);
    origin.start_primary(DEADLINE).unwrap();
    origin.sql("CREATE TABLE t AS SELECT 7 n").unwrap();
    origin.stop(Stop::Fast, DEADLINE).unwrap();

    // What is there after each step.
    let states =
        ["half a copy", "a copy", "a link beside", "exchanged", "the old one half removed", "no settings"];
    for (step, state) in states.iter().enumerate() {
        for runs_meanwhile in [false, true] {
            let volume = bed.dir(&format!("nas-{step}-{runs_meanwhile}"));
            let cluster = bed.cluster(&format!("data-{step}-{runs_meanwhile}"));
            copy(origin.data_dir(), cluster.data_dir());
            let (data, wal) = (cluster.data_dir(), volume.join("pg_wal"));
            let (old, aside) = (data.join("pg_wal"), data.join("pg_wal.nasd-adopt"));
            match step {
                0 => {
                    fs::create_dir(volume.join("pg_wal.nasd-new")).unwrap();
                    fs::write(volume.join("pg_wal.nasd-new/000000010000000000000001"), "half").unwrap();
                }
                1 => copy(&old, &wal),
                2 => {
                    copy(&old, &wal);
                    symlink(&wal, &aside).unwrap();
                }
                _ => {
                    copy(&old, &wal);
                    fs::rename(&old, &aside).unwrap();
                    symlink(&wal, &old).unwrap();
                    if step >= 4 {
                        fs::remove_dir_all(aside.join("archive_status")).unwrap();
                    }
                    if step == 5 {
                        fs::remove_dir_all(&aside).unwrap();
                    }
                }
            }
            if runs_meanwhile {
                works(&cluster, state);
                if matches!(step, 1 | 2) {
                    // It has WAL now that the copy lacks, and whose that is is not to be known.
                    let refused = adopt(&cluster, &volume, "pg_wal").unwrap_err();
                    assert!(matches!(refused, PostgresError::NotEmpty(_)), "{state}: {refused}");
                    fs::remove_dir_all(&wal).unwrap();
                }
            }
            adopt(&cluster, &volume, "pg_wal").unwrap_or_else(|e| panic!("{state}: {e}"));
            assert_eq!(cluster.wal_link().unwrap(), wal, "{state}");
            assert!(!aside.exists() && !aside.is_symlink(), "{state}");
            assert_eq!(fs::read_dir(&volume).unwrap().count(), 1, "{state}");
            works(&cluster, state);
        }
    }
}

#[test]
fn an_interrupted_release_leaves_a_cluster_that_works_and_is_completed() {
    let Some(mut bed) = Bed::new() else { return };
    let origin = bed.initdb("origin", 5432);
    origin.start_primary(DEADLINE).unwrap();
    origin.sql("CREATE TABLE t AS SELECT 7 n").unwrap();
    origin.stop(Stop::Fast, DEADLINE).unwrap();

    let states = ["half a copy", "exchanged", "given up", "forgotten"];
    for (step, state) in states.iter().enumerate() {
        let volume = bed.dir(&format!("nas-{step}"));
        let cluster = bed.cluster(&format!("data-{step}"));
        copy(origin.data_dir(), cluster.data_dir());
        adopt(&cluster, &volume, "pg_wal").unwrap();
        let (data, wal) = (cluster.data_dir(), volume.join("pg_wal"));
        let (link, aside) = (data.join("pg_wal"), data.join("pg_wal.nasd-release"));
        if step == 0 {
            fs::create_dir(&aside).unwrap();
            fs::write(aside.join("000000010000000000000001"), "half").unwrap();
        } else {
            fs::rename(&link, &aside).unwrap();
            copy(&wal, &link);
            if step >= 2 {
                fs::rename(&wal, volume.join("pg_wal.nasd-old")).unwrap();
            }
            if step == 3 {
                fs::remove_file(&aside).unwrap();
            }
        }
        works(&cluster, state);
        if step >= 2 {
            // Another cluster has come meanwhile: what is its is not touched.
            fs::create_dir(&wal).unwrap();
        }
        release(&cluster, &volume, "pg_wal").unwrap_or_else(|e| panic!("{state}: {e}"));
        assert!(!link.is_symlink() && !aside.is_symlink() && !aside.exists(), "{state}");
        assert_eq!(fs::read_dir(&volume).unwrap().count(), usize::from(step >= 2), "{state}");
        works(&cluster, state);
    }
}

#[test]
fn wal_on_a_disk_of_its_own_is_adopted_from_there() {
    let Some(mut bed) = Bed::new() else { return };
    let cluster = bed.initdb("data", 5432);
    let (volume, disk) = (bed.dir("nas"), bed.path("disk"));
    fs::rename(cluster.data_dir().join("pg_wal"), &disk).unwrap();
    symlink(&disk, cluster.data_dir().join("pg_wal")).unwrap();
    let done = adopt(&cluster, &volume, "pg_wal").unwrap().join("\n");
    assert!(done.contains(&format!("{} is not used any more", disk.display())), "{done}");
    assert!(disk.is_dir(), "it is the user's");
    cluster.start_primary(DEADLINE).unwrap();
    assert_eq!(cluster.wal_link().unwrap(), volume.join("pg_wal"));
}

#[test]
fn a_clone_follows_what_is_in_a_read_only_directory_and_takes_over() {
    let Some(mut bed) = Bed::new() else { return };
    let (primary, standby) = bed.pair();
    assert!(standby.exists() && standby.is_standby());
    let system_id = primary.control().unwrap().system_id;
    assert_eq!(standby.control().unwrap().system_id, system_id);
    let need = standby.needed_from().unwrap().unwrap();

    append(&standby.data_dir().join("postgresql.conf"), "restore_command = 'touch /nonexistent/x'\n");
    standby.start_standby(DEADLINE).unwrap();
    standby.start_standby(DEADLINE).unwrap();
    wait_until("the standby accepts connections", || {
        standby.running().is_some_and(|server| server.is_ready())
    });
    assert_eq!(one(&standby, "SELECT pg_is_in_recovery(), current_setting('restore_command')"), "t");
    assert!(standby.needed_from().unwrap().unwrap().segment >= need.segment);

    // Each commit is there at once when it is told of, and at the next look when it is not.
    let mut waker = Waker::new(standby.clone());
    let (mut writer, mut reader) = (Session::new(&primary), Session::new(&standby));
    let mut seen_after = |n: u32, wake: bool, waker: &mut Waker| {
        let wrote = writer.ask(&format!("INSERT INTO t VALUES ({n}) RETURNING n"));
        assert_eq!(wrote, n.to_string());
        let start = Instant::now();
        if wake {
            assert_eq!(waker.wake(), Woke::Told);
        }
        wait_until("it is there", || reader.ask("SELECT coalesce(max(n), 0) FROM t") == n.to_string());
        start.elapsed()
    };
    seen_after(1, true, &mut waker);
    let told = median((2..42).map(|n| seen_after(n, true, &mut waker)).collect());
    let untold = median((42..45).map(|n| seen_after(n, false, &mut waker)).collect());
    println!("a commit is visible after {told:?} when told, {untold:?} when not (medians)");
    assert!(told < untold / 5, "{told:?} {untold:?}");

    // A waker that knew one process finds the next.
    standby.stop(Stop::Fast, DEADLINE).unwrap();
    assert_eq!(waker.wake(), Woke::NotRunning);
    standby.start_standby(DEADLINE).unwrap();
    wait_until("it replays again", || waker.wake() == Woke::Told);

    // What was committed before the primary died is there when the standby is told once, and then it writes.
    primary.sql("INSERT INTO t SELECT generate_series(1, 50000)").unwrap();
    primary.stop(Stop::Immediate, DEADLINE).unwrap();
    writable(&bed.path("nas-b"));
    let start = Instant::now();
    standby.promote(DEADLINE).unwrap();
    println!("promoted in {:?}", start.elapsed());
    assert_eq!(one(&standby, "SELECT pg_is_in_recovery(), count(*) FROM t"), "f50044");
    standby.sql("INSERT INTO t VALUES (0)").unwrap();
    assert!(!standby.is_standby());
    standby.promote(DEADLINE).unwrap();
    assert_eq!(waker.wake(), Woke::NotReplaying);

    // The old primary follows the new one from the same WAL, as it is.
    fs::remove_file(primary.data_dir().join("pg_wal")).unwrap();
    let view = bed.read_only_view(&bed.path("nas-b"), "nas-c");
    symlink(view.join("pg_wal"), primary.data_dir().join("pg_wal")).unwrap();
    primary.start_standby(DEADLINE).unwrap();
    let mut waker = Waker::new(primary.clone());
    wait_until("the old primary has what the new one wrote", || {
        waker.wake();
        primary.running().unwrap().is_ready() && one(&primary, "SELECT count(*) FROM t") == "50045"
    });
}

#[test]
fn an_interrupted_promotion_is_completed_by_a_start() {
    let Some(mut bed) = Bed::new() else { return };
    let (primary, standby) = bed.pair();
    standby.start_standby(DEADLINE).unwrap();
    primary.sql("INSERT INTO t VALUES (7)").unwrap();
    primary.stop(Stop::Immediate, DEADLINE).unwrap();
    standby.stop(Stop::Immediate, DEADLINE).unwrap();
    writable(&bed.path("nas-b"));
    // As it was left: to be promoted, and told so to nobody who lives.
    fs::write(standby.data_dir().join("promote"), "").unwrap();
    assert!(standby.is_standby());
    standby.start_primary(DEADLINE).unwrap();
    assert_eq!(one(&standby, "SELECT pg_is_in_recovery(), n FROM t"), "f7");
    let timeline = one(&standby, "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)");
    assert_eq!(timeline, "00000002", "a history of its own");
}

#[test]
fn a_promotion_that_fails_says_why() {
    let Some(mut bed) = Bed::new() else { return };
    let (_primary, standby) = bed.pair();
    standby.start_standby(DEADLINE).unwrap();
    wait_until("the standby accepts connections", || {
        standby.running().is_some_and(|server| server.is_ready())
    });
    // The volume is still read-only.
    let why = standby.promote(DEADLINE).unwrap_err();
    assert!(matches!(why, PostgresError::Died { .. }), "{why}");
    assert!(why.to_string().contains("Read-only file system"), "{why}");
}

#[test]
fn a_standby_that_lacks_wal_is_not_waited_for_without_end() {
    let Some(mut bed) = Bed::new() else { return };
    let (_primary, standby) = bed.pair();
    let empty = bed.dir("empty");
    fs::remove_file(standby.data_dir().join("pg_wal")).unwrap();
    symlink(&empty, standby.data_dir().join("pg_wal")).unwrap();
    let start = Instant::now();
    let why = standby.start_standby(Duration::from_secs(1)).unwrap_err();
    println!("{why}");
    assert!(start.elapsed() < Duration::from_secs(20));
    assert!(matches!(why, PostgresError::NotYet { .. } | PostgresError::NotStarted { .. }), "{why}");
}

#[test]
fn a_clone_is_complete_or_not_there() {
    let Some(mut bed) = Bed::new() else { return };
    let (primary, standby) = bed.pair();
    let view = bed.path("nas-b");
    let again = bed.clone_options(&view.join("pg_wal"));
    assert!(matches!(clone_from(&standby, &again, |_| ()), Err(PostgresError::NotEmpty(_))));

    // No WAL; WAL of another cluster; a primary that is not there; somebody else's directory.
    let late = bed.cluster("late");
    let empty = bed.dir("empty");
    let refused = clone_from(&late, &bed.clone_options(&empty), |_| ()).unwrap_err();
    assert!(matches!(refused, PostgresError::NoWal { .. }), "{refused}");
    assert!(!late.exists() && !bed.path("late.nasd-clone").exists());

    let other = bed.initdb("other", 5434);
    let foreign = bed.dir("foreign");
    let mut wal = fs::read_dir(other.data_dir().join("pg_wal")).unwrap().map(|entry| entry.unwrap().path());
    let segment = wal.find(|path| path.is_file()).unwrap();
    for ahead in 0..3 {
        let at = format!("SELECT pg_walfile_name(pg_current_wal_insert_lsn() + {ahead} * 1024 * 1024)");
        fs::copy(&segment, foreign.join(one(&primary, &at))).unwrap();
    }
    let refused = clone_from(&late, &bed.clone_options(&foreign), |_| ()).unwrap_err();
    assert!(matches!(refused, PostgresError::Foreign { .. }), "{refused}");

    let mut nobody = bed.clone_options(&view.join("pg_wal"));
    nobody.from = "host=/nonexistent".to_owned();
    let refused = clone_from(&late, &nobody, |_| ()).unwrap_err();
    assert!(refused.to_string().contains("/nonexistent"), "{refused}");

    let roots = bed.path("roots");
    fs::create_dir(&roots).unwrap();
    let refused = clone_from(&late, &bed.clone_options(&roots), |_| ()).unwrap_err();
    assert!(matches!(refused, PostgresError::Owner { .. }), "{refused}");
    assert!(!late.exists());

    // What an interrupted one left is in nobody's way, nor is what the primary had set for itself.
    bed.dir("late.nasd-clone");
    fs::write(bed.path("late.nasd-clone/base"), "").unwrap();
    bed.dir("late");
    primary.sql("ALTER SYSTEM SET primary_conninfo = 'host=elsewhere'").unwrap();
    primary.sql("ALTER SYSTEM SET work_mem = '5MB'").unwrap();
    let done = bed.clone_to(&late, &view);
    println!("{done:#?}");
    let auto = fs::read_to_string(late.data_dir().join("postgresql.auto.conf")).unwrap();
    assert!(!auto.contains("elsewhere") && auto.contains("work_mem") && auto.contains("syncfs"), "{auto}");
    late.start_standby(DEADLINE).unwrap();
    wait_until("it accepts connections", || late.running().is_some_and(|server| server.is_ready()));
    assert!(!bed.path("late.nasd-clone").exists());
}

#[test]
fn a_configuration_outside_of_the_data_directory_is_used() {
    let Some(mut bed) = Bed::new() else { return };
    let cluster = bed.initdb("data", 5432);
    let root = bed.path("etc");
    let cluster = cluster.with_config_root(root.clone());
    bed.clusters.push(cluster.clone());
    let place = root.join("15/it's main");
    fs::create_dir_all(&place).unwrap();
    let conf = cluster.data_dir().join("postgresql.conf");
    append(&conf, &format!("data_directory = '{}'\nwork_mem = '5MB'\n", cluster.data_dir().display()));
    append(&conf, &format!("hba_file = '{}/pg_hba.conf'\n", cluster.data_dir().display()));
    let text = fs::read(&conf).unwrap();
    fs::remove_file(&conf).unwrap();
    let why = cluster.start_primary(DEADLINE).unwrap_err();
    assert!(matches!(why, PostgresError::NoConfiguration { .. }), "{why}");

    fs::write(place.join("postgresql.conf"), text).unwrap();
    // The log is where Debian has it, if Debian is here.
    let log = cluster.log_file();
    assert!(log.ends_with("postgresql-15-it's main.log") || log.ends_with("log/nasd.log"));
    let _ = fs::remove_file(&log);
    cluster.start_primary(DEADLINE).unwrap();
    assert_eq!(one(&cluster, "SHOW work_mem"), "5MB");
    cluster.stop(Stop::Fast, DEADLINE).unwrap();
    let _ = fs::remove_file(&log);
}
