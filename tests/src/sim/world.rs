//! The world of one run: a clock, tasks in the place of threads, and one source of chance that decides everything.
//!
//! Every thread of the product is a task here; where the product blocks, a task awaits. A task that is woken runs a little
//! later, by chance sometimes much later: that is how the interleavings of threads come about.

use super::checks::Checks;
use super::etcd::Etcd;
use super::network::Network;
use super::node::{Disk, N};
use super::settings::Settings;
use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Microseconds since the beginning.
pub type Time = u64;
pub const MS: Time = 1000;
pub const SECOND: Time = 1_000_000;
pub const NEVER: Time = Time::MAX;

struct Task {
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    node: Option<usize>,
    wake: Time,
    dead: bool,
}

/// Who waits for something to change.
#[derive(Default)]
pub struct Notify {
    waiting: RefCell<Vec<usize>>,
    version: Cell<u64>,
}

impl Notify {
    pub fn version(&self) -> u64 {
        self.version.get()
    }
}

/// Everything there is.
pub struct World {
    pub set: Settings,
    now: Cell<Time>,
    chance: Cell<u64>,
    order: Cell<u64>,
    current: Cell<usize>,
    polls: Cell<u64>,
    queue: RefCell<BinaryHeap<Reverse<(Time, u64, usize)>>>,
    tasks: RefCell<Vec<Task>>,
    pub frozen: Vec<Cell<Time>>,
    pub stalled: Vec<Cell<Time>>,
    pub net: Network,
    pub etcd: Etcd,
    pub checks: Checks,
    pub disks: Vec<RefCell<Disk>>,
    pub nodes: RefCell<Vec<Option<Rc<N>>>>,
    /// Whether a node's host is up: a process that is killed leaves a kernel that says so.
    pub hosts: Vec<Cell<bool>>,
}

impl World {
    pub fn new(set: Settings, seed: u64) -> Rc<World> {
        let n = set.nodes;
        Rc::new(World {
            now: Cell::new(0),
            chance: Cell::new(seed),
            order: Cell::new(0),
            current: Cell::new(0),
            polls: Cell::new(0),
            queue: RefCell::default(),
            tasks: RefCell::default(),
            frozen: vec![Cell::new(0); n],
            stalled: vec![Cell::new(0); n],
            net: Network::new(n),
            etcd: Etcd::new(n),
            checks: Checks::new(n),
            disks: (0..n).map(|i| RefCell::new(Disk::new(i))).collect(),
            nodes: RefCell::new(vec![None; n]),
            hosts: vec![Cell::new(true); n],
            set,
        })
    }

    // ---- chance -----------------------------------------------------------------------------------------------

    pub fn random(&self) -> u64 {
        // SplitMix64.
        let s = self.chance.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.chance.set(s);
        let mut z = s;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&self, n: u64) -> u64 {
        self.random() % n.max(1)
    }

    pub fn between(&self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True once in `n` times.
    pub fn once_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    // ---- time and tasks ---------------------------------------------------------------------------------------

    pub fn now(&self) -> Time {
        self.now.get()
    }

    pub fn polls(&self) -> u64 {
        self.polls.get()
    }

    pub fn spawn(&self, node: Option<usize>, f: impl Future<Output = ()> + 'static) {
        let mut tasks = self.tasks.borrow_mut();
        tasks.push(Task { future: Some(Box::pin(f)), node, wake: NEVER, dead: false });
        let id = tasks.len() - 1;
        drop(tasks);
        self.wake(id, self.now() + self.jitter());
    }

    fn jitter(&self) -> Time {
        if self.once_in(100) { self.below(5 * MS) } else { self.below(30) }
    }

    fn wake(&self, id: usize, at: Time) {
        let task = &mut self.tasks.borrow_mut()[id];
        if at >= task.wake || task.dead {
            return;
        }
        task.wake = at;
        self.order.set(self.order.get() + 1);
        self.queue.borrow_mut().push(Reverse((at, self.order.get(), id)));
    }

    /// The running task runs again then at the latest.
    pub fn wake_me(&self, at: Time) {
        if at != NEVER {
            self.wake(self.current.get(), at.max(self.now()));
        }
    }

    pub fn ring(&self, notify: &Notify) {
        notify.version.set(notify.version.get() + 1);
        let waiting = std::mem::take(&mut *notify.waiting.borrow_mut());
        for id in waiting {
            self.wake(id, self.now() + self.jitter());
        }
    }

    /// Everybody looks again: the network or etcd is not what it was.
    pub fn wake_all(&self) {
        let n = self.tasks.borrow().len();
        for id in 0..n {
            let alive = self.tasks.borrow()[id].future.is_some();
            if alive {
                self.wake(id, self.now() + self.jitter());
            }
        }
    }

    /// Waits until `done` says so or it is `deadline`.
    pub async fn wait<T>(
        &self,
        notify: &Notify,
        deadline: Time,
        mut done: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        poll_fn(|_| {
            if let Some(v) = done() {
                return Poll::Ready(Some(v));
            }
            if self.now() >= deadline {
                return Poll::Ready(None);
            }
            let me = self.current.get();
            let mut waiting = notify.waiting.borrow_mut();
            if !waiting.contains(&me) {
                waiting.push(me);
            }
            drop(waiting);
            self.wake_me(deadline);
            Poll::Pending
        })
        .await
    }

    /// Waits for the next ring; false: it is `deadline`.
    pub async fn wait_ring(&self, notify: &Notify, deadline: Time) -> bool {
        let before = notify.version();
        self.wait(notify, deadline, || (notify.version() != before).then_some(())).await.is_some()
    }

    pub async fn sleep(&self, time: Time) {
        let until = self.now() + time;
        poll_fn(|_| {
            if self.now() >= until {
                return Poll::Ready(());
            }
            self.wake_me(until);
            Poll::Pending
        })
        .await;
    }

    /// The tasks of a node end where they are.
    pub fn kill_tasks(&self, node: Option<usize>) {
        let mut gone = Vec::new();
        for task in &mut *self.tasks.borrow_mut() {
            if node.is_none() || task.node == node {
                task.dead = true;
                gone.extend(task.future.take());
            }
        }
        // Locks are let go while they are dropped, which wakes others.
        drop(gone);
    }

    /// Runs until then, or until an invariant is broken.
    pub fn run(&self, until: Time) {
        while !self.checks.failed() {
            let next = self.queue.borrow().peek().map(|Reverse(e)| *e);
            let Some((at, _, id)) = next.filter(|e| e.0 <= until) else { break };
            self.queue.borrow_mut().pop();
            let mut tasks = self.tasks.borrow_mut();
            let task = &mut tasks[id];
            if task.dead || task.wake != at {
                continue;
            }
            task.wake = NEVER;
            if let Some(thaw) = task.node.map(|n| self.frozen[n].get()).filter(|&t| t > at) {
                drop(tasks);
                self.wake(id, thaw + self.jitter());
                continue;
            }
            let Some(mut future) = task.future.take() else { continue };
            drop(tasks);
            self.now.set(at);
            self.current.set(id);
            self.polls.set(self.polls.get() + 1);
            let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            if polled.is_pending() {
                let task = &mut self.tasks.borrow_mut()[id];
                if !task.dead {
                    task.future = Some(future);
                }
            }
        }
        if !self.checks.failed() {
            self.now.set(until.max(self.now()));
        }
    }

    pub fn trace(&self, text: impl FnOnce() -> String) {
        if self.set.trace {
            eprintln!("{:>12.6} {}", self.now() as f64 / 1e6, text());
        }
    }
}

/// A lock that is held across waiting, as a thread holds one while it writes to its disk.
#[derive(Default)]
pub struct Lock {
    held: Cell<bool>,
    free: Notify,
}

pub struct Held<'a> {
    world: &'a World,
    lock: &'a Lock,
}

impl Lock {
    pub async fn lock<'a>(&'a self, world: &'a World) -> Held<'a> {
        world.wait(&self.free, NEVER, || (!self.held.replace(true)).then_some(())).await;
        Held { world, lock: self }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.lock.held.set(false);
        self.world.ring(&self.lock.free);
    }
}
