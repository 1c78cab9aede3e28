//! What the plans follow from: asked, and nothing changed.

use super::{About, Company, Plan, handover, line, promotion, refusal};
use crate::decide;
use crate::node::{Node, Phase};
use crate::office::Prospect;
use crate::peers::Row;
use crate::switchover::{NO_PRIMARY, NO_VOLUME, standing};
use nasd_config::OnPeerLoss;
use nasd_volume::txn::rfc3339;
use nasd_volume::{Role, Volume};

fn company(node: &Node, volume: &Volume) -> Company {
    Company {
        address: node.config.failover.virtual_address.as_ref().map(ToString::to_string),
        database: node.database.as_ref().map(|d| d.status(node, volume)),
    }
}

fn lag(volume: &Volume, row: &Row) -> handover::Lag {
    let (bytes, oldest) = volume.log.behind(row.ack.applied);
    handover::Lag {
        transactions: volume.log.tail().seq.saturating_sub(row.ack.applied),
        bytes,
        seconds: oldest.map_or(0.0, crate::status::seconds_since),
        unsealed: volume.pending_bytes() as u64,
    }
}

impl Node {
    /// What [`Node::promote`] would do.
    pub fn plan_promotion(&self, force: bool) -> Plan {
        if let (true, Phase::Asking(names)) = (force, &*self.phase.lock()) {
            let text = format!("serves as primary without an answer from {}", names.join(", "));
            let lost = "what one of them committed if it was promoted meanwhile would be set aside under diverged/ there";
            return vec![line(About::Would, text), line(About::Lost, lost)];
        }
        let volume = match self.promotable() {
            Ok(volume) => volume,
            Err(e) => return refusal(e.to_string()),
        };
        let Prospect { epoch, record, hindrance, answers } = self.prospect(&volume);
        let before = record.as_ref().and_then(|(_, seen)| seen.record.as_ref());
        let state = volume.state.get();
        promotion::plan(&promotion::Facts {
            force,
            hindrance,
            epoch,
            tail: volume.log.tail(),
            time: Some(volume.log.tail_timestamp()).filter(|&t| t > 0).map(rfc3339),
            applied: volume.applied().seq,
            in_sync: state.in_sync,
            recorded: before.is_some_and(|r| r.in_sync.contains(&self.config.node.name)),
            degrade: self.config.replication.on_peer_loss == OnPeerLoss::Degrade,
            silence: self.failover.silence(),
            answers: &answers,
            quorum: self.quorum(before),
            company: company(self, &volume),
        })
    }

    /// What [`Node::switchover`] would do.
    pub fn plan_switchover(&self) -> Plan {
        let Some(volume) = self.volume() else { return refusal(NO_VOLUME) };
        let Some(peers) = self.peers() else { return self.plan_asking_for_it(&volume) };
        let rows = peers.rows();
        let epoch = volume.epoch() + 1;
        let heir = decide::heir(&standing(&rows), None);
        let hindrance = heir.as_ref().ok().and_then(|i| self.record_against(&rows[*i].name, epoch));
        handover::plan(&handover::Facts {
            from: self.config.node.name.clone(),
            lag: Ok(heir.as_ref().map_or_else(|_| handover::Lag::default(), |i| lag(&volume, &rows[*i]))),
            to: heir.map(|i| rows[i].name.clone()),
            epoch,
            hindrance,
            company: company(self, &volume),
        })
    }

    /// Why `heir` could not move the record, if there is one: it would refuse the role.
    fn record_against(&self, heir: &str, epoch: u64) -> Option<String> {
        let votes = self.failover.votes()?;
        let moved = votes.read(self).map_err(|e| e.to_string());
        let why = moved.and_then(|seen| decide::handed_over(seen.record.as_ref(), heir, epoch)).err()?;
        Some(format!("{heir} does not take over: {why}; nothing was changed"))
    }

    /// On a secondary: the primary would be asked to hand over to this node.
    fn plan_asking_for_it(&self, volume: &Volume) -> Plan {
        let hellos = (0..self.config.peers.len()).filter_map(|i| Some(self.dial(i).ok()?.1));
        let Some(primary) = hellos.into_iter().find(|h| h.role == Role::Primary && h.serving) else {
            return refusal(NO_PRIMARY);
        };
        let me = &self.config.node.name;
        let standing = [(me.clone(), volume.state.get().in_sync)];
        let epoch = primary.epoch + 1;
        handover::plan(&handover::Facts {
            to: decide::heir(&standing, Some(me)).map(|_| me.clone()),
            epoch,
            lag: Err(primary.tail.seq.saturating_sub(volume.applied().seq)),
            hindrance: self.record_against(me, epoch),
            from: primary.name,
            company: company(self, volume),
        })
    }
}
