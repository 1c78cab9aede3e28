//! What must be true at every step, and how often what happened.

use super::node::{Entry, N, NAMES};
use super::world::World;
use nasd_volume::{Hash, Position};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::ops::AddAssign;

/// The number of an invariant, and how it was broken.
pub type Broken = (u8, String);

macro_rules! counts {
    ($($name:ident),*) => {
        /// How often what happened.
        #[derive(Debug, Default, Clone)]
        pub struct Counts { $(pub $name: Cell<u64>),* }
        impl AddAssign<&Counts> for Counts {
            fn add_assign(&mut self, other: &Counts) { $(self.$name.set(self.$name.get() + other.$name.get());)* }
        }
        impl Counts {
            pub fn all(&self) -> Vec<(&'static str, u64)> { vec![$((stringify!($name), self.$name.get())),*] }
        }
    };
}
counts!(
    steps,
    acknowledged,
    promotions,
    switchovers,
    restarts,
    exclusions,
    copies,
    isolations,
    left_office,
    set_aside,
    fetched,
    unknown,
    crashes,
    power_cuts,
    stops,
    freezes,
    stalls,
    breaks,
    cuts,
    one_way_cuts,
    etcd_downs,
    etcd_cuts
);

pub struct Checks {
    broken: RefCell<Option<Broken>>,
    pub counts: Counts,
    acknowledged: RefCell<Vec<Position>>,
    /// (number, epoch) of every transaction that a log ever had.
    known: RefCell<HashMap<(u64, u64), Hash>>,
    /// Where a write was sealed.
    sealed: RefCell<HashMap<u32, Position>>,
    served: RefCell<BTreeMap<u64, usize>>,
    next_write: Cell<u32>,
    pub quiet: Cell<bool>,
}

impl Checks {
    pub fn new(_: usize) -> Checks {
        Checks {
            broken: RefCell::default(),
            counts: Counts::default(),
            acknowledged: RefCell::default(),
            known: RefCell::default(),
            sealed: RefCell::default(),
            served: RefCell::default(),
            next_write: Cell::new(1),
            quiet: Cell::new(false),
        }
    }

    pub fn count(&self, which: impl FnOnce(&Counts) -> &Cell<u64>) {
        let cell = which(&self.counts);
        cell.set(cell.get() + 1);
    }

    pub fn failed(&self) -> bool {
        self.broken.borrow().is_some()
    }

    pub fn result(&self) -> Option<Broken> {
        self.broken.borrow().clone()
    }

    pub fn broken(&self, w: &World, invariant: u8, how: impl FnOnce() -> String) {
        if !self.failed() {
            let how = format!("at {:.6} s: {}", w.now() as f64 / 1e6, how());
            w.trace(|| format!("BROKEN ({invariant}): {how}"));
            *self.broken.borrow_mut() = Some((invariant, how));
        }
    }

    pub fn write_id(&self) -> u32 {
        let id = self.next_write.get();
        self.next_write.set(id + 1);
        id
    }

    /// A log got a transaction.
    pub fn logged(&self, node: usize, e: &Entry) {
        let hash = *self.known.borrow_mut().entry((e.at.seq, e.at.epoch)).or_insert(e.at.hash);
        if hash != e.at.hash && !self.failed() {
            let how =
                format!("{} holds another transaction {} of epoch {}", NAMES[node], e.at.seq, e.at.epoch);
            *self.broken.borrow_mut() = Some((3, how));
        }
        let mut sealed = self.sealed.borrow_mut();
        for &id in e.writes.iter() {
            sealed.insert(id, e.at);
        }
    }

    /// A node begins to serve writers as primary of `epoch`.
    pub fn serves(&self, w: &World, node: usize, epoch: u64) {
        let mut served = self.served.borrow_mut();
        let one = *served.entry(epoch).or_insert(node);
        if one != node {
            self.broken(w, 2, || format!("{} and {} both serve epoch {epoch}", NAMES[one], NAMES[node]));
        }
        if served.last_key_value() == Some((&epoch, &node)) {
            self.has_all(w, node, "serves and");
        }
    }

    fn has_all(&self, w: &World, node: usize, what: &str) {
        let disk = w.disks[node].borrow();
        if let Some(at) = self.acknowledged.borrow().iter().find(|at| !disk.holds(**at)) {
            self.broken(w, 1, || {
                format!(
                    "{} {what} lacks {} of epoch {}, which was acknowledged",
                    NAMES[node], at.seq, at.epoch
                )
            });
        }
    }

    /// A client was told that its write is committed.
    pub fn acknowledged(&self, w: &World, n: &N, id: u32) {
        self.count(|c| &c.acknowledged);
        let Some(at) = self.sealed.borrow().get(&id).copied() else {
            return self.broken(w, 1, || format!("{} acknowledges what is in no log", NAMES[n.me]));
        };
        let epoch = n.epoch.get();
        let served = self.served.borrow();
        if served.get(&epoch).is_some_and(|one| *one != n.me) {
            self.broken(w, 2, || format!("{} acknowledges in epoch {epoch} of another node", NAMES[n.me]));
        }
        if let Some((&newest, &primary)) = served.last_key_value()
            && newest > epoch
            && !w.disks[primary].borrow().holds(at)
        {
            self.broken(w, 2, || {
                format!(
                    "{} acknowledges {} of epoch {} after {} has begun to serve epoch {newest} without it",
                    NAMES[n.me], at.seq, at.epoch, NAMES[primary]
                )
            });
        }
        self.acknowledged.borrow_mut().push(at);
    }

    /// When all is over: whatever is not in a log was set aside.
    pub fn at_the_end(&self, w: &World) {
        for (node, disk) in w.disks.iter().enumerate() {
            self.has_all(w, node, "in the end");
            let disk = disk.borrow();
            if disk.got != disk.log.len() + disk.diverged.len() {
                self.broken(w, 4, || {
                    format!("{} lost transactions that are in diverged/ of nobody", NAMES[node])
                });
            }
        }
    }
}
