//! What a node does by itself, as in the product's `failover`, in its order.

use super::etcd::{self, Put};
use super::node::{N, NAMES, Phase};
use super::peers::PeerState;
use super::settings::{Bug, Settings};
use super::world::{MS, SECOND, Time};
use nasd::failover::machine::{Act, Machine, Office, Rules, View, Vote};
use nasd::vote::record::Record;
use nasd_config::FailoverMode;
use nasd_volume::Role;
use std::rc::Rc;
use std::time::Duration;

/// How the text of an error begins when the record may still become what was to be written.
pub const UNSURE: &str = "it is not known whether the record was written: ";

/// What was last seen of the record.
#[derive(Debug, Clone)]
pub struct Seen {
    pub revision: i64,
    pub record: Option<Record>,
}

pub fn machine(set: &Settings, me: &str) -> Machine {
    Machine::new(Rules {
        me: me.to_owned(),
        mode: set.mode,
        timeout: Duration::from_micros(set.timeout),
        interval: Duration::from_micros(set.interval),
        degrade: set.degrade,
        required: set.required,
        fail_back: false,
    })
}

impl N {
    // ---- votes ------------------------------------------------------------------------------------------------

    fn patience(&self) -> Time {
        (self.w.set.timeout / 4).clamp(100 * MS, 2 * SECOND)
    }

    fn note(&self, revision: i64, record: Option<Record>) {
        let mut seen = self.seen.borrow_mut();
        if !matches!(&*seen, Ok(s) if s.revision > revision && revision > 0) {
            *seen = Ok(Seen { revision, record });
        }
    }

    pub async fn read_vote(&self) -> Result<etcd::Versioned, String> {
        match etcd::get(&self.w, self.me, self.patience()).await {
            Some((revision, record)) => {
                self.note(revision, record.clone());
                Ok((revision, record))
            }
            None => {
                let why = "etcd does not answer".to_owned();
                *self.seen.borrow_mut() = Err(why.clone());
                Err(why)
            }
        }
    }

    /// Writes the record against the revision that the decision was made on.
    pub async fn write_vote(&self, base: i64, record: &Record) -> Result<(), String> {
        let latest = match &*self.seen.borrow() {
            Ok(seen) => seen.revision,
            Err(why) => return Err(why.clone()),
        };
        let base = if self.w.set.has(Bug::SwapAgainstLatest) { latest } else { base };
        let same = self.w.set.has(Bug::EqualIsWritten);
        match etcd::put_if(&self.w, self.me, base, record.clone(), self.patience()).await {
            Some(Put::Done(revision)) => {
                self.note(revision, Some(record.clone()));
                Ok(())
            }
            Some(Put::Changed((revision, now))) => {
                self.note(revision, now.clone());
                changed(record, now, revision > base || same)
            }
            None if self.w.set.has(Bug::UnknownIsSuccess) => Ok(()),
            None => {
                self.w.checks.count(|c| &c.unknown);
                let (revision, now) = self.read_vote().await.map_err(|why| format!("{UNSURE}{why}"))?;
                match changed(record, now, revision > base || same) {
                    Err(why) if revision <= base => Err(format!("{UNSURE}{why}")),
                    told => told,
                }
            }
        }
    }

    pub async fn poll_votes(self: Rc<Self>) {
        while !self.stopping.get() {
            let was = self.seen.borrow().is_ok();
            if self.read_vote().await.is_ok() != was {
                self.w.ring(&self.bell);
            }
            self.w.sleep(self.w.set.interval).await;
        }
    }

    // ---- signs of life ----------------------------------------------------------------------------------------

    pub async fn ask_for_life(self: Rc<Self>, to: usize) {
        while !self.stopping.get() {
            let primary = self.state().await.role == Role::Primary;
            if !primary && self.machine.borrow().silence().as_micros() as Time >= self.w.set.timeout / 2 {
                let patience = (self.w.set.timeout / 4).max(50 * MS);
                if let Ok((link, hello)) = self.dial(to, patience).await {
                    link.shutdown(&self.w);
                    if hello.role == Role::Primary && hello.serving && hello.epoch >= self.epoch.get() {
                        self.heard.set(Some(self.w.now()));
                    }
                }
            }
            self.w.sleep(if primary { 250 * MS } else { self.w.set.interval }).await;
        }
    }

    // ---- steps ------------------------------------------------------------------------------------------------

    async fn office(&self) -> Office {
        if self.phase.get() != Phase::Running {
            return Office::Busy;
        }
        let state = self.state().await;
        if state.role == Role::Primary {
            return match &*self.peers.borrow() {
                Some(peers) => Office::Primary { epoch: state.epoch, peers: peers.views() },
                None => Office::Busy,
            };
        }
        let unfit = state.needs_copy.then(|| "its files are between two states".to_owned());
        Office::Secondary {
            epoch: state.epoch,
            heard: self.heard.take().map(|at| Duration::from_micros(self.w.now() - at)),
            in_sync: state.in_sync,
            unfit,
        }
    }

    pub async fn run(self: Rc<Self>) {
        let mut last = self.w.now();
        while !self.stopping.get() {
            self.w.wait_ring(&self.bell, self.w.now() + self.w.set.interval).await;
            let office = self.office().await;
            let seen = self.seen.borrow().clone();
            let vote = match &seen {
                _ if !self.voted() => Vote::None,
                Ok(seen) => Vote::Read(seen.record.as_ref()),
                Err(_) => Vote::Silent,
            };
            let base = seen.as_ref().map_or(0, |s| s.revision);
            let elapsed = Duration::from_micros(self.w.now() - last);
            last = self.w.now();
            let outside = outside(&self, &office, vote);
            let act = outside.or_else(|| self.machine.borrow_mut().step(&View { elapsed, office, vote }));
            if let Vote::Read(Some(record)) = vote {
                self.settle(record).await;
            }
            if let Some(act) = act {
                self.say(|| format!("act: {act:?}"));
                if let Err(why) = self.act_on(act, base).await {
                    self.say(|| format!("failed: {why}"));
                    self.machine.borrow_mut().failed(why);
                }
            }
        }
    }

    async fn settle(&self, record: &Record) {
        if record.epoch != self.epoch.get() {
            return;
        }
        let peers = self.peers.borrow().clone();
        let Some(peers) = peers else { return };
        for (i, row) in peers.rows().iter().enumerate() {
            let name = NAMES[peers.others[i]];
            if row.caught_up && row.state != PeerState::InSync && record.in_sync.contains(name) {
                peers.joined(i, self).await;
            }
        }
    }

    async fn act_on(self: &Rc<Self>, act: Act, base: i64) -> Result<(), String> {
        let at = |name: &str| {
            let peers = self.peers.borrow().clone()?;
            let i = peers.index(name)?;
            Some((peers, i))
        };
        match act {
            Act::TakeOver { epoch, record } => {
                self.take_over(epoch, record.as_ref().map(|r| (base, r))).await
            }
            Act::FailBack => Ok(()),
            Act::Exclude { peer, record } => {
                let Some((peers, i)) = at(&peer) else { return self.write_vote(base, &record).await };
                if !peers.begin_to_exclude(i, &record) {
                    return Err(format!("{peer} has what was acknowledged and others lack"));
                }
                let written = self.write_vote(base, &record).await;
                if self.w.set.has(Bug::UnknownIsFailure) && written.is_err() {
                    peers.exclude_now(self, i).await;
                }
                written?;
                peers.exclude_now(self, i).await;
                Ok(())
            }
            Act::Drop(peer) => {
                if let Some((peers, i)) = at(&peer) {
                    peers.exclude_now(self, i).await;
                }
                Ok(())
            }
            Act::Include { peer, record } => {
                self.write_vote(base, &record).await?;
                if let Some((peers, i)) = at(&peer) {
                    peers.joined(i, self).await;
                }
                Ok(())
            }
            Act::Claim(record) => self.write_vote(base, &record).await,
            Act::StepDown { epoch, why } => {
                let _one = self.transition().await;
                self.leave_office(epoch, &why).await;
                Ok(())
            }
            Act::Isolate(why) => {
                self.w.checks.count(|c| &c.isolations);
                let _one = self.transition().await;
                let epoch = self.epoch.get();
                self.leave_office(epoch, &why).await;
                Ok(())
            }
        }
    }
}

/// Another revision with what was to be written: only the answer was lost. The same revision: nothing was written yet.
fn changed(wanted: &Record, now: Option<Record>, moved: bool) -> Result<(), String> {
    if moved && now.as_ref() == Some(wanted) { Ok(()) } else { Err("another node was faster".to_owned()) }
}

/// The planted [`Bug::PromoteFromOutside`].
fn outside(n: &N, office: &Office, vote: Vote<'_>) -> Option<Act> {
    let (Office::Secondary { epoch, heard: None, unfit: None, .. }, Vote::Read(Some(record))) =
        (office, vote)
    else {
        return None;
    };
    let wanted = n.w.set.has(Bug::PromoteFromOutside) && n.w.set.mode == FailoverMode::Etcd;
    let silent = n.machine.borrow().silence().as_micros() as Time >= n.w.set.timeout;
    let epoch = record.epoch.max(*epoch) + 1;
    let record = Record::first(NAMES[n.me], epoch, record.required);
    (wanted && silent).then_some(Act::TakeOver { epoch, record: Some(record) })
}
