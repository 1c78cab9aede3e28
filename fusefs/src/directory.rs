//! Directory listings with cookies that mean the same in every snapshot.

use nasd_volume::DirEntry;

/// One listing of a directory, in the order of its cookies.
///
/// A cookie (the offset of a READDIR, `d_off`, what `telldir` returns) is computed from the name
/// alone. An NFS server opens the directory anew for each request and resumes at a cookie, possibly
/// on the other node after a failover: were cookies positions, it would skip a name for each one
/// that was removed in between.
pub(crate) struct Snapshot {
    entries: Vec<(u64, DirEntry)>,
}

impl Snapshot {
    pub(crate) fn new(entries: Vec<DirEntry>) -> Self {
        let mut entries: Vec<_> = entries.into_iter().map(|entry| (cookie(&entry.name), entry)).collect();
        entries.sort_unstable_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
        // Equal hashes are next to each other. Nudging them apart is as stable as it needs to be
        // for something that happens once in 2^62 pairs.
        let mut last = 0;
        for (cookie, _) in &mut entries {
            *cookie = (*cookie).max(last + 1);
            last = *cookie;
        }
        Self { entries }
    }

    /// What comes after the entry with this cookie, whether or not that entry still exists.
    pub(crate) fn after(&self, offset: u64) -> &[(u64, DirEntry)] {
        let start = self.entries.partition_point(|(cookie, _)| *cookie <= offset);
        &self.entries[start..]
    }
}

/// Never 0, which means the beginning, and never negative as the `off_t` it becomes.
fn cookie(name: &[u8]) -> u64 {
    const FIRST: u64 = 3;
    match name {
        b"." => 1,
        b".." => 2,
        _ => {
            // FNV-1a, whose upper bits are weak for short names, hence the final mixing. A hash
            // written out here cannot change with a library below an NFS client that holds cookies.
            let mut hash = name.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
            hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            hash ^= hash >> 31;
            // One bit short of what an off_t holds, so that nudging cannot overflow it.
            (hash >> 2).max(FIRST)
        }
    }
}

#[cfg(test)]
mod tests {
    use nasd_volume::{FileId, Kind};

    use super::*;

    fn listing(names: &[&str]) -> Snapshot {
        Snapshot::new(
            names
                .iter()
                .map(|name| DirEntry { name: name.as_bytes().to_vec(), id: FileId(7), kind: Kind::File })
                .collect(),
        )
    }

    fn names(entries: &[(u64, DirEntry)]) -> Vec<&[u8]> {
        entries.iter().map(|(_, entry)| &entry.name[..]).collect()
    }

    #[test]
    fn every_name_once_whatever_the_buffer_holds() {
        let all: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
        let all: Vec<&str> = [".", ".."].into_iter().chain(all.iter().map(String::as_str)).collect();
        let snapshot = listing(&all);
        let (mut seen, mut offset) = (Vec::new(), 0);
        loop {
            let batch = snapshot.after(offset);
            let batch = &batch[..batch.len().min(7)];
            let Some((last, _)) = batch.last() else { break };
            offset = *last;
            assert!(i64::try_from(offset).is_ok());
            seen.extend(names(batch));
        }
        assert_eq!(seen[..2], [&b"."[..], b".."]);
        seen.sort_unstable();
        let mut expected: Vec<&[u8]> = all.iter().map(|name| name.as_bytes()).collect();
        expected.sort_unstable();
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_cookie_resumes_in_another_snapshot() {
        let before = listing(&[".", "..", "a", "b", "c", "d", "e"]);
        let half = before.after(0)[3].0;
        let kept: Vec<_> = names(before.after(half)).concat();
        let kept: Vec<String> = kept.iter().map(|c| char::from(*c).to_string()).collect();
        let kept: Vec<&str> = kept.iter().map(String::as_str).collect();
        // All that was listed is gone, the entry of the cookie itself included.
        assert_eq!(names(listing(&kept).after(half)), names(before.after(half)));
    }
}
