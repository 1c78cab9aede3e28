//! The Debian package, on a machine of its own: installed, upgraded under load, removed.
#![allow(clippy::unwrap_used)]

use nasd_tests::container::Container;
use nasd_tests::node::binary;
use nasd_tests::writer::Writer;
use nasd_tests::{eventually, eventually_within};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// Where Debian has the database.
const POSTGRESQL: &str = "/usr/lib/postgresql/15";

/// Packs the binary under test; none, with a line that says why, where that can't be.
fn pack(dir: &Path, version: &str) -> Option<PathBuf> {
    if !Command::new("cargo").args(["deb", "--version"]).output().unwrap().status.success() {
        println!("skipped: cargo-deb is not installed: cargo install --locked cargo-deb");
        return None;
    }
    let deb = dir.join(format!("nasd_{version}.deb"));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/build");
    let out = Command::new(script)
        .arg(binary())
        .args(["--fast", "--deb-version", version, "--output"])
        .arg(&deb)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(deb)
}

/// Two instances on one machine, each other's peers.
struct Host {
    machine: Container,
}

impl Host {
    fn install(&self, deb: &Path) -> String {
        let name = deb.file_name().unwrap().to_str().unwrap();
        std::fs::copy(deb, self.machine.path(&format!("/root/{name}"))).unwrap();
        self.machine.run(&["dpkg", "--install", &format!("/root/{name}")])
    }

    /// `nasd setup` of `a`, and of `b` by the code that it shows.
    fn set_up(&self) {
        // A writer must not find an empty directory where the volume is not mounted.
        for mount in ["/srv/a", "/srv/b"] {
            self.machine.run(&["mkdir", mount]);
            self.machine.run(&["chattr", "+i", mount]);
        }
        let place = |name: &str, port: u16| {
            format!(
                "--instance {name} --name {name} --mount /srv/{name} --state-dir /var/lib/nasd/{name} --listen 127.0.0.1:{port}"
            )
        };
        let first = format!(
            "nasd setup --yes {} --pair-on 127.0.0.1:7500 >/root/setup 2>&1 </dev/null & \
             until grep -q -- --code /root/setup; do sleep 0.05; done; \
             $(grep -o 'nasd setup join .*' /root/setup) {} && wait $!",
            place("a", 7400),
            place("b", 7402)
        );
        self.machine.run(&["sh", "-ec", &first]);
    }

    fn status(&self, name: &str) -> Option<Value> {
        let config = format!("/etc/nasd/{name}.toml");
        let out = self.machine.try_run(&["nasd", "status", "--json", "--config", &config]);
        out.status.success().then(|| serde_json::from_slice(&out.stdout).unwrap())
    }

    fn wait_for(&self, name: &str, role: &str) {
        eventually_within(PATIENCE, &format!("{name} is {role} and in sync"), || {
            let status = self.status(name)?;
            (status["role"] == role && status["state"] == "in-sync").then_some(())
        });
    }

    /// A property of an instance's unit.
    fn show(&self, name: &str, property: &str) -> String {
        let unit = format!("nasd@{name}");
        let value = self.machine.run(&["systemctl", "show", "--value", "--property", property, &unit]);
        value.trim().to_owned()
    }

    /// Waits until the service manager has started another process in the place of this one.
    fn wait_for_another(&self, name: &str, pid: &str) {
        eventually_within(PATIENCE, &format!("{name} was started again"), || {
            let now = self.show(name, "MainPID");
            (now != pid && now != "0" && self.show(name, "ActiveState") == "active").then_some(())
        });
    }

    /// Gives `a` a PostgreSQL that nasd runs in its unit, with this machine's programs; whether there are any.
    fn with_postgres(&self) -> bool {
        if !Path::new(POSTGRESQL).exists() {
            println!("without PostgreSQL in the unit: apt-get install postgresql-15");
            return false;
        }
        for dir in [POSTGRESQL, "/usr/share/postgresql", "/usr/share/zoneinfo"] {
            let to = self.machine.path(dir);
            std::fs::create_dir_all(&to).unwrap();
            let copied = Command::new("cp").arg("-a").arg(format!("{dir}/.")).arg(&to).status().unwrap();
            assert!(copied.success(), "{dir}");
        }
        // The libraries that the smallest Debian does not have.
        let programs = ["postgres", "initdb", "psql", "pg_ctl"].map(|p| format!("{POSTGRESQL}/bin/{p}"));
        let out = Command::new("ldd").args(&programs).output().unwrap();
        for library in
            String::from_utf8_lossy(&out.stdout).split_whitespace().filter(|w| w.starts_with("/lib"))
        {
            if !self.machine.path(library).exists() {
                std::fs::copy(library, self.machine.path(library)).unwrap();
            }
        }
        let script = format!(
            "ldconfig; useradd --system postgres; install -d -o postgres /var/lib/postgresql /run/postgresql; cd /
             setpriv --reuid=postgres --regid=postgres --clear-groups {POSTGRESQL}/bin/initdb -A trust -D /var/lib/postgresql/data >/dev/null
             echo \"listen_addresses = ''\" >>/var/lib/postgresql/data/postgresql.conf
             printf '[postgresql]\\ndata_dir = \"/var/lib/postgresql/data\"\\n' >>/etc/nasd/a.toml
             systemctl restart nasd@a; nasd pg adopt --config /etc/nasd/a.toml"
        );
        self.machine.run(&["sh", "-ec", &script]);
        self.sql("CREATE TABLE t (n int)");
        self.sql("INSERT INTO t VALUES (1)");
        let unit = self.machine.run(&["systemctl", "status", "--no-pager", "nasd@a"]);
        assert!(unit.contains("postgres: checkpointer"), "it runs in the unit: {unit}");
        true
    }

    /// What its PostgreSQL answers, as soon as it does.
    fn sql(&self, query: &str) -> String {
        let psql = format!("{POSTGRESQL}/bin/psql");
        let command = [&psql, "-h", "/run/postgresql", "-U", "postgres", "-d", "postgres", "-Atqc", query];
        eventually_within(PATIENCE, "PostgreSQL answers", || {
            let out = self.machine.try_run(&command);
            out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
        })
    }

    /// An agent that follows `a`, as a service.
    fn with_agent(&self) {
        let script = "
            cat >>/etc/nasd/a.toml <<.
[api]
listen = \"127.0.0.1:7601\"
.
            systemctl restart nasd@a
            echo 127.0.0.1 a >>/etc/hosts
            pki=$(dirname $(find /etc/nasd -name ca.key)); nasd cert node --dir $pki --name db-1 >/dev/null
            cat >/etc/nasd/agent.toml <<.
[agent]
name = \"db-1\"
servers = [\"a:7601\"]
state_file = \"/var/lib/nasd-agent/state\"
[tls]
ca = \"$pki/ca.pem\"
cert = \"$pki/db-1.pem\"
key = \"$pki/db-1.key\"
[[notify]]
paths = [\"told-*\"]
exec = \"/usr/local/bin/told\"
.
            printf '#!/bin/sh\\ncat >/root/told\\n' >/usr/local/bin/told; chmod +x /usr/local/bin/told
            systemctl start nasd-agent
            systemctl is-active nasd-agent";
        self.machine.run(&["sh", "-ec", script]);
        eventually("the agent follows", || {
            let said = self.machine.run(&["journalctl", "--unit=nasd-agent"]);
            said.contains("follows a").then_some(())
        });
        let script = "echo 1 >/srv/a/told-1; sync /srv/a/told-1";
        self.machine.run(&["sh", "-ec", script]);
        eventually("the agent has told", || {
            std::fs::read_to_string(self.machine.path("/root/told")).ok().filter(|t| t == "told-1\n")
        });
    }

    /// Servers of its shares that do nothing but run, bound to it as the guide has it.
    fn with_shares(&self) {
        let dir = self.machine.path("/etc/systemd/system");
        let drop_in = include_str!("../../docs/share/nasd.conf");
        std::fs::create_dir_all(dir.join("nasd@a.service.d")).unwrap();
        std::fs::write(dir.join("nasd@a.service.d/share.conf"), drop_in).unwrap();
        for name in ["nfs-ganesha", "smbd"] {
            std::fs::write(dir.join(format!("{name}.service")), "[Service]\nExecStart=sleep infinity\n")
                .unwrap();
        }
        self.machine.run(&["sh", "-ec", "systemctl daemon-reload; systemctl restart nasd@a"]);
        assert!(self.shares_began() > 0);
        self.machine.run(&["systemctl", "stop", "nasd@a"]);
        for name in ["nfs-ganesha", "smbd"] {
            let out = self.machine.try_run(&["systemctl", "is-active", name]);
            assert_ne!(out.stdout, b"active\n", "{name}");
        }
        self.machine.run(&["systemctl", "start", "nasd@a"]);
        self.wait_for("a", "primary");
    }

    /// When the later of the servers began, in microseconds since the boot; 0 when one does not run.
    fn shares_began(&self) -> u64 {
        eventually_within(PATIENCE, "the shares' servers run", || {
            let all = ["nfs-ganesha", "smbd"].map(|name| {
                let show = [
                    "systemctl",
                    "show",
                    "--value",
                    "--property",
                    "ActiveEnterTimestampMonotonic,ActiveState",
                    name,
                ];
                let said = self.machine.run(&show);
                let began = said.lines().find_map(|l| l.parse::<u64>().ok());
                began.filter(|_| said.lines().any(|l| l == "active"))
            });
            all.into_iter().collect::<Option<Vec<u64>>>()?.into_iter().min()
        })
    }

    /// Sends a signal to an instance's own process.
    fn kill(&self, name: &str, signal: &str) {
        let unit = format!("nasd@{name}");
        self.machine.run(&["systemctl", "kill", "--kill-whom=main", "--signal", signal, &unit]);
    }
}

#[test]
fn installed_upgraded_under_load_removed() {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let packages = tempfile::tempdir().unwrap();
    let Some(first) = pack(packages.path(), "0.1.0-1") else { return };
    let second = pack(packages.path(), "0.1.0-2").unwrap();
    match Command::new("lintian").arg("--allow-root").arg(&second).stderr(Stdio::null()).output() {
        Ok(out) => assert_eq!(String::from_utf8_lossy(&out.stdout), "", "lintian"),
        Err(e) => println!("lintian was not asked: {e} (apt-get install lintian)"),
    }
    let host = match Container::boot(cache) {
        Ok(machine) => Host { machine },
        Err(e) => {
            println!("skipped: no machine to install it on: {e}");
            return;
        }
    };

    host.install(&first);
    for file in [
        "/usr/share/man/man1/nasd.1.gz",
        "/usr/share/man/man1/nasd-setup-join.1.gz",
        "/usr/share/bash-completion/completions/nasd",
        "/usr/share/zsh/vendor-completions/_nasd",
        "/usr/share/fish/vendor_completions.d/nasd.fish",
        "/usr/share/doc/nasd/README.md",
        "/usr/share/doc/nasd/docs/operations.md",
        "/usr/share/doc/nasd/docs/share/ganesha.conf",
    ] {
        // minbase leaves documentation out only where it is told to.
        assert!(host.machine.path(file).exists(), "{file}");
    }
    host.machine.run(&["nasd", "check", "--config", "/usr/share/doc/nasd/examples/nasd.toml"]);
    for unit in ["nasd@a.service", "nasd-agent.service"] {
        host.machine.run(&["systemd-analyze", "verify", "--man=no", unit]);
    }

    host.set_up();
    host.machine.run(&["systemctl", "enable", "--now", "nasd@a", "nasd@b"]);
    host.wait_for("a", "primary");
    host.wait_for("b", "secondary");
    assert!(host.show("a", "StatusText").starts_with("primary, "), "{}", host.show("a", "StatusText"));
    assert_eq!(host.machine.run(&["stat", "-f", "-c", "%T", "/srv/a"]).trim(), "fuseblk");

    let with_postgres = host.with_postgres();
    host.with_agent();
    host.with_shares();

    // An upgrade, with somebody who writes all the time.
    let writer = Writer::on(vec![host.machine.path("/srv/a")]);
    writer.wait_more(20);
    let before = ["a", "b"].map(|n| host.show(n, "MainPID"));
    host.install(&second);
    let after = ["a", "b"].map(|n| host.show(n, "MainPID"));
    assert!(before[0] != after[0] && before[1] != after[1], "{before:?} {after:?}");
    assert_eq!(host.machine.run(&["dpkg-query", "-W", "-f", "${Version}", "nasd"]), "0.1.0-2");
    host.wait_for("a", "primary");
    writer.wait_more(20);
    assert_eq!(host.machine.run(&["systemctl", "is-active", "nasd-agent"]), "active\n");
    for name in ["a", "b"] {
        assert_eq!(host.show(name, "NRestarts"), "0", "they stopped and started in order");
    }

    // A node that dies is started again. The servers of its shares have not outlived it.
    let server = host.shares_began();
    host.kill("a", "KILL");
    host.wait_for_another("a", &after[0]);
    host.wait_for("a", "primary");
    writer.wait_more(20);
    let written = writer.finish();
    println!("{} files, longest pause {:?}", written.acknowledged.len(), written.longest_pause);
    written.check(&host.machine.path("/srv/a"));

    eventually_within(PATIENCE, "the shares' server begins anew", || {
        (host.shares_began() > server).then_some(())
    });
    if with_postgres {
        host.sql("INSERT INTO t VALUES (2)");
        assert_eq!(host.sql("SELECT sum(n) FROM t"), "3");
    }

    // So is one that hangs.
    let drop_in = "mkdir -p /etc/systemd/system/nasd@b.service.d && \
                   printf '[Service]\\nWatchdogSec=2s\\n' >/etc/systemd/system/nasd@b.service.d/soon.conf && \
                   systemctl daemon-reload && systemctl restart nasd@b";
    host.machine.run(&["sh", "-ec", drop_in]);
    let pid = host.show("b", "MainPID");
    host.kill("b", "STOP");
    host.wait_for_another("b", &pid);
    host.wait_for("b", "secondary");
    written.check(&host.machine.path("/srv/b"));

    // One whose configuration is wrong is not.
    host.machine.run(&["sed", "-i", "s/^commit = .*/commit = \"never\"/", "/etc/nasd/b.toml"]);
    assert!(!host.machine.try_run(&["systemctl", "restart", "nasd@b"]).status.success());
    eventually("it is given up", || (host.show("b", "ActiveState") == "failed").then_some(()));
    assert_eq!(host.show("b", "ExecMainStatus"), "2");
    assert_eq!(host.show("b", "NRestarts"), "0");

    host.machine.run(&["dpkg", "--remove", "nasd"]);
    let mounts = host.machine.run(&["cat", "/proc/self/mountinfo"]);
    assert!(!mounts.contains("/srv/a") && !mounts.contains("/srv/b"), "{mounts}");
    assert!(host.machine.path("/etc/nasd/a.toml").exists(), "a removal keeps what was configured");
    let said = host.machine.run(&["dpkg", "--purge", "nasd"]);
    for name in ["a", "b"] {
        assert!(said.contains(&format!("nasd: /var/lib/nasd/{name} holds a volume and is kept")), "{said}");
        assert!(host.machine.path(&format!("/var/lib/nasd/{name}/log")).exists());
    }
    let find = "find / -xdev -name '*nasd*' -not -path '/var/lib/nasd*' -not -path '/var/lib/postgresql/*' -not -path '/root/*' \
                -not -path '/etc/systemd/system/nasd@?.service.d' -not -path '/proc/*' -not -path '/sys/*'";
    assert_eq!(host.machine.run(&["sh", "-c", find]), "", "everything else is gone");
}
