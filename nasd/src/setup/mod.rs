//! `nasd setup`: a working configuration and certificates for both nodes of a volume.
//!
//! An instance NAME has `DIR/NAME.toml` and, in `DIR/NAME/`, its certificates. The first node makes the authority as well.
//! Nothing that is there is overwritten, and what is written is whole or not there.

mod ask;
mod code;
mod pairing;
mod template;

use crate::cert;
use crate::link::TlsContext;
use anyhow::{Context, Result, anyhow, bail};
use ask::Asked;
use clap::{Args, Subcommand};
use code::Code;
use nasd_config::{CommitMode, Config, OnPeerLoss, Role};
use pairing::{Joining, Offer, Shared, Welcome};
use rcgen::{CertificateParams, KeyPair};
use serde::de::value::Error as WordError;
use serde::de::{Deserialize, IntoDeserializer};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use template::Peer;

const PORT: u16 = 7400;

/// What is set up.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Setup {
    #[command(subcommand)]
    command: Option<Next>,
    #[command(flatten)]
    first: First,
}

#[derive(Subcommand)]
enum Next {
    /// Waits for another node of a volume that is set up already.
    Pair {
        /// This node's configuration.
        #[arg(long, default_value = "/etc/nasd/nasd.toml")]
        config: PathBuf,
        #[command(flatten)]
        pair: Pairing,
    },
    /// Joins the node that waits at HOST:PORT.
    Join(Join),
}

#[derive(Args)]
struct Place {
    /// The node's name, in its certificate and for its peers [default: this host's]
    #[arg(long)]
    name: Option<String>,
    /// Where programs find the volume.
    #[arg(long)]
    mount: Option<PathBuf>,
    /// Everything that the node keeps.
    #[arg(long)]
    state_dir: Option<PathBuf>,
    /// Where peers reach the node.
    #[arg(long)]
    listen: Option<String>,
    /// The data directory of a PostgreSQL whose log goes onto the volume.
    #[arg(long, value_name = "DIR")]
    postgres: Option<PathBuf>,
    /// What the service calls this volume: nasd@NAME has its configuration in NAME.toml and its certificates in NAME/.
    #[arg(long, value_name = "NAME", default_value = "nasd", value_parser = instance)]
    instance: String,
    /// Where these are.
    #[arg(long, default_value = "/etc/nasd")]
    dir: PathBuf,
}

#[derive(Args)]
struct First {
    #[command(flatten)]
    place: Place,
    /// When fsync returns: async, receive, durable or apply.
    #[arg(long, value_parser = word::<CommitMode>)]
    commit: Option<CommitMode>,
    /// What fsync does while the peer is away: degrade (go on alone) or suspend (wait).
    #[arg(long, value_parser = word::<OnPeerLoss>)]
    on_peer_loss: Option<OnPeerLoss>,
    #[command(flatten)]
    pair: Pairing,
    /// Asks nothing: what is not given has its default.
    #[arg(long)]
    yes: bool,
    /// Waits for no second node.
    #[arg(long)]
    alone: bool,
    /// Only prints the configuration.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
struct Pairing {
    /// An etcd that decides who is primary, as http://HOST:PORT; once for each of its members.
    #[arg(long)]
    etcd: Vec<String>,
    /// Where the other node joins.
    #[arg(long, default_value = "0.0.0.0:7401")]
    pair_on: String,
    /// How long the code is good for.
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
    valid: Duration,
    /// Where the other node reaches this one, HOST:PORT [default: where it joins, and the port of `listen`]
    #[arg(long)]
    address: Option<String>,
}

#[derive(Args)]
struct Join {
    /// The node that waits.
    #[arg(value_name = "HOST:PORT")]
    target: String,
    /// The code that it shows.
    #[arg(long)]
    code: Code,
    #[command(flatten)]
    place: Place,
    /// Where the other node reaches this one, HOST:PORT [default: where it joins from, and the port of `listen`]
    #[arg(long)]
    address: Option<String>,
}

/// What a configuration is made of.
#[derive(Debug, Clone)]
pub struct Answers {
    pub name: String,
    pub role: Role,
    pub state_dir: PathBuf,
    pub mount: PathBuf,
    pub listen: String,
    pub commit: CommitMode,
    pub on_peer_loss: OnPeerLoss,
    pub postgres: Option<PathBuf>,
}

/// A word of the configuration, as it stands there.
fn word<T: for<'a> Deserialize<'a>>(typed: &str) -> Result<T, WordError> {
    T::deserialize(typed.into_deserializer())
}

/// It becomes a file's name, and a unit's.
fn instance(typed: &str) -> Result<String> {
    if nasd_config::is_node_name(typed) { Ok(typed.to_owned()) } else { bail!("write it like a host name") }
}

/// Does what was asked for.
pub fn run(setup: Setup) -> Result<()> {
    match setup.command {
        None => first(setup.first),
        Some(Next::Pair { config, pair }) => wait_for_peer(&config, &pair),
        Some(Next::Join(join)) => join_peer(join),
    }
}

// ---- the first node -------------------------------------------------------------------------------------------

fn first(given: First) -> Result<()> {
    let mut asked = if given.yes || given.dry_run {
        Asked::Nobody
    } else {
        let stdin = std::io::stdin().lock();
        Asked::Person { says: Box::new(stdin), sees: Box::new(std::io::stdout()) }
    };
    let (answers, etcd) = answers(&given, &mut asked)?;
    let place = Files::new(&given.place);
    let text = template::node(&answers, &place.pki);
    check(&text, &place.config)?;
    if given.dry_run {
        print!("{text}");
        return Ok(());
    }
    place.write(&text, |draft| {
        cert::ca(draft)?;
        cert::node(draft, &answers.name, &[])
    })?;
    make_mount(&answers.mount)?;
    if given.alone {
        println!("Start it: {}", start(&place.config));
        return Ok(());
    }
    wait_for_peer(&place.config, &Pairing { etcd, ..given.pair })
}

fn answers(given: &First, asked: &mut Asked) -> Result<(Answers, Vec<String>)> {
    let place = &given.place;
    let path = |typed: &str| Ok(PathBuf::from(typed));
    let name = asked.answer(place.name.clone(), "name of this node", host_name(), |typed| {
        if nasd_config::is_node_name(typed) {
            Ok(typed.to_owned())
        } else {
            bail!("write it like a host name")
        }
    })?;
    let mount = asked.answer(place.mount.clone(), "where programs find the volume", "/srv/nas", path)?;
    let state_dir = asked.answer(
        place.state_dir.clone(),
        "where it is kept, on ext4, XFS or btrfs",
        "/var/lib/nasd",
        path,
    )?;
    let listen = asked.answer(
        place.listen.clone(),
        "where the other node reaches this one",
        format!("0.0.0.0:{PORT}"),
        |typed| Ok(typed.to_owned()),
    )?;
    let commit = given.commit.unwrap_or(CommitMode::Durable);
    let question = "while the other node is away: degrade (go on alone) or suspend (wait)";
    let on_peer_loss =
        asked.answer(given.on_peer_loss, question, OnPeerLoss::Degrade, |typed| Ok(word(typed)?))?;
    let question = "data directory of a PostgreSQL for the volume";
    let given_postgres = place.postgres.clone().map(Some);
    let postgres = asked.answer(given_postgres, question, "none", |typed| {
        Ok((typed != "none").then(|| PathBuf::from(typed)))
    })?;
    let given_etcd = (!given.pair.etcd.is_empty()).then(|| given.pair.etcd.clone());
    let question = "etcd that decides who is primary (http://HOST:PORT, with spaces between several)";
    let etcd = asked.answer(given_etcd, question, "none", |typed| {
        Ok(typed.split_whitespace().filter(|e| *e != "none").map(str::to_owned).collect())
    })?;
    let role = Role::Primary;
    Ok((Answers { name, role, state_dir, mount, listen, commit, on_peer_loss, postgres }, etcd))
}

fn wait_for_peer(file: &Path, pair: &Pairing) -> Result<()> {
    let config = nasd_config::load(file)?;
    let shared = shared(&config, pair)?;
    let tls = config.tls.as_ref().with_context(|| {
        format!("{}: has no [tls]: only a node that `nasd setup` set up can pair", file.display())
    })?;
    let ca = fs::read_to_string(&tls.ca).with_context(|| format!("cannot read {}", tls.ca.display()))?;
    let pki = tls.ca.parent().unwrap_or(Path::new("/"));
    let sign = |name: &str, request: &str| {
        let known = config.peers.iter().map(|p| &p.name).chain([&config.node.name]);
        if known.into_iter().any(|n| n.eq_ignore_ascii_case(name)) {
            bail!("the volume has a node {name} already; choose another --name");
        }
        cert::sign(pki, name, request)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let peer = runtime.block_on(async {
        let offer = Offer::new(&pair.pair_on).await?;
        let at = offer.address()?;
        let host = match &pair.address {
            Some(address) => address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host).to_owned(),
            None if at.ip().is_unspecified() => host_name(),
            None if at.is_ipv6() => format!("[{}]", at.ip()),
            None => at.ip().to_string(),
        };
        let valid = humantime::format_duration(pair.valid);
        println!("On the other host, within {valid}:\n");
        println!("  nasd setup join {host}:{} --code {}\n", at.port(), offer.code());
        offer.wait(pair.valid, &shared, &ca, sign).await
    })?;
    // An etcd that stands there already is the one.
    let etcd = if config.failover.etcd.is_some() { &[][..] } else { &pair.etcd };
    append(file, &template::peer(&peer, etcd))?;
    println!(
        "{} at {} is a peer now. Start or restart this node first: {}",
        peer.name,
        peer.address,
        start(file)
    );
    Ok(())
}

fn shared(config: &Config, pair: &Pairing) -> Result<Shared> {
    let etcd = config.failover.etcd.as_ref().map_or(&pair.etcd, |e| &e.endpoints);
    Ok(Shared {
        name: config.node.name.clone(),
        port: port(&config.node.listen)?,
        address: pair.address.clone(),
        mount: config.volume.mount.clone(),
        state_dir: config.node.state_dir.clone(),
        commit: config.replication.commit,
        on_peer_loss: config.replication.on_peer_loss,
        postgres: config.postgresql.as_ref().map(|p| p.data_dir.clone()),
        etcd: etcd.clone(),
    })
}

// ---- the second node ------------------------------------------------------------------------------------------

fn join_peer(join: Join) -> Result<()> {
    let place = join.place;
    let files = Files::new(&place);
    files.are_free()?;
    let name = place.name.unwrap_or_else(host_name);
    if !nasd_config::is_node_name(&name) {
        bail!("{name:?} cannot be a node's name; give one like a host name with --name");
    }
    let listen = place.listen.unwrap_or_else(|| format!("0.0.0.0:{PORT}"));
    let key = KeyPair::generate().context("cannot make a key")?;
    let csr = CertificateParams::default().serialize_request(&key)?.pem()?;
    let joining = Joining { name: name.clone(), port: port(&listen)?, address: join.address, csr };
    let host = join.target.rsplit_once(':').map_or(join.target.as_str(), |(host, _)| host);
    let mut first_name = String::new();
    let keep = |welcome: Welcome| {
        let Welcome { ca, certificate, shared } = welcome;
        first_name.clone_from(&shared.name);
        let first = Peer {
            address: shared.address.unwrap_or_else(|| format!("{host}:{}", shared.port)),
            name: shared.name,
        };
        let answers = Answers {
            name: name.clone(),
            role: Role::Secondary,
            state_dir: place.state_dir.unwrap_or(shared.state_dir),
            mount: place.mount.unwrap_or(shared.mount),
            listen,
            commit: shared.commit,
            on_peer_loss: shared.on_peer_loss,
            postgres: place.postgres.or(shared.postgres),
        };
        let text = template::node(&answers, &files.pki) + &template::peer(&first, &shared.etcd);
        check(&text, &files.config)?;
        files.write(&text, |draft| {
            fs::write(draft.join("ca.pem"), &ca)?;
            cert::write_pair(draft, &name, &certificate, &key.serialize_pem())?;
            let [cert, key] = ["pem", "key"].map(|end| draft.join(format!("{name}.{end}")));
            Ok(TlsContext::new(&draft.join("ca.pem"), &cert, &key)?.check_own()?)
        })?;
        make_mount(&answers.mount)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(pairing::join(&join.target, &join.code, joining, keep))?;
    println!("Once {first_name} runs, start this node: {}", start(&files.config));
    Ok(())
}

// ---- files ----------------------------------------------------------------------------------------------------

/// Where a node's files are.
struct Files {
    config: PathBuf,
    pki: PathBuf,
}

impl Files {
    fn new(place: &Place) -> Files {
        let Place { dir, instance, .. } = place;
        Files { config: dir.join(format!("{instance}.toml")), pki: dir.join(instance) }
    }

    fn are_free(&self) -> Result<()> {
        match [&self.config, &self.pki].into_iter().find(|path| path.exists()) {
            Some(path) => bail!(
                "{} exists and is not overwritten; remove it first, or choose another --instance",
                path.display()
            ),
            None => Ok(()),
        }
    }

    /// Writes the configuration, and what `make` makes of certificates in a directory that is then called `pki`.
    fn write(&self, text: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        self.are_free()?;
        let dir = self.pki.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
        let draft = tempfile::Builder::new().prefix(".nasd-setup-").tempdir_in(dir)?;
        make(draft.path())?;
        let config = draft_of(&self.config, text)?;
        fs::rename(draft.path(), &self.pki).with_context(|| format!("cannot make {}", self.pki.display()))?;
        if let Err(e) = config.persist_noclobber(&self.config) {
            // They were made a moment ago, for this configuration alone.
            let _ = fs::remove_dir_all(&self.pki);
            return Err(anyhow!("cannot write {}: {}", self.config.display(), e.error));
        }
        // Its directory has another name now.
        let _ = draft.keep();
        sync(dir)?;
        println!("wrote {} and {}/", self.config.display(), self.pki.display());
        Ok(())
    }
}

fn draft_of(file: &Path, text: &str) -> Result<tempfile::NamedTempFile> {
    let dir = file.parent().unwrap_or(Path::new("/"));
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    let write = || {
        let mut draft = tempfile::Builder::new().permissions(mode).tempfile_in(dir)?;
        draft.write_all(text.as_bytes())?;
        draft.as_file().sync_all()?;
        Ok::<_, std::io::Error>(draft)
    };
    write().with_context(|| format!("cannot write to {}", dir.display()))
}

fn append(file: &Path, more: &str) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))? + more;
    check(&text, file)?;
    let draft = draft_of(file, &text)?;
    draft.persist(file).with_context(|| format!("cannot write {}", file.display()))?;
    sync(file.parent().unwrap_or(Path::new("/")))
}

fn sync(dir: &Path) -> Result<()> {
    let synced = fs::File::open(dir).and_then(|d| d.sync_all());
    synced.with_context(|| format!("{}: cannot be synced", dir.display()))
}

fn check(text: &str, file: &Path) -> Result<()> {
    nasd_config::parse(text, file)?;
    Ok(())
}

fn make_mount(mount: &Path) -> Result<()> {
    fs::create_dir_all(mount).with_context(|| format!("cannot make the mount point {}", mount.display()))
}

fn port(listen: &str) -> Result<u16> {
    let port = listen.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).filter(|&port| port > 0);
    port.with_context(|| format!("{listen} has no port that a peer can call; write HOST:PORT"))
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// How the node is started: as a service where that is installed and the configuration is in its place.
fn start(config: &Path) -> String {
    let unit =
        ["/usr/lib", "/etc"].iter().any(|d| Path::new(d).join("systemd/system/nasd@.service").exists());
    match config.file_stem() {
        Some(name) if unit && config.starts_with("/etc/nasd") => {
            format!("systemctl enable nasd@{0} && systemctl restart nasd@{0}", name.to_string_lossy())
        }
        _ => format!("nasd run --config {}", config.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn answers() -> Answers {
        Answers {
            name: "nas-a".to_owned(),
            role: Role::Primary,
            state_dir: "/var/lib/nasd".into(),
            mount: "/srv/nas".into(),
            listen: "0.0.0.0:7400".to_owned(),
            commit: CommitMode::Durable,
            on_peer_loss: OnPeerLoss::Degrade,
            postgres: None,
        }
    }

    fn files(dir: &Path) -> Files {
        Files { config: dir.join("nas-a.toml"), pki: dir.join("nas-a") }
    }

    #[test]
    fn what_is_there_stays_as_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        for there in ["nas-a.toml", "nas-a"] {
            let files = files(dir.path());
            let path = dir.path().join(there);
            fs::write(&path, "mine").expect("writable");
            let refused = files.write("text", |_| Ok(())).expect_err("it is there").to_string();
            assert!(refused.starts_with(&format!("{} exists", path.display())), "{refused}");
            assert_eq!(fs::read_to_string(&path).expect("there"), "mine");
            fs::remove_file(&path).expect("there");
            assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 0, "nothing half done");
        }
    }

    #[test]
    fn what_fails_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = files(dir.path());
        files.write("text", |_| bail!("no")).expect_err("no");
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 0);
        files.write("text", |draft| Ok(fs::write(draft.join("x"), "y")?)).expect("free");
        assert_eq!(fs::read_to_string(dir.path().join("nas-a/x")).expect("there"), "y");
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 2);
    }
}
