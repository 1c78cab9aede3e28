//! What can be told of a node: a transaction that can be read, a part of it that changed state, an instruction.

use std::borrow::Cow;
use std::fmt;
use std::ops::Not;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Paths that an event lists at most; it says so when there are more.
pub const MOST_PATHS: usize = 10_000;

/// The same in JSON, which is for programs that read many events.
const MOST_SHOWN: usize = 256;

/// What an event is about.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A transaction can be read through the mount.
    Data,
    /// Primary or secondary.
    Role,
    /// The connection to the node that is followed.
    Link,
    /// Who has what: peers that join, fall behind, are copied to; transactions that are taken back.
    Sync,
    /// Space, damage, what a start found.
    Disk,
    /// The mount.
    Mount,
    /// The third vote.
    Etcd,
    /// The database whose log is on the volume.
    Database,
    /// Somebody had the primary tell everybody (`nasd notify`).
    Demand,
    /// Events that can't be told any more were skipped.
    Gap,
}

impl Kind {
    /// Those that a subscriber may ask for by name, besides data.
    pub const STATES: [Kind; 8] = [
        Kind::Role,
        Kind::Link,
        Kind::Sync,
        Kind::Disk,
        Kind::Mount,
        Kind::Etcd,
        Kind::Database,
        Kind::Demand,
    ];

    /// As it is written everywhere.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Data => "data",
            Kind::Role => "role",
            Kind::Link => "link",
            Kind::Sync => "sync",
            Kind::Disk => "disk",
            Kind::Mount => "mount",
            Kind::Etcd => "etcd",
            Kind::Database => "database",
            Kind::Demand => "demand",
            Kind::Gap => "gap",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Not the name of a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no kind of state; the kinds are role, link, sync, disk, mount, etcd, database and demand")]
pub struct NoState(String);

impl Kind {
    /// The state of this name.
    pub fn state(name: &str) -> Result<Kind, NoState> {
        let named = Kind::STATES.into_iter().find(|kind| kind.name() == name);
        named.ok_or_else(|| NoState(name.to_owned()))
    }
}

/// A place in the events of a node, just behind the event that has it as its id: `SEQ.N`.
///
/// Both grow, `seq` but for transactions that are taken back, and no two events of a node have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Cursor {
    /// The transaction that the node showed.
    pub seq: u64,
    /// The number of the last state event.
    pub n: u64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}.{}", self.seq, self.n)
    }
}

impl Cursor {
    /// Where a reader is that was here and has had `event` now.
    #[must_use]
    pub fn after(self, event: &Event) -> Cursor {
        match event.kind {
            Kind::Data => Cursor { seq: event.seq, n: self.n.max(event.id.n) },
            Kind::Gap => event.id,
            _ if event.taken_back.is_some() => Cursor { seq: self.seq.min(event.seq), n: event.id.n },
            _ => Cursor { seq: self.seq.max(event.seq), n: event.id.n },
        }
    }
}

/// Where to begin: the id of an event, or the number of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// Behind the event of this id, which is of the same node.
    Id(Cursor),
    /// Behind this transaction, with all state events of then or later; of whatever node the number is.
    Seq(u64),
}

/// Neither the id of an event nor the number of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no id of an event; give one as it was told, such as 42.7, or the number of a transaction")]
pub struct NoCursor(String);

impl FromStr for Since {
    type Err = NoCursor;

    fn from_str(s: &str) -> Result<Since, NoCursor> {
        match s.split_once('.') {
            Some(_) => s.parse().map(Since::Id),
            None => s.parse().map(Since::Seq).map_err(|_| NoCursor(s.to_owned())),
        }
    }
}

impl FromStr for Cursor {
    type Err = NoCursor;

    fn from_str(s: &str) -> Result<Cursor, NoCursor> {
        let wrong = || NoCursor(s.to_owned());
        let (seq, n) = s.split_once('.').ok_or_else(wrong)?;
        Ok(Cursor { seq: seq.parse().map_err(|_| wrong())?, n: n.parse().map_err(|_| wrong())? })
    }
}

impl Serialize for Cursor {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Cursor, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

/// Something that happened on a node. As JSON one object, on one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Event {
    /// Its id, and a cursor: everything behind this.
    #[schema(value_type = String)]
    pub id: Cursor,
    /// The epoch of the transaction, or that the node was in.
    pub epoch: u64,
    /// The transaction that the node showed; for [`Kind::Data`] the one that the event is about.
    pub seq: u64,
    /// When, RFC 3339 in UTC; for [`Kind::Data`] the transaction's own time, on the primary.
    pub time: String,
    /// What it is about.
    pub kind: Kind,
    /// In a sentence, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What was before, in a word, if it is a state that changed; of a gap the first id that was skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<String>,
    /// What is now, in a word, if it is a state that changed; of a gap the last id that was skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<String>,
    /// The paths that a transaction changed, relative to the root of the volume; they need not be UTF-8, but in JSON
    /// they look so.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "lossy")]
    #[schema(value_type = Vec<String>)]
    pub paths: Vec<Vec<u8>>,
    /// There are more paths than are listed: any may have changed.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub more: bool,
    /// The transactions behind `seq` up to this one are taken back: another history goes on from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_back: Option<u64>,
}

/// The time, as events have it.
pub fn now() -> String {
    chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

impl Event {
    /// One of which nothing else is known. Of a transaction the feed makes the id, from its number.
    pub fn new(kind: Kind, id: Cursor, epoch: u64, time: String) -> Event {
        Event {
            id,
            epoch,
            seq: id.seq,
            time,
            kind,
            reason: String::new(),
            old: None,
            new: None,
            paths: Vec::new(),
            more: false,
            taken_back: None,
        }
    }

    /// With no more paths than JSON has of an event.
    pub fn shown(&self) -> Cow<'_, Event> {
        if self.paths.len() <= MOST_SHOWN {
            return Cow::Borrowed(self);
        }
        let mut shown = self.clone();
        shown.paths.truncate(MOST_SHOWN);
        shown.more = true;
        Cow::Owned(shown)
    }

    /// One line, without its end.
    pub fn json(&self) -> String {
        // Strings, numbers and lists of them can always be written.
        serde_json::to_string(&*self.shown()).unwrap_or_default()
    }
}

/// For people: one line.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} {:<12} {:<8}", self.time, self.id.to_string(), self.kind)?;
        // Something may be remarked of what has not changed.
        if let (Some(old), Some(new)) = (&self.old, &self.new)
            && old != new
        {
            write!(f, " {old} -> {new}")?;
        }
        if !self.reason.is_empty() {
            write!(f, " {}", self.reason)?;
        }
        for path in self.paths.iter().take(MOST_SHOWN) {
            write!(f, " {}", String::from_utf8_lossy(path).escape_debug())?;
        }
        if self.more || self.paths.len() > MOST_SHOWN { f.write_str(" ...") } else { Ok(()) }
    }
}

mod lossy {
    use super::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(paths: &[Vec<u8>], s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(paths.iter().map(|path| String::from_utf8_lossy(path)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Vec<u8>>, D::Error> {
        Ok(Vec::<String>::deserialize(d)?.into_iter().map(String::into_bytes).collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(paths: Vec<Vec<u8>>) -> Event {
        let time = "2026-11-23T04:57:57Z".to_owned();
        Event { paths, ..Event::new(Kind::Data, Cursor { seq: 42, n: 7 }, 3, time) }
    }

    #[test]
    fn an_event_is_one_line_of_json() {
        let json = event(vec![b"pg_wal/a\nb".to_vec(), b"caf\xe9".to_vec()]).json();
        let expected = "{\"id\":\"42.7\",\"epoch\":3,\"seq\":42,\"time\":\"2026-11-23T04:57:57Z\",\"kind\":\"data\",\
                        \"paths\":[\"pg_wal/a\\nb\",\"caf\u{fffd}\"]}";
        assert_eq!(json, expected);
    }

    #[test]
    fn json_says_when_not_all_paths_are_in_it() {
        let paths = |n: usize| (0..n).map(|i| i.to_string().into_bytes()).collect::<Vec<_>>();
        let read = |e: Event| serde_json::from_str::<Event>(&e.json()).unwrap();
        let many = read(event(paths(MOST_SHOWN + 1)));
        assert_eq!((many.paths.len(), many.more), (MOST_SHOWN, true));
        let few = event(paths(MOST_SHOWN));
        assert_eq!(read(few.clone()), few);
    }

    #[test]
    fn each_kind_has_one_name_everywhere() {
        for kind in Kind::STATES {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
            assert_eq!(Kind::state(kind.name()), Ok(kind));
        }
        for wrong in ["data", "gap", "Role", ""] {
            assert!(Kind::state(wrong).unwrap_err().to_string().contains("role, link"), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn an_id_is_read_as_it_is_written(seq: u64, n: u64) {
            let cursor = Cursor { seq, n };
            prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
            prop_assert_eq!(cursor.to_string().parse(), Ok(Since::Id(cursor)));
            prop_assert_eq!(seq.to_string().parse(), Ok(Since::Seq(seq)));
        }

        #[test]
        fn nothing_else_is_an_id(text in "[^0-9].*|[0-9]+\\.|[0-9]+\\.[0-9]*[^0-9]+|\\.[0-9]+") {
            prop_assert!(text.parse::<Since>().is_err());
        }
    }
}
