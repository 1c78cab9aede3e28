//! Which events somebody wants.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::event::{Event, Kind};

/// Why there can be no such filter.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // Each says what it is.
pub enum FilterError {
    #[error("the pattern {pattern:?} is wrong: {source}; write for example \"pg_wal/**\"")]
    Pattern { pattern: String, source: globset::Error },
    #[error("the patterns are too many or too large: {0}; use fewer")]
    Patterns(#[source] globset::Error),
}

/// Globs for transactions, and kinds of state events. A gap is for everybody who might want what is in it.
#[derive(Debug, Clone)]
pub struct Filter {
    data: Data,
    states: BTreeSet<Kind>,
    /// See [`Filter::following`].
    following: bool,
}

#[derive(Debug, Clone)]
enum Data {
    No,
    Any,
    Matching(GlobSet),
}

impl Filter {
    /// Everything.
    pub fn all() -> Filter {
        Filter { data: Data::Any, states: Kind::STATES.into(), following: false }
    }

    /// Transactions that change a path which one of the globs matches (relative to the root of the volume; `*` does not
    /// match a slash, `**` does), and events of these kinds. Neither: everything.
    ///
    /// # Errors
    /// When a glob can't be one.
    pub fn new<P: AsRef<str>>(globs: &[P], states: &[Kind]) -> Result<Filter, FilterError> {
        if globs.is_empty() && states.is_empty() {
            return Ok(Filter::all());
        }
        let data = if globs.is_empty() { Data::No } else { Data::Matching(glob_set(globs)?) };
        Ok(Filter { data, states: states.iter().copied().collect(), following: false })
    }

    /// State events of this kind.
    pub fn only(kind: Kind) -> Filter {
        Filter { data: Data::No, states: [kind].into(), following: false }
    }

    /// The same, but of transactions only those that came from the primary: none that this node committed as primary.
    #[must_use]
    pub fn following(self) -> Filter {
        Filter { following: true, ..self }
    }

    /// The same, with events of this kind as well.
    #[must_use]
    pub fn and(mut self, kind: Kind) -> Filter {
        self.states.insert(kind);
        self
    }

    /// Whether it wants any transaction.
    pub fn wants_data(&self) -> bool {
        !matches!(self.data, Data::No)
    }

    pub(crate) fn wants_states(&self) -> bool {
        !self.states.is_empty()
    }

    pub(crate) fn follows(&self) -> bool {
        self.following
    }

    /// The event as the subscriber gets it: of a transaction only the paths that match.
    pub(crate) fn pass(&self, event: &Arc<Event>) -> Option<Arc<Event>> {
        match (event.kind, &self.data) {
            (Kind::Gap, _) | (Kind::Data, Data::Any) => Some(event.clone()),
            (Kind::Data, Data::No) => None,
            (Kind::Data, Data::Matching(globs)) => matching(globs, event),
            (state, _) => self.states.contains(&state).then(|| event.clone()),
        }
    }
}

fn glob_set<P: AsRef<str>>(globs: &[P]) -> Result<GlobSet, FilterError> {
    let mut set = GlobSetBuilder::new();
    for pattern in globs {
        let pattern = pattern.as_ref();
        let glob = GlobBuilder::new(pattern).literal_separator(true).build();
        set.add(glob.map_err(|source| FilterError::Pattern { pattern: pattern.to_owned(), source })?);
    }
    set.build().map_err(FilterError::Patterns)
}

fn matching(globs: &GlobSet, event: &Arc<Event>) -> Option<Arc<Event>> {
    let matches = |path: &&Vec<u8>| globs.is_match(OsStr::from_bytes(path));
    let some: Vec<&Vec<u8>> = event.paths.iter().filter(matches).collect();
    // What is not listed may match.
    if some.is_empty() && !event.more {
        return None;
    }
    if some.len() == event.paths.len() {
        return Some(event.clone());
    }
    let paths = some.into_iter().cloned().collect();
    Some(Arc::new(Event {
        paths,
        id: event.id,
        time: event.time.clone(),
        reason: event.reason.clone(),
        old: event.old.clone(),
        new: event.new.clone(),
        ..**event
    }))
}
