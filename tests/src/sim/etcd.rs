//! etcd, as a node sees it: it answers, or it is not known what became of the request.

use super::world::{MS, Notify, SECOND, Time, World};
use nasd::vote::record::Record;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

pub struct Etcd {
    revision: Cell<i64>,
    record: RefCell<Option<Record>>,
    pub down: Cell<bool>,
    pub cut: Vec<Cell<bool>>,
}

/// The record and its revision; 0: there is none.
pub type Versioned = (i64, Option<Record>);

#[derive(Debug, Clone)]
pub enum Put {
    Done(i64),
    Changed(Versioned),
}

struct Answer<T> {
    value: RefCell<Option<T>>,
    there: Notify,
}

impl Etcd {
    pub fn new(n: usize) -> Etcd {
        Etcd {
            revision: Cell::new(0),
            record: RefCell::new(None),
            down: Cell::new(false),
            cut: vec![Cell::new(false); n],
        }
    }

    pub fn now(&self) -> Versioned {
        (self.revision.get(), self.record.borrow().clone())
    }

    fn swap(&self, revision: i64, record: &Record) -> Put {
        if revision != self.revision.get() {
            return Put::Changed(self.now());
        }
        self.revision.set(revision + 1);
        *self.record.borrow_mut() = Some(record.clone());
        Put::Done(revision + 1)
    }
}

/// Sends a request and waits for its answer for so long; what happens to it goes on without who asked.
async fn request<T: 'static>(
    w: &Rc<World>,
    node: usize,
    patience: Time,
    effect: impl FnOnce(&World) -> T + 'static,
) -> Option<T> {
    let answer = Rc::new(Answer { value: RefCell::new(None), there: Notify::default() });
    let (world, theirs) = (Rc::clone(w), Rc::clone(&answer));
    w.spawn(None, async move {
        let w = &world;
        let reachable = || !w.etcd.down.get() && !w.etcd.cut[node].get();
        let delay = || if w.once_in(w.set.etcd_slow) { w.below(3 * SECOND) } else { w.between(200, 4 * MS) };
        w.sleep(delay()).await;
        while !reachable() {
            // Lost, or sent again by the kernel until it gets there.
            if w.once_in(3) {
                return;
            }
            w.sleep(w.between(100 * MS, 3 * SECOND)).await;
        }
        let value = effect(w);
        w.sleep(delay()).await;
        if reachable() {
            *theirs.value.borrow_mut() = Some(value);
            w.ring(&theirs.there);
        }
    });
    w.wait(&answer.there, w.now() + patience, || answer.value.borrow_mut().take()).await
}

pub async fn get(w: &Rc<World>, node: usize, patience: Time) -> Option<Versioned> {
    request(w, node, patience, |w| w.etcd.now()).await
}

pub async fn put_if(
    w: &Rc<World>,
    node: usize,
    revision: i64,
    record: Record,
    patience: Time,
) -> Option<Put> {
    request(w, node, patience, move |w| {
        let put = w.etcd.swap(revision, &record);
        w.trace(|| format!("etcd: {} puts {record:?} on {revision}: {put:?}", super::node::NAMES[node]));
        put
    })
    .await
}
