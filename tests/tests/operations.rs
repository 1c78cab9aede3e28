//! Every command block of `docs/operations.md`, typed as it stands there on machines of a pair's own.
#![allow(clippy::unwrap_used)]

use nasd_tests::eventually;
use nasd_tests::lab::Lab;
use nasd_tests::machine::Machine;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// A heading of the guide and the blocks below it.
fn section(heading: &str) -> Vec<String> {
    let all = sections();
    let (_, blocks) = all.into_iter().find(|(h, _)| h == heading).unwrap_or_else(|| panic!("no {heading}"));
    blocks
}

fn sections() -> Vec<(String, Vec<String>)> {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/operations.md");
    let text = std::fs::read_to_string(guide).unwrap();
    let section = |part: &str| {
        let blocks = part.split("```sh\n").skip(1).map(|b| b.split("```").next().unwrap().to_owned());
        (part.lines().next().unwrap().to_owned(), blocks.collect())
    };
    text.split("\n## ").skip(1).map(section).collect()
}

/// Two machines as the README sets them up.
struct Pair {
    a: Machine,
    b: Machine,
    lab: Lab,
    dir: tempfile::TempDir,
}

impl Pair {
    fn new(test: &str) -> Option<Pair> {
        let lab = Lab::new(test, &["nas-a", "nas-b"])?;
        let dir = tempfile::Builder::new().prefix("nasd-test-").tempdir().unwrap();
        let [a, b] = ["nas-a", "nas-b"].map(|name| Machine::new(&lab, name, dir.path()));
        let pair = Pair { a, b, lab, dir };
        pair.a.run("nasd cert ca --dir /root/pki");
        for (machine, peer, role) in [(&pair.a, &pair.b, "primary"), (&pair.b, &pair.a, "secondary")] {
            pair.a.run(&format!("nasd cert node --dir /root/pki --name {}", machine.name));
            pair.configure(machine, &peer.name, role);
        }
        // As for anybody who runs them under systemd: the secondary may come later.
        for machine in [&pair.a, &pair.b] {
            machine.run("mkdir -p /srv/nas; nasd doctor >/dev/null; systemctl start nasd@nasd");
        }
        pair.in_sync();
        Some(pair)
    }

    fn configure(&self, machine: &Machine, peer: &str, role: &str) {
        let name = &machine.name;
        let etc = machine.own("/etc/nasd");
        for file in ["ca.pem".to_owned(), format!("{name}.pem"), format!("{name}.key")] {
            std::fs::copy(self.a.own("/root").join("pki").join(&file), etc.join(&file)).unwrap();
        }
        let config = format!(
            "[node]\nname = \"{name}\"\nstate_dir = \"/var/lib/nasd\"\ninitial_role = \"{role}\"\n\
             [volume]\nmount = \"/srv/nas\"\n[replication]\npeer_timeout = \"1s\"\n\
             [[peer]]\nname = \"{peer}\"\naddress = \"{}:7400\"\n\
             [tls]\nca = \"/etc/nasd/ca.pem\"\ncert = \"/etc/nasd/{name}.pem\"\nkey = \"/etc/nasd/{name}.key\"\n",
            self.lab.ip(peer)
        );
        std::fs::write(etc.join("nasd.toml"), config).unwrap();
    }

    /// As the README advises: nobody writes below the mount while it is away.
    fn immutable(&self, how: &str) {
        for machine in [&self.a, &self.b] {
            let changed = Command::new("chattr").arg(how).arg(machine.own("/srv").join("nas")).status();
            assert!(changed.unwrap().success());
        }
    }

    fn in_sync(&self) {
        eventually("both are in sync", || {
            let all = [&self.a, &self.b].map(status);
            all.iter().all(|s| s["state"] == "in-sync").then_some(())
        });
    }
}

fn status(machine: &Machine) -> Value {
    serde_json::from_slice(&machine.try_run("nasd status --json").stdout).unwrap_or_default()
}

fn role(machine: &Machine) -> Value {
    status(machine)["role"].clone()
}

fn the_primary_is_dead(pair: &Pair, blocks: &[String]) {
    pair.a.run("echo 1 >/srv/nas/x; sync /srv/nas/x");
    pair.a.kill();
    let said = pair.b.run(&blocks[0]);
    assert!(said.contains("safe") && said.contains("primary"), "{said}");
    pair.b.run("echo 2 >>/srv/nas/x; sync /srv/nas/x");
    pair.a.run(&blocks[1]);
    pair.in_sync();
    assert_eq!((role(&pair.a), role(&pair.b)), ("secondary".into(), "primary".into()));
    assert_eq!(pair.a.run("cat /srv/nas/x"), "1\n2\n");
}

fn a_planned_swap(pair: &Pair, blocks: &[String]) {
    for (typed_on, old, new) in [(&pair.a, &pair.a, &pair.b), (&pair.a, &pair.b, &pair.a)] {
        let said = typed_on.run(&blocks[0]);
        assert!(said.contains(&new.name), "{said}");
        pair.in_sync();
        assert_eq!((role(old), role(new)), ("secondary".into(), "primary".into()));
    }
}

fn replacing_a_dead_node(pair: &Pair, blocks: &[String]) {
    pair.a.run("seq 100000 >/srv/nas/x; sync /srv/nas/x");
    pair.b.kill();
    pair.b.run("rm -r /var/lib/nasd/* /etc/nasd/*");
    std::fs::remove_file(pair.a.own("/root").join("pki/nas-b.pem")).unwrap();
    std::fs::remove_file(pair.a.own("/root").join("pki/nas-b.key")).unwrap();
    pair.a.run(&blocks[0]);
    pair.configure(&pair.b, "nas-a", "secondary");
    pair.b.run(&blocks[1]);
    pair.in_sync();
    let said = pair.a.run(&blocks[2]);
    assert!(said.contains("0 differ"), "{said}");
    assert_eq!(pair.b.run("md5sum </srv/nas/x"), pair.a.run("md5sum </srv/nas/x"));
}

fn growing(pair: &Pair, blocks: &[String]) {
    for machine in [&pair.b, &pair.a] {
        // On a disk of its own, which is then made larger below the running node.
        let image = pair.dir.path().join(format!("{}.img", machine.name));
        let image = image.display();
        machine.run("systemctl stop nasd@nasd");
        machine.run(&format!(
            "truncate -s 320M {image}; mkfs.xfs -q {image}; mkdir /mnt/nasd-test 2>/dev/null || true
             mount -o loop {image} /mnt/nasd-test; cp -a /var/lib/nasd/. /mnt/nasd-test; umount /mnt/nasd-test
             rmdir /mnt/nasd-test; umount /var/lib/nasd; mount -o loop {image} /var/lib/nasd; systemctl start nasd@nasd"
        ));
        pair.in_sync();
        let size =
            || machine.run("df --output=size --block-size=1M /srv/nas | tail -1").trim().parse::<u64>();
        assert!(size().unwrap() < 330);
        machine.run(&format!(
            "truncate -s 640M {image}
             losetup --set-capacity \"$(df --output=source /var/lib/nasd | tail -1)\""
        ));
        machine.run(&blocks[0]);
        assert!(size().unwrap() > 500, "{:?}", size());
        pair.in_sync();
    }
}

fn upgrading(pair: &Pair, blocks: &[String]) {
    // Everything that is acknowledged meanwhile is there in the end. Between the two the writer tries again.
    let write = "n=0; until [ -e /run/nasd/enough ]; do if echo $n >>/srv/nas/x && sync /srv/nas/x; then
                 echo $n; n=$((n+1)); else sleep 0.01; fi; done 2>/dev/null";
    pair.immutable("+i");
    let writers = [&pair.a, &pair.b].map(|machine| machine.spawn(write));
    let wait = "\nuntil nasd status --json | grep -q '\"state\": \"in-sync\"'; do sleep 0.05; done";
    assert!(blocks[0].contains("# wait for in-sync"), "{}", blocks[0]);
    pair.b.run(&blocks[0].replace("# wait for in-sync", wait));
    pair.a.run(&blocks[1]);
    pair.in_sync();
    assert_eq!((role(&pair.a), role(&pair.b)), ("secondary".into(), "primary".into()));
    let mut acknowledged = Vec::new();
    for (machine, writer) in [&pair.a, &pair.b].into_iter().zip(writers) {
        machine.run("touch /run/nasd/enough");
        let out = writer.wait_with_output().unwrap();
        acknowledged.extend(String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned));
    }
    pair.immutable("-i");
    let there: Vec<String> = pair.a.run("cat /srv/nas/x").lines().map(str::to_owned).collect();
    let there: BTreeSet<&String> = there.iter().collect();
    assert!(acknowledged.len() > 10, "{acknowledged:?}");
    assert!(acknowledged.iter().all(|n| there.contains(n)), "{acknowledged:?}\n{there:?}");
}

fn moving_in(pair: &Pair, blocks: &[String]) {
    pair.a.run("mkdir -p /srv/app/journal; seq 1000 >/srv/app/journal/1; truncate -s 1G /srv/app/sparse");
    pair.a.run(&blocks[0]);
    // At once: the other one has it when the command is through.
    pair.a.kill();
    pair.b.run("nasd promote >/dev/null");
    assert_eq!(pair.b.run("cat /srv/nas/journal/1"), pair.a.run("cat /srv/app/journal/1"));
    assert!(pair.b.run("du -k /srv/nas/sparse | cut -f1").trim().parse::<u64>().unwrap() < 1024);
}

fn moving_out(pair: &Pair, blocks: &[String]) {
    pair.a.run("mkdir -p /srv/app /srv/nas/journal; seq 1000 >/srv/nas/journal/1; sync /srv/nas/journal/1");
    pair.a.run(&blocks[0]);
    pair.b.run(&blocks[1]);
    assert_eq!(pair.a.run("cat /srv/app/journal/1 | wc -l"), "1000\n");
    assert_eq!(pair.a.run("getfattr --dump --match=- --recursive /srv/app"), "", "ordinary files");
    assert!(
        !pair.a.try_run("nasd status").status.success() && !pair.b.try_run("nasd status").status.success()
    );
}

fn diverged(pair: &Pair, blocks: &[String]) {
    pair.b.kill();
    pair.a.run("echo alone >/srv/nas/alone; sync /srv/nas/alone");
    pair.a.kill();
    pair.b
        .run("systemctl start nasd@nasd; nasd promote --force; echo else >/srv/nas/else; sync /srv/nas/else");
    pair.a.run("systemctl start nasd@nasd");
    pair.in_sync();
    let said = pair.a.run(&blocks[0]);
    assert!(said.contains("alone"), "{said}");
    assert!(pair.a.own("/root").join("set-aside/transactions.jsonl").exists());
}

fn are_both_equal(pair: &Pair, blocks: &[String]) {
    let said = pair.a.run(&blocks[0]);
    assert!(said.contains("0 differ"), "{said}");
}

macro_rules! stories {
    ($($story:ident: $heading:literal;)*) => {
        mod the_guide {
            $(#[test]
            fn $story() {
                if let Some(pair) = super::Pair::new($heading) {
                    super::$story(&pair, &super::section($heading));
                }
            })*
        }

        /// A section whose commands nobody types here may not be true.
        #[test]
        fn every_section_with_commands_has_its_story() {
            let with_commands = sections().into_iter().filter(|(_, blocks)| !blocks.is_empty());
            let told: BTreeSet<String> = [$($heading.to_owned()),*].into();
            assert_eq!(with_commands.map(|(heading, _)| heading).collect::<BTreeSet<_>>(), told);
        }
    };
}

stories! {
    the_primary_is_dead: "The primary is dead";
    a_planned_swap: "A planned swap";
    replacing_a_dead_node: "Replacing a dead node";
    growing: "Growing";
    upgrading: "Upgrading";
    moving_in: "Moving in";
    moving_out: "Moving out";
    diverged: "diverged/";
    are_both_equal: "Are both nodes equal?";
}
