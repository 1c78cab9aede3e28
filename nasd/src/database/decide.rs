//! What is to be done with the database: a pure function of what is.

use nasd_volume::Role;

/// What is.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// The node's.
    pub role: Role,
    /// The mount is there, and lets the role do what it does.
    pub ready: bool,
    /// There is a whole cluster, its log is on the mount, and its history is that of the volume.
    pub usable: bool,
    /// It runs.
    pub running: bool,
    /// It is to be, or is, a standby.
    pub standby: bool,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Nothing,
    StartStandby,
    StartPrimary,
    Promote,
    /// At once: it writes where only the primary may, or what it knows is not the volume's history.
    Stop,
}

impl Next {
    /// What was done.
    pub fn did(self) -> &'static str {
        match self {
            Next::Nothing => "nothing was to be done",
            Next::StartStandby => "PostgreSQL runs as standby",
            Next::StartPrimary => "PostgreSQL runs as primary",
            Next::Promote => "PostgreSQL is promoted",
            Next::Stop => "PostgreSQL is stopped: it is not what this node's role wants",
        }
    }

    /// What the database is when it was done, if anything was; it may take no connections for a moment.
    pub fn makes(self) -> Option<&'static str> {
        match self {
            Next::Nothing => None,
            Next::StartStandby => Some("standby"),
            Next::StartPrimary | Next::Promote => Some("primary"),
            Next::Stop => Some("stopped"),
        }
    }
}

/// What is to be done next.
pub fn decide(s: Seen) -> Next {
    match s.role {
        _ if !s.usable => Next::Nothing,
        // Whatever the mount is at the moment.
        Role::Secondary if s.running && !s.standby => Next::Stop,
        _ if !s.ready => Next::Nothing,
        Role::Secondary if !s.running => Next::StartStandby,
        Role::Primary if !s.running => Next::StartPrimary,
        Role::Primary if s.standby => Next::Promote,
        _ => Next::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = Seen> {
        (0..32).map(|n: u32| Seen {
            role: if n & 1 == 0 { Role::Primary } else { Role::Secondary },
            ready: n & 2 != 0,
            usable: n & 4 != 0,
            running: n & 8 != 0,
            standby: n & 16 != 0,
        })
    }

    /// Whatever is done, the next look finds something else or nothing to do.
    #[test]
    fn it_comes_to_rest_where_the_role_wants_it() {
        for first in all() {
            let mut s = first;
            for _ in 0..3 {
                match decide(s) {
                    Next::Nothing => {}
                    Next::StartStandby => (s.running, s.standby) = (true, true),
                    Next::StartPrimary => (s.running, s.standby) = (true, false),
                    Next::Promote => s.standby = false,
                    Next::Stop => s.running = false,
                }
            }
            assert_eq!(decide(s), Next::Nothing, "{first:?}");
            if s.usable && s.ready {
                assert!(s.running && s.standby == (s.role == Role::Secondary), "{first:?} {s:?}");
            }
        }
    }

    #[test]
    fn nothing_is_started_on_a_history_that_is_not_its_own() {
        for s in all().filter(|s| !s.usable) {
            assert_eq!(decide(s), Next::Nothing);
        }
    }
}
