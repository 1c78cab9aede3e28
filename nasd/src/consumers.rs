//! Who is told: from `[[notify]]` to the rules that tell.

use nasd_config::notify::{self, Notify};
use nasd_watcher::notify::{Every, Way, signal_named};
use nasd_watcher::postgresql::Cluster;
use nasd_watcher::{Filter, FilterError, Kind, NotifyRule, Webhook};

/// The rule that a section means.
///
/// # Errors
/// When its globs are too many together: each alone was checked with the configuration.
pub fn rule(n: &Notify) -> Result<NotifyRule, FilterError> {
    let states: Vec<Kind> = n.states.iter().filter_map(|s| Kind::state(s).ok()).collect();
    let every = match n.every {
        notify::Every::Spell(every) => Every::Spell(every),
        notify::Every::OnDemand => Every::OnDemand,
    };
    let way = match &n.way {
        notify::Way::Exec(exec) => Way::Command(exec.clone()),
        notify::Way::Signal { signal, pid_file } => Way::Signal {
            // The configuration knows the same names; a test looks.
            signal: signal_named(signal).unwrap_or(rustix::process::Signal::HUP),
            pid_file: pid_file.clone(),
        },
        notify::Way::Webhook { url, ca, token_file } => {
            Way::Webhook(Webhook { url: url.clone(), ca: ca.clone(), token_file: token_file.clone() })
        }
        notify::Way::Postgresql(data_dir) => {
            Way::Postgresql(Cluster::new(data_dir.clone(), None, "postgres".to_owned()))
        }
    };
    Ok(NotifyRule {
        // What it is told of, and how: another rule begins anew. When does not matter.
        name: format!("{way} {:?} {:?}", n.paths, n.states),
        filter: Filter::new(&n.paths, &states)?,
        every,
        way,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_and_the_rules_know_the_same_names() {
        assert!(notify::SIGNALS.iter().all(|name| signal_named(name).is_some()));
        assert_eq!(notify::STATES, Kind::STATES.map(Kind::name));
    }
}
