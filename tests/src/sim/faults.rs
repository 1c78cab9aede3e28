//! What goes wrong, who writes, and when all is well again.

use super::node::{Disk, N, NAMES, Phase};
use super::peers::PeerState;
use super::settings::Bug;
use super::world::{MS, Notify, SECOND, Time, World};
use nasd_volume::Role;
use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;

// ---- processes ------------------------------------------------------------------------------------------------

/// Starts a node, if it does not run.
pub fn start(w: &Rc<World>, node: usize) {
    if w.nodes.borrow()[node].is_some() {
        return;
    }
    w.hosts[node].set(true);
    {
        // While it was down the primary may have gone on without it. Before anybody can connect: a primary that calls says
        // what is true again.
        let state = &mut w.disks[node].borrow_mut().state;
        state.in_sync &= !(w.set.degrade && state.role == Role::Secondary) || w.set.has(Bug::DoubtsLate);
    }
    let n = N::new(w, node);
    w.nodes.borrow_mut()[node] = Some(Rc::clone(&n));
    n.say(|| "starts".to_owned());
    let boot = Rc::clone(&n);
    w.spawn(Some(node), async move {
        // Others may be answered before this node knows what it is.
        boot.w.sleep(boot.w.below(if boot.w.once_in(4) { 300 * MS } else { MS })).await;
        boot.boot().await;
    });
    w.spawn(Some(node), Rc::clone(&n).run());
    w.spawn(Some(node), Rc::clone(&n).seal_unsynced());
    if n.voted() {
        w.spawn(Some(node), Rc::clone(&n).poll_votes());
    }
    if w.set.mode != nasd_config::FailoverMode::Manual {
        for &to in &n.others {
            w.spawn(Some(node), Rc::clone(&n).ask_for_life(to));
        }
    }
}

/// Ends a process at once; `told`: its kernel is there to close its links.
pub fn kill(w: &World, node: usize, told: bool) {
    let Some(n) = w.nodes.borrow_mut()[node].take() else { return };
    n.say(|| format!("killed ({})", if told { "process" } else { "host" }));
    w.net.killed(w, node, told);
    w.kill_tasks(Some(node));
    w.frozen[node].set(0);
    w.disks[node].borrow_mut().crash(w);
}

fn later(w: &Rc<World>, after: Time, what: impl FnOnce(&Rc<World>) + 'static) {
    let world = Rc::clone(w);
    w.spawn(None, async move {
        world.sleep(after).await;
        what(&world);
    });
}

// ---- faults ---------------------------------------------------------------------------------------------------

/// Does harm until the time is over.
pub async fn harm(w: Rc<World>) {
    let pace = [150 * MS, 700 * MS, 2 * SECOND][w.below(3) as usize];
    w.net.slow.set([100, 300, 2 * MS][w.below(3) as usize]);
    w.sleep(w.below(3 * SECOND)).await;
    while w.now() < w.set.faults_until {
        one(&w);
        w.sleep(w.below(2 * pace)).await;
    }
}

fn one(w: &Rc<World>) {
    let n = w.set.nodes as u64;
    let node = w.below(n) as usize;
    let other = (node + 1 + w.below(n - 1) as usize) % w.set.nodes;
    let long = w.between(50 * MS, [500 * MS, 3 * SECOND, 8 * SECOND][w.below(3) as usize]);
    let name = NAMES[node];
    let count = |which: fn(&super::checks::Counts) -> &Cell<u64>| w.checks.count(which);
    match if w.set.cuts { w.below(13) } else { w.below(4) } {
        0 | 1 if w.nodes.borrow()[node].is_some() => {
            count(|c| &c.crashes);
            kill(w, node, true);
            later(w, long, move |w| start(w, node));
        }
        2 if w.nodes.borrow()[node].is_some() => {
            count(|c| &c.power_cuts);
            w.hosts[node].set(false);
            kill(w, node, false);
            later(w, long, move |w| start(w, node));
        }
        3 => operator(w, node),
        4 | 5 if w.nodes.borrow()[node].is_some() => {
            count(|c| &c.freezes);
            w.trace(|| format!("{name} stands still for {long}"));
            w.frozen[node].set(w.frozen[node].get().max(w.now() + long));
        }
        6 => {
            count(|c| &c.stalls);
            w.trace(|| format!("{name}'s disk stands still for {long}"));
            w.stalled[node].set(w.stalled[node].get().max(w.now() + long));
        }
        7 => {
            count(|c| &c.breaks);
            w.net.break_one(w);
        }
        8 => {
            count(|c| &c.one_way_cuts);
            w.trace(|| format!("{name} -> {} cut for {long}", NAMES[other]));
            w.net.set_cut(node, other, true);
            later(w, long, move |w| join(w, &[(node, other)]));
        }
        9 | 10 => {
            count(|c| &c.cuts);
            let alone = w.once_in(2);
            let others = (0..w.set.nodes).filter(|o| *o != node && (alone || *o == other));
            let ways: Vec<_> = others.flat_map(|o| [(node, o), (o, node)]).collect();
            w.trace(|| format!("{ways:?} cut for {long}"));
            for &(a, b) in &ways {
                w.net.set_cut(a, b, true);
            }
            if w.once_in(3) {
                w.etcd.cut[node].set(true);
            }
            later(w, long, move |w| {
                w.etcd.cut[node].set(false);
                join(w, &ways);
            });
        }
        11 => {
            count(|c| &c.etcd_downs);
            w.trace(|| format!("etcd is down for {long}"));
            w.etcd.down.set(true);
            later(w, long, |w| w.etcd.down.set(false));
        }
        12 => {
            count(|c| &c.etcd_cuts);
            w.trace(|| format!("{name} is cut from etcd for {long}"));
            w.etcd.cut[node].set(true);
            later(w, long, move |w| w.etcd.cut[node].set(false));
        }
        _ => {}
    }
}

fn join(w: &World, ways: &[(usize, usize)]) {
    for &(a, b) in ways {
        w.net.set_cut(a, b, false);
    }
    w.wake_all();
}

/// The operator hands over, or stops a node in order and starts it again.
fn operator(w: &Rc<World>, node: usize) {
    let Some(n) = w.nodes.borrow()[node].clone() else { return };
    if w.once_in(3) {
        w.checks.count(|c| &c.stops);
        n.say(|| "is stopped".to_owned());
        let (done, other) = (Rc::new(Cell::new(false)), Rc::clone(&n));
        let told = Rc::clone(&done);
        w.spawn(Some(node), async move {
            other.stop().await;
            told.set(true);
        });
        let world = Rc::clone(w);
        w.spawn(None, async move {
            let end = world.now() + 10 * SECOND;
            while !done.get() && world.now() < end {
                world.sleep(20 * MS).await;
            }
            let same = world.nodes.borrow()[node].as_ref().is_some_and(|now| Rc::ptr_eq(now, &n));
            if same {
                kill(&world, node, true);
                world.sleep(world.below(2 * SECOND)).await;
                start(&world, node);
            }
        });
        return;
    }
    n.say(|| "is asked for a switchover".to_owned());
    w.spawn(Some(node), async move {
        let here = n.peers.borrow().is_some();
        let done = if here { n.switchover(None).await } else { n.ask_primary_to_switch().await };
        n.say(|| format!("switchover: {done:?}"));
    });
}

/// Nothing is wrong any more.
pub fn heal(w: &Rc<World>) {
    w.trace(|| "all is healed".to_owned());
    for a in 0..w.set.nodes {
        for b in 0..w.set.nodes {
            w.net.set_cut(a, b, false);
        }
        w.etcd.cut[a].set(false);
        w.stalled[a].set(0);
        w.frozen[a].set(0);
        start(w, a);
    }
    w.etcd.down.set(false);
    w.wake_all();
}

// ---- clients --------------------------------------------------------------------------------------------------

fn attempt(w: &Rc<World>, node: usize) -> Option<Rc<(Cell<Option<bool>>, Notify)>> {
    let n = w.nodes.borrow()[node].clone()?;
    let answer: Rc<(Cell<Option<bool>>, Notify)> = Rc::default();
    let told = Rc::clone(&answer);
    w.spawn(Some(node), async move {
        let w = &n.w;
        let id = w.checks.write_id();
        let opened = n.given_up.get();
        let mut done = n.write(id).await;
        if done {
            if w.once_in(4) {
                w.sleep(w.below(if w.once_in(5) { 4 * SECOND } else { 3 * MS })).await;
            }
            done = n.commit(super::node::Want::Sync).await;
            done &= opened == n.given_up.get() || w.set.has(Bug::OldHandle);
            if done {
                w.checks.acknowledged(w, &n, id);
            }
        }
        told.0.set(Some(done));
        w.ring(&told.1);
    });
    Some(answer)
}

/// Writes to whom it believes to be primary, for ever.
pub async fn client(w: Rc<World>) {
    let mut at = 0;
    let pace = w.between(5 * MS, 100 * MS);
    while !w.checks.quiet.get() {
        w.sleep(w.below(pace)).await;
        let patience = w.between(100 * MS, 3 * SECOND);
        let done = match attempt(&w, at) {
            Some(answer) => w.wait(&answer.1, w.now() + patience, || answer.0.get()).await,
            None => None,
        };
        if done != Some(true) {
            at = w.below(w.set.nodes as u64) as usize;
            w.sleep(20 * MS).await;
        }
    }
}

// ---- the end --------------------------------------------------------------------------------------------------

/// Why the nodes are not as they should be when nothing is wrong.
pub fn unsettled(w: &World) -> Option<String> {
    let nodes = w.nodes.borrow();
    let serving: Vec<&Rc<N>> = nodes.iter().flatten().filter(|n| n.writable()).collect();
    let [primary] = serving[..] else {
        return Some(format!("{} nodes serve", serving.len()));
    };
    let peers = primary.peers.borrow();
    let Some(peers) = peers.as_ref() else { return Some("it has no peers".to_owned()) };
    for (i, row) in peers.rows().iter().enumerate() {
        let other = peers.others[i];
        if row.state != PeerState::InSync || !row.in_set {
            return Some(format!("{} has {} as {row:?}", NAMES[primary.me], NAMES[other]));
        }
        let Some(n) = &nodes[other] else { return Some(format!("{} is down", NAMES[other])) };
        let state = w.disks[other].borrow().state.clone();
        if state.role != Role::Secondary || !state.in_sync || n.phase.get() != Phase::Running {
            return Some(format!("{} is {state:?}", NAMES[other]));
        }
    }
    let (_, record) = w.etcd.now();
    if primary.voted()
        && !record.as_ref().is_some_and(|r| {
            r.primary == NAMES[primary.me] && r.epoch == primary.epoch.get() && r.in_sync.len() == w.set.nodes
        })
    {
        return Some(format!("the record is {record:?}"));
    }
    None
}

/// What is different in the logs when nobody writes.
fn unequal(w: &World) -> Option<String> {
    let tail = |d: &std::cell::RefCell<Disk>| d.borrow().tail();
    let first = tail(&w.disks[0]);
    let other = w.disks.iter().position(|d| tail(d) != first)?;
    Some(format!("a's log ends at {}, {}'s at {}", first.seq, NAMES[other], tail(&w.disks[other]).seq))
}

/// Runs until all is well, for so long at most.
pub fn settle(w: &Rc<World>, patience: Time) {
    let end = w.now() + patience;
    loop {
        w.run(w.now() + 200 * MS);
        let mut why = unsettled(w);
        if why.is_none() {
            w.checks.quiet.set(true);
            w.run(w.now() + 4 * SECOND);
            why = unsettled(w).or_else(|| unequal(w)).or_else(|| probe(w));
        }
        if w.checks.failed() {
            return;
        }
        let Some(why) = why else { return w.checks.at_the_end(w) };
        if w.now() > end {
            return w.checks.broken(w, 4, || format!("it does not settle: {why}"));
        }
    }
}

fn probe(w: &Rc<World>) -> Option<String> {
    let primary = w.nodes.borrow().iter().flatten().find(|n| n.writable()).map(|n| n.me)?;
    let answer = attempt(w, primary)?;
    w.run(w.now() + 2 * SECOND);
    if answer.0.get() == Some(true) { unequal(w) } else { Some("a write is not acknowledged".to_owned()) }
}

/// Something that runs for as long as the world does.
pub fn for_ever(w: &Rc<World>, f: impl Future<Output = ()> + 'static) {
    w.spawn(None, f);
}
