//! A connection: a `psql` that is fed statement by statement.
//!
//! After each statement it is told to echo a word. With `ON_ERROR_STOP` it does so only when the statement has
//! succeeded, and outside of a transaction block that is: when it is committed.

use crate::demo::stage::{Stage, one_line};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// What no answer here looks like.
const DONE: &str = "--done--";

/// The running program.
pub struct Psql {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Psql {
    /// Whether it gets a connection the first statement will say.
    pub fn start(stage: &Stage, mut command: Command) -> Result<Psql> {
        command
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres"])
            .env("PGCONNECT_TIMEOUT", "5")
            // A notice is nothing that anybody reads.
            .env("PGOPTIONS", "-c client_min_messages=warning")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = stage.spawn(&mut command)?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let input = input.context("psql has no standard input")?;
        let output = BufReader::new(output.context("psql has no standard output")?);
        Ok(Psql { child, input, output })
    }

    /// Runs a statement and gives the lines of its answer, when it has succeeded.
    pub fn run(&mut self, statement: &str) -> Result<Vec<String>> {
        let asked = self.input.write_all(format!("{statement};\n\\echo {DONE}\n").as_bytes());
        let mut lines = Vec::new();
        // Where it could not be asked, what it has said about that is the error.
        while asked.is_ok() {
            let mut line = String::new();
            if self.output.read_line(&mut line).unwrap_or(0) == 0 {
                break;
            }
            match line.trim_end_matches('\n') {
                DONE => return Ok(lines),
                line => lines.push(line.to_owned()),
            }
        }
        bail!("{}", self.last_words())
    }

    /// The first line of the answer.
    pub fn value(&mut self, query: &str) -> Result<String> {
        self.run(query)?.into_iter().next().with_context(|| format!("{query}: nothing is the answer"))
    }

    /// It has closed its output: it is at its end.
    fn last_words(&mut self) -> String {
        let mut said = Vec::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            // What can't be read is not told.
            let _ = stderr.read_to_end(&mut said);
        }
        match one_line(&String::from_utf8_lossy(&said)) {
            said if said.is_empty() => "psql has ended without a word".to_owned(),
            said => said,
        }
    }
}

impl Drop for Psql {
    fn drop(&mut self) {
        // It has nothing under way that anybody waits for, or has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
