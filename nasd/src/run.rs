//! `nasd run`: a node from its configuration to its end.

use crate::api::{ApiError, Entrance};
use crate::database::{self, Database};
use crate::events::{Events, EventsError};
use crate::link::{LinkError, TlsContext};
use crate::node::{Node, RoleError};
use crate::signals::{self, Signals};
use crate::{api, consumers, failover, hook, housekeeping, relay, serve, supervision, telling};
use anyhow::Result;
use nasd_config::{Config, Role as InitialRole};
use nasd_fusefs::MountError;
use nasd_volume::state::{StateError, StateFile};
use nasd_volume::volume::{OpenError, lock_state_dir, new_state};
use nasd_volume::{Role, VolumeId};
use nasd_watcher::{FilterError, Notifier, NotifyError, NotifyRule};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use std::io::IsTerminal;
use std::net::TcpListener;
use std::sync::Arc;
use tokio::sync::Notify;

/// A node can't start: something is wrong that only the operator can mend. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}: {1}; run nasd as root")]
    NotRoot(&'static str, u32),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Tls(#[from] LinkError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Events(#[from] EventsError),
    #[error("[[notify]]: {0}")]
    Filter(#[from] FilterError),
    #[error(transparent)]
    Notify(#[from] NotifyError),
    #[error("{0}: can't listen here: {1}; is another nasd running, or another program on this port?")]
    Listen(String, std::io::Error),
    #[error("{0}: can't make the control socket: {1}; choose another `control` in [node]")]
    Control(String, std::io::Error),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("{0}")]
    Role(#[from] RoleError),
}

fn to_start(e: RoleError) -> StartError {
    match e {
        RoleError::Open(e) => StartError::Open(e),
        RoleError::Mount(e) => StartError::Mount(e),
        e => StartError::Role(e),
    }
}

fn initial_state(config: &Config) -> nasd_volume::state::State {
    match config.node.initial_role {
        InitialRole::Primary => new_state(Some(VolumeId::random()), Role::Primary),
        InitialRole::Secondary => new_state(None, Role::Secondary),
    }
}

/// Event streams and files of the volume are many at a time; the usual limit is for programs that use select(2).
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    if let Err(e) = raised {
        tracing::warn!("the limit on open files stays at {:?}: {e}", limit.current);
    }
}

/// The consumers of the configuration: of transactions they hear while this node follows a primary.
fn notifier(config: &Config, events: &Events) -> Result<Notifier, StartError> {
    let following = |n| consumers::rule(n).map(|r| NotifyRule { filter: r.filter.following(), ..r });
    let rules = config.notify.iter().map(following).collect::<Result<Vec<_>, _>>()?;
    Ok(Notifier::start(&events.feed, rules, Some(&config.node.state_dir.join("notify")))?)
}

/// Has events told on standard error, as much of them as `NASD_LOG` says.
pub(crate) fn log_to_stderr() {
    // A reply to a request that its caller gave up meanwhile (a signal came) can't be delivered: no news.
    let usual = "info,fuser::reply=off";
    let filter = tracing_subscriber::EnvFilter::try_from_env("NASD_LOG").unwrap_or_else(|_| usual.into());
    // Colours are for a terminal, not for a journal or a file.
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
}

/// Runs the node until a signal or `nasd stop`.
pub fn run(config: &Config) -> Result<()> {
    log_to_stderr();
    let uid = rustix::process::getuid().as_raw();
    if uid != 0 {
        return Err(StartError::NotRoot("a volume keeps files of every owner, this is user", uid).into());
    }
    raise_file_limit();
    // Modes are the callers' business.
    rustix::process::umask(rustix::fs::Mode::empty());
    let tls = match &config.tls {
        Some(t) => Some(TlsContext::new(&t.ca, &t.cert, &t.key).map_err(StartError::from)?),
        None => None,
    };
    let state_dir = &config.node.state_dir;
    // First of all where there is a node already: whoever runs it is not to be disturbed. Where there is none, nothing is made
    // before all the rest is right.
    let lock = state_dir.exists().then(|| lock_state_dir(state_dir)).transpose().map_err(StartError::from)?;
    let events = Arc::new(Events::default());
    let database = Database::new(config, Arc::clone(&events))?;
    if let Some(database) = &database {
        database.before_mount();
    }
    nasd_fusefs::prepare(&config.volume.mount).map_err(StartError::from)?;
    let lock = lock.map_or_else(|| lock_state_dir(state_dir), Ok).map_err(StartError::from)?;
    let listener = match &tls {
        Some(_) => {
            let listen = &config.node.listen;
            Some(TcpListener::bind(listen).map_err(|e| StartError::Listen(listen.clone(), e))?)
        }
        None => None,
    };
    let entrance = config.api.as_ref().map(Entrance::open).transpose().map_err(StartError::from)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let control = runtime.block_on(async { api::bind(&config.node.control) });
    let control = control.map_err(|e| StartError::Control(config.node.control.display().to_string(), e))?;
    let state = match StateFile::open(state_dir).map_err(StartError::from)? {
        Some(s) => s,
        None => StateFile::create(state_dir, initial_state(config)).map_err(StartError::from)?,
    };
    events.open(state_dir).map_err(StartError::from)?;
    let notifier = notifier(config, &events)?;
    let node = Node::new(config.clone(), tls, lock, state, notifier, events, database).map_err(to_start)?;
    if let Some(listener) = listener {
        let node = Arc::clone(&node);
        std::thread::Builder::new().name("listen".into()).spawn(move || serve::listen(node, listener))?;
    }
    for (name, work) in [
        ("seal", housekeeping::seal as fn(&Arc<Node>)),
        ("tidy", housekeeping::tidy),
        ("database", database::run),
        ("failover", failover::run),
        ("hook", hook::run),
        ("relay", relay::run),
        ("supervision", supervision::run),
        ("telling", telling::run),
    ] {
        let node = Arc::clone(&node);
        std::thread::Builder::new().name(name.into()).spawn(move || work(&node))?;
    }
    let stop = Arc::new(Notify::new());
    let (boot_tx, boot_rx) = tokio::sync::oneshot::channel();
    {
        let node = Arc::clone(&node);
        std::thread::Builder::new().name("boot".into()).spawn(move || boot_tx.send(node.boot()).is_ok())?;
    }
    let result = runtime.block_on(async {
        let mut signals = Signals::listen(signals::OF_A_SERVICE)?;
        let serving = api::serve(control, entrance, Arc::clone(&node), Arc::clone(&stop));
        tokio::pin!(serving);
        let mut boot_rx = Some(boot_rx);
        loop {
            tokio::select! {
                booted = async { boot_rx.as_mut().expect("guarded").await }, if boot_rx.is_some() => {
                    boot_rx = None;
                    match booted {
                        Ok(Err(e)) => return Err(anyhow::Error::new(to_start(e))),
                        Ok(Ok(())) => supervision::tell(NotifyState::Ready),
                        Err(_) => {}
                    }
                }
                () = &mut serving => return Ok(()),
                _ = signals.next() => break,
            }
        }
        let n = Arc::clone(&node);
        tokio::task::spawn_blocking(move || n.stop()).await?;
        Ok(())
    });
    // The socket of a node that is gone would only confuse.
    let _ = std::fs::remove_file(&config.node.control);
    // Threads that wait for peers or the kernel need not be waited for: everything is durable.
    match result {
        Ok(()) => std::process::exit(0),
        Err(e) => {
            node.stop();
            Err(e)
        }
    }
}
