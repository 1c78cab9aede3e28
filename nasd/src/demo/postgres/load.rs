//! pgbench.

use super::server::Server;
use crate::demo::PATIENCE;
use crate::demo::stage::one_line;
use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use std::io::Read;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Its connections.
pub const CLIENTS: u32 = 4;

/// Several clients that write, until this is dropped.
pub struct Load {
    child: Mutex<Child>,
}

impl Load {
    pub fn start(on: &Server) -> Result<Load> {
        let mut pgbench = on.client("pgbench")?;
        // -N: no two clients wait for the same row. -n: nothing is vacuumed first. The time is as good as endless.
        pgbench.args(["-N", "-n", "-j", "2", "-T", "1000000", "-c", &CLIENTS.to_string(), "postgres"]);
        let child = on.spawn(pgbench.stdout(Stdio::null()).stderr(Stdio::piped()))?;
        Ok(Load { child: Mutex::new(child) })
    }

    /// Fails when it has ended.
    pub fn must_run(&self) -> Result<()> {
        let mut child = self.child.lock();
        let Some(ended) = child.try_wait().context("waiting for pgbench")? else { return Ok(()) };
        let mut said = String::new();
        if let Some(stderr) = &mut child.stderr {
            // What can't be read is not told.
            let _ = stderr.read_to_string(&mut said);
        }
        bail!("pgbench has ended ({ended}): {}", one_line(&said))
    }

    /// Ends it, and waits until the server has ended what it was at.
    pub fn stop(self, on: &Server) -> Result<()> {
        drop(self);
        let end = Instant::now() + PATIENCE;
        let mut psql = on.psql()?;
        while psql.value("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'")? != "0" {
            if Instant::now() > end {
                bail!("PostgreSQL on {} still works for pgbench, which has ended", on.node.name);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        // It may have ended.
        let _ = child.kill();
        let _ = child.wait();
    }
}
