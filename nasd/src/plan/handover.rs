//! What a switchover would do.

use super::{About, Company, Plan, line, transactions};

/// What the new primary has yet to get and apply before it takes over.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lag {
    pub transactions: u64,
    pub bytes: u64,
    /// Age of the oldest of them.
    pub seconds: f64,
    /// Bytes written here that no transaction holds yet.
    pub unsealed: u64,
}

/// All that the plan follows from.
#[derive(Debug, Clone)]
pub struct Facts {
    pub from: String,
    /// To whom, or why to nobody.
    pub to: Result<String, String>,
    pub epoch: u64,
    /// As far as this node knows it: a secondary knows the transactions only.
    pub lag: Result<Lag, u64>,
    /// What refuses it besides.
    pub hindrance: Option<String>,
    pub company: Company,
}

/// The plan of a switchover.
pub fn plan(facts: &Facts) -> Plan {
    let to = match (&facts.to, &facts.hindrance) {
        (Err(why), _) | (_, Some(why)) => return super::refusal(why.clone()),
        (Ok(to), None) => to,
    };
    let would = |text: String| line(About::Would, text);
    let mut plan = vec![would(format!(
        "{} hands over to {to}, which becomes primary of epoch {}",
        facts.from, facts.epoch
    ))];
    if let Some(d) = facts.company.database.as_ref().filter(|d| d.managed) {
        plan.push(would(format!(
            "PostgreSQL ({}) comes along: stopped on {}, promoted on {to}",
            d.state, facts.from
        )));
    } else if facts.company.database.is_some() {
        plan.push(would("PostgreSQL is not nasd's to stop and promote (manage = false)".to_owned()));
    }
    plan.push(would(match facts.lag {
        Ok(lag) => format!(
            "to drain: {}, {} bytes, {:.1} s old; {} bytes written and not committed yet",
            transactions(lag.transactions),
            lag.bytes,
            lag.seconds,
            lag.unsealed
        ),
        Err(n) => format!(
            "to drain: {} (`nasd switchover --plan` on {} knows their bytes and age)",
            transactions(n),
            facts.from
        ),
    }));
    plan.push(facts.company.address());
    plan.push(line(
        About::Safe,
        format!(
            "nothing would be lost; if it takes longer than 10 s nothing is changed, and {} stays primary",
            facts.from
        ),
    ));
    plan
}

#[cfg(test)]
mod tests {
    use super::super::goes_ahead;
    use super::*;
    use crate::database::DatabaseStatus;

    fn facts() -> Facts {
        Facts {
            from: "a".into(),
            to: Ok("b".into()),
            epoch: 4,
            lag: Ok(Lag { transactions: 1, bytes: 4096, seconds: 0.25, unsealed: 7 }),
            hindrance: None,
            company: Company { address: Some("192.0.2.1/24".into()), database: None },
        }
    }

    fn text(plan: &[super::super::Line]) -> String {
        plan.iter().map(|l| format!("{}\n", l.step)).collect()
    }

    #[test]
    fn to_whom_and_how_much() {
        let plan = plan(&facts());
        assert!(goes_ahead(&plan));
        let text = text(&plan);
        assert!(text.contains("a hands over to b, which becomes primary of epoch 4"), "{text}");
        assert!(text.contains("1 transaction, 4096 bytes, 0.2 s old; 7 bytes written"), "{text}");
        assert!(
            text.contains("192.0.2.1/24 comes along") && text.contains("nothing would be lost"),
            "{text}"
        );
        assert!(!plan.iter().any(|l| l.about == About::Lost));
    }

    #[test]
    fn the_secondary_knows_less() {
        let text = text(&plan(&Facts { lag: Err(3), ..facts() }));
        assert!(text.contains("3 transactions (`nasd switchover --plan` on a"), "{text}");
    }

    #[test]
    fn a_refusal_says_nothing_else() {
        for f in [
            Facts { to: Err("nobody is in sync".into()), ..facts() },
            Facts { hindrance: Some("nobody is in sync".into()), ..facts() },
        ] {
            let plan = plan(&f);
            assert!(!goes_ahead(&plan));
            assert_eq!(text(&plan), "nobody is in sync\n");
        }
    }

    #[test]
    fn the_database_comes_along_if_it_is_managed() {
        let mut f = facts();
        for (managed, says) in [(true, "stopped on a, promoted on b"), (false, "not nasd's to stop")] {
            f.company.database =
                Some(DatabaseStatus { state: "primary".into(), managed, ..DatabaseStatus::default() });
            let text = text(&plan(&f));
            assert!(text.contains(says), "{text}");
        }
    }
}
