//! The dialled side, as in the product's `serve.rs`, in its order.

use super::failover::UNSURE;
use super::network::{Closed, Frame, Link};
use super::node::{Access, Current, Entry, N, NAMES, Phase, index_of};
use super::settings::Bug;
use super::world::{MS, SECOND, Time};
use nasd::protocol::Message;
use nasd_config::FailoverMode;
use nasd_volume::{Position, Role};
use std::rc::Rc;

/// Transactions that are made durable together, at most.
const TOGETHER: usize = 64;

type Told = Result<(), String>;

struct Session<'a> {
    n: &'a Rc<N>,
    link: &'a Link,
    name: usize,
    follows: bool,
    /// The end of the log as this node said hello.
    said: Position,
    woke: Option<Time>,
}

fn closed(_: Closed) -> String {
    "the link is closed".to_owned()
}

pub async fn answer(n: &Rc<N>, link: Link) {
    let hello = match link.recv(&n.w, n.w.set.peer_timeout).await {
        Ok(Some(Frame::Say(m))) => match *m {
            Message::Hello(h) => h,
            _ => return link.shutdown(&n.w),
        },
        _ => return link.shutdown(&n.w),
    };
    let Some(name) = index_of(&hello.name) else { return };
    let mine = n.hello().await;
    let said = mine.tail;
    if link.say(&n.w, Message::Hello(mine)).is_err() {
        return;
    }
    let mut session = Session { n, link: &link, name, follows: false, said, woke: None };
    let result = session.run().await;
    if session.follows {
        let _up = n.upstream.lock(&n.w).await;
        let mine = n.current.borrow().as_ref().is_some_and(|c| c.link.same(&link));
        // Another link says what is true by now.
        if mine || n.w.set.has(Bug::DoubtsLate) {
            session.doubt_after_sleep().await;
        }
        if mine {
            *n.current.borrow_mut() = None;
            let why = result.err().unwrap_or_else(|| "it left".to_owned());
            if why != closed(Closed) {
                let _ = link.say(&n.w, Message::Refuse(why.clone()));
            }
            n.say(|| format!("lost the primary {}: {why}", NAMES[name]));
        }
    }
    link.shutdown(&n.w);
}

impl Session<'_> {
    async fn run(&mut self) -> Told {
        let w = &self.n.w;
        let timeout = w.set.peer_timeout;
        let beat = self.n.beat();
        let mut heard = w.now();
        let mut turn = w.now();
        loop {
            if w.now() - turn > timeout {
                self.woke = Some(w.now());
            }
            turn = w.now();
            let Some(frame) = self.link.recv(w, beat).await.map_err(closed)? else {
                if self.n.stopping.get() {
                    return Ok(());
                }
                if self.follows {
                    self.keep_alive()?;
                } else if w.now() - heard > 60 * SECOND {
                    return Ok(());
                }
                continue;
            };
            heard = w.now();
            if self.follows {
                self.n.heard.set(Some(w.now()));
            }
            match frame {
                Frame::Txn(e) => self.take(e).await?,
                Frame::Say(m) => self.message(*m).await?,
                f => return Err(format!("{f:?} out of turn")),
            }
        }
    }

    async fn doubt_after_sleep(&self) {
        let w = &self.n.w;
        let suspend = !w.set.degrade;
        if suspend
            || self.woke.is_none_or(|at| w.now() - at > w.set.peer_timeout * 2)
            || !self.n.state().await.in_sync
        {
            return;
        }
        self.n.update(|s| s.in_sync = false).await;
        self.n.say(|| "is not known to be in sync after its sleep".to_owned());
    }

    fn keep_alive(&self) -> Told {
        self.link.send(&self.n.w, Frame::Ack(self.n.ack())).map_err(closed)
    }

    fn say(&self, m: Message) -> Told {
        self.link.say(&self.n.w, m).map_err(closed)
    }

    async fn take(&mut self, first: Entry) -> Told {
        let n = self.n;
        let w = &n.w;
        let mut entries = vec![first];
        while entries.len() < TOGETHER
            && let Some(e) = self.link.ready_txn(w)
        {
            entries.push(e);
        }
        let late = w.set.has(Bug::TakeAfterPromise) || w.set.has(Bug::TakeAfterSwap);
        let _up = n.upstream.lock(w).await;
        let epoch = n.current.borrow().as_ref().filter(|c| c.link.same(self.link)).map(|c| c.epoch);
        let epoch = match epoch {
            Some(epoch) => epoch,
            None if late && self.follows => u64::MAX,
            None => return Err("a transaction from a node that is not followed".to_owned()),
        };
        if entries.iter().any(|e| e.at.epoch > epoch) {
            return Err("a transaction of an epoch that it did not announce".to_owned());
        }
        if let Some(last) = entries.last() {
            n.received.set(last.at.seq);
        }
        let (tail, all) = n.store(entries).await;
        let mut sent = Ok(());
        if tail > n.durable.get() || all {
            n.durable.set(tail);
            sent = self.keep_alive();
        }
        if all { sent } else { Err("a transaction that does not continue the log".to_owned()) }
    }

    async fn message(&mut self, m: Message) -> Told {
        let n = self.n;
        match m {
            Message::Ping(at) => {
                self.keep_alive()?;
                self.say(Message::Pong(at))
            }
            Message::AskPositions => self.say(Message::Positions(n.positions())),
            Message::Fetch(from) => {
                for seq in from..=n.tail().seq {
                    let e = n.read(seq).ok_or("a transaction that is not there any more")?;
                    self.link.send(&n.w, Frame::Txn(e)).map_err(closed)?;
                }
                self.say(Message::FetchEnd)
            }
            Message::Follow { epoch, fork, .. } => match self.follow(epoch, fork).await {
                Ok((tail, needs_copy)) => self.say(Message::Following { tail, needs_copy }),
                Err(why) => {
                    self.say(Message::Refuse(why.clone()))?;
                    Err(why)
                }
            },
            Message::InSync(yes) => {
                if self.follows {
                    let noted = yes && !n.state().await.needs_copy;
                    n.update(|s| s.in_sync = noted).await;
                    n.say(|| format!("notes in sync: {noted}"));
                    self.say(Message::InSyncNoted(noted))?;
                }
                Ok(())
            }
            Message::CopyBegin { base, .. } => self.copy_begin(base).await,
            Message::CopyEnd(end) => {
                if n.position(end.seq).is_none_or(|p| p.hash != end.hash) {
                    return Err("the copy does not lead there".to_owned());
                }
                n.update(|s| {
                    s.needs_copy = false;
                    s.clean = false;
                })
                .await;
                n.set_access(Access::ReadOnly);
                self.keep_alive()?;
                self.say(Message::CopyDone)
            }
            // Only `compare_with` asks this one.
            Message::AskManifest(applied) => {
                if n.tail().seq < applied {
                    return self.say(Message::Refuse("not applied here".to_owned()));
                }
                self.say(Message::ManifestEnd(applied))
            }
            Message::Promote { epoch } => {
                let state = n.state().await;
                if !self.follows || !state.in_sync || state.needs_copy {
                    return self.say(Message::Refuse("this node is not in sync".to_owned()));
                }
                {
                    let _up = n.upstream.lock(&n.w).await;
                    n.current.borrow_mut().take();
                }
                self.follows = false;
                match n.take_office(epoch, NAMES[self.name]).await {
                    Ok(()) => self.say(Message::Promoted),
                    // A refusal would let the old primary go on, and the record may still be moved behind its back.
                    Err(why) if why.starts_with(UNSURE) && !n.w.set.has(Bug::RefusesUnsure) => Err(why),
                    Err(why) => {
                        self.say(Message::Refuse(why.clone()))?;
                        Err(why)
                    }
                }
            }
            Message::Heartbeat { epoch } => {
                if epoch >= n.epoch.get() {
                    n.heard.set(Some(n.w.now()));
                }
                Ok(())
            }
            Message::Prepare { epoch } => match self.prepare(epoch).await {
                Ok(tail) => self.say(Message::Prepared(tail)),
                Err(why) => {
                    self.say(Message::Refuse(why.clone()))?;
                    Err(why)
                }
            },
            Message::AskSwitchover => match n.switchover(Some(self.name)).await {
                Ok(()) => self.say(Message::SwitchoverDone),
                Err(why) => self.say(Message::Refuse(why)),
            },
            m => Err(format!("{m:?} that nobody asked for")),
        }
    }

    async fn follow(&mut self, epoch: u64, fork: Option<Position>) -> Result<(Position, bool), String> {
        let n = self.n;
        let _one = n.transition().await;
        let state = n.state().await;
        if epoch < state.epoch {
            return Err(format!("this node is in epoch {}, the caller only in {epoch}", state.epoch));
        }
        if state.role == Role::Primary {
            if epoch == state.epoch {
                return Err(format!("this node is primary of epoch {epoch} itself"));
            }
            if n.w.set.has(Bug::StayInOffice) {
                return Err("this node stays primary".to_owned());
            }
            n.leave_office(epoch, &format!("{} is primary of epoch {epoch}", NAMES[self.name])).await;
        }
        n.dismiss().await;
        n.update(|s| s.epoch = epoch).await;
        // What still came over an older link is the caller's history, too: it decided on what is not true any more.
        if n.tail() != self.said && !n.w.set.has(Bug::RewindOnStaleHello) {
            return Err("this log has moved on since the hello".to_owned());
        }
        if let Some(fork) = fork {
            match n.position(fork.seq) {
                Some(p) if p.hash == fork.hash => {}
                _ => return Err(format!("this log does not hold {}; it has to be compared", fork.seq)),
            }
            n.rewind(fork.seq).await;
        }
        let needs_copy = n.state().await.needs_copy;
        if needs_copy {
            n.set_access(Access::Closed);
        }
        self.become_current(epoch).await;
        let tail = n.tail();
        n.received.set(tail.seq);
        n.durable.set(tail.seq);
        n.say(|| format!("follows {} in epoch {epoch} from {}", NAMES[self.name], tail.seq));
        Ok((tail, needs_copy))
    }

    async fn prepare(&self, epoch: u64) -> Result<Position, String> {
        let n = self.n;
        let _one = n.transition().await;
        let state = n.state().await;
        if epoch <= state.epoch {
            return Err(format!("this node knows epoch {} already", state.epoch));
        }
        if state.role == Role::Primary && n.writable() {
            return Err(format!("this node is primary of epoch {}", state.epoch));
        }
        let automatic = n.w.set.mode != FailoverMode::Manual;
        let silence = n.machine.borrow().silence().as_micros() as Time;
        let named = {
            let _up = n.upstream.lock(&n.w).await;
            n.current.borrow().is_some()
        };
        if automatic && named && silence < n.w.set.timeout / 2 {
            return Err("this node hears a primary".to_owned());
        }
        if !n.w.set.has(Bug::TakeAfterPromise) {
            n.dismiss().await;
        }
        n.update(|s| s.epoch = epoch).await;
        let tail = n.tail();
        n.say(|| format!("promises epoch {epoch} at {}", tail.seq));
        Ok(tail)
    }

    async fn become_current(&mut self, epoch: u64) {
        let _up = self.n.upstream.lock(&self.n.w).await;
        *self.n.current.borrow_mut() = Some(Current { link: self.link.clone(), name: self.name, epoch });
        self.follows = true;
    }

    async fn copy_begin(&mut self, base: Position) -> Told {
        let n = self.n;
        if !self.follows {
            return Err("a copy out of turn".to_owned());
        }
        let epoch = n.current.borrow().as_ref().map_or(0, |c| c.epoch);
        n.update(|s| s.epoch = s.epoch.max(epoch)).await;
        n.set_access(Access::Closed);
        n.update(|s| {
            s.needs_copy = true;
            s.in_sync = false;
        })
        .await;
        if n.position(base.seq).is_none_or(|p| p.hash != base.hash) {
            return Err("a copy without a common base is not in this simulation".to_owned());
        }
        n.rewind(base.seq).await;
        n.received.set(base.seq);
        n.durable.set(base.seq);
        // Reading its files and comparing them takes a while.
        let work = n.w.between(MS, 50 * MS);
        n.w.sleep(work).await;
        self.keep_alive()?;
        self.say(Message::ManifestEnd(0))
    }
}

impl N {
    pub fn step_down(self: &Rc<Self>, epoch: u64, because: String) {
        let n = Rc::clone(self);
        self.w.spawn(Some(self.me), async move {
            let _one = n.transition().await;
            n.leave_office(epoch, &because).await;
        });
    }

    pub fn running(&self) -> bool {
        matches!(self.phase.get(), Phase::Running)
    }
}
