//! `--plan`: what a change of role would do and what it would cost, without doing it.
//!
//! [`promotion`] and [`handover`] say it, given what there is; [`ask`] finds that out, by the same questions that the change
//! of role itself asks, and what would refuse that refuses here.

mod ask;
pub mod handover;
pub mod promotion;

use crate::database::DatabaseStatus;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a line of a plan is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum About {
    /// It would be refused.
    Refused,
    /// It would be done.
    Would,
    /// It would be lost, or may be.
    Lost,
    /// It would not be lost.
    Safe,
}

/// A line of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Line {
    pub about: About,
    pub step: String,
}

/// The whole of it.
pub type Plan = Vec<Line>;

fn line(about: About, step: impl Into<String>) -> Line {
    Line { about, step: step.into() }
}

/// It would be refused, and there is no more to say.
pub fn refusal(why: impl Into<String>) -> Plan {
    vec![line(About::Refused, why)]
}

/// Whether the change of role would go ahead.
pub fn goes_ahead(plan: &[Line]) -> bool {
    plan.iter().all(|l| l.about != About::Refused)
}

/// What goes with the role.
#[derive(Debug, Clone, Default)]
pub struct Company {
    /// The virtual address, if there is one.
    pub address: Option<String>,
    /// The database of the configuration, if there is one.
    pub database: Option<DatabaseStatus>,
}

impl Company {
    fn address(&self) -> Line {
        let text = match &self.address {
            Some(a) => format!("the virtual address {a} comes along"),
            None => "there is no virtual address: clients have to be sent to the new primary".to_owned(),
        };
        line(About::Would, text)
    }
}

/// `1 transaction`, `2 transactions`.
fn transactions(n: u64) -> String {
    if n == 1 { "1 transaction".to_owned() } else { format!("{n} transactions") }
}
