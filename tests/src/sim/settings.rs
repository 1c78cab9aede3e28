//! What a run is of: the configuration of the nodes, and what is wrong with them on purpose.

use super::world::{MS, SECOND, Time};
use nasd_config::FailoverMode;

/// A mistake that is planted: the simulation has to find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Commits are acknowledged without a lost peer before the record says that it is out.
    AcknowledgeBeforeRecord,
    /// Who is not in the record promotes itself nevertheless.
    PromoteFromOutside,
    /// A peer enters the record before it has everything.
    IncludeBeforeCaughtUp,
    /// The transactions of the old primary are taken after the promise.
    TakeAfterPromise,
    /// The transactions of the old primary are taken until the record is written, and behind it.
    TakeAfterSwap,
    /// It is not known whether the record was written: taken for no, and on it goes.
    UnknownIsFailure,
    /// It is not known whether the record was written: taken for yes.
    UnknownIsSuccess,
    /// Fewer than `required` peers are enough.
    AcknowledgeWithFewer,
    /// With three nodes, nobody asks the third.
    SkipGather,
    /// What a rewind sets aside is thrown away.
    ForgetDiverged,
    /// A primary never steps down.
    StayInOffice,
    /// The record is written against what was last seen, not against what the decision was made on.
    SwapAgainstLatest,
    /// A primary calls while this node still asks at its start, and it goes on as if it asked.
    AskingForEver,
    /// After a comparison a primary waits for its peers to be in the record, which it does not write before it serves.
    ServeAfterVote,
    /// A fork is found in what a log was at the hello, and applied to what it has become.
    RewindOnStaleHello,
    /// What a primary sends before its own disk has it is taken for another history when a link breaks.
    RewindInFlight,
    /// A peer that is taken out of the set just after it is back is never taken in again.
    StayAfterExclusion,
    /// A peer leaves the record although others in it lack what it has.
    LagsBehind,
    /// A peer counts as one of those required before the record has it.
    CountsBeforeRecord,
    /// The record is what was to be written, so it was written, though it was so before.
    EqualIsWritten,
    /// At a start, a peer's promise of a higher epoch is taken for more than the record says.
    PromiseOutranksRecord,
    /// A switchover that waited for another one goes on with the peers of the term that is over.
    SwitchoverOfOldTerm,
    /// A file that was opened in an earlier term of the same process commits in a later one.
    OldHandle,
    /// A node that starts as primary promises an epoch to somebody else between its decision and its office.
    PromiseWhileStarting,
    /// A secondary that starts forgets that it is in sync after a primary has told it so.
    DoubtsLate,
    /// A handover is refused, and the old primary goes on, while the record may still be moved.
    RefusesUnsure,
    /// A primary that steps down while it stops takes what it sealed itself for an unclean stop.
    StoppingIsUnclean,
    /// What was sealed when a term ended counts as committed.
    SealedIsCommitted,
    /// A commit that began under the peers of a term ends without them when the term is over.
    CommitOutlivesTerm,
}

#[derive(Debug, Clone)]
pub struct Settings {
    pub nodes: usize,
    pub mode: FailoverMode,
    pub degrade: bool,
    pub required: usize,
    pub timeout: Time,
    pub interval: Time,
    pub peer_timeout: Time,
    /// Links break and are cut, too; otherwise nodes only die.
    pub cuts: bool,
    pub faults_until: Time,
    /// One in so many requests to etcd or answers of it takes seconds.
    pub etcd_slow: u64,
    pub bug: Option<Bug>,
    pub trace: bool,
}

impl Settings {
    /// What this seed is about, for automatic failover with a third vote.
    pub fn of(seed: u64) -> Settings {
        let pick = |shift: u32, n: u64| (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> shift) % n;
        let nodes = if pick(10, 2) == 0 { 2 } else { 3 };
        Settings {
            nodes,
            mode: FailoverMode::Etcd,
            degrade: pick(14, 4) != 0,
            required: if nodes == 3 && pick(18, 3) == 0 { 2 } else { 1 },
            timeout: [600 * MS, SECOND, 2 * SECOND][pick(22, 3) as usize],
            interval: 100 * MS,
            peer_timeout: [300 * MS, SECOND, 3 * SECOND][pick(26, 3) as usize],
            cuts: true,
            faults_until: 20 * SECOND,
            etcd_slow: [60, 60, 6][pick(30, 3) as usize],
            bug: None,
            trace: false,
        }
    }

    pub fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }
}
