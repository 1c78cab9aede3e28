//! `nasd status --watch` on a terminal of its own, and without one.
#![allow(clippy::unwrap_used)]

use nasd_tests::node::binary;
use nasd_tests::{Node, Pair, eventually, put};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

/// A terminal, with a program on it.
struct Terminal {
    child: Child,
    keyboard: File,
    program_side: OwnedFd,
    /// What is on the screen, and every byte that was written to it.
    screen: Arc<Mutex<(vt100::Parser, Vec<u8>)>>,
}

impl Terminal {
    fn watch(node: &Node, rows: u16, columns: u16) -> Terminal {
        let screen_side = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&screen_side).unwrap();
        unlockpt(&screen_side).unwrap();
        let name = ptsname(&screen_side, Vec::new()).unwrap();
        let program_side = rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        resize(&screen_side, rows, columns);
        let end = || Stdio::from(program_side.try_clone().unwrap());
        // In a session of its own, whose terminal this is.
        let child = Command::new("setsid")
            .arg("--ctty")
            .arg(binary())
            .args(["status", "--watch", "--config"])
            .arg(&node.config)
            .env("TERM", "xterm-256color")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let screen =
            Arc::new(Mutex::new((vt100::Parser::new(not_zero(rows), not_zero(columns), 0), Vec::new())));
        let mut output = File::from(screen_side.try_clone().unwrap());
        let shown = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut buf = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut buf) {
                let mut screen = shown.lock().unwrap();
                screen.0.process(&buf[..n]);
                screen.1.extend_from_slice(&buf[..n]);
            }
        });
        Terminal { child, keyboard: File::from(screen_side), program_side, screen }
    }

    fn text(&self) -> String {
        self.screen.lock().unwrap().0.screen().contents()
    }

    fn wait_for(&self, text: &str) {
        eventually(&format!("the screen shows {text}"), || self.text().contains(text).then_some(()));
    }

    fn resize(&self, rows: u16, columns: u16) {
        self.screen.lock().unwrap().0.screen_mut().set_size(not_zero(rows), not_zero(columns));
        resize(&self.keyboard, rows, columns);
    }

    fn press(&mut self, key: &[u8]) {
        self.keyboard.write_all(key).unwrap();
    }

    /// Waits for the program's end. The terminal must be as it was.
    fn end(&mut self) -> ExitStatus {
        let status = eventually("it ends", || self.child.try_wait().unwrap());
        let modes = tcgetattr(&self.program_side).unwrap().local_modes;
        assert!(modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG), "{modes:?}");
        eventually("the screen is as it was", || {
            let screen = self.screen.lock().unwrap();
            (!screen.0.screen().alternate_screen() && !screen.0.screen().hide_cursor()).then_some(())
        });
        status
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn not_zero(n: u16) -> NonZero<u16> {
    NonZero::new(n).unwrap()
}

fn resize(terminal: impl std::os::fd::AsFd, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}

#[test]
fn a_terminal_shows_the_node_live() {
    let mut pair = Pair::start();
    let mut terminal = Terminal::watch(&pair.a, 30, 120);
    terminal.wait_for("a  primary, in-sync");
    terminal.wait_for("q ends this");
    assert!(terminal.screen.lock().unwrap().0.screen().alternate_screen());
    let drawn = terminal.screen.lock().unwrap().1.len();

    put(pair.a.path("x"), b"x");
    let seq = nasd_tests::seq(&pair.a.status());
    terminal.wait_for(&format!("transaction {seq} of"));
    pair.b.kill();
    terminal.wait_for("a  primary, degraded: goes on without b");
    terminal.wait_for("peer b: lost");
    let later = terminal.screen.lock().unwrap().1[drawn..].to_vec();
    assert!(
        !later.windows(4).any(|w| w == b"\x1b[2J"),
        "what is on the screen is not cleared to be drawn again"
    );

    terminal.resize(12, 60);
    eventually("it fits the smaller screen", || {
        let text = terminal.text();
        let rows: Vec<&str> = text.lines().collect();
        (rows.len() == 12 && rows[11].contains("q ends this") && rows[0].contains("a  primary")).then_some(())
    });

    pair.a.stop();
    terminal.wait_for("no nasd answers here");
    terminal.press(b"q");
    assert!(terminal.end().success());
}

#[test]
fn the_terminal_is_given_back_however_it_ends() {
    let pair = Pair::start();
    for way in ["Ctrl-C", "SIGTERM", "SIGHUP"] {
        let mut terminal = Terminal::watch(&pair.b, 24, 80);
        terminal.wait_for("b  secondary, in-sync");
        let signal = match way {
            "Ctrl-C" => None,
            "SIGTERM" => Some(Signal::TERM),
            _ => Some(Signal::HUP),
        };
        match signal {
            None => terminal.press(b"\x03"),
            Some(signal) => {
                kill_process(Pid::from_raw(terminal.child.id() as i32).unwrap(), signal).unwrap();
            }
        }
        assert!(terminal.end().success(), "{way}");
    }
}

#[test]
fn what_is_no_terminal_gets_text_again_and_again() {
    let pair = Pair::start();
    for json in [false, true] {
        let mut command = Command::new(binary());
        command.args(["status", "--watch", "--config"]).arg(&pair.a.config).stdout(Stdio::piped());
        if json {
            command.arg("--json");
        }
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        for _ in 0..2 {
            let line = lines.find(|l| l.contains("in-sync")).unwrap();
            assert!(!line.contains('\x1b'), "{line}");
            if json {
                let status: serde_json::Value = serde_json::from_str(&line).unwrap();
                assert_eq!(status["name"], "a");
            }
        }
        // Whoever reads has seen enough.
        drop(lines);
        let status = eventually("it ends", || child.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }
}
