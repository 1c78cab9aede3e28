//! A client that writes numbers, one after the other, and knows which of them were acknowledged and when: whatever it was
//! told must be there afterwards, and the time between two answers is how long a failover takes for those who wait for it.

use crate::eventually_within;
use crate::lab::Lab;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two attempts to reach the service.
const RETRY: Duration = Duration::from_millis(2);
/// No failover that a test waits for takes longer.
const LONGEST: Duration = Duration::from_secs(60);

/// A connection to the service.
pub trait Session {
    /// Writes a number; whether it was acknowledged. After a no the connection is given up.
    fn write(&mut self, number: u64) -> bool;
}

/// A number that was acknowledged.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    /// The number.
    pub number: u64,
    /// When the answer came.
    pub at: Instant,
    /// When its connection was begun.
    pub dialed: Instant,
}

/// The client, at work until it is stopped. Each number is sent once: what was not answered may be there or not.
#[derive(Debug)]
pub struct Caller {
    name: String,
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<Vec<Answer>>>,
    thread: Option<JoinHandle<()>>,
}

impl Caller {
    /// On `host`; `dial` makes a connection, or none if the service does not answer.
    pub fn start<S: Session>(
        lab: &Arc<Lab>,
        host: &str,
        name: &str,
        mut dial: impl FnMut() -> Option<S> + Send + 'static,
    ) -> Caller {
        let stop = Arc::new(AtomicBool::new(false));
        let answers = Arc::new(Mutex::new(Vec::new()));
        let work = {
            let (lab, host) = (Arc::clone(lab), host.to_owned());
            let (stop, answers) = (Arc::clone(&stop), Arc::clone(&answers));
            move || {
                lab.move_to(&host);
                let mut number = 0;
                while !stop.load(Ordering::SeqCst) {
                    let dialed = Instant::now();
                    if let Some(mut session) = dial() {
                        while !stop.load(Ordering::SeqCst) {
                            number += 1;
                            if !session.write(number) {
                                break;
                            }
                            answers.lock().unwrap().push(Answer { number, at: Instant::now(), dialed });
                        }
                    }
                    std::thread::sleep(RETRY);
                }
            }
        };
        Caller { name: name.to_owned(), stop, answers, thread: Some(std::thread::spawn(work)) }
    }

    /// How many were answered so far.
    pub fn count(&self) -> u64 {
        self.answers.lock().unwrap().len() as u64
    }

    /// What it was told so far.
    pub fn answers(&self) -> Vec<Answer> {
        self.answers.lock().unwrap().clone()
    }

    /// Waits until so many more were answered.
    pub fn wait_more(&self, more: u64) {
        let from = self.count();
        eventually_within(LONGEST, &format!("client {}: {more} more", self.name), || {
            (self.count() >= from + more).then_some(())
        });
    }

    /// Waits for the first answer over a connection that was begun after `when`: the one before may still tell what the
    /// service said before it died.
    pub fn first_since(&self, when: Instant) -> Answer {
        eventually_within(LONGEST, &format!("client {} is answered again", self.name), || {
            let answers = self.answers.lock().unwrap();
            let after = answers.partition_point(|a| a.dialed < when);
            answers.get(after).copied()
        })
    }

    /// The longest time without an answer since the last one before `when`.
    pub fn longest_pause_since(&self, when: Instant) -> Duration {
        let answers = self.answers.lock().unwrap();
        let from = answers.partition_point(|a| a.at < when).saturating_sub(1);
        longest_pause(&answers[from..])
    }

    /// Stops it; what it was told.
    pub fn finish(mut self) -> Vec<Answer> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
        std::mem::take(&mut *self.answers.lock().unwrap())
    }
}

/// The longest time between two answers.
pub fn longest_pause(answers: &[Answer]) -> Duration {
    answers.windows(2).map(|w| w[1].at - w[0].at).max().unwrap_or_default()
}
