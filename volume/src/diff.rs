//! What of a write is new: a database rewrites whole pages to add some bytes.

use std::ops::Range;

/// Equal stretches shorter than this are not worth a new operation: its header is only 21 bytes, but who applies it makes
/// a system call for each.
const MIN_GAP: usize = 256;

/// The ranges of `new` that differ from `old`; all of `new` behind the end of `old` counts as different.
pub fn changed(old: &[u8], new: &[u8], mut emit: impl FnMut(Range<usize>)) {
    let common = old.len().min(new.len());
    let mut open: Option<Range<usize>> = None;
    let mut at = 0;
    while at < common {
        let end = (at + MIN_GAP).min(common);
        if old[at..end] != new[at..end] {
            // Not empty: the chunk differs somewhere.
            let first = (at..end).find(|&i| old[i] != new[i]).unwrap_or(at);
            let last = (at..end).rev().find(|&i| old[i] != new[i]).unwrap_or(at);
            match &mut open {
                Some(r) if first - r.end < MIN_GAP => r.end = last + 1,
                _ => {
                    if let Some(r) = open.replace(first..last + 1) {
                        emit(r);
                    }
                }
            }
        }
        at = end;
    }
    if new.len() > common {
        match &mut open {
            Some(r) if common - r.end < MIN_GAP => r.end = new.len(),
            _ => {
                if let Some(r) = open.replace(common..new.len()) {
                    emit(r);
                }
            }
        }
    }
    if let Some(r) = open {
        emit(r);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs of one byte, mostly longer than the gap: equal ones and different ones.
    fn stretches() -> impl Strategy<Value = Vec<u8>> {
        let stretch = (0u8..3, prop_oneof![1..8usize, 200..600usize]);
        proptest::collection::vec(stretch, 0..8)
            .prop_map(|v| v.into_iter().flat_map(|(b, n)| std::iter::repeat_n(b, n)).collect())
    }

    proptest! {
        #[test]
        fn patching_old_gives_new(
            mut old in stretches(),
            new in stretches(),
        ) {
            let before = old.clone();
            let mut bytes = 0;
            changed(&before, &new, |r| {
                bytes += r.len();
                if old.len() < r.end { old.resize(r.end, 9); }
                old[r.clone()].copy_from_slice(&new[r]);
            });
            prop_assert!(bytes <= new.len());
            let shared = new.len().min(old.len());
            prop_assert_eq!(&old[..shared], &new[..shared]);
            prop_assert!(old.len() >= new.len());
        }

        #[test]
        fn nothing_changed_is_nothing(a in proptest::collection::vec(any::<u8>(), 0..300)) {
            changed(&a, &a, |r| panic!("{r:?}"));
        }
    }
}
