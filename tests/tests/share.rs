//! The mount as a network share, with real servers, configured as docs/share has it, and real clients on hosts of their own.
#![allow(clippy::unwrap_used)]

use nasd_tests::cluster::{Cluster, ClusterSetup, VIRTUAL};
use nasd_tests::etcd::{Etcd, EtcdSetup};
use nasd_tests::guest::Guest;
use nasd_tests::lab::Lab;
use nasd_tests::share::{Client, PASSWORD, Servers, available, handle, read_by_handle};
use nasd_tests::snapshot::assert_equal;
use nasd_tests::tools::smb_python;
use nasd_tests::{Node, Pair, eventually, put};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The clients of Linux, as `mount` calls them.
const KINDS: [&str; 2] = ["nfs", "cifs"];
const NODES: [&str; 2] = ["a", "b"];
/// A request that is answered by the server, and not by a time limit, is answered so soon.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Two nodes with their servers, and a host for clients; the servers are gone first, the hosts last.
struct World {
    servers: Vec<Servers>,
    cluster: Cluster,
    python: PathBuf,
    _etcd: Option<Etcd>,
    lab: Lab,
}

impl World {
    /// Without automatic failover; `None` where there can be none.
    fn new(test: &str) -> Option<World> {
        // What nobody flushes stays uncommitted for the time of a test, and nothing is committed on one node only.
        let replication = "on_peer_loss = \"suspend\"\ncommit_interval = \"1m\"";
        let setup =
            ClusterSetup { replication: replication.into(), no_address: true, ..ClusterSetup::default() };
        World::with(test, |_| (None, setup))
    }

    /// With an address that goes with the role, and the documented program that does.
    fn with_address(test: &str) -> Option<World> {
        World::with(test, |lab| {
            let etcd = Etcd::with(EtcdSetup {
                ip: Some(lab.ip("e")),
                netns: Some(lab.netns("e")),
                ..EtcdSetup::default()
            });
            let docs = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/share");
            let program = docs.join("on-role-change.sh").display().to_string();
            let failover = format!(
                "mode = \"etcd\"\ntimeout = \"1s\"\non_role_change = \"{program}\"\n[failover.etcd]\n\
                 endpoints = [\"{}\"]\n",
                etcd.endpoint()
            );
            let replication = "peer_timeout = \"500ms\"".to_owned();
            (Some(etcd), ClusterSetup { replication, failover, ..ClusterSetup::default() })
        })
    }

    fn with(test: &str, setup: impl FnOnce(&Lab) -> (Option<Etcd>, ClusterSetup)) -> Option<World> {
        if !available(test) {
            return None;
        }
        let python = smb_python()?;
        let lab = Lab::new(test, &[&NODES[..], &["e", "client"]].concat())?;
        let (etcd, setup) = setup(&lab);
        let cluster = Cluster::new(&lab, &NODES, &setup);
        let mut world = World { servers: Vec::new(), cluster, python, _etcd: etcd, lab };
        for i in [1, 0] {
            world.start_node(i);
        }
        assert_eq!(world.cluster.whole(), 0);
        let everybody = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(&world.node(0).mount, everybody).unwrap();
        world.servers =
            (0..NODES.len()).map(|i| Servers::start(world.node(i), &world.servers_dir(i))).collect();
        Some(world)
    }

    fn servers_dir(&self, i: usize) -> PathBuf {
        self.cluster.dir.path().join(format!("servers-{}", NODES[i]))
    }

    /// With a `systemctl` that knows this node's servers.
    fn start_node(&mut self, i: usize) {
        let bin = Servers::systemctl(&self.servers_dir(i));
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        self.cluster.nodes[i].start_with_env(&[("PATH", &path)]);
    }

    fn node(&self, i: usize) -> &Node {
        &self.cluster.nodes[i]
    }

    fn seq(&self, i: usize) -> u64 {
        self.node(i).status()["seq"].as_u64().unwrap()
    }

    fn nfs_to(&self, ip: &str) -> Client {
        Servers::nfs(&self.lab.netns("client"), ip, self.node(0)).connect()
    }

    fn smb_to(&self, ip: &str) -> Client {
        Servers::smb(&self.lab.netns("client"), ip, &self.python).connect()
    }

    /// One of each kind, to the servers of a node.
    fn clients(&self, i: usize) -> [(&'static str, Client); 2] {
        let (host, ip) = (self.lab.netns("client"), self.lab.ip(NODES[i]));
        [("nfs", Servers::nfs(&host, &ip, self.node(i)).connect()), ("smb", self.smb_to(&ip))]
    }

    /// Waits until the secondary shows what the primary has committed.
    fn settle(&self, primary: usize) {
        std::fs::File::open(&self.node(primary).mount).unwrap().sync_all().unwrap();
        let seq = self.seq(primary).to_string();
        self.node(1 - primary).cli(&["wait", "--seq", &seq, "--timeout", "20s"]);
    }
}

#[test]
fn a_flush_is_a_commit_on_both_nodes() {
    let Some(world) = World::new("share") else { return };
    let [(_, nfs), (_, smb)] = world.clients(0);
    let stable = world.clients(0).into_iter().next().unwrap().1;
    for (name, mode, mut client) in [("/nfs", "w", nfs), ("/stable", "s", stable), ("/smb", "w", smb)] {
        let content: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8 ^ name.len() as u8).collect();
        client.must(&format!("open {name} {mode}"));
        world.settle(0);
        let before = world.seq(0);
        // A write in pieces, the last of which is sent below where it is a commit of its own.
        if mode == "w" {
            client.write(0, &content);
            assert_eq!(world.seq(0), before, "{name}: a write alone is no commit");
        }
        world.node(1).freeze();
        if mode == "w" {
            client.send("flush");
        } else {
            let hex: String = content.iter().map(|b| format!("{b:02x}")).collect();
            client.send(&format!("write 0 {hex}"));
        }
        assert!(!client.is_answered(Duration::from_millis(500)), "{name}: durable without the peer");
        world.node(1).thaw();
        client.answer().unwrap();
        let seq = world.seq(0);
        assert!(seq > before, "{name}: no transaction");
        world.node(1).cli(&["wait", "--seq", &seq.to_string(), "--timeout", "20s"]);
        for node in &world.cluster.nodes {
            let there = std::fs::read(node.data().join(&name[1..])).unwrap();
            assert_eq!(blake3::hash(&there), blake3::hash(&content), "{name} on {}", node.name);
        }
        // The name comes after the acknowledgement: the file says in its header what it is.
        eventually("both logs have the transaction", || {
            let [a, b] = [0, 1].map(|i| world.node(i).log_names().pop());
            (a.is_some() && a == b).then_some(())
        });
    }
}

/// The documented commands as well, which flush or don't as they like.
#[test]
fn the_usual_commands_copy() {
    let Some(world) = World::new("share") else { return };
    drop(world.clients(0));
    let local = world.cluster.dir.path().join("local");
    put(&local, "x".repeat(300_000));
    let (local, ip) = (local.to_str().unwrap(), world.lab.ip("a"));
    let mount = world.node(0).mount.display().to_string();
    let put_it = format!("put {local} by-smb");
    let by_nfs = format!("nfs://{ip}{mount}/by-nfs?version=3");
    let there = format!("//{ip}/nas");
    for (program, args) in
        [("nfs-cp", &[local, &by_nfs][..]), ("smbclient", &[&there, "-U", "daemon%secret", "-c", &put_it])]
    {
        let out = nasd_tests::lab::enter(&world.lab.netns("client"), program.as_ref()).args(args).output();
        let out = out.unwrap();
        assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
    }
    world.settle(0);
    for name in ["by-nfs", "by-smb"] {
        let there = std::fs::read(world.node(1).path(name)).unwrap();
        assert!(there == std::fs::read(local).unwrap(), "{name}");
    }
}

#[test]
fn many_clients_at_once() {
    const EACH: usize = 16;
    const BLOCKS: usize = 8;
    const BLOCK: usize = 8192;
    let Some(world) = World::new("share") else { return };
    drop(world.clients(0));
    let shared = world.node(0).path("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::set_permissions(&shared, PermissionsExt::from_mode(0o777)).unwrap();
    let block = |who: usize, n: usize| -> Vec<u8> {
        let hash = blake3::hash(format!("{who} {n}").as_bytes());
        hash.as_bytes().iter().copied().cycle().take(BLOCK).collect()
    };
    std::thread::scope(|scope| {
        for who in 0..2 * EACH {
            let world = &world;
            scope.spawn(move || {
                let ip = world.lab.ip("a");
                let mut client = if who < EACH { world.nfs_to(&ip) } else { world.smb_to(&ip) };
                client.must(&format!("open /own-{who} w"));
                for n in 0..BLOCKS {
                    client.write(n * BLOCK, &block(who, n));
                    client.must("flush");
                }
                client.must("close");
                for n in 0..BLOCKS {
                    client.must(&format!("open /shared/{who}-{n} w"));
                    client.write(0, &block(who, n));
                    client.must("flush");
                    client.must("close");
                }
            });
        }
    });
    world.settle(0);
    for node in &world.cluster.nodes {
        assert_eq!(std::fs::read_dir(node.path("shared")).unwrap().count(), 2 * EACH * BLOCKS);
        for who in 0..2 * EACH {
            let own = std::fs::read(node.path(&format!("own-{who}"))).unwrap();
            assert_eq!(own.len(), BLOCKS * BLOCK);
            for n in 0..BLOCKS {
                let wanted = block(who, n);
                assert!(own[n * BLOCK..][..BLOCK] == wanted, "{}: own-{who}, block {n}", node.name);
                let other = std::fs::read(node.path(&format!("shared/{who}-{n}"))).unwrap();
                assert!(other == wanted, "{}: shared/{who}-{n}", node.name);
            }
        }
    }
}

/// What a client has open over NFS stays open, whichever node serves it; over SMB it connects again.
#[test]
fn clients_go_on_after_a_failover() {
    let Some(mut world) = World::with_address("share") else { return };
    let (mut nfs, mut smb) = (world.nfs_to(VIRTUAL), world.smb_to(VIRTUAL));
    nfs.must("open /nfs w");
    smb.must("open /smb w");
    for client in [&mut nfs, &mut smb] {
        client.write(0, b"before, ");
        client.must("flush");
    }
    let goes_on = |nfs: &mut Client, smb: &mut Client, world: &World, at: usize, what: &str| {
        *smb = world.smb_to(VIRTUAL);
        smb.must("open /smb w");
        for client in [nfs, smb] {
            let so_far = client.must("read 0 1000");
            assert_eq!(so_far.len(), at, "{what}: {:?}", String::from_utf8_lossy(&so_far));
            client.write(at, what.as_bytes());
            client.must("flush");
        }
        at + what.len()
    };
    // The primary dies.
    world.cluster.nodes[0].kill();
    assert_eq!(world.cluster.successor(0, Duration::from_secs(20)), 1);
    let at = goes_on(&mut nfs, &mut smb, &world, 8, "killed, ");
    // It comes back with a new mount, which its servers have to be started for, and follows.
    world.start_node(0);
    assert_eq!(world.cluster.whole(), 1);
    world.servers[0].restart();
    // A primary that stood still loses its term: what its servers have open in it can't be made durable any more.
    world.node(1).freeze();
    assert_eq!(world.cluster.successor(1, Duration::from_secs(20)), 0);
    let asked = world.servers[1].asked().len();
    world.node(1).thaw();
    eventually("its servers begin anew", || (world.servers[1].asked().len() > asked).then_some(()));
    assert_eq!(world.cluster.whole(), 0);
    let at = goes_on(&mut nfs, &mut smb, &world, at, "frozen, ");
    // And back in order, to those servers.
    world.node(0).cli(&["switchover"]);
    assert_eq!(world.cluster.whole(), 1);
    goes_on(&mut nfs, &mut smb, &world, at, "switched");
    world.settle(1);
    for node in &world.cluster.nodes {
        for name in ["nfs", "smb"] {
            let text = std::fs::read_to_string(node.path(name)).unwrap();
            assert_eq!(text, "before, killed, frozen, switched", "{name} on {}", node.name);
        }
    }
    assert_equal("replica", &world.node(1).data(), &world.node(0).data());
}

#[test]
fn the_secondary_refuses_writes_at_once() {
    /// STATUS_MEDIA_WRITE_PROTECTED, what SMB has for EROFS.
    const WRITE_PROTECTED: &str = "0xc00000a2";
    const EROFS: i32 = 30;
    let Some(world) = World::new("share") else { return };
    std::fs::write(world.node(0).path("file"), "there").unwrap();
    std::fs::set_permissions(world.node(0).path("file"), PermissionsExt::from_mode(0o666)).unwrap();
    world.settle(0);
    for (kind, mut client) in world.clients(1) {
        for request in ["open /new w", "open /file w", "mkdir /directory", "rename /file /other"] {
            let start = Instant::now();
            let refusal = client.ask(request).unwrap_err();
            assert!(
                refusal.errno == EROFS || refusal.text.contains(WRITE_PROTECTED),
                "{kind}: {request}: {refusal:?}"
            );
            assert!(start.elapsed() < AT_ONCE, "{kind}: {request} took {:?}", start.elapsed());
        }
        client.must("open /file r");
        assert_eq!(client.must("read 0 100"), b"there");
    }
}

/// Who polls the secondary's share sees what is applied with the next request: nothing is kept by the servers.
#[test]
fn the_secondarys_share_is_fresh() {
    let Some(world) = World::new("share") else { return };
    let file = world.node(0).path("log");
    std::fs::write(&file, "").unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    world.settle(0);
    let mut clients = world.clients(1);
    for (_, client) in &mut clients {
        client.must("open /log r");
        assert_eq!(client.must("read 0 100"), b"");
    }
    for n in 1..=20_u8 {
        // Overwritten and grown, a name that appears and one that goes.
        std::fs::write(&file, vec![n; n as usize]).unwrap();
        std::fs::write(world.node(0).path(&format!("name-{n}")), "").unwrap();
        let _ = std::fs::remove_file(world.node(0).path(&format!("name-{}", n - 1)));
        world.settle(0);
        for (kind, client) in &mut clients {
            assert_eq!(client.size("/log"), u64::from(n), "{kind}");
            assert_eq!(client.must("read 0 100"), vec![n; n as usize], "{kind}");
            assert_eq!(client.size(&format!("/name-{n}")), 0, "{kind}");
            let gone = client.ask(&format!("size /name-{}", n - 1)).unwrap_err();
            assert_eq!(gone.errno, 2, "{kind}: {gone:?}");
        }
    }
}

/// A block of docs/share.md that mounts, as it is typed on a host of this lab.
fn documented(kind: &str, from: &str, export: &Path) -> String {
    let guide = include_str!("../../docs/share.md");
    let section = guide.split("\n## ").find(|s| s.starts_with("Client options\n")).unwrap();
    let line = section.lines().find(|l| l.starts_with(&format!("mount -t {kind} "))).unwrap();
    let line = line.replace("10.0.0.100", from).replace(" /mnt", &format!(" /mnt/{kind}"));
    line.replace("/srv/nas ", &format!("{} ", export.display()))
}

/// A host whose kernel mounts both kinds of share.
fn kernel(test: &str, world: &World, from: &str) -> Option<Guest> {
    let mut guest = Guest::boot(test, &world.lab, "client", &world.cluster.dir.path().join("guest"))?;
    guest.run(&format!("mkdir -p /etc/nasd; printf 'username=daemon\npassword={PASSWORD}\n' >/etc/nasd/smb"));
    for kind in KINDS {
        guest.run(&format!("mkdir -p /mnt/{kind}"));
        let mount = documented(kind, from, &world.node(0).mount);
        eventually(&format!("{kind} is mounted"), || guest.try_run(&mount).ok());
    }
    Some(guest)
}

/// The clients that are part of Linux, mounted as documented: `fsync` and O_DSYNC are commits.
#[test]
fn the_kernels_clients_commit() {
    let Some(world) = World::new("share") else { return };
    let Some(mut guest) = kernel("share", &world, &world.lab.ip("a")) else { return };
    for kind in KINDS {
        for how in ["conv=notrunc,fsync", "conv=notrunc oflag=dsync"] {
            let name = format!("{kind}-{}", how.len());
            let done = format!("/tmp/{name}");
            guest.run(&format!("touch /mnt/{kind}/{name}"));
            world.settle(0);
            world.node(1).freeze();
            guest.run(&format!(
                "(seq 5000 | dd of=/mnt/{kind}/{name} bs=1M iflag=fullblock {how} 2>/dev/null; echo $? >{done}) >/dev/null &"
            ));
            // What it is to wait for is on its way to the peer.
            eventually("there is something to commit", || {
                let there = std::fs::metadata(world.node(0).data().join(&name)).ok()?.len();
                (there > 20_000).then_some(())
            });
            std::thread::sleep(Duration::from_millis(500));
            guest.run(&format!("! test -e {done}"));
            world.node(1).thaw();
            assert_eq!(guest.run(&format!("until test -s {done}; do sleep 0.02; done; cat {done}")), "0\n");
            let expected: String = (1..=5000).map(|n| format!("{n}\n")).collect();
            for node in &world.cluster.nodes {
                eventually("it is applied", || {
                    (std::fs::read_to_string(node.path(&name)).ok()? == expected).then_some(())
                });
            }
        }
    }
    // The guest's mounts are gone with it, and nobody waits for them.
    guest.run("umount /mnt/nfs /mnt/cifs");
}

/// Programs on a host that mounts the virtual address go on through a failover: by NFS with what they have open.
#[test]
fn the_kernels_clients_go_on_after_a_failover() {
    let Some(mut world) = World::with_address("share") else { return };
    let Some(mut guest) = kernel("share", &world, VIRTUAL) else { return };
    let writer = guest.bring(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/guest/writer.py")));
    for kind in KINDS {
        guest.run(&format!(
            "touch /tmp/{kind}; python3 {writer} /mnt/{kind}/{kind} /tmp/{kind} >/dev/null 2>&1 &"
        ));
    }
    let more = |guest: &mut Guest, n: u32| {
        for kind in KINDS {
            guest.run(&format!(
                "n=$(wc -l </tmp/{kind}); end=$((SECONDS + 60))
                 until [ $(wc -l </tmp/{kind}) -gt $((n + {n})) ]; do sleep 0.05; [ $SECONDS -lt $end ] || {{ tail -n 3 /tmp/{kind}*; exit 1; }}; done"
            ));
        }
    };
    more(&mut guest, 20);
    // Its host dies, with all that runs there, when it has taken a request and not answered it yet.
    let netns = world.lab.netns("a");
    let freeze = format!(
        "for pid in $(ip netns pids {netns}); do grep -q smbd /proc/$pid/comm && kill -STOP $pid; done; true"
    );
    assert!(Command::new("sh").args(["-c", &freeze]).status().unwrap().success());
    guest.run("until n=$(wc -l </tmp/cifs); sleep 0.3; [ $n = $(wc -l </tmp/cifs) ]; do :; done");
    world.lab.power("a", false);
    world.cluster.nodes[0].kill();
    drop(world.servers.remove(0));
    assert_eq!(world.cluster.successor(0, Duration::from_secs(20)), 1);
    more(&mut guest, 20);
    // It comes back, and takes the role over in order.
    world.lab.power("a", true);
    world.start_node(0);
    assert_eq!(world.cluster.whole(), 1);
    world.servers.insert(0, Servers::start(world.node(0), &world.servers_dir(0)));
    more(&mut guest, 20);
    world.node(0).cli(&["switchover"]);
    assert_eq!(world.cluster.whole(), 0);
    more(&mut guest, 20);
    guest.run("touch /tmp/enough; while pgrep -f writer.py >/dev/null; do sleep 0.05; done");
    world.settle(0);
    for kind in KINDS {
        let answers = guest.run(&format!("cat /tmp/{kind}"));
        let (told, errors): (Vec<_>, Vec<_>) = answers
            .lines()
            .map(|l| l.split_once(' ').unwrap())
            .partition(|(_, how)| how.parse::<f64>().is_ok());
        let longest = told.iter().map(|(_, took)| took.parse::<f64>().unwrap()).fold(0.0, f64::max);
        println!("{kind}: {} records, the slowest took {longest:.1} s; errors: {errors:?}", told.len());
        if kind == "nfs" {
            assert!(errors.is_empty(), "{errors:?}");
            assert!(longest < 20.0, "as long as what is left of a connection lives");
        }
        let there = std::fs::read_to_string(world.node(1).path(kind)).unwrap();
        let records: Vec<&str> = there.lines().map(str::trim).collect();
        for (number, _) in told {
            assert_eq!(records.get(number.parse::<usize>().unwrap()), Some(&number), "{kind}");
        }
    }
}

/// For programs that never flush.
#[test]
fn with_sync_always_each_smb_write_is_a_commit() {
    let Some(world) = World::new("share") else { return };
    drop(world.clients(0));
    let file = world.servers_dir(0).join("smb.conf");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("\nsync always = no\n"));
    std::fs::write(&file, text.replace("\nsync always = no\n", "\nsync always = yes\n")).unwrap();
    world.servers[0].restart();
    let mut client = world.smb_to(&world.lab.ip("a"));
    client.must("open /file w");
    world.settle(0);
    world.node(1).freeze();
    client.send(&format!("write 0 {}", "61".repeat(1000)));
    assert!(!client.is_answered(Duration::from_millis(500)), "durable without the peer");
    world.node(1).thaw();
    client.answer().unwrap();
    assert_eq!(std::fs::read(world.node(1).data().join("file")).unwrap().len(), 1000);
}

/// What a server of a share keeps of a file outlives the kernel's memory of it, and means the same file on the other node.
#[test]
fn file_handles_last_and_are_the_same_on_both_nodes() {
    let pair = Pair::start();
    std::fs::create_dir_all(pair.a.path("x/y")).unwrap();
    put(pair.a.path("x/y/file"), "content");
    let handle = handle(&pair.a.path("x/y/file"));
    std::fs::rename(pair.a.path("x/y/file"), pair.a.path("x/moved")).unwrap();
    pair.sync_and_settle();
    // Forget names and inodes.
    std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    for node in [&pair.a, &pair.b] {
        assert_eq!(read_by_handle(&node.mount, &handle), b"content", "on {}", node.name);
    }
}

/// A client that polls `.nasd/log/` now and then must not find that its server lost the directory.
#[test]
fn file_handles_of_special_files_last() {
    let pair = Pair::start();
    put(pair.a.path("file"), "content");
    pair.sync_and_settle();
    let names = |dir: PathBuf| {
        let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names.into_iter().map(|name| name.into_string().unwrap() + "\n").collect::<String>()
    };
    let newest = pair.a.path(".nasd/log").join(names(pair.a.path(".nasd/log")).lines().last().unwrap());
    let bytes = std::fs::read(&newest).unwrap();
    let [dir, log, newest] =
        [pair.a.path(".nasd"), pair.a.path(".nasd/log"), newest].map(|path| handle(&path));
    for node in [&pair.a, &pair.b] {
        // Not the same on both: the secondary began with a copy.
        let logged = names(node.path(".nasd/log"));
        for (handle, expected) in
            [(&log, logged.as_bytes()), (&newest, &bytes), (&dir, b"log\nnotify\nstatus\n")]
        {
            std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
            assert_eq!(read_by_handle(&node.mount, handle), expected, "on {}", node.name);
        }
        // Still listed nowhere.
        assert_eq!(names(node.mount.clone()), "file\n");
    }
}
