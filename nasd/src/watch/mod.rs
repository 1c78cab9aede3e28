//! `nasd status --watch`: a node's state, live.
//!
//! On a terminal it is a view of its own, drawn in place; elsewhere the same text as without `--watch`, again and again.

mod history;
mod view;

use crate::status::Status;
use crate::{client, signals};
use anyhow::{Context, Result};
use history::{Happened, History};
use hyper::Method;
use nasd_watcher::event::Kind;
use ratatui::crossterm::event::{self, Event as Input, KeyCode, KeyEventKind, KeyModifiers};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// How often the node is asked.
const EVERY: Duration = Duration::from_secs(1);
/// A node that is busy may need so long for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// So many events fill the largest terminal.
const EVENTS: usize = 100;
/// How soon a key or a new size of the terminal is seen.
const SOON: Duration = Duration::from_millis(100);

/// One look at the node.
type Look = Result<(Status, Vec<Happened>), String>;

/// Shows the node behind `socket` until the user has seen enough.
pub fn run(socket: &Path, json: bool) -> Result<()> {
    if json || !io::stdout().is_terminal() {
        return repeat(socket, json);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    // A signal must not leave the terminal as it is while this runs.
    signals::at_first(signals::IN_A_TERMINAL, move |_| asked.store(true, Ordering::SeqCst))?;
    let (tx, looks) = mpsc::channel();
    let from = socket.to_owned();
    // It may hang with a node that hangs, and ends with this process.
    thread::spawn(move || look_again_and_again(&from, &tx));
    let mut terminal = ratatui::try_init().context("the terminal can't be taken over")?;
    let shown = show(&mut terminal, &looks, &stop);
    ratatui::restore();
    shown
}

fn repeat(socket: &Path, json: bool) -> Result<()> {
    loop {
        let text = if json {
            status::<Value>(socket).map(|value| value.to_string())
        } else {
            status::<Status>(socket).map(|status| status.text())
        };
        let text = text.unwrap_or_else(|e| format!("{e:#}"));
        match writeln!(io::stdout(), "{text}") {
            // Whoever read it has seen enough.
            Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
        thread::sleep(EVERY);
    }
}

fn show(terminal: &mut ratatui::DefaultTerminal, looks: &Receiver<Look>, stop: &AtomicBool) -> Result<()> {
    let mut history = History::default();
    while !stop.load(Ordering::SeqCst) {
        while let Ok(look) = looks.try_recv() {
            history.note(Instant::now(), look);
        }
        // Only what has changed is written, and a new size is taken.
        terminal.draw(|frame| view::draw(frame, &history))?;
        if event::poll(SOON)? && is_enough(&event::read()?) {
            break;
        }
    }
    Ok(())
}

fn is_enough(input: &Input) -> bool {
    let Input::Key(key) = input else { return false };
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && match key.code {
            KeyCode::Char('q') | KeyCode::Esc => true,
            KeyCode::Char('c') => control,
            _ => false,
        }
}

fn look_again_and_again(socket: &Path, to: &Sender<Look>) {
    loop {
        let look = look(socket).map_err(|e| format!("{e:#}"));
        if to.send(look).is_err() {
            return;
        }
        thread::sleep(EVERY);
    }
}

fn status<T: DeserializeOwned>(socket: &Path) -> Result<T> {
    client::call(socket, Method::GET, "/v1/status", PATIENCE)
}

fn look(socket: &Path) -> Result<(Status, Vec<Happened>)> {
    let status = status(socket)?;
    let states: String = Kind::STATES.iter().map(|kind| format!("&state={}", kind.name())).collect();
    let path = format!("/v1/events?limit={EVENTS}{states}");
    Ok((status, client::call(socket, Method::GET, &path, PATIENCE)?))
}
