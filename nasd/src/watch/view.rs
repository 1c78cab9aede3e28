//! What `nasd status --watch` shows: lines, the most important ones first, and events in what is left of the screen.

use super::history::{Happened, History};
use crate::progress::size;
use crate::status::{Latency, PeerStatus, Status};
use ratatui::Frame;
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;
use std::collections::{BTreeMap, VecDeque};

/// Values of a curve that are shown.
const CURVE: usize = 40;
/// Characters of a bar.
const BAR: u64 = 30;
const LABEL: usize = 12;

/// Draws all of it.
pub fn draw(frame: &mut Frame, history: &History) {
    let area = frame.area();
    frame.render_widget(Paragraph::new(lines(history, usize::from(area.height))), area);
}

fn lines(history: &History, height: usize) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if let Some(s) = &history.status {
        node(s, &mut lines);
        pace(s, &history.rates, &mut lines);
        for peer in &s.peers {
            let lags = history.lags.get(&peer.name);
            lines.push(self::peer(peer, lags));
        }
        for work in &s.progress {
            lines.push(row("progress", vec![work.line().into()]));
            if let Some(total) = work.total.filter(|t| *t > 0) {
                let filled = (u128::from(work.done) * u128::from(BAR) / u128::from(total)) as usize;
                let bar = format!("{}{}", "█".repeat(filled), "░".repeat(BAR as usize - filled));
                lines.push(row("", vec![bar.cyan()]));
            }
        }
    }
    let end = match &history.trouble {
        Some(why) => why.clone().red(),
        None if history.status.is_none() => "asking the node …".into(),
        None => "q ends this".dim(),
    };
    let events = history.events.iter().rev();
    // A line between them and the rest, and one below.
    let mut shown: Vec<_> = events.take(height.saturating_sub(lines.len() + 2)).map(event).collect();
    if !shown.is_empty() {
        lines.push(Line::default());
        shown.reverse();
        lines.append(&mut shown);
    }
    lines.truncate(height.saturating_sub(1));
    lines.push(Line::from(end));
    lines
}

fn node(s: &Status, lines: &mut Vec<Line<'static>>) {
    let state = Span::styled(s.state.clone(), of_state(&s.state).add_modifier(Modifier::BOLD));
    let detail = if s.detail.is_empty() { String::new() } else { format!(": {}", s.detail) };
    let name = s.name.clone().bold();
    lines.push(Line::from(vec![name, format!("  {}, ", s.role).into(), state, detail.into()]));
    let time = s.timestamp.as_deref().unwrap_or("-");
    lines.push(text("position", format!("epoch {}, transaction {} of {time}", s.epoch, s.seq)));
    let exposed = &s.exposure;
    if s.role == "primary" {
        let what = format!(
            "{} transactions, {}, {:.1} s",
            exposed.transactions,
            size(exposed.bytes),
            exposed.seconds
        );
        let style = if exposed.transactions > 0 { Style::from(Color::Yellow) } else { Style::default() };
        lines.push(row("exposure", vec![Span::styled(what, style)]));
    } else if let Some(primary) = &s.following {
        lines.push(text("following", format!("{primary}, applied {}", s.applied_seq)));
    }
    let spare = s.log.spare_files;
    lines.push(text("log", format!("{} files, {}, {spare} spare", s.log.files, size(s.log.bytes))));
    if let Some(d) = &s.postgresql {
        let mut what = vec![d.state.clone().into()];
        if d.held_files > 0 {
            what.push(format!(", {} WAL files held, {}", d.held_files, size(d.held_bytes)).into());
        }
        if let Some(why) = &d.must_clone {
            what.push(format!(", MUST BE CLONED: {why}").red());
        }
        lines.push(row("postgresql", what));
    }
    if s.diverged_files > 0 {
        lines.push(text("diverged", format!("{} transactions set aside", s.diverged_files)));
    }
}

fn pace(s: &Status, rates: &VecDeque<u64>, lines: &mut Vec<Line<'static>>) {
    let now = rates.back().map_or_else(|| "-".to_owned(), ToString::to_string);
    lines.push(row("a second", vec![format!("{now:>6} transactions  ").into(), curve(rates).cyan()]));
    let stages = s.commit_us.iter().flatten();
    let us: BTreeMap<&str, &Latency> = stages.map(|(stage, us)| (stage.as_str(), us)).collect();
    if us.get("total").is_some_and(|us| us.count > 0) {
        let of = |stage| us.get(stage).map_or_else(|| "-".to_owned(), |us| format!("{}/{}", us.p50, us.p99));
        let mode = &s.commit_mode_now;
        lines.push(text(
            "commit",
            format!(
                "{mode}; p50/p99 {} µs, disk {}, peer {} since the start",
                of("total"),
                of("local"),
                of("wait")
            ),
        ));
    }
}

fn peer(p: &PeerStatus, lags: Option<&VecDeque<u64>>) -> Line<'static> {
    let why = if p.reason.is_empty() { String::new() } else { format!(" ({})", p.reason) };
    row(
        "peer",
        vec![
            p.name.clone().bold(),
            " ".into(),
            Span::styled(p.state.clone(), of_state(&p.state)),
            format!(
                "{why}, behind by {}, {:.1} s, round trip {} µs, disk {} µs  ",
                size(p.lag_bytes),
                p.lag_seconds,
                p.round_trip_us,
                p.fdatasync_us
            )
            .into(),
            lags.map(curve).unwrap_or_default().yellow(),
        ],
    )
}

fn event(e: &Happened) -> Line<'static> {
    // The day is known, and a tenth of a second is enough.
    let time: String = e.time.chars().skip(11).take(10).collect();
    Line::from(vec![time.dim(), "  ".into(), e.reason.clone().into()])
}

fn text(label: &str, what: String) -> Line<'static> {
    row(label, vec![what.into()])
}

fn row(label: &str, mut what: Vec<Span<'static>>) -> Line<'static> {
    what.insert(0, format!("{label:<LABEL$} ").dim());
    Line::from(what)
}

fn of_state(word: &str) -> Style {
    match word {
        "in-sync" | "stand-alone" => Color::Green.into(),
        "degraded" | "suspended" | "trouble" | "lost" | "outdated" | "disconnected" => Color::Red.into(),
        _ => Color::Yellow.into(),
    }
}

/// The last values, the greatest of them as high as a line.
fn curve(values: &VecDeque<u64>) -> String {
    const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let shown = || values.iter().skip(values.len().saturating_sub(CURVE));
    let highest = u128::from(shown().copied().max().unwrap_or(0).max(1));
    shown().map(|v| HEIGHTS[(u128::from(*v) * 7).div_ceil(highest) as usize]).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;
    use std::time::Instant;

    /// Of a primary.
    pub fn status() -> Status {
        serde_json::from_value(json!({
            "name": "nas-a", "role": "primary", "state": "in-sync", "detail": "", "volume": null, "epoch": 3,
            "seq": 1000, "timestamp": "2026-01-02T03:04:05Z", "hash": "", "commit_mode": "durable",
            "commit_mode_now": "durable", "applied_seq": 1000, "received_seq": 1000, "durable_seq": 1000, "checkpoint_seq": 900,
            "exposure": { "transactions": 0, "bytes": 0, "seconds": 0.0 },
            "log": { "files": 100, "bytes": 4096, "oldest": null, "spare_files": 7 },
            "peers": [{ "name": "nas-b", "state": "in-sync", "reason": "", "in_set": true, "received_seq": 1000,
                "durable_seq": 1000, "applied_seq": 1000, "lag_transactions": 0, "lag_bytes": 512,
                "lag_seconds": 0.0, "round_trip_us": 90, "fdatasync_us": 80, "copied_bytes": 0 }],
            "following": null, "in_sync": false, "out_of_set": [], "files": 10, "mount": "/srv/nas",
            "diverged_files": 0, "events": {}, "watcher": {},
            "commit_us": { "total": { "count": 5, "p50": 210, "p99": 400, "max": 500 } },
            "failover": crate::failover::FailoverStatus::default(),
            "progress": [{ "what": "full copy to nas-b", "done": 50, "total": 100, "unit": "bytes",
                "bytes_per_second": 10, "seconds_left": 5.0 }],
        }))
        .expect("a status")
    }

    fn screen(width: u16, height: u16, history: &History) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a screen");
        terminal.draw(|frame| draw(frame, history)).expect("drawn");
        terminal.backend().to_string()
    }

    #[test]
    fn the_screen_says_how_the_node_is() {
        let mut history = History::default();
        assert!(screen(80, 24, &history).contains("asking the node"));
        let event = Happened { time: "2026-01-02T03:04:05.678901Z".to_owned(), reason: "started".to_owned() };
        history.note(Instant::now(), Ok((status(), vec![event])));
        let shown = screen(100, 24, &history);
        for wanted in [
            "nas-a  primary, in-sync",
            "epoch 3, transaction 1000 of 2026",
            "100 files, 4.0 KiB, 7 spare",
            "p50/p99 210/400 µs",
            "nas-b in-sync, behind by 512 B",
            "full copy to nas-b: 50 B of 100 B (50 %), 10 B/s, 5s left",
            "███████████████░░░░░░░░░░░░░░░",
            "03:04:05.6  started",
            "q ends this",
        ] {
            assert!(shown.contains(wanted), "{wanted} is not in\n{shown}");
        }
        history.note(Instant::now(), Err("no nasd answers".to_owned()));
        assert!(screen(80, 24, &history).contains("no nasd answers"));
    }

    #[test]
    fn any_screen_is_large_enough() {
        let mut history = History::default();
        let event = Happened { time: "short".to_owned(), reason: "ünïcode\u{1b}[2J".to_owned() };
        history.note(Instant::now(), Ok((status(), vec![event; 50])));
        for (width, height) in [(1, 1), (5, 2), (20, 5), (300, 100)] {
            screen(width, height, &history);
        }
    }

    #[test]
    fn a_curve_reaches_from_nothing_to_its_highest() {
        assert_eq!(curve(&VecDeque::from([0, 1, 50, 100])), "▁▂▅█");
        assert_eq!(curve(&VecDeque::from([0, 0])), "▁▁");
        assert_eq!(curve(&VecDeque::from([u64::MAX; 100])).chars().count(), CURVE);
    }
}
