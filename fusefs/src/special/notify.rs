//! `.nasd/notify`: a read waits for news, on no thread; poll(2) and its kin say when there are some.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use fuser::{Errno, PollEvents, PollNotifier, ReplyData};
use parking_lot::Mutex;

use super::caller;
use super::lines::Lines;
use super::{NodeInfo, Subscription};

/// How often those who wait are looked at, whether they have a signal to handle.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Looking takes at most this part of a processor, however many wait.
const LOOK_SHARE: u32 = 20;
/// How long somebody waits at most whom this process can't see, being in another process-id namespace.
const UNSEEN: Duration = Duration::from_secs(5);

/// A read that waits for its answer.
pub(super) struct Waiting {
    pub(super) reply: ReplyData,
    pub(super) size: usize,
    /// The thread that waits; 0 if it can't be seen from here.
    pub(super) pid: u32,
    /// The request's number.
    pub(super) unique: u64,
    pub(super) since: Instant,
}

/// What a read gets when there is nothing to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nothing {
    /// What comes next, when it comes.
    Wait,
    /// EAGAIN: the file is open with `O_NONBLOCK`.
    Again,
    /// An end: the kernel asks for the rest of a read(2) that was too long for one request, and has something already.
    End,
}

/// One open file: it has its own place in what happens.
pub(super) struct Reader(Mutex<State>);

struct State {
    subscription: Box<dyn Subscription>,
    lines: Lines,
    /// In the order in which they came.
    waiting: VecDeque<Waiting>,
    /// Who wants to be woken when there is something to read.
    poller: Option<PollNotifier>,
    /// The mount is being taken down: nothing comes any more.
    ended: bool,
}

impl State {
    /// Whether there is something to read.
    fn is_ready(&mut self) -> bool {
        if self.lines.is_empty() && !self.ended {
            self.lines.refill(self.subscription.next());
        }
        !self.lines.is_empty()
    }

    /// Answers whoever can be answered.
    fn serve(&mut self) {
        while !self.waiting.is_empty() && (self.is_ready() || self.ended) {
            if let Some(Waiting { reply, size, .. }) = self.waiting.pop_front() {
                reply.data(self.lines.take(size));
            }
        }
        if self.poller.is_some()
            && (self.is_ready() || self.ended)
            && let Some(poller) = self.poller.take()
        {
            // It fails when the connection is gone, and then nobody polls.
            poller.notify().ok();
        }
    }

    fn answer_last(&mut self, answer: impl FnOnce(ReplyData)) {
        if let Some(waiting) = self.waiting.pop_back() {
            answer(waiting.reply);
        }
    }
}

impl Reader {
    fn serve(&self) {
        self.0.lock().serve();
    }

    fn end(&self) {
        let mut state = self.0.lock();
        // What has happened before is told.
        state.is_ready();
        state.ended = true;
        state.serve();
    }

    fn has_waiting(&self) -> bool {
        !self.0.lock().waiting.is_empty()
    }

    /// The events that poll(2) is told. A closed mount is a hang-up.
    pub(super) fn poll(&self, wake: Option<PollNotifier>) -> PollEvents {
        let mut state = self.0.lock();
        if wake.is_some() {
            state.poller = wake;
        }
        let readable = PollEvents::POLLIN | PollEvents::POLLRDNORM;
        match (state.is_ready(), state.ended) {
            (_, true) => readable | PollEvents::POLLHUP,
            (true, false) => readable,
            (false, false) => PollEvents::empty(),
        }
    }

    /// Answers those with EINTR who have been told to stop waiting, of those who have waited for a while.
    fn interrupt(&self) {
        let long = |waiting: &&Waiting| waiting.since.elapsed() >= LOOK_EVERY;
        let candidates: Vec<_> =
            self.0.lock().waiting.iter().filter(long).map(|w| (w.unique, w.pid, w.since)).collect();
        for (unique, pid, since) in candidates {
            // Not under the lock: news need not wait for /proc.
            let interrupted = if pid == 0 { since.elapsed() >= UNSEEN } else { caller::is_interrupted(pid) };
            if interrupted {
                let mut state = self.0.lock();
                let place = state.waiting.iter().position(|waiting| waiting.unique == unique);
                if let Some(waiting) = place.and_then(|place| state.waiting.remove(place)) {
                    waiting.reply.error(Errno::EINTR);
                }
            }
        }
    }
}

/// All that are open.
#[derive(Default)]
struct Readers {
    open: Mutex<Vec<Arc<Reader>>>,
    /// The mount is being taken down.
    closed: AtomicBool,
}

impl Readers {
    fn all(&self) -> Vec<Arc<Reader>> {
        self.open.lock().clone()
    }

    /// Answers those who wait for news, each time that there are some.
    fn tell(&self, news: &Receiver<()>) {
        while news.recv().is_ok() {
            self.all().iter().for_each(|reader| reader.serve());
        }
    }

    /// Answers those who wait and have a signal to handle, for as long as anybody waits.
    fn look(&self, somebody_waits: &Receiver<()>) {
        while somebody_waits.recv().is_ok() {
            let mut rest = LOOK_EVERY;
            while self.all().iter().any(|reader| reader.has_waiting()) {
                thread::sleep(rest);
                let began = Instant::now();
                self.all().iter().for_each(|reader| reader.interrupt());
                rest = (began.elapsed() * LOOK_SHARE).max(LOOK_EVERY);
            }
        }
    }
}

/// Starts a thread that works each time that the bell is rung, however often it was rung meanwhile, until the last
/// of those who can ring it is gone.
fn spawn(
    name: &str,
    readers: &Arc<Readers>,
    work: fn(&Readers, &Receiver<()>),
) -> io::Result<SyncSender<()>> {
    let (bell, rung) = mpsc::sync_channel(1);
    let readers = Arc::clone(readers);
    thread::Builder::new().name(name.into()).spawn(move || work(&readers, &rung))?;
    Ok(bell)
}

fn ring(bell: &SyncSender<()>) {
    // It fails when the bell has been rung and not heard yet, which is as good.
    bell.try_send(()).ok();
}

/// The file, for everybody who opens it.
pub(super) struct Notify {
    node: Arc<dyn NodeInfo>,
    readers: Arc<Readers>,
    somebody_waits: SyncSender<()>,
    /// Until it is dropped the teller is woken.
    _news: Box<dyn Send + Sync>,
}

impl Notify {
    pub(super) fn new(node: Arc<dyn NodeInfo>) -> io::Result<Self> {
        let readers = Arc::new(Readers::default());
        let somebody_waits = spawn("notify-look", &readers, Readers::look)?;
        let news = spawn("notify-tell", &readers, Readers::tell)?;
        let all = Arc::clone(&readers);
        let until = node.on_news(Box::new(move || {
            // Whoever has news has better things to do than to wake a thread for nobody.
            if !all.open.lock().is_empty() {
                ring(&news);
            }
        }));
        Ok(Self { node, readers, somebody_waits, _news: until })
    }

    /// Everything that happens from now on is for this reader as well.
    pub(super) fn open(&self) -> Arc<Reader> {
        let reader = Arc::new(Reader(Mutex::new(State {
            subscription: self.node.subscribe(),
            lines: Lines::default(),
            waiting: VecDeque::new(),
            poller: None,
            ended: false,
        })));
        self.readers.open.lock().push(Arc::clone(&reader));
        // In this order: whoever closes sets it first.
        if self.readers.closed.load(Ordering::SeqCst) {
            reader.end();
        }
        reader
    }

    pub(super) fn release(&self, reader: &Arc<Reader>) {
        self.readers.open.lock().retain(|other| !Arc::ptr_eq(other, reader));
    }

    /// Answers at once if there is something to read, otherwise as `nothing` says.
    pub(super) fn read(&self, reader: &Reader, read: Waiting, nothing: Nothing) {
        let mut state = reader.0.lock();
        state.waiting.push_back(read);
        state.serve();
        if state.waiting.is_empty() {
            return;
        }
        // This one is the last of them.
        match nothing {
            Nothing::Wait => ring(&self.somebody_waits),
            Nothing::Again => state.answer_last(|reply| reply.error(Errno::EAGAIN)),
            Nothing::End => state.answer_last(|reply| reply.data(&[])),
        }
    }

    /// Lets everybody go: reads end as at the end of a file, polls with a hang-up.
    pub(super) fn close(&self) {
        self.readers.closed.store(true, Ordering::SeqCst);
        self.readers.all().iter().for_each(|reader| reader.end());
    }
}

impl Drop for Notify {
    fn drop(&mut self) {
        self.close();
    }
}
