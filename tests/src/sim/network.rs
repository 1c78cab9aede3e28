//! Links between nodes: in order within one, delayed, held back while the way is cut, and broken at any time.

use super::node::{Entry, N};
use super::serve;
use super::world::{MS, NEVER, Notify, Time, World};
use nasd::protocol::{Ack, Message};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

#[derive(Debug, Clone)]
pub enum Frame {
    Say(Box<Message>),
    Txn(Entry),
    Ack(Ack),
    /// The other end is closed.
    End,
}

/// What is the matter with the ways between nodes.
pub struct Network {
    n: usize,
    /// From, to: nothing arrives.
    cut: Vec<Cell<bool>>,
    links: RefCell<Vec<Weak<Wire>>>,
    /// How long a message takes at most, in general.
    pub slow: Cell<Time>,
}

pub struct Wire {
    ends: [usize; 2],
    queues: [RefCell<VecDeque<(Time, Frame)>>; 2],
    closed: [Cell<bool>; 2],
    changed: Notify,
}

/// One end of a link; side 0 is the one that dialled.
#[derive(Clone)]
pub struct Link {
    wire: Rc<Wire>,
    side: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

impl Network {
    pub fn new(n: usize) -> Network {
        Network { n, cut: vec![Cell::new(false); n * n], links: RefCell::default(), slow: Cell::new(300) }
    }

    pub fn cut(&self, from: usize, to: usize) -> bool {
        self.cut[from * self.n + to].get()
    }

    pub fn set_cut(&self, from: usize, to: usize, cut: bool) {
        self.cut[from * self.n + to].set(cut);
    }

    fn live(&self) -> Vec<Rc<Wire>> {
        let mut links = self.links.borrow_mut();
        links.retain(|l| l.strong_count() > 0);
        links.iter().filter_map(Weak::upgrade).collect()
    }

    /// Some link between any two nodes breaks; what is on its way in it is lost.
    pub fn break_one(&self, world: &World) {
        let live = self.live();
        if live.is_empty() {
            return;
        }
        let wire = &live[world.below(live.len() as u64) as usize];
        wire.closed.iter().for_each(|c| c.set(true));
        world.ring(&wire.changed);
    }

    /// A process is gone. Its kernel says so, unless that is gone, too.
    pub fn killed(&self, world: &World, node: usize, told: bool) {
        for wire in self.live() {
            for side in 0..2 {
                if wire.ends[side] == node && !wire.closed[side].get() {
                    let link = Link { wire: Rc::clone(&wire), side };
                    if told {
                        link.shutdown(world);
                    }
                    wire.closed[side].set(true);
                }
            }
        }
    }
}

impl Link {
    pub fn same(&self, other: &Link) -> bool {
        Rc::ptr_eq(&self.wire, &other.wire)
    }

    pub fn send(&self, world: &World, frame: Frame) -> Result<(), Closed> {
        if self.wire.closed[self.side].get() {
            return Err(Closed);
        }
        let to = 1 - self.side;
        let mut queue = self.wire.queues[to].borrow_mut();
        let slow = if world.once_in(200) { 40 * MS } else { world.net.slow.get() };
        let at = world.now() + world.between(30, slow.max(31));
        let at = queue.back().map_or(at, |(last, _)| at.max(*last));
        queue.push_back((at, frame));
        drop(queue);
        world.ring(&self.wire.changed);
        Ok(())
    }

    pub fn say(&self, world: &World, m: Message) -> Result<(), Closed> {
        self.send(world, Frame::Say(Box::new(m)))
    }

    pub fn shutdown(&self, world: &World) {
        if !self.wire.closed[self.side].get() {
            // What is there already still arrives before the end does.
            let _ = self.send(world, Frame::End);
            self.wire.closed[self.side].set(true);
            world.ring(&self.wire.changed);
        }
    }

    fn arrived(&self, world: &World) -> Option<Result<Frame, Closed>> {
        let wire = &self.wire;
        if wire.closed[self.side].get() {
            return Some(Err(Closed));
        }
        let mut queue = wire.queues[self.side].borrow_mut();
        let at = queue.front()?.0;
        if at > world.now() {
            world.wake_me(at);
            return None;
        }
        if world.net.cut(wire.ends[1 - self.side], wire.ends[self.side]) {
            return None;
        }
        let (_, frame) = queue.pop_front()?;
        if matches!(frame, Frame::End) {
            wire.closed[self.side].set(true);
            return Some(Err(Closed));
        }
        Some(Ok(frame))
    }

    pub async fn recv(&self, world: &World, timeout: Time) -> Result<Option<Frame>, Closed> {
        let deadline = world.now().saturating_add(timeout);
        world.wait(&self.wire.changed, deadline, || self.arrived(world)).await.transpose()
    }

    /// The next transaction, if it has arrived already.
    pub fn ready_txn(&self, world: &World) -> Option<Entry> {
        let is = matches!(self.wire.queues[self.side].borrow().front(), Some((_, Frame::Txn(_))));
        match is.then(|| self.arrived(world)).flatten() {
            Some(Ok(Frame::Txn(e))) => Some(e),
            _ => None,
        }
    }
}

/// Connects; the other node's session answers.
pub async fn connect(from: &Rc<N>, to: usize, timeout: Time) -> Result<Link, String> {
    let w = &from.w;
    let deadline = w.now() + timeout;
    let cut = || w.net.cut(from.me, to) || w.net.cut(to, from.me) || !w.hosts[to].get();
    let never = Notify::default();
    w.sleep(w.between(60, 600)).await;
    while cut() {
        if w.now() >= deadline {
            return Err("no answer".to_owned());
        }
        w.wait(&never, deadline.min(w.now() + 100 * MS), || None::<()>).await;
    }
    let peer = w.nodes.borrow()[to].clone();
    let Some(peer) = peer else { return Err("connection refused".to_owned()) };
    let wire = Rc::new(Wire {
        ends: [from.me, to],
        queues: Default::default(),
        closed: Default::default(),
        changed: Notify::default(),
    });
    w.net.links.borrow_mut().push(Rc::downgrade(&wire));
    let accepted = Rc::new((Cell::new(false), Notify::default()));
    let (theirs, told) = (Link { wire: Rc::clone(&wire), side: 1 }, Rc::clone(&accepted));
    let node = Rc::clone(&peer);
    w.spawn(Some(to), async move {
        told.0.set(true);
        node.w.ring(&told.1);
        serve::answer(&node, theirs).await;
    });
    let link = Link { wire, side: 0 };
    if w.wait(&accepted.1, deadline.min(NEVER - 1), || accepted.0.get().then_some(())).await.is_none() {
        link.shutdown(w);
        return Err("no handshake".to_owned());
    }
    Ok(link)
}
