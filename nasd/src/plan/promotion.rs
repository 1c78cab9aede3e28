//! What a promotion would do.

use super::{About, Company, Line, Plan, line, transactions};
use crate::decide::Quorum;
use crate::protocol::Hello;
use nasd_volume::{Position, Role};
use std::time::Duration;

/// All that the plan follows from.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// `--force`.
    pub force: bool,
    /// What there is against it.
    pub hindrance: Option<String>,
    /// The epoch that it would lead to.
    pub epoch: u64,
    /// The end of this node's log, and when that was committed.
    pub tail: Position,
    pub time: Option<String>,
    pub applied: u64,
    /// As the old primary has said last.
    pub in_sync: bool,
    /// The third vote says that this node has everything.
    pub recorded: bool,
    /// A primary that loses its peer goes on alone.
    pub degrade: bool,
    /// For how long nothing was heard of a primary.
    pub silence: Duration,
    /// What each peer answered.
    pub answers: &'a [(String, Result<Hello, String>)],
    pub quorum: Quorum<'a>,
    pub company: Company,
}

/// Whether it would promise to take nothing more from the old primary, as far as its hello tells.
fn promises(hello: &Hello, epoch: u64) -> bool {
    hello.role == Role::Secondary && hello.epoch < epoch
}

impl Facts<'_> {
    fn hellos(&self) -> impl Iterator<Item = &Hello> {
        self.answers.iter().filter_map(|(_, a)| a.as_ref().ok())
    }

    /// Why it is refused, or would be without force.
    fn against(&self) -> Option<String> {
        self.hindrance.clone().or_else(|| {
            if self.quorum.others() == 0 {
                return None;
            }
            let promised = self.hellos().filter(|h| promises(h, self.epoch)).map(|h| h.name.as_str());
            let silent: Vec<(&str, String)> = self
                .answers
                .iter()
                .filter_map(|(n, a)| match a {
                    Err(e) => Some((n.as_str(), e.clone())),
                    Ok(h) if !promises(h, self.epoch) => {
                        Some((n.as_str(), "it follows another one".to_owned()))
                    }
                    Ok(_) => None,
                })
                .collect();
            self.quorum.hindrance(promised, &silent)
        })
    }

    /// What is known to be elsewhere and not here.
    fn ahead(&self) -> Vec<Line> {
        let here = (self.tail.epoch, self.tail.seq);
        let mut longer: Vec<&Hello> =
            self.hellos().filter(|h| (h.tail.epoch, h.tail.seq) > here && !h.needs_copy).collect();
        longer.sort_by_key(|h| (h.tail.epoch, h.tail.seq));
        let fetched =
            longer.iter().rev().find(|h| self.quorum.others() > 0 && promises(h, self.epoch)).copied();
        let told = |h: &&Hello| {
            let which = if h.tail.seq > self.tail.seq {
                let n = h.tail.seq - self.tail.seq;
                format!("{} behind {}, up to {}", transactions(n), self.tail.seq, h.tail.seq)
            } else {
                format!("another history, of epoch {} up to transaction {}", h.tail.epoch, h.tail.seq)
            };
            match fetched {
                Some(f) if f.tail == h.tail => {
                    line(About::Safe, format!("{} has {which}: fetched from there first", h.name))
                }
                _ => line(
                    About::Lost,
                    format!(
                        "{} has {which}, which are not here: lost (set aside under diverged/ on {})",
                        h.name, h.name
                    ),
                ),
            }
        };
        longer.iter().map(told).collect()
    }

    /// What may be elsewhere.
    fn unknown(&self) -> Line {
        let behind = match &self.time {
            Some(t) => format!("transaction {} of {t}", self.tail.seq),
            None => format!("transaction {}", self.tail.seq),
        };
        if self.recorded {
            let text = "etcd says that this node has everything that was acknowledged: nothing would be lost";
            return line(About::Safe, text);
        }
        if !self.in_sync {
            return line(
                About::Lost,
                format!(
                    "not known to be in sync since {behind}: what the primary committed after it without this node \
                     would be lost (set aside under diverged/ on that node when it comes back)"
                ),
            );
        }
        let silent = self.silence.as_secs_f64();
        if !self.degrade {
            let text = "this node was in sync, and with `suspend` nothing is acknowledged without it: nothing would be lost";
            return line(About::Safe, text);
        }
        line(
            About::Safe,
            format!(
                "this node was in sync when it last heard of the primary, {silent:.1} s ago: nothing acknowledged until \
                 then would be lost. What a primary that lives behind a cut committed alone since would be set aside \
                 under diverged/ there"
            ),
        )
    }

    fn database(&self) -> Vec<Line> {
        let Some(d) = &self.company.database else { return Vec::new() };
        let mut lines = Vec::new();
        let text = match (&d.must_clone, d.managed) {
            (Some(why), _) => format!("PostgreSQL does not come along: {why}"),
            (None, true) => format!("PostgreSQL ({}) comes along: it is promoted", d.state),
            (None, false) => {
                format!(
                    "PostgreSQL ({}) is not nasd's to promote (manage = false): promote it yourself",
                    d.state
                )
            }
        };
        lines.push(line(About::Would, text));
        if d.held_files > 0 {
            let text = format!("{} WAL files, {} bytes, are held for it", d.held_files, d.held_bytes);
            lines.push(line(About::Would, text));
        }
        lines
    }
}

/// The plan of a promotion.
pub fn plan(facts: &Facts<'_>) -> Plan {
    let mut plan = Plan::new();
    match facts.against() {
        Some(why) if facts.force => plan.push(line(About::Would, format!("forced although {why}"))),
        Some(why) => plan.push(line(About::Refused, why)),
        None => {}
    }
    for (name, answer) in facts.answers {
        let text = match answer {
            Err(e) => format!("{name} does not answer: {e}"),
            Ok(h) => {
                let role = if h.role == Role::Primary { "primary" } else { "secondary" };
                format!(
                    "{name} answers: {role} of epoch {}, its log ends at transaction {}",
                    h.epoch, h.tail.seq
                )
            }
        };
        plan.push(line(About::Would, text));
    }
    plan.push(line(
        About::Would,
        format!(
            "primary of epoch {}, from transaction {} of epoch {} on",
            facts.epoch, facts.tail.seq, facts.tail.epoch
        ),
    ));
    let unapplied = facts.tail.seq.saturating_sub(facts.applied);
    if unapplied > 0 {
        plan.push(line(About::Would, format!("{} applied first", transactions(unapplied))));
    }
    let ahead = facts.ahead();
    let known_loss = ahead.iter().any(|l| l.about == About::Lost);
    plan.extend(ahead);
    // One that is known makes no promise that there is none.
    let unknown = facts.unknown();
    if !(known_loss && unknown.about == About::Safe) {
        plan.push(unknown);
    }
    plan.push(facts.company.address());
    plan.extend(facts.database());
    plan
}

#[cfg(test)]
mod tests {
    use super::super::goes_ahead;
    use super::*;
    use crate::database::DatabaseStatus;
    use crate::vote::record::Record;
    use nasd_volume::Hash;

    fn pos(epoch: u64, seq: u64) -> Position {
        Position { epoch, seq, hash: Hash([seq as u8; 32]) }
    }

    fn hello(name: &str, role: Role, tail: Position) -> (String, Result<Hello, String>) {
        let hello = Hello {
            version: 1,
            name: name.into(),
            volume: None,
            role,
            serving: role == Role::Primary,
            epoch: 5,
            tail,
            applied: tail.seq,
            needs_copy: false,
            in_sync: true,
            trouble: None,
            following: None,
        };
        (name.to_owned(), Ok(hello))
    }

    fn dead(name: &str) -> (String, Result<Hello, String>) {
        (name.to_owned(), Err("connection refused".to_owned()))
    }

    fn facts(answers: &[(String, Result<Hello, String>)]) -> Facts<'_> {
        Facts {
            force: false,
            hindrance: None,
            epoch: 6,
            tail: pos(5, 10),
            time: Some("2026-11-23T04:57:57Z".into()),
            applied: 8,
            in_sync: true,
            recorded: false,
            degrade: true,
            silence: Duration::from_secs(3),
            answers,
            quorum: Quorum { me: "b", before: None, peers: answers.len(), required: 1 },
            company: Company::default(),
        }
    }

    fn text(plan: &[Line], about: About) -> String {
        plan.iter().filter(|l| l.about == about).map(|l| format!("{}\n", l.step)).collect()
    }

    #[test]
    fn in_sync_and_the_primary_dead_it_goes_ahead_and_loses_nothing() {
        let answers = [dead("a")];
        let plan = plan(&facts(&answers));
        assert!(goes_ahead(&plan));
        assert_eq!(text(&plan, About::Lost), "");
        let would = text(&plan, About::Would);
        assert!(would.contains("a does not answer: connection refused"), "{would}");
        assert!(would.contains("primary of epoch 6, from transaction 10 of epoch 5 on"), "{would}");
        assert!(would.contains("2 transactions applied first"), "{would}");
        assert!(would.contains("no virtual address"), "{would}");
        assert!(text(&plan, About::Safe).contains("3.0 s ago"));
    }

    #[test]
    fn what_refuses_it_is_forced_all_the_same() {
        let answers = [dead("a")];
        let f = Facts { in_sync: false, hindrance: Some("it is not so".into()), ..facts(&answers) };
        let refused = plan(&f);
        assert!(!goes_ahead(&refused));
        assert_eq!(text(&refused, About::Refused), "it is not so\n");
        let lost = text(&refused, About::Lost);
        assert!(
            lost.contains("not known to be in sync since transaction 10 of 2026-11-23T04:57:57Z"),
            "{lost}"
        );
        assert!(lost.contains("set aside under diverged/"), "{lost}");
        let forced = plan(&Facts { force: true, ..f });
        assert!(goes_ahead(&forced) && text(&forced, About::Would).contains("forced although it is not so"));
        assert_eq!(text(&forced, About::Lost), lost);
    }

    #[test]
    fn a_longer_log_on_the_only_peer_is_lost_and_no_promise_stands_beside_it() {
        let answers = [hello("a", Role::Primary, pos(5, 13))];
        let plan = plan(&Facts { hindrance: Some("a is primary".into()), force: true, ..facts(&answers) });
        let lost = text(&plan, About::Lost);
        assert!(
            lost.contains("a has 3 transactions behind 10, up to 13, which are not here: lost"),
            "{lost}"
        );
        assert_eq!(text(&plan, About::Safe), "");
    }

    #[test]
    fn a_longer_log_on_another_secondary_is_fetched() {
        let answers = [dead("a"), hello("c", Role::Secondary, pos(5, 11))];
        let plan = plan(&facts(&answers));
        assert!(goes_ahead(&plan));
        assert_eq!(text(&plan, About::Lost), "");
        let safe = text(&plan, About::Safe);
        assert!(safe.contains("c has 1 transaction behind 10, up to 11: fetched from there first"), "{safe}");
    }

    #[test]
    fn with_three_nodes_the_other_secondary_has_to_answer() {
        let answers = [dead("a"), dead("c")];
        let refused = plan(&facts(&answers));
        assert!(!goes_ahead(&refused));
        assert!(text(&refused, About::Refused).contains("c (connection refused)"));
        // The record says that nobody but the two had it.
        let mut record = Record::first("a", 5, 1);
        record.in_sync.insert("b".into());
        let quorum = Quorum { me: "b", before: Some(&record), peers: 2, required: 1 };
        let goes = plan(&Facts { quorum, recorded: true, in_sync: false, ..facts(&answers) });
        assert!(goes_ahead(&goes));
        assert!(text(&goes, About::Safe).contains("etcd says"));
        assert_eq!(text(&goes, About::Lost), "");
    }

    #[test]
    fn what_comes_along() {
        let answers = [dead("a")];
        let mut f = facts(&answers);
        f.company.address = Some("192.0.2.1/24 on eth0".into());
        f.company.database = Some(DatabaseStatus {
            state: "standby".into(),
            managed: true,
            held_files: 2,
            held_bytes: 32,
            ..DatabaseStatus::default()
        });
        let would = text(&plan(&f), About::Would);
        assert!(would.contains("192.0.2.1/24 on eth0 comes along"), "{would}");
        assert!(would.contains("PostgreSQL (standby) comes along"), "{would}");
        assert!(would.contains("2 WAL files, 32 bytes, are held"), "{would}");
        f.company.database.iter_mut().for_each(|d| d.must_clone = Some("it is behind".into()));
        let would = text(&plan(&f), About::Would);
        assert!(would.contains("PostgreSQL does not come along: it is behind"), "{would}");
    }

    #[test]
    fn with_suspend_the_silence_does_not_matter() {
        let answers = [dead("a")];
        let plan = plan(&Facts { degrade: false, ..facts(&answers) });
        assert!(text(&plan, About::Safe).contains("`suspend`"));
    }
}
