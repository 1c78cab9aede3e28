//! The command line.

use crate::api::{Step, Waited};
use crate::database::{follow, tool};
use crate::eventcli::{self, Wanted};
use crate::plan::{self, About, Plan};
use crate::setup::{self, Setup};
use crate::status::Status;
use crate::{agent, api, cert, client, demo, doctor, logexport, logtool, oneline, run, watch};
use anyhow::{Context, Result};
use clap::{ArgGroup, Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use hyper::Method;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// A NAS volume for a database's log: every fsync is one transaction, on two machines before it returns.
#[derive(Parser)]
#[command(name = "nasd", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Args, Clone)]
struct Which {
    /// The node's configuration.
    #[arg(long, default_value = "/etc/nasd/nasd.toml")]
    config: PathBuf,
    /// The node's control socket, instead of its configuration.
    #[arg(long)]
    control: Option<PathBuf>,
}

#[derive(Args)]
struct ConfigFile {
    /// The node's configuration.
    #[arg(long, default_value = "/etc/nasd/nasd.toml")]
    config: PathBuf,
}

#[derive(Args)]
struct AgentFile {
    /// The agent's configuration.
    #[arg(long, default_value = "/etc/nasd/agent.toml")]
    config: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a node until it is stopped.
    Run(ConfigFile),
    /// Says what is wrong with a configuration, or what it means.
    Check(ConfigFile),
    /// Looks whether a node can run here, and reach its peers.
    Doctor(ConfigFile),
    /// Says how a node is.
    Status {
        #[command(flatten)]
        which: Which,
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// Live, until `q`; where the output is no terminal, again every second.
        #[arg(long)]
        watch: bool,
    },
    /// Makes a secondary the primary: the old one is gone.
    Promote {
        #[command(flatten)]
        which: Which,
        /// Even when something may be lost.
        #[arg(long)]
        force: bool,
        /// Only says what would happen and what would be lost.
        #[arg(long)]
        plan: bool,
    },
    /// Hands the primary's role to the other node, in order.
    Switchover {
        #[command(flatten)]
        which: Which,
        /// Only says what would happen.
        #[arg(long)]
        plan: bool,
    },
    /// What happens on a node: transactions that can be read, changes of its state.
    Events {
        #[command(flatten)]
        which: Which,
        #[command(subcommand)]
        test: Option<EventsCommand>,
        /// Go on with what happens from now on, until interrupted.
        #[arg(long)]
        follow: bool,
        /// Behind the event of this id, or behind the transaction of this number.
        #[arg(long, value_name = "ID")]
        since: Option<String>,
        /// Transactions that change a path which this matches.
        #[arg(long, value_name = "GLOB")]
        path: Vec<String>,
        /// Changes of this: role, link, sync, disk, mount, etcd, database or demand.
        #[arg(long, value_name = "KIND")]
        state: Vec<String>,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// On the primary: has the consumers of the other nodes told what is pending.
    Notify {
        #[command(flatten)]
        which: Which,
        /// What they are told.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Waits until a node shows a transaction.
    #[command(group(ArgGroup::new("what").required(true).args(["seq", "after"])))]
    Wait {
        #[command(flatten)]
        which: Which,
        /// Its number.
        #[arg(long)]
        seq: Option<u64>,
        /// The number of the one before it.
        #[arg(long, value_name = "SEQ")]
        after: Option<u64>,
        /// How long at most.
        #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
        timeout: Duration,
    },
    /// Compares the primary's files with its peers'.
    Verify {
        #[command(flatten)]
        which: Which,
    },
    /// Stops a node in order.
    Stop {
        #[command(flatten)]
        which: Which,
    },
    /// Tells programs on a host that mounts a share of what happens on the nodes.
    Agent(AgentFile),
    /// Looks at transaction files, without a node.
    #[command(subcommand)]
    Log(LogCommand),
    /// The PostgreSQL whose log is on the volume.
    #[command(subcommand)]
    Pg(PgCommand),
    /// Writes a configuration and certificates, and pairs the second node with the first.
    Setup(Box<Setup>),
    /// Makes certificates for the nodes.
    #[command(subcommand)]
    Cert(CertCommand),
    /// Prints the OpenAPI document of the control API.
    Openapi,
    /// A pair on this machine, a database on it, a primary that dies: see that nothing is lost. Takes half a minute.
    Demo {
        /// With PostgreSQL and pgbench, instead of SQLite.
        #[arg(long)]
        postgres: bool,
        /// How long the database writes before the primary is killed.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
        seconds: u64,
        /// Leave the nodes running and everything where it is, and say where.
        #[arg(long)]
        keep: bool,
    },
    /// Prints what a shell needs to complete nasd's commands.
    Completions {
        /// Which shell.
        shell: Shell,
    },
    /// Writes the manual pages.
    Man {
        /// Where to: a directory that is there.
        #[arg(long)]
        dir: PathBuf,
    },
}

#[derive(Subcommand)]
enum EventsCommand {
    /// Sends an event to each webhook of the configuration, and says how it answers.
    TestWebhook(ConfigFile),
}

#[derive(Subcommand)]
enum LogCommand {
    /// A line for each transaction.
    List {
        /// A log directory or a transaction file.
        path: PathBuf,
    },
    /// Every operation.
    Show {
        /// A log directory or a transaction file.
        path: PathBuf,
    },
    /// Takes the transactions apart: their operations as JSON lines, and the bytes of each write as a file.
    Export {
        /// A log directory, a diverged/ directory or a transaction file.
        path: PathBuf,
        /// Where to: an empty directory, or one that is not there yet.
        #[arg(long)]
        to: PathBuf,
    },
    /// Whether all are whole and none is missing.
    Verify {
        /// A log directory or a transaction file.
        path: PathBuf,
    },
}

#[derive(Subcommand)]
enum PgCommand {
    /// Moves the pg_wal of a stopped cluster onto the volume; this node is primary.
    Adopt(ConfigFile),
    /// Moves it back into the data directory.
    Release(ConfigFile),
    /// Makes this secondary's cluster by a base backup, wired to the replica.
    Clone {
        #[command(flatten)]
        config: ConfigFile,
        /// The primary's PostgreSQL, as libpq understands it: \"host=db-a user=postgres\". It needs the right to
        /// replicate, for this once.
        #[arg(long)]
        from: String,
    },
    /// Starts, promotes and stops a PostgreSQL that runs in another container than the node, with the node's role.
    Follow(ConfigFile),
    /// How far the database's log is flushed, on both nodes, and replayed.
    Status {
        #[command(flatten)]
        config: ConfigFile,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum CertCommand {
    /// The authority that all nodes of a volume trust: DIR/ca.pem, DIR/ca.key.
    Ca {
        /// Where.
        #[arg(long)]
        dir: PathBuf,
    },
    /// A node's certificate: DIR/NAME.pem, DIR/NAME.key.
    Node {
        /// Where ca.pem and ca.key are.
        #[arg(long)]
        dir: PathBuf,
        /// The node's name.
        #[arg(long)]
        name: String,
        /// Further names or addresses.
        #[arg(long, num_args = 0..)]
        host: Vec<String>,
    },
}

/// Exit codes: 0 as asked, 1 not so (a finding, a refusal), 2 wrong use or configuration, nothing changed; 70 a node
/// that stopped itself because it could not keep a promise.
const WRONG: u8 = 2;

/// Does what the arguments of this process say.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli.command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("nasd: {}", with_causes(&e));
            let wrong = e.is::<nasd_config::ConfigError>()
                || e.is::<run::StartError>()
                || e.is::<agent::AgentError>();
            ExitCode::from(if wrong { WRONG } else { 1 })
        }
    }
}

impl Which {
    fn socket(&self) -> Result<PathBuf> {
        match &self.control {
            Some(s) => Ok(s.clone()),
            None => Ok(nasd_config::load(&self.config)?.node.control),
        }
    }

    fn call<T: DeserializeOwned>(&self, method: Method, path: &str, timeout: Duration) -> Result<T> {
        client::call(&self.socket()?, method, path, timeout)
    }
}

const SOON: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(24 * 3600);

fn dispatch(command: Command) -> Result<bool> {
    match command {
        Command::Run(c) => run::run(&nasd_config::load(&c.config)?).map(|()| true),
        Command::Agent(c) => agent::run(&nasd_config::load_agent(&c.config)?).map(|()| true),
        Command::Check(c) => {
            print!("{}", nasd_config::load(&c.config)?);
            Ok(true)
        }
        Command::Doctor(c) => Ok(doctor::print(&doctor::run(&nasd_config::load(&c.config)?))),
        Command::Status { which, json, watch: true } => watch::run(&which.socket()?, json).map(|()| true),
        Command::Status { which, json, .. } => {
            if json {
                let status: Value = which.call(Method::GET, "/v1/status", SOON)?;
                println!("{}", serde_json::to_string_pretty(&status)?);
            } else {
                let status: Status = which.call(Method::GET, "/v1/status", SOON)?;
                print!("{}", status.text());
            }
            Ok(true)
        }
        Command::Promote { which, force, plan: true } => Ok(print_plan(&which.call(
            Method::POST,
            &format!("/v1/promote?plan=true&force={force}"),
            LONG,
        )?)),
        Command::Switchover { which, plan: true } => {
            Ok(print_plan(&which.call(Method::POST, "/v1/switchover?plan=true", LONG)?))
        }
        Command::Promote { which, force, .. } => {
            print_steps(&which.call::<Vec<_>>(Method::POST, &format!("/v1/promote?force={force}"), LONG)?);
            Ok(true)
        }
        Command::Switchover { which, .. } => {
            print_steps(&which.call::<Vec<_>>(Method::POST, "/v1/switchover", LONG)?);
            Ok(true)
        }
        Command::Events { test: Some(EventsCommand::TestWebhook(c)), .. } => {
            eventcli::test_webhooks(&nasd_config::load(&c.config)?)
        }
        Command::Events { which, follow, since, path, state, json, .. } => {
            let wanted = Wanted { since, paths: path, states: state, json };
            let print = if follow { eventcli::follow } else { eventcli::list };
            print(&which.socket()?, &wanted).map(|()| true)
        }
        Command::Notify { which, reason } => eventcli::notify(&which.socket()?, &reason),
        Command::Wait { which, seq, after, timeout } => {
            let what = seq.map(|seq| ("seq", seq)).or(after.map(|seq| ("after", seq)));
            let (key, seq) = what.context("give one of --seq and --after")?;
            let path = format!("/v1/wait?{key}={seq}&timeout_ms={}", timeout.as_millis());
            let waited: Waited = which.call(Method::GET, &path, timeout + SOON)?;
            if !waited.reached {
                println!("not reached within {timeout:?}: applied {}", waited.applied_seq);
            }
            Ok(waited.reached)
        }
        Command::Verify { which } => {
            let socket = which.socket()?;
            let ask = || client::call(&socket, Method::POST, "/v1/verify", LONG);
            let all: Vec<crate::verify::Verified> = oneline::while_waiting(&socket, ask)?;
            for p in &all {
                println!(
                    "{}: {} files, {} bytes compared, {} were changing, {} differ",
                    p.peer,
                    p.files,
                    p.bytes,
                    p.changing,
                    p.different.len()
                );
                p.different.iter().for_each(|d| println!("  {d}"));
            }
            Ok(all.iter().all(|p| p.different.is_empty()))
        }
        Command::Stop { which } => {
            which.call::<IgnoredAny>(Method::POST, "/v1/stop", Duration::from_secs(120))?;
            Ok(true)
        }
        Command::Log(LogCommand::List { path }) => logtool::list(&path),
        Command::Log(LogCommand::Show { path }) => logtool::show(&path),
        Command::Log(LogCommand::Export { path, to }) => logexport::export(&path, &to),
        Command::Log(LogCommand::Verify { path }) => logtool::verify(&path),
        Command::Cert(CertCommand::Ca { dir }) => cert::ca(&dir).map(|()| true),
        Command::Cert(CertCommand::Node { dir, name, host }) => cert::node(&dir, &name, &host).map(|()| true),
        Command::Pg(PgCommand::Adopt(c)) => tool::adopt(&nasd_config::load(&c.config)?).map(|()| true),
        Command::Pg(PgCommand::Release(c)) => tool::release(&nasd_config::load(&c.config)?).map(|()| true),
        Command::Pg(PgCommand::Clone { config, from }) => {
            tool::clone(&nasd_config::load(&config.config)?, &from).map(|()| true)
        }
        Command::Pg(PgCommand::Follow(c)) => follow::follow(&nasd_config::load(&c.config)?).map(|()| true),
        Command::Pg(PgCommand::Status { config, json }) => {
            tool::status(&nasd_config::load(&config.config)?, json).map(|()| true)
        }
        Command::Openapi => {
            print!("{}", api::document());
            Ok(true)
        }
        Command::Demo { postgres, seconds, keep } => {
            let database = if postgres { demo::Database::Postgres } else { demo::Database::Sqlite };
            demo::run(database, seconds, keep).map(|()| true)
        }
        Command::Setup(s) => setup::run(*s).map(|()| true),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "nasd", &mut std::io::stdout());
            Ok(true)
        }
        Command::Man { dir } => {
            let pages = clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), &dir);
            pages.with_context(|| format!("{}: can't write manual pages there", dir.display()))?;
            Ok(true)
        }
    }
}

/// An error and why, each said once: many say their cause themselves, with the remedy behind it.
fn with_causes(e: &anyhow::Error) -> String {
    let mut all = String::new();
    for cause in e.chain().map(ToString::to_string) {
        if all.is_empty() {
            all = cause;
        } else if !all.contains(&cause) {
            all = format!("{all}: {cause}");
        }
    }
    all
}

/// Prints a plan. Returns whether it would go ahead.
fn print_plan(plan: &Plan) -> bool {
    for line in plan {
        let about = match line.about {
            About::Refused => "refused",
            About::Would => "",
            About::Lost => "lost",
            About::Safe => "safe",
        };
        println!("{about:>9}  {}", line.step);
    }
    plan::goes_ahead(plan)
}

fn print_steps(steps: &[Step]) {
    for Step { step, ms } in steps {
        println!("{ms:>9.1} ms  {step}");
    }
}
