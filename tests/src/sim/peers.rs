//! The primary's side of replication, as in the product's `peers/`, in its order.

use super::network::{Frame, Link};
use super::node::{Entry, N, NAMES, VOLUME, Want, hear, say};
use super::settings::Bug;
use super::world::{Lock, MS, NEVER, Notify, SECOND, Time, World};
use nasd::decide::{self, Own, Plan, Standing, Verdict};
use nasd::failover::machine::PeerView;
use nasd::protocol::{Ack, Message};
use nasd::vote::record::Record;
use nasd_volume::Position;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

const RETRY: Time = 250 * MS;
const RETRY_REFUSED: Time = SECOND;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerState {
    Connecting,
    Resync,
    CatchUp,
    InSync,
    Lost,
}

#[derive(Debug, Clone)]
pub struct Row {
    pub state: PeerState,
    pub in_set: bool,
    pub ack: Ack,
    pub heard: Option<Time>,
    pub caught_up: bool,
    pub leaving: bool,
    /// It may be promoted, and everybody who has to know does.
    pub promotable: bool,
    /// The record is being written without it: nothing is acknowledged because it has it.
    pub excluding: bool,
}

#[derive(Default)]
struct Sending {
    link: Option<Link>,
    next: u64,
}

/// The peers of a primary, for one term of office.
pub struct Peers {
    pub w: Rc<World>,
    pub others: Vec<usize>,
    rows: RefCell<Vec<Row>>,
    over: Cell<bool>,
    /// Everything up to here may have been acknowledged.
    acknowledged: Cell<u64>,
    seal_wanted: Cell<bool>,
    stop: Cell<bool>,
    changed: Notify,
    sending: Vec<RefCell<Sending>>,
    membership: Lock,
    voted: bool,
    grace: Time,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Joining {
    No,
    Until(u64),
    Told,
}

impl Peers {
    pub fn new(n: &N, grace: Time) -> Rc<Peers> {
        let row = Row {
            state: PeerState::Connecting,
            in_set: false,
            ack: Ack::default(),
            heard: None,
            caught_up: false,
            leaving: false,
            promotable: false,
            excluding: false,
        };
        Rc::new(Peers {
            w: Rc::clone(&n.w),
            others: n.others.clone(),
            rows: RefCell::new(vec![row; n.others.len()]),
            over: Cell::new(false),
            acknowledged: Cell::new(0),
            seal_wanted: Cell::new(false),
            stop: Cell::new(false),
            changed: Notify::default(),
            sending: n.others.iter().map(|_| RefCell::default()).collect(),
            membership: Lock::default(),
            voted: n.voted(),
            grace: n.w.now() + grace,
        })
    }

    pub fn start(self: &Rc<Self>, n: &Rc<N>) {
        for i in 0..self.others.len() {
            let (peers, n) = (Rc::clone(self), Rc::clone(n));
            self.w.spawn(Some(n.me), async move { peers.run(i, &n).await });
        }
    }

    pub fn end(&self) {
        self.stop.set(true);
        self.over.set(true);
        self.w.ring(&self.changed);
        for s in &self.sending {
            if let Some(link) = s.borrow_mut().link.take() {
                link.shutdown(&self.w);
            }
        }
    }

    pub fn rows(&self) -> Vec<Row> {
        self.rows.borrow().clone()
    }

    pub async fn wait_rows(&self, timeout: Time, mut done: impl FnMut(&[Row]) -> bool) -> bool {
        let found = || (done(&self.rows.borrow()) || self.over.get()).then_some(());
        self.w.wait(&self.changed, self.w.now() + timeout, found).await;
        done(&self.rows.borrow())
    }

    fn row<T>(&self, i: usize, f: impl FnOnce(&mut Row) -> T) -> T {
        let r = f(&mut self.rows.borrow_mut()[i]);
        self.w.ring(&self.changed);
        r
    }

    fn set_state(&self, n: &N, i: usize, state: PeerState, why: &str) {
        let was = self.row(i, |r| std::mem::replace(&mut r.state, state));
        if was != state {
            n.say(|| format!("peer {}: {state:?} {why}", NAMES[self.others[i]]));
        }
    }

    async fn exclude(&self, n: &N, i: usize) -> bool {
        let in_set = self.rows.borrow()[i].in_set;
        if self.voted && in_set && !self.w.set.has(Bug::AcknowledgeBeforeRecord) {
            if !self.row(i, |r| std::mem::replace(&mut r.leaving, true)) {
                self.w.ring(&n.bell);
            }
            return false;
        }
        self.exclude_now(n, i).await;
        true
    }

    pub async fn exclude_now(&self, n: &N, i: usize) {
        let _one = self.membership.lock(&self.w).await;
        let name = NAMES[self.others[i]].to_owned();
        n.update(|s| {
            s.out_of_set.insert(name);
        })
        .await;
        let was_in = self.row(i, |r| {
            r.caught_up = false;
            r.leaving = false;
            r.promotable = false;
            r.excluding = false;
            std::mem::replace(&mut r.in_set, false)
        });
        if was_in {
            self.w.checks.count(|c| &c.exclusions);
            n.say(|| format!("goes on without {}", NAMES[self.others[i]]));
        }
    }

    /// The record is about to be written with `rest` only: from now on nothing is acknowledged because peer `i` has it. Says
    /// whether it may be.
    pub fn begin_to_exclude(&self, i: usize, rest: &Record) -> bool {
        if self.w.set.has(Bug::LagsBehind) {
            return true;
        }
        let mut rows = self.rows.borrow_mut();
        let has = |(j, r): (usize, &Row)| {
            rest.in_sync.contains(NAMES[self.others[j]]).then_some(r.ack.durable >= self.acknowledged.get())
        };
        let rest: Vec<bool> = rows.iter().enumerate().filter_map(has).collect();
        let may = decide::may_leave(&rest, self.w.set.required);
        rows[i].excluding |= may;
        may
    }

    pub fn index(&self, name: &str) -> Option<usize> {
        self.others.iter().position(|&o| NAMES[o] == name)
    }

    pub fn views(&self) -> Vec<PeerView> {
        let early = |r: &Row| self.w.set.has(Bug::IncludeBeforeCaughtUp) && r.state == PeerState::CatchUp;
        let view = |(i, r): (usize, &Row)| PeerView {
            name: NAMES[self.others[i]].to_owned(),
            counted: r.in_set,
            caught_up: r.caught_up || early(r),
            has_all: r.ack.durable >= self.acknowledged.get() || early(r) || self.w.set.has(Bug::LagsBehind),
            lost: r.leaving || r.excluding || matches!(r.state, PeerState::Lost | PeerState::Connecting),
        };
        self.rows.borrow().iter().enumerate().map(view).collect()
    }

    // ---- sending ----------------------------------------------------------------------------------------------

    fn push(&self, i: usize, e: &Entry) -> bool {
        let mut s = self.sending[i].borrow_mut();
        if s.next != e.at.seq {
            return false;
        }
        let Some(link) = s.link.clone() else { return false };
        if link.send(&self.w, Frame::Txn(e.clone())).is_err() {
            s.link = None;
            return false;
        }
        s.next += 1;
        true
    }

    pub fn ship(&self, _: &World, e: &Entry) {
        for i in 0..self.sending.len() {
            self.push(i, e);
        }
    }

    pub fn logged(&self, n: &N, seq: u64) {
        for i in 0..self.sending.len() {
            if self.sent(i) == seq
                && let Some(e) = n.read(seq)
            {
                self.push(i, &e);
            }
        }
    }

    fn sent(&self, i: usize) -> u64 {
        self.sending[i].borrow().next
    }

    fn pump(&self, n: &N, i: usize) -> bool {
        loop {
            if self.sending[i].borrow().link.is_none() {
                return false;
            }
            let Some(e) = n.read(self.sent(i)) else { return true };
            self.push(i, &e);
        }
    }

    fn note_ack(&self, i: usize, ack: Ack) {
        let now = self.w.now();
        self.row(i, |r| {
            r.ack = r.ack.and(ack);
            r.heard = Some(now);
        });
    }

    fn start_sending(&self, i: usize, link: &Link, next: u64) {
        *self.sending[i].borrow_mut() = Sending { link: Some(link.clone()), next };
        let now = self.w.now();
        self.row(i, |r| {
            r.ack = Ack {
                received: next - 1,
                durable: next - 1,
                applied: r.ack.applied.min(next - 1),
                fsync_us: 0,
            };
            r.heard = Some(now);
        });
    }

    async fn seal_point(&self, n: &Rc<N>) -> Result<Position, String> {
        let deadline = self.w.now() + 30 * SECOND;
        let before = n.seals.get();
        self.seal_wanted.set(true);
        self.w.ring(&self.changed);
        let other = Rc::clone(n);
        self.w.spawn(Some(n.me), async move {
            other.commit(Want::Seal).await;
        });
        while n.seals.get() == before {
            if self.stop.get() || self.w.now() > deadline {
                return Err("stopped".to_owned());
            }
            self.w.sleep(MS).await;
        }
        Ok(n.tail())
    }

    // ---- a peer's thread --------------------------------------------------------------------------------------

    async fn run(self: Rc<Self>, i: usize, n: &Rc<N>) {
        let mut reached = false;
        while !self.stop.get() {
            let result = self.session(i, n, &mut reached).await;
            if let Some(link) = self.sending[i].borrow_mut().link.take() {
                link.shutdown(&self.w);
            }
            if self.stop.get() {
                return;
            }
            self.row(i, |r| r.caught_up = false);
            let why = result.err().unwrap_or_else(|| "the link ended".to_owned());
            let state = if reached { PeerState::Lost } else { PeerState::Connecting };
            self.set_state(n, i, state, &why);
            if !self.over.get() {
                let rest = if why.starts_with("refused") { RETRY_REFUSED } else { RETRY };
                self.w.wait_ring(&self.changed, self.w.now() + rest).await;
            }
        }
    }

    async fn session(&self, i: usize, n: &Rc<N>, reached: &mut bool) -> Result<(), String> {
        let timeout = self.w.set.peer_timeout;
        let (link, hello) = n.dial(self.others[i], timeout).await?;
        let link = Ended(&self.w, link);
        let link = &link.1;
        *reached = true;
        let state = n.state().await;
        let own = Own {
            volume: VOLUME,
            epoch: n.epoch.get(),
            tail: n.tail(),
            uncompared_epoch: state.uncompared_epoch,
        };
        let known = |seq| n.position(seq).map(|p| p.hash);
        let plan = match decide::plan(&own, &hello, known) {
            Plan::Wait(_) if self.w.set.has(Bug::RewindInFlight) => Plan::FindFork,
            plan => plan,
        };
        let compare = plan == Plan::Copy;
        let fork = match plan {
            Plan::WrongVolume => return Err("another volume".to_owned()),
            Plan::StepDown { epoch } => {
                if !self.w.set.has(Bug::StayInOffice) {
                    n.step_down(epoch, format!("{} is in epoch {epoch}", hello.name));
                }
                return Ok(());
            }
            Plan::Wait(why) => return Err(why),
            Plan::Continue => n.position(hello.tail.seq),
            Plan::Copy if known(hello.tail.seq) == Some(hello.tail.hash) => n.position(hello.tail.seq),
            Plan::Copy | Plan::FindFork => {
                say(n, link, Message::AskPositions)?;
                match hear(n, link).await? {
                    Message::Positions(p) => decide::fork(&p, known).and_then(|(seq, _)| n.position(seq)),
                    m => return Err(format!("{m:?} for positions")),
                }
            }
        };
        say(
            n,
            link,
            Message::Follow {
                epoch: own.epoch,
                fork,
                ack_received: false,
                ack_applied: false,
                via: Vec::new(),
            },
        )?;
        let (tail, needs_copy) = match hear(n, link).await? {
            Message::Following { tail, needs_copy } => (tail, needs_copy || compare || fork.is_none()),
            m => return Err(format!("{m:?} for following")),
        };
        if !self.row(i, |r| r.in_set) {
            say(n, link, Message::InSync(false))?;
        }
        if needs_copy {
            if !self.exclude(n, i).await {
                self.wait_rows(timeout, |rows| !rows[i].in_set).await;
                if self.row(i, |r| r.in_set) {
                    return Err("etcd does not say yet that it is out of the set".to_owned());
                }
            }
            self.set_state(n, i, PeerState::Resync, "");
            self.copy(i, n, link, fork).await?;
        } else {
            self.start_sending(i, link, tail.seq + 1);
        }
        self.set_state(n, i, PeerState::CatchUp, "");
        self.stream(i, n, link).await
    }

    /// As `copy::run`: what is compared is not in this simulation, only what goes with it.
    async fn copy(&self, i: usize, n: &Rc<N>, link: &Link, fork: Option<Position>) -> Result<(), String> {
        self.w.checks.count(|c| &c.copies);
        let timeout = self.w.set.peer_timeout;
        let base = match fork {
            Some(fork) => fork,
            None => self.seal_point(n).await?,
        };
        say(n, link, Message::CopyBegin { volume: VOLUME, base, timestamp: 0 })?;
        loop {
            match link.recv(&self.w, timeout).await {
                Ok(Some(Frame::Say(m))) if matches!(*m, Message::ManifestEnd(_)) => break,
                Ok(Some(Frame::Ack(_))) => {}
                Ok(Some(Frame::Say(m))) if matches!(*m, Message::Pong(_) | Message::InSyncNoted(_)) => {}
                other => return Err(format!("{other:?} for a manifest")),
            }
        }
        self.start_sending(i, link, base.seq + 1);
        self.pump(n, i);
        self.w.sleep(self.w.below(100 * MS)).await;
        let end = self.seal_point(n).await?;
        while !(self.pump(n, i) || self.sent(i) > end.seq) {
            self.during_copy(i, link, timeout).await?;
        }
        say(n, link, Message::CopyEnd(end))?;
        while !self.during_copy(i, link, timeout).await? {}
        Ok(())
    }

    async fn during_copy(&self, i: usize, link: &Link, timeout: Time) -> Result<bool, String> {
        match link.recv(&self.w, timeout).await {
            Ok(Some(Frame::Ack(a))) => self.note_ack(i, a),
            Ok(Some(Frame::Say(m))) => match *m {
                Message::CopyDone => return Ok(true),
                Message::Pong(_) | Message::InSyncNoted(_) => {}
                m => return Err(format!("{m:?} during a copy")),
            },
            other => return Err(format!("{other:?} during a copy")),
        }
        Ok(false)
    }

    async fn stream(&self, i: usize, n: &Rc<N>, link: &Link) -> Result<(), String> {
        let w = &self.w;
        let timeout = w.set.peer_timeout;
        let beat = n.beat();
        self.row(i, |r| r.leaving = false);
        let mut pinged = w.now();
        let mut joining = if self.row(i, |r| r.in_set) { Joining::Told } else { Joining::No };
        if joining == Joining::Told {
            say(n, link, Message::InSync(true))?;
        }
        loop {
            if self.stop.get() {
                return Ok(());
            }
            if joining != Joining::No
                && !self.row(i, |r| r.in_set)
                && !self.w.set.has(Bug::StayAfterExclusion)
            {
                // Over a new link: words that are on their way in this one are about the time before.
                return Err("it was taken out of the set meanwhile".to_owned());
            }
            let all_sent = self.pump(n, i);
            let durable = self.row(i, |r| r.ack.durable);
            if joining == Joining::No && all_sent {
                {
                    let _one = self.membership.lock(w).await;
                    self.row(i, |r| r.in_set = true);
                }
                joining = Joining::Until(n.tail().seq);
            }
            if let Joining::Until(seq) = joining
                && durable >= seq
            {
                say(n, link, Message::InSync(true))?;
                joining = Joining::Told;
            }
            if w.now() - pinged >= beat {
                say(n, link, Message::Ping(w.now()))?;
                pinged = w.now();
            }
            let sleep = beat.saturating_sub(w.now() - pinged);
            match link.recv(w, sleep).await {
                Err(_) => return Err("the link is closed".to_owned()),
                Ok(None) => {}
                Ok(Some(Frame::Ack(a))) => self.note_ack(i, a),
                Ok(Some(Frame::Say(m))) => match *m {
                    Message::Pong(_) => self.row(i, |r| r.heard = Some(w.now())),
                    Message::InSyncNoted(true) => self.noted(i, n).await,
                    Message::InSyncNoted(false) => {}
                    Message::Promoted => n.takeover_answered(Ok(())),
                    Message::Refuse(why) => {
                        n.takeover_answered(Err(why.clone()));
                        return Err(why);
                    }
                    m => return Err(format!("{m:?} for an acknowledgement")),
                },
                Ok(Some(f)) => return Err(format!("{f:?} for an acknowledgement")),
            }
            if self.row(i, |r| r.heard.is_some_and(|h| w.now() - h > timeout)) {
                return Err("silent".to_owned());
            }
        }
    }

    async fn noted(&self, i: usize, n: &N) {
        let known = self.row(i, |r| {
            r.caught_up = r.in_set;
            !r.in_set || r.state == PeerState::InSync
        });
        if known {
        } else if self.voted {
            self.w.ring(&n.bell);
        } else {
            self.joined(i, n).await;
        }
    }

    pub async fn joined(&self, i: usize, n: &N) {
        let one = self.membership.lock(&self.w).await;
        if self.row(i, |r| r.caught_up) {
            self.row(i, |r| r.promotable = true);
            n.update(|s| {
                s.out_of_set.remove(NAMES[self.others[i]]);
            })
            .await;
            drop(one);
            self.set_state(n, i, PeerState::InSync, "");
        }
    }

    pub async fn wait_applied(&self, n: &N, i: usize, seq: u64, timeout: Time) -> bool {
        let end = self.w.now() + timeout;
        loop {
            if self.wait_rows(2 * MS, |r| r[i].ack.applied >= seq).await {
                return true;
            }
            let link = self.sending[i].borrow().link.clone();
            let asked = link.is_some_and(|link| say(n, &link, Message::Ping(self.w.now())).is_ok());
            if !asked || self.w.now() > end {
                return false;
            }
        }
    }

    pub fn ask_promote(&self, n: &N, i: usize, epoch: u64) -> Result<(), String> {
        let link = self.sending[i].borrow().link.clone();
        say(n, &link.ok_or("no link")?, Message::Promote { epoch })
    }

    /// Whether everything up to `seq` may be acknowledged; waits for it.
    pub async fn wait_for(&self, n: &N, mut seq: u64) -> bool {
        loop {
            if self.over.get() {
                return false;
            }
            if self.seal_wanted.replace(false) {
                match n.seal_local().await {
                    None => return false,
                    Some(true) => seq = n.tail().seq,
                    Some(false) => {}
                }
                continue;
            }
            let grace = self.w.now() < self.grace;
            let standing = |r: &Row| Standing {
                in_set: r.in_set,
                counts: r.promotable || self.w.set.has(Bug::CountsBeforeRecord),
                has: r.ack.durable >= seq && !r.excluding,
                lost: matches!(r.state, PeerState::Lost | PeerState::Connecting),
                may_join: matches!(r.state, PeerState::Connecting | PeerState::CatchUp),
            };
            let standings: Vec<Standing> = self.rows.borrow().iter().map(standing).collect();
            let required = self.w.set.required - usize::from(self.w.set.has(Bug::AcknowledgeWithFewer));
            let version = self.changed.version();
            match decide::verdict(&standings, required, !self.w.set.degrade, grace) {
                Verdict::Acknowledge => {
                    self.acknowledged.set(self.acknowledged.get().max(seq));
                    return true;
                }
                Verdict::Wait => {}
                Verdict::Leave(i) => {
                    let out = self.exclude(n, i).await;
                    if out || !self.rows.borrow()[i].in_set {
                        continue;
                    }
                    if self.changed.version() != version {
                        // `leaving` rang for itself: nothing to wait for but what comes behind that.
                    }
                }
            }
            let until = if grace { self.grace } else { NEVER };
            self.w.wait_ring(&self.changed, until).await;
        }
    }
}

/// A link that is closed when whoever has it is done.
struct Ended<'a>(&'a World, Link);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.1.shutdown(self.0);
    }
}
