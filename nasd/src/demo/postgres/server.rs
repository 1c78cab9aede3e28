//! The PostgreSQL beside a node.

use super::psql::Psql;
use crate::demo::PATIENCE;
use crate::demo::stage::{Node, Stage};
use anyhow::{Context, Result, bail};
use nasd_watcher::postgresql::Cluster;
use std::fs::{self, DirBuilder, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const USER: &str = "postgres";
const PROGRAMS: [&str; 6] = ["postgres", "initdb", "pg_ctl", "pg_basebackup", "psql", "pgbench"];
const REMEDY: &str = "apt-get install postgresql (make demo-postgres does it)";

/// The directory that belongs to the database's user. The data directory and the socket are in it.
fn home(node: &Node) -> PathBuf {
    node.dir.join("postgresql")
}

fn cluster(node: &Node) -> Cluster {
    Cluster::new(home(node).join("data"), None, USER.to_owned())
}

/// What a node's configuration says of it.
pub fn section(node: &Node) -> String {
    format!(
        "\n[postgresql]\ndata_dir = \"{}\"\nmanage = true\nnotify_every = \"0s\"\n",
        cluster(node).data_dir().display()
    )
}

/// Whether PostgreSQL is installed.
pub fn look_ahead() -> Result<()> {
    let any = Cluster::new(PathBuf::from("/nonexistent"), None, USER.to_owned());
    let Ok(dir) = any.bin_dir() else { bail!("PostgreSQL is not installed: {REMEDY}") };
    match PROGRAMS.iter().find(|program| !dir.join(program).exists()) {
        Some(missing) => bail!("{missing} is not in {}: {REMEDY}", dir.display()),
        None => Ok(()),
    }
}

/// One of the two.
pub struct Server<'a> {
    pub node: &'a Node,
    stage: &'a Stage,
    cluster: Cluster,
    home: PathBuf,
}

impl<'a> Server<'a> {
    /// With a directory for it, and no cluster yet.
    pub fn new(stage: &'a Stage, node: &'a Node) -> Result<Server<'a>> {
        let server = Server { node, stage, cluster: cluster(node), home: home(node) };
        for dir in [stage.path(), &node.dir] {
            let opened = fs::set_permissions(dir, Permissions::from_mode(0o755));
            opened.with_context(|| format!("can't let {USER} into {}", dir.display()))?;
        }
        enterable(stage.path())?;
        let made = DirBuilder::new().mode(0o700).create(&server.home);
        made.with_context(|| format!("can't make {}", server.home.display()))?;
        server.cluster.give(&server.home)?;
        Ok(server)
    }

    pub fn programs(&self) -> Result<PathBuf> {
        Ok(self.cluster.bin_dir()?)
    }

    /// How libpq reaches it. Whoever is `postgres` for the system is so for the database, and nobody else is let in.
    pub fn conninfo(&self) -> String {
        format!("host={} user={USER} dbname=postgres", self.home.display())
    }

    pub fn how_to_connect(&self) -> String {
        format!(
            "setpriv --reuid={USER} --regid={USER} --init-groups psql -h {} postgres",
            self.home.display()
        )
    }

    /// A new cluster, with checksums.
    pub fn initdb(&self) -> Result<()> {
        let data = self.cluster.data_dir();
        let mut initdb = self.command("initdb")?;
        // What is killed here is processes: what they have written the kernel still has.
        initdb.args(["--no-sync", "-k", "-A", "peer", "-E", "UTF8", "--locale=C", "-D"]).arg(data);
        self.stage.output(&mut initdb, "initdb")?;
        let file = data.join("postgresql.conf");
        // Relative to the data directory, so that it is right for the clone too.
        let lines = "\nlisten_addresses = ''\nunix_socket_directories = '..'\n";
        let written =
            fs::File::options().append(true).open(&file).and_then(|mut f| f.write_all(lines.as_bytes()));
        written.with_context(|| format!("can't write {}", file.display()))
    }

    /// Runs one of its programs on it.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        self.stage.output(self.client(program)?.args(args), program)
    }

    /// One of its programs, connected to it.
    pub fn client(&self, program: &str) -> Result<Command> {
        let mut command = self.command(program)?;
        command.arg("-h").arg(&self.home);
        Ok(command)
    }

    fn command(&self, program: &str) -> Result<Command> {
        Ok(self.cluster.command(program)?)
    }

    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        self.stage.spawn(command)
    }

    pub fn has(&self, program: &str) -> Result<bool> {
        Ok(self.programs()?.join(program).exists())
    }

    /// A connection, as soon as it takes one.
    pub fn psql(&self) -> Result<Psql> {
        let end = Instant::now() + PATIENCE;
        loop {
            let mut psql = Psql::start(self.stage, self.client("psql")?)?;
            match psql.value("SELECT 1") {
                Ok(_) => return Ok(psql),
                Err(e) if Instant::now() > end => {
                    return Err(e.context(format!("no connection to PostgreSQL on {}", self.node.name)));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Waits until nasd says that it is `primary` or `standby`, and it takes connections.
    pub fn wait_for(&self, state: &str) -> Result<()> {
        let is = |s: &crate::status::Status| s.postgresql.as_ref().is_some_and(|p| p.state == state);
        let Err(last) = self.stage.wait_for(self.node, PATIENCE, is)? else {
            let mut psql = self.psql()?;
            let end = Instant::now() + PATIENCE;
            // PostgreSQL is promoted a moment before it takes writes.
            while state == "primary"
                && psql.value("SELECT pg_is_in_recovery()")? != "f"
                && Instant::now() < end
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            return Ok(());
        };
        let last = last.postgresql.unwrap_or_default();
        bail!(
            "PostgreSQL on {} is {} and not {state} after {PATIENCE:?}{}; see {}, with --keep",
            self.node.name,
            last.state,
            last.must_clone.map(|why| format!(" ({why})")).unwrap_or_default(),
            self.node.log.display()
        )
    }

    /// SIGKILL to all its processes. Returns the number of the first.
    pub fn kill(&self) -> Result<String> {
        let postmaster = self.cluster.running().map(|p| format!("process {}", p.pid()));
        self.cluster.kill()?;
        Ok(postmaster.unwrap_or_else(|| "which had ended by itself".to_owned()))
    }
}

/// Whether every user can get to this directory.
fn enterable(dir: &Path) -> Result<()> {
    for above in dir.ancestors() {
        let found = fs::metadata(above).with_context(|| format!("looking at {}", above.display()))?;
        if found.permissions().mode() & 0o001 == 0 {
            bail!(
                "user {USER} can't get into {}: set TMPDIR to a directory that everybody can enter",
                above.display()
            );
        }
    }
    Ok(())
}
