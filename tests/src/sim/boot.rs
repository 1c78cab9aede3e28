//! How a node takes up its role at a start, as in the product's `boot.rs`, in its order.

use super::network::Frame;
use super::node::{Access, N, NAMES, Phase, Replicator, VOLUME, Want, hear, say};
use super::office::Closing;
use super::peers::Peers;
use super::settings::Bug;
use super::world::{MS, SECOND};
use nasd::decide::{self, Answer, Own, Restart};
use nasd::protocol::Message;
use nasd::vote::record::Record;
use nasd_volume::{Position, Role};
use std::rc::Rc;

impl N {
    /// Others are answered already: one of them may have given this node its role before it comes here.
    pub async fn boot(self: &Rc<Self>) {
        let one = self.transition().await;
        if self.settled.get() && !self.w.set.has(Bug::AskingForEver) {
            return;
        }
        let state = self.state().await;
        match state.role {
            Role::Secondary => {
                if self.w.set.degrade && self.w.set.has(Bug::DoubtsLate) {
                    self.update(|s| s.in_sync = false).await;
                }
                self.settle_secondary().await;
            }
            Role::Primary => {
                drop(one);
                self.boot_primary(state.clean).await;
            }
        }
    }

    pub async fn settle_secondary(self: &Rc<Self>) {
        self.update(|s| s.clean = false).await;
        let ready = !self.state().await.needs_copy;
        *self.replicator.borrow_mut() = Replicator::Alone;
        self.set_access(if ready { Access::ReadOnly } else { Access::Closed });
        self.phase.set(Phase::Running);
        self.settled.set(true);
    }

    async fn wait_for_answers(&self) {
        if !self.settled.get() || self.w.set.has(Bug::AskingForEver) {
            self.phase.set(Phase::Asking);
        }
        self.w.sleep(200 * MS).await;
    }

    /// A primary called while this node asked: it has its role, and may even have been promoted since.
    async fn has_role(&self) -> bool {
        if self.w.set.has(Bug::AskingForEver) {
            return self.state().await.role == Role::Secondary;
        }
        self.settled.get()
    }

    async fn boot_primary(self: &Rc<Self>, clean: bool) {
        let fresh = self.state().await.epoch == 0;
        let (epoch, one) = loop {
            if self.stopping.get() {
                return;
            }
            let state = self.state().await;
            if self.has_role().await {
                return;
            }
            let seen = if self.voted() { self.read_vote().await } else { Ok((0, None)) };
            let Ok((base, record)) = seen else {
                self.wait_for_answers().await;
                continue;
            };
            let own = Own { volume: VOLUME, epoch: state.epoch, tail: self.tail(), uncompared_epoch: 0 };
            let mut answers = Vec::new();
            for &to in &self.others {
                let name = NAMES[to].to_owned();
                let out = state.out_of_set.contains(&name);
                answers.push((name, out, self.ask(to, own.tail).await));
            }
            let outranked = self.w.set.has(Bug::PromiseOutranksRecord)
                && answers.iter().any(|(_, _, a)| a.as_ref().is_some_and(|a| a.hello.epoch > own.epoch));
            let told = record.as_ref().filter(|_| !outranked);
            match decide::restart(&own, NAMES[self.me], &answers, told, fresh) {
                Restart::Wait(_) => self.wait_for_answers().await,
                Restart::Secondary { because, epoch } => {
                    let _one = self.transition().await;
                    return self.leave_office(epoch, &because).await;
                }
                Restart::Primary { ahead, epoch } => {
                    // Nothing is promised to anybody, and nobody is followed, between the decision and the office.
                    let mut one = Some(self.transition().await);
                    if self.w.set.has(Bug::PromiseWhileStarting) {
                        one = None;
                    } else if self.settled.get() || self.state().await != state {
                        continue;
                    }
                    if let Some(from) = ahead.and_then(|name| self.peer_of(&name))
                        && let Err(why) = self.take_over_from(from).await
                    {
                        // The product ends, and its supervisor starts it again.
                        self.say(|| format!("start failed: {why}"));
                        return self.die();
                    }
                    let first = Record::first(NAMES[self.me], epoch, self.w.set.required);
                    if self.voted()
                        && let Err(why) = self.write_vote(base, &first).await
                    {
                        self.say(|| format!("start: {why}"));
                        drop(one);
                        self.wait_for_answers().await;
                        continue;
                    }
                    break (epoch, one);
                }
            }
        };
        let _late = if one.is_none() { Some(self.transition().await) } else { None };
        if self.has_role().await {
            return;
        }
        let others = self.others.iter().map(|&o| NAMES[o].to_owned()).collect();
        self.update(|s| {
            s.role = Role::Primary;
            s.epoch = epoch;
            s.clean = false;
            s.in_sync = false;
            s.out_of_set = others;
        })
        .await;
        let peers = Peers::new(self, self.w.set.peer_timeout);
        let mut compared = false;
        *self.replicator.borrow_mut() = Replicator::Alone;
        if clean {
            self.start_epoch(epoch).await;
        } else {
            self.phase.set(Phase::Comparing);
            self.start_epoch(epoch).await;
            for &to in &self.others {
                match self.compare_with(to).await {
                    Ok(true) => {
                        compared = true;
                        break;
                    }
                    Ok(false) => {}
                    Err(why) => self.say(|| format!("comparing with {}: {why}", NAMES[to])),
                }
            }
            if !compared {
                self.update(|s| s.uncompared_epoch = epoch).await;
            }
        }
        self.w.checks.count(|c| &c.restarts);
        self.serve_as_primary(&peers, compared).await;
    }

    async fn ask(self: &Rc<Self>, to: usize, tail: Position) -> Option<Answer> {
        let (link, hello) = self.dial(to, self.w.set.peer_timeout).await.ok()?;
        let link = Closing(self, link);
        say(self, &link.1, Message::AskPositions).ok()?;
        match hear(self, &link.1).await.ok()? {
            Message::Positions(p) => {
                let has_our_tail = p.iter().any(|&(seq, hash)| (seq, hash) == (tail.seq, tail.hash));
                Some(Answer { hello, has_our_tail })
            }
            _ => None,
        }
    }

    pub async fn take_over_from(self: &Rc<Self>, from: usize) -> Result<(), String> {
        let (link, _) = self.dial(from, self.w.set.peer_timeout).await?;
        let link = Closing(self, link);
        let first = self.tail().seq + 1;
        say(self, &link.1, Message::Fetch(first))?;
        loop {
            match link.1.recv(&self.w, 30 * SECOND).await {
                Ok(Some(Frame::Txn(e))) => {
                    if !self.store(vec![e]).await.1 {
                        return Err("what it sent does not continue the log".to_owned());
                    }
                }
                Ok(Some(Frame::Say(m))) if *m == Message::FetchEnd => break,
                other => return Err(format!("{other:?} for a transaction")),
            }
        }
        self.w.checks.count(|c| &c.fetched);
        self.say(|| format!("took over what {} has behind {first}", NAMES[from]));
        Ok(())
    }

    async fn compare_with(self: &Rc<Self>, to: usize) -> Result<bool, String> {
        let (link, hello) = self.dial(to, self.w.set.peer_timeout).await?;
        let link = Closing(self, link);
        let known = self.position(hello.tail.seq).filter(|p| p.hash == hello.tail.hash);
        let (Some(fork), false) = (known, hello.needs_copy) else { return Ok(false) };
        let epoch = self.epoch.get();
        say(
            self,
            &link.1,
            Message::Follow {
                epoch,
                fork: Some(fork),
                ack_received: false,
                ack_applied: true,
                via: Vec::new(),
            },
        )?;
        match hear(self, &link.1).await? {
            Message::Following { needs_copy: false, .. } => {}
            _ => return Ok(false),
        }
        self.say(|| "compares".to_owned());
        let tail = self.tail().seq;
        for seq in fork.seq + 1..=tail {
            let e = self.read(seq).ok_or("not in the log")?;
            link.1.send(&self.w, Frame::Txn(e)).map_err(|_| "closed")?;
        }
        say(self, &link.1, Message::AskManifest(tail))?;
        hear(self, &link.1).await?;
        self.say(|| "compared".to_owned());
        // What differed is logged.
        if self.w.once_in(2) {
            self.log_difference();
        }
        Ok(self.commit(Want::Sync).await)
    }
}
