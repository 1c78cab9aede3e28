//! A client in a process of its own, with one file open at a time.

use super::script;
use crate::eventually;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

/// What a client was told instead of what it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The error number; 0 if the client's library has none for it.
    pub errno: i32,
    /// What the library says.
    pub text: String,
}

/// It is told what to do, and answers when the server has answered it.
#[derive(Debug)]
pub struct Client {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Client {
    pub(super) fn start(netns: &str, python: &Path, args: &[&str]) -> Client {
        let mut child = crate::lab::enter(netns, python)
            .arg(script("client.py"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Client { child, answers }
    }

    /// Asks, and does not wait for the answer.
    pub fn send(&mut self, request: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{request}").unwrap();
    }

    /// Whether there is an answer within that time.
    pub fn is_answered(&self, within: Duration) -> bool {
        let limit = Timespec::try_from(within).unwrap();
        let fd = PollFd::new(self.answers.get_ref(), PollFlags::IN);
        rustix::event::poll(&mut [fd], Some(&limit)).unwrap() > 0
    }

    /// Waits for the answer to what was sent.
    pub fn answer(&mut self) -> Result<Vec<u8>, Refusal> {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let line = line.trim_end();
        if let Some(hex) = line.strip_prefix("ok") {
            let hex = hex.trim_start();
            let byte = |i: usize| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
            return Ok((0..hex.len()).step_by(2).map(byte).collect());
        }
        let told = line.strip_prefix("error ").unwrap_or_else(|| panic!("the client said: {line:?}"));
        let (errno, text) = told.split_once(' ').unwrap_or((told, ""));
        Err(Refusal { errno: errno.parse().unwrap(), text: text.to_owned() })
    }

    /// Asks and waits.
    pub fn ask(&mut self, request: &str) -> Result<Vec<u8>, Refusal> {
        self.send(request);
        self.answer()
    }

    /// Asks for what must be done.
    pub fn must(&mut self, request: &str) -> Vec<u8> {
        let answer = self.ask(request);
        let shown = &request[..request.len().min(80)];
        answer.unwrap_or_else(|refusal| panic!("{shown}: {refusal:?}"))
    }

    /// Waits until its server serves.
    #[must_use]
    pub fn connect(mut self) -> Client {
        eventually("the share is served", || self.ask("size /").ok());
        self
    }

    /// Writes to the open file.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        let mut request = format!("write {offset} ");
        for byte in data {
            write!(request, "{byte:02x}").unwrap();
        }
        self.must(&request);
    }

    /// The size of a file.
    pub fn size(&mut self, name: &str) -> u64 {
        let answer = self.must(&format!("size {name}"));
        u64::from_be_bytes(answer.try_into().unwrap())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
