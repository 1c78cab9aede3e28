//! Which history somebody was told: the last transaction of each epoch in it. Two histories are the same up to the last
//! transaction of the last epoch that both have, because an epoch has one primary.

use std::fmt;
use std::str::FromStr;

/// Epochs that are remembered. Whoever was told of more begins earlier than he had to, if ever.
const MOST: usize = 16;

/// The last transaction of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Last {
    pub seq: u64,
    pub epoch: u64,
}

/// The last transaction of each epoch, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Terms(Vec<Last>);

/// Not `SEQ@EPOCH`, once or more with commas between them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} names no transaction and its epoch; write it as 1042@3, and what was before as in 1042@3,990@2"
)]
pub struct NoTerms(String);

impl Terms {
    /// The history goes on up to here. An epoch that is later is of another one.
    pub fn reach(&mut self, seq: u64, epoch: u64) {
        self.0.retain(|last| last.epoch <= epoch);
        match self.0.last_mut().filter(|last| last.epoch == epoch) {
            Some(last) => last.seq = last.seq.max(seq),
            None => self.0.push(Last { seq, epoch }),
        }
        self.0.drain(..self.0.len().saturating_sub(MOST));
    }

    /// What is behind this transaction is taken back.
    pub fn cut(&mut self, to: u64) {
        // Of the epoch that it is in all the others end before it.
        let whole = self.0.partition_point(|last| last.seq < to);
        self.0.truncate(whole + 1);
        if let Some(last) = self.0.last_mut() {
            last.seq = last.seq.min(to);
        }
    }

    /// Whether a transaction of this number and epoch is of this history; None when it goes on behind it, or nothing is
    /// known. Where the first epoch begins is not known: what is older may have been before.
    pub fn has(&self, seq: u64, epoch: u64) -> Option<bool> {
        let i = self.0.partition_point(|last| last.seq < seq);
        let last = self.0.get(i)?;
        Some(epoch == last.epoch || i == 0 && epoch < last.epoch)
    }

    /// Behind which transaction of a log somebody goes on who was told this history: the last that both have. The log
    /// shows those from `oldest` up to `shown`, of which `epoch` says the epochs.
    pub fn fork(&self, oldest: u64, shown: u64, epoch: impl Fn(u64) -> Option<u64>) -> u64 {
        for last in self.0.iter().rev() {
            if last.seq < oldest {
                // The log does not say whether it has had that; what it can't tell any more is told as a gap.
                return last.seq;
            }
            if let Some(end) = end_of(last.epoch, oldest, shown, &epoch) {
                return last.seq.min(end);
            }
        }
        0
    }
}

/// The last transaction of an epoch: epochs only grow.
fn end_of(wanted: u64, oldest: u64, shown: u64, epoch: &impl Fn(u64) -> Option<u64>) -> Option<u64> {
    let (mut from, mut to) = (oldest, shown.checked_add(1)?);
    while from < to {
        let middle = from + (to - from) / 2;
        // What is not there any more was before.
        if epoch(middle).is_none_or(|epoch| epoch <= wanted) { from = middle + 1 } else { to = middle }
    }
    let end = from.checked_sub(1)?;
    (epoch(end) == Some(wanted)).then_some(end)
}

/// The newest first.
impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (i, Last { seq, epoch }) in self.0.iter().rev().enumerate() {
            write!(f, "{}{seq}@{epoch}", if i > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

impl FromStr for Terms {
    type Err = NoTerms;

    fn from_str(s: &str) -> Result<Terms, NoTerms> {
        let last = |text: &str| {
            let (seq, epoch) = text.split_once('@')?;
            Some(Last { seq: seq.parse().ok()?, epoch: epoch.parse().ok()? })
        };
        let mut all: Vec<Last> =
            s.split(',').map(last).collect::<Option<_>>().ok_or_else(|| NoTerms(s.to_owned()))?;
        all.reverse();
        let grow = all.windows(2).all(|two| two[0].seq <= two[1].seq && two[0].epoch < two[1].epoch);
        if grow { Ok(Terms(all)) } else { Err(NoTerms(s.to_owned())) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn terms(text: &str) -> Terms {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let mut all = Terms::default();
        for (seq, epoch) in [(3, 1), (7, 1), (8, 2), (20, 5)] {
            all.reach(seq, epoch);
        }
        assert_eq!(all.to_string(), "20@5,8@2,7@1");
        assert_eq!(terms("20@5,8@2,7@1"), all);
        for wrong in ["", "7", "7@", "@1", "7@1,", "7@1,8@2", "7@1,6@1", "7.1"] {
            assert!(wrong.parse::<Terms>().is_err(), "{wrong}");
        }
        for epoch in 6..100 {
            all.reach(20 + epoch, epoch);
        }
        assert_eq!(all.0.len(), MOST);
    }

    #[test]
    fn it_is_known_what_it_holds() {
        let all = terms("20@5,8@2,7@1");
        let has: Vec<_> =
            [(21, 5), (20, 5), (20, 6), (9, 5), (8, 2), (8, 5), (8, 1), (7, 1), (3, 1), (3, 2), (3, 0)]
                .map(|(seq, epoch)| all.has(seq, epoch))
                .into();
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(has, [None, yes, no, yes, yes, no, no, yes, yes, no, yes]);
    }

    #[test]
    fn a_fork_that_the_log_does_not_reach_is_before_all_of_it() {
        let epoch = |seq| (10..=20).contains(&seq).then_some(7);
        for (told, from) in [("15@7", 15), ("25@7", 20), ("15@6", 0), ("15@6,9@3", 9), ("4@1", 4)] {
            assert_eq!(terms(told).fork(10, 20, epoch), from, "{told}");
        }
        assert_eq!(terms("15@7").fork(10, 9, epoch), 0, "an empty log");
    }

    proptest! {
        /// Two histories with a common beginning: the epoch of each transaction, the first has number 1.
        #[test]
        fn the_fork_is_found(
            common in prop::collection::vec(0_u64..2, 0..30),
            mine in prop::collection::vec(0_u64..2, 0..20),
            theirs in prop::collection::vec(0_u64..2, 0..20),
            cut in 0_usize..70,
        ) {
            // An epoch is one primary's: those behind the fork are even here and odd there.
            let mut at = 1;
            let common: Vec<u64> = common.iter().map(|grows| { at += grows; at }).collect();
            let grown = |odd: u64, grows: &[u64]| {
                let mut at = (at / 2 + 1) * 2 + odd;
                let more: Vec<u64> = grows.iter().map(|grows| { at += 2 * grows; at }).collect();
                [common.clone(), more].concat()
            };
            let (mut told, log) = (grown(0, &mine), grown(1, &theirs));
            let mut known = Terms::default();
            (1..).zip(&told).for_each(|(seq, epoch)| known.reach(seq, *epoch));
            if cut < told.len() {
                known.cut(cut as u64);
                told.truncate(cut);
            }
            for (i, epoch) in told.iter().enumerate() {
                prop_assert_eq!(known.has(i as u64 + 1, *epoch), Some(true));
            }
            let same = told.iter().zip(&log).take_while(|(a, b)| a == b).count() as u64;
            let epoch = |seq: u64| log.get(usize::try_from(seq).ok()?.checked_sub(1)?).copied();
            prop_assert_eq!(known.fork(1, log.len() as u64, epoch), same);
        }
    }
}
