//! The primary's side of replication: the table of who has what, and what waits for it. A thread for each peer, [`session`],
//! brings it what it lacks.
//!
//! Who must have a transaction before it is acknowledged is *the set*. A peer enters it when it has everything and
//! leaves it when it is lost and a commit cannot wait. Invariants, in the order in which they are kept:
//!
//! * in: the table says so first (from now on commits wait for the peer), then the peer catches up with all that was
//!   acknowledged without it, then the peer writes down that it may be promoted, then the state file forgets that it
//!   was out;
//! * out: the state file says so first, then the table, then commits are acknowledged without it.

mod session;

pub use session::SessionError;

use crate::bell::Bell;
use crate::decide::{self, Standing, Verdict};
use crate::events::{Events, Kind};
use crate::failover::machine::PeerView;
use crate::link::Link;
use crate::node::Node;
use crate::protocol::{self, Ack, Message, ProtocolError, kind};
use crate::txn_stream::Packer;
use crate::vote::record::Record;
use nasd_config::{CommitMode, OnPeerLoss};
use nasd_volume::histogram::Histogram;
use nasd_volume::txn::Txn;
use nasd_volume::{FsError, Position, Replicator, Volume};
use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Unacknowledged bytes that a commit's own thread may put on the wire: what a socket takes without waiting for long.
const SHIP_WINDOW: u64 = 4 << 20;
/// Unacknowledged bytes in all.
const WINDOW: u64 = 64 << 20;
/// In mode `async` a peer gets what was committed at most this often, all of it at once: nobody waits for it, and each time
/// costs it a flush of its disk.
const ASYNC_PACE: Duration = Duration::from_millis(5);

/// What a peer is at, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerState {
    /// Not reached yet.
    Connecting,
    /// It gets everything.
    FullCopy,
    /// It is compared and gets what differs.
    Resync,
    /// It gets what it lacks from the log.
    CatchUp,
    /// It has everything that was acknowledged.
    InSync,
    /// It was reached and is not any more, or it can't follow.
    Lost,
}

/// What is known of a peer.
#[derive(Debug, Clone)]
pub struct Row {
    pub name: String,
    pub state: PeerState,
    pub reason: String,
    /// A commit waits for it.
    pub in_set: bool,
    pub ack: Ack,
    pub round_trip_us: u64,
    pub heard: Option<Instant>,
    /// It had everything that was acknowledged when commits began to wait for it, and has written down that they do.
    pub caught_up: bool,
    /// It must leave the set, and the third vote has to say so first.
    pub leaving: bool,
    /// It may be promoted, and everybody who has to know does.
    pub promotable: bool,
    /// The record is being written without it: nothing is acknowledged because it has it.
    pub excluding: bool,
    /// Files and bytes of a copy under way.
    pub copied_bytes: u64,
    /// The number of the last instruction that it told its consumers.
    pub notified: u64,
    /// The version of the protocol that both speak.
    pub version: u32,
}

impl Row {
    /// Whether there is a link to it.
    pub fn is_connected(&self) -> bool {
        !matches!(self.state, PeerState::Lost | PeerState::Connecting)
    }
}

#[derive(Debug)]
struct Table {
    rows: Vec<Row>,
    /// This term is over: nothing more is acknowledged.
    over: bool,
    /// Everything up to here may have been acknowledged.
    acknowledged: u64,
    /// Somebody needs what is pending sealed, and the leader may be waiting for that very peer.
    seal_wanted: bool,
}

/// A transaction that is on its way.
#[derive(Debug)]
struct Unacked {
    seq: u64,
    bytes: u64,
    sent: Instant,
}

/// Where the time goes from sending a transaction to a peer until it is known to be on its disk.
#[derive(Debug, Default)]
pub struct Journey {
    /// The network, both ways.
    pub wire: Histogram,
    /// The peer's write and `fdatasync`, as it says.
    pub peer: Histogram,
}

/// What is on its way to a peer.
#[derive(Debug, Default)]
struct Sending {
    link: Option<Arc<Link>>,
    /// The stream on this link.
    packer: Option<Packer>,
    /// The number to send next.
    next: u64,
    unacked: VecDeque<Unacked>,
    unacked_bytes: u64,
    /// When the last batch began; of interest in mode `async`.
    began: Option<Instant>,
}

impl Journey {
    fn note(&self, all: Duration, peer: Duration) {
        let peer = peer.min(all);
        self.peer.record(peer);
        self.wire.record(all.saturating_sub(peer));
    }
}

impl Sending {
    fn pause(&self) -> Duration {
        self.began.map_or(Duration::ZERO, |began| ASYNC_PACE.saturating_sub(began.elapsed()))
    }

    fn send(&mut self, link: &Link, txn: &Txn) -> Result<(), String> {
        let packer = match &mut self.packer {
            Some(packer) => packer,
            none => none.insert(Packer::new().map_err(|e| e.to_string())?),
        };
        let body = packer.pack(txn).map_err(|e| e.to_string())?;
        link.send(kind::STREAM, &[body]).map_err(|e| e.to_string())
    }
}

/// The peers of a primary, for one term of office.
pub struct Peers {
    table: Mutex<Table>,
    changed: Condvar,
    sending: Vec<Mutex<Sending>>,
    journeys: Vec<Journey>,
    mode: CommitMode,
    on_loss: OnPeerLoss,
    required: usize,
    /// On a secondary: the way from the primary to here. What it feeds them they have from the primary at second hand: nobody
    /// is in the set, nothing is acknowledged.
    via: Option<Vec<String>>,
    /// There is a third vote: nobody leaves the set before it says so, or counts as promotable before. Rung when there is
    /// something for it.
    voted: Option<Bell>,
    events: Arc<Events>,
    /// Serialises entering and leaving the set with what the state file says of it.
    membership: Mutex<()>,
    stop: AtomicBool,
    /// How many instructions to tell were sent.
    instructions: AtomicU64,
    /// Until then a commit waits also for a peer that has not joined yet but may: after a start or a switchover it is
    /// mostly a matter of milliseconds.
    grace: Instant,
    /// So many commits wait for a peer now.
    waiting: AtomicUsize,
}

impl Peers {
    /// The peers at the beginning of a term: none is in the set. For `grace` commits wait for those that are on their
    /// way into it.
    pub fn new(node: &Node, grace: Duration) -> Arc<Peers> {
        Peers::with(node, grace, None)
    }

    /// Those that this secondary feeds; `via` is the way from the primary to here, this node last.
    pub fn fed(node: &Node, via: Vec<String>) -> Arc<Peers> {
        Peers::with(node, Duration::ZERO, Some(via))
    }

    fn with(node: &Node, grace: Duration, via: Option<Vec<String>>) -> Arc<Peers> {
        let config = &node.config;
        let row = |p: &nasd_config::Peer| Row {
            name: p.name.clone(),
            state: PeerState::Connecting,
            reason: String::new(),
            in_set: false,
            ack: Ack::default(),
            round_trip_us: 0,
            heard: None,
            caught_up: false,
            leaving: false,
            promotable: false,
            excluding: false,
            copied_bytes: 0,
            notified: 0,
            version: protocol::spoken(),
        };
        Arc::new(Peers {
            table: Mutex::new(Table {
                rows: config.peers.iter().map(row).collect(),
                over: false,
                acknowledged: 0,
                seal_wanted: false,
            }),
            changed: Condvar::new(),
            sending: config.peers.iter().map(|_| Mutex::default()).collect(),
            journeys: config.peers.iter().map(|_| Journey::default()).collect(),
            mode: config.replication.commit,
            on_loss: config.replication.on_peer_loss,
            required: config.replication.required,
            via,
            voted: node.failover.votes().is_some().then(|| node.failover.bell()),
            events: Arc::clone(&node.events),
            membership: Mutex::new(()),
            stop: AtomicBool::new(false),
            instructions: AtomicU64::new(0),
            grace: Instant::now() + grace,
            waiting: AtomicUsize::new(0),
        })
    }

    /// Starts a thread for each peer.
    pub fn start(self: &Arc<Self>, node: &Arc<Node>) {
        for i in 0..self.sending.len() {
            let (peers, node) = (Arc::clone(self), Arc::clone(node));
            let name = format!("peer-{}", node.config.peers[i].name);
            let spawned = std::thread::Builder::new().name(name).spawn(move || peers.run(i, &node));
            if let Err(e) = spawned {
                nasd_volume::fatal::stop(&format!("no thread for a peer: {e}; raise the limit on processes"));
            }
        }
    }

    /// Ends the term: whoever waits for an acknowledgement is told that there will be none.
    pub fn end(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.table.lock().over = true;
        self.changed.notify_all();
        for s in &self.sending {
            if let Some(link) = s.lock().link.take() {
                link.shutdown();
            }
        }
    }

    /// Whether a commit waits for a peer now.
    pub fn waited_for(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// How long transactions were on their way, for each of the rows.
    pub fn journeys(&self) -> &[Journey] {
        &self.journeys
    }

    /// What is known of the peers.
    pub fn rows(&self) -> Vec<Row> {
        self.table.lock().rows.clone()
    }

    /// Waits until `done` of the rows or the time is up; says which.
    pub fn wait_rows(&self, timeout: Duration, mut done: impl FnMut(&[Row]) -> bool) -> bool {
        let end = Instant::now() + timeout;
        let mut t = self.table.lock();
        while !done(&t.rows) {
            if t.over || self.changed.wait_until(&mut t, end).timed_out() {
                return done(&t.rows);
            }
        }
        true
    }

    fn row<T>(&self, i: usize, f: impl FnOnce(&mut Row) -> T) -> T {
        let r = f(&mut self.table.lock().rows[i]);
        self.changed.notify_all();
        r
    }

    fn set_state(&self, i: usize, state: PeerState, reason: &str) {
        let changed = self.row(i, |r| {
            let changed = r.state != state || (state == PeerState::Lost && r.reason != reason);
            let before = std::mem::replace(&mut r.state, state);
            reason.clone_into(&mut r.reason);
            changed.then(|| (r.name.clone(), before))
        });
        if let Some((name, before)) = changed {
            let [old, new] = [before, state].map(|s| serde_json::to_string(&s).unwrap_or_default());
            let [old, new] = [&old, &new].map(|word| word.trim_matches('"'));
            let colon = if reason.is_empty() { "" } else { ": " };
            self.events.emit_change(Kind::Sync, old, new, format!("peer {name}: {new}{colon}{reason}"));
        }
    }

    /// Takes a peer out of the set, or has the third vote asked to; says whether it is out. If so that is durable.
    fn exclude(&self, volume: &Volume, i: usize) -> bool {
        let in_set = self.row(i, |r| r.in_set);
        if let (Some(bell), true) = (&self.voted, in_set) {
            if !self.row(i, |r| std::mem::replace(&mut r.leaving, true)) {
                bell.ring();
            }
            return false;
        }
        self.exclude_now(volume, i);
        true
    }

    /// Takes a peer out of the set; durable when it returns. Where there is a third vote it has said so before.
    pub fn exclude_now(&self, volume: &Volume, i: usize) {
        let _one = self.membership.lock();
        let name = self.table.lock().rows[i].name.clone();
        if let Err(e) = volume.state.update(|s| {
            s.out_of_set.insert(name.clone());
        }) {
            // Going on would acknowledge transactions that a promoted peer does not have, without anybody knowing.
            nasd_volume::fatal::stop(&e.to_string());
        }
        let was_in = self.row(i, |r| {
            r.caught_up = false;
            r.leaving = false;
            r.promotable = false;
            r.excluding = false;
            std::mem::replace(&mut r.in_set, false)
        });
        if was_in {
            let text = format!("going on without {name}: it must not be promoted");
            self.events.emit_change(Kind::Sync, "in set", "out of set", text);
        }
    }

    /// The record is about to be written as `next`, without peer `i`: from now on nothing is acknowledged because that has
    /// it. Says whether it may be: what was acknowledged must be on the others. Once begun only [`Peers::exclude_now`] ends
    /// it: a request whose answer is lost may still take effect.
    pub fn begin_to_exclude(&self, i: usize, next: &Record) -> bool {
        let mut t = self.table.lock();
        let has = |r: &Row| next.in_sync.contains(&r.name).then(|| self.satisfied(r, t.acknowledged));
        let rest: Vec<bool> = t.rows.iter().filter_map(has).collect();
        let may = decide::may_leave(&rest, self.required);
        t.rows[i].excluding |= may;
        may
    }

    /// The number of the peer of this name.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.table.lock().rows.iter().position(|r| r.name == name)
    }

    /// The peers, as the state machine of failover sees them.
    pub fn views(&self) -> Vec<PeerView> {
        let t = self.table.lock();
        let view = |r: &Row| PeerView {
            name: r.name.clone(),
            counted: r.in_set,
            caught_up: r.caught_up,
            has_all: self.satisfied(r, t.acknowledged),
            lost: r.leaving || r.excluding || !r.is_connected(),
        };
        t.rows.iter().map(view).collect()
    }

    fn satisfied(&self, row: &Row, seq: u64) -> bool {
        let has = match self.mode {
            CommitMode::Async => return true,
            CommitMode::Receive => row.ack.received,
            CommitMode::Durable => row.ack.durable,
            CommitMode::Apply => row.ack.applied,
        };
        has >= seq
    }

    /// How long until the next batch may be sent. What is committed until then the peer's thread sends; it sleeps no longer.
    fn pause(&self, i: usize) -> Duration {
        if self.mode != CommitMode::Async {
            return Duration::ZERO;
        }
        self.sending[i].lock().pause()
    }

    /// Sends `txn` on the commit's own thread, if it is the one that the peer is to get next and a socket takes it without
    /// waiting for long.
    fn push_now(&self, i: usize, txn: &Txn) {
        if self.pause(i).is_zero() {
            self.push(i, txn, SHIP_WINDOW);
        }
    }

    /// Sends `txn` if it is the one that the peer is to get next and `window` allows.
    fn push(&self, i: usize, txn: &Txn, window: u64) -> bool {
        let mut s = self.sending[i].lock();
        let len = txn.bytes().len() as u64;
        if s.next != txn.header.position.seq || s.unacked_bytes > 0 && s.unacked_bytes + len > window {
            return false;
        }
        let Some(link) = s.link.clone() else {
            return false;
        };
        if let Err(e) = s.send(&link, txn) {
            tracing::debug!("sending: {e}");
            // The peer's own thread finds the link dead.
            link.shutdown();
            s.link = None;
            return false;
        }
        if s.pause().is_zero() {
            s.began = Some(Instant::now());
        }
        s.next += 1;
        s.unacked.push_back(Unacked { seq: txn.header.position.seq, bytes: len, sent: Instant::now() });
        s.unacked_bytes += len;
        true
    }

    /// Sends what the log has and the peer has not, as far as the window allows. Returns whether all is sent.
    pub fn pump(&self, i: usize, volume: &Volume) -> Result<bool, nasd_volume::log::LogError> {
        if !self.pause(i).is_zero() {
            return Ok(self.sent(i) > volume.log.tail().seq);
        }
        loop {
            let next = {
                let s = self.sending[i].lock();
                if s.link.is_none() || s.unacked_bytes >= WINDOW {
                    return Ok(false);
                }
                s.next
            };
            if next > volume.log.tail().seq {
                return Ok(true);
            }
            let txn = volume.log.read(next)?;
            self.push(i, &txn, WINDOW);
        }
    }

    pub fn note_ack(&self, i: usize, ack: Ack) {
        {
            let mut s = self.sending[i].lock();
            while s.unacked.front().is_some_and(|first| first.seq <= ack.durable)
                && let Some(first) = s.unacked.pop_front()
            {
                s.unacked_bytes -= first.bytes;
                // What the peer says of its disk is about this one.
                if first.seq == ack.durable {
                    self.journeys[i].note(first.sent.elapsed(), Duration::from_micros(ack.fsync_us.into()));
                }
            }
        }
        let mut t = self.table.lock();
        let row = &mut t.rows[i];
        row.ack = row.ack.and(ack);
        row.heard = Some(Instant::now());
        drop(t);
        self.changed.notify_all();
    }

    /// Begins to send over `link`, from `next` on.
    pub fn start_sending(&self, i: usize, link: &Arc<Link>, next: u64) {
        *self.sending[i].lock() = Sending { link: Some(Arc::clone(link)), next, ..Sending::default() };
        self.row(i, |r| {
            r.ack = Ack {
                received: next - 1,
                durable: next - 1,
                applied: r.ack.applied.min(next - 1),
                fsync_us: 0,
            };
            r.heard = Some(Instant::now());
        });
    }

    /// The number that is sent next.
    pub fn sent(&self, i: usize) -> u64 {
        self.sending[i].lock().next
    }

    pub fn copied(&self, i: usize, bytes: u64) {
        self.row(i, |r| r.copied_bytes += bytes);
    }

    /// A whole transaction that holds everything written before the call. Works also while a commit waits for the very
    /// peer that asks.
    pub fn seal_point(&self, volume: &Arc<Volume>) -> Result<Position, FsError> {
        if self.via.is_some() {
            // What is in data/ is at or before that.
            return Ok(volume.whole_tail());
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let before = volume.seals();
            self.table.lock().seal_wanted = true;
            self.changed.notify_all();
            let v = Arc::clone(volume);
            std::thread::spawn(move || v.seal());
            while volume.seals() == before {
                if self.stop.load(Ordering::SeqCst) || Instant::now() > deadline {
                    return Err(FsError::Stopped);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            let tail = volume.log.tail();
            if volume.log.entry(tail.seq).is_none_or(|e| !e.continues) {
                return Ok(tail);
            }
        }
    }

    /// Returns when `data/` holds everything up to `seq`: at once on a primary, where it is there before the log has it.
    pub fn wait_data(&self, volume: &Volume, seq: u64) -> Result<(), SessionError> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.via.is_some() && volume.applied().seq < seq {
            if self.stopped() || Instant::now() > deadline {
                return Err(SessionError::Seal(FsError::Stopped));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// The peer may be promoted from now on: everybody who has to know does.
    pub fn joined(&self, i: usize, volume: &Volume) -> Result<(), SessionError> {
        let one = self.membership.lock();
        let (name, there) = self.row(i, |r| (r.name.clone(), r.caught_up));
        if there {
            self.row(i, |r| r.promotable = true);
            volume.state.update(|s| {
                s.out_of_set.remove(&name);
            })?;
            drop(one);
            self.set_state(i, PeerState::InSync, "");
        }
        Ok(())
    }

    /// Waits until the peer has applied `seq`. It is asked: by itself it says so only now and then.
    pub fn wait_applied(&self, node: &Node, i: usize, seq: u64, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        loop {
            if self.wait_rows(Duration::from_millis(2), |r| r[i].ack.applied >= seq) {
                return true;
            }
            let link = self.sending[i].lock().link.clone();
            let asked = link.map(|link| protocol::say(&link, &Message::Ping(node.micros())));
            if !matches!(asked, Some(Ok(()))) || Instant::now() > end {
                return false;
            }
        }
    }

    /// Asks the peer to become primary, over the link that carries its transactions.
    pub fn ask_promote(&self, i: usize, epoch: u64) -> Result<(), ProtocolError> {
        let link = self.sending[i].lock().link.clone();
        match link {
            Some(link) => protocol::say(&link, &Message::Promote { epoch }),
            None => Err(ProtocolError::Unexpected {
                peer: self.table.lock().rows[i].name.clone(),
                got: "nothing".to_owned(),
                want: "a link",
            }),
        }
    }

    /// Sends each peer an instruction to tell its consumers; returns its number.
    pub fn ask_notify(&self, seq: u64, text: &str) -> u64 {
        let id = self.instructions.fetch_add(1, Ordering::SeqCst) + 1;
        let message = Message::Notify { id, seq, text: text.to_owned() };
        let versions: Vec<u32> = self.table.lock().rows.iter().map(|r| r.version).collect();
        let able = self.sending.iter().zip(versions).filter(|(_, version)| *version >= protocol::NOTIFY);
        for (sending, _) in able {
            let link = sending.lock().link.clone();
            if let Some(Err(e)) = link.map(|link| protocol::say(&link, &message)) {
                // The peer's own thread finds the link dead.
                tracing::debug!("notifying: {e}");
            }
        }
        id
    }
}

/// How often two nodes say that they are there.
pub fn beat(peer_timeout: Duration) -> Duration {
    (peer_timeout / 4).clamp(Duration::from_millis(25), Duration::from_secs(1))
}

impl Replicator for Peers {
    fn ship(&self, txn: &Arc<Txn>) {
        for i in 0..self.sending.len() {
            self.push_now(i, txn);
        }
    }

    fn logged(&self, volume: &Volume, seq: u64) {
        // The peer's own thread may have looked just before it was in the log, and sleep.
        for i in 0..self.sending.len() {
            if self.sent(i) == seq
                && let Ok(txn) = volume.log.read(seq)
            {
                self.push_now(i, &txn);
            }
        }
    }

    fn wait(&self, volume: &Volume, seq: u64) -> Result<(), FsError> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let result = self.wait_for_peers(volume, seq);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        result
    }
}

impl Peers {
    fn wait_for_peers(&self, volume: &Volume, mut seq: u64) -> Result<(), FsError> {
        let mut t = self.table.lock();
        loop {
            if t.over {
                return Err(FsError::Stopped);
            }
            if t.seal_wanted {
                t.seal_wanted = false;
                drop(t);
                // Those who wait for what is sealed here are answered after this wait: it goes on until the peers have
                // that, too.
                if volume.seal_local(false)? {
                    seq = volume.log.tail().seq;
                }
                t = self.table.lock();
                continue;
            }
            if self.mode == CommitMode::Async {
                return Ok(());
            }
            let grace = Instant::now() < self.grace;
            let standing = |r: &Row| Standing {
                in_set: r.in_set,
                counts: r.promotable,
                has: self.satisfied(r, seq) && !r.excluding,
                lost: !r.is_connected(),
                may_join: matches!(r.state, PeerState::Connecting | PeerState::CatchUp),
            };
            let standings: Vec<Standing> = t.rows.iter().map(standing).collect();
            let suspend = self.on_loss == OnPeerLoss::Suspend;
            match decide::verdict(&standings, self.required, suspend, grace) {
                Verdict::Acknowledge => {
                    t.acknowledged = t.acknowledged.max(seq);
                    return Ok(());
                }
                Verdict::Wait => {}
                Verdict::Leave(i) => {
                    drop(t);
                    let out = self.exclude(volume, i);
                    t = self.table.lock();
                    if out || !t.rows[i].in_set {
                        continue;
                    }
                }
            }
            if grace {
                self.changed.wait_until(&mut t, self.grace);
            } else {
                self.changed.wait(&mut t);
            }
        }
    }
}
