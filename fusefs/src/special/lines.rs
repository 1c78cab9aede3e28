//! Lines on their way into reads whose sizes somebody else chooses.

/// Whole lines of text, each with its newline, of which nothing was read yet or a part.
#[derive(Debug, Default)]
pub(super) struct Lines {
    text: Vec<u8>,
    /// How much of `text` was read.
    read: usize,
}

impl Lines {
    pub(super) fn is_empty(&self) -> bool {
        self.read == self.text.len()
    }

    /// Goes on with other lines, once all of these were read.
    pub(super) fn refill(&mut self, text: Vec<u8>) {
        debug_assert!(self.is_empty());
        *self = Self { text, read: 0 };
    }

    /// What a read of so many bytes gets: as many whole lines as fit, and of a line that does not fit alone the
    /// first bytes; the next read goes on behind them.
    pub(super) fn take(&mut self, size: usize) -> &[u8] {
        let left = &self.text[self.read..];
        let fits = &left[..size.min(left.len())];
        let whole = fits.iter().rposition(|&byte| byte == b'\n').map_or(fits.len(), |last| last + 1);
        self.read += whole;
        &left[..whole]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines() -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec("[a-z]{0,20}", 0..20)
    }

    proptest! {
        /// Whatever the sizes of the reads: every byte once and in order, and a read ends in the middle of a line
        /// only if it could not hold the line.
        #[test]
        fn nothing_is_lost_and_lines_stay_whole(
            batches in prop::collection::vec(lines(), 1..5),
            sizes in prop::collection::vec(1..60_usize, 1..10),
        ) {
            let mut sizes = sizes.into_iter().cycle();
            let (mut sent, mut got) = (Vec::new(), Vec::new());
            let mut lines = Lines::default();
            for batch in batches {
                let text: Vec<u8> = batch.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect();
                sent.extend_from_slice(&text);
                lines.refill(text);
                while !lines.is_empty() {
                    let size = sizes.next().unwrap_or(1);
                    let at_start = got.last().is_none_or(|&byte| byte == b'\n');
                    let before = got.len();
                    got.extend_from_slice(lines.take(size));
                    let taken = &got[before..];
                    prop_assert!(!taken.is_empty() && taken.len() <= size);
                    if taken.last() != Some(&b'\n') {
                        prop_assert_eq!(taken.len(), size);
                        prop_assert!(!taken.contains(&b'\n'), "whole lines go out by themselves");
                        let line = sent[before..].iter().position(|&byte| byte == b'\n');
                        prop_assert!(!at_start || line.is_some_and(|length| length >= size));
                    }
                }
                prop_assert!(lines.take(1).is_empty());
            }
            prop_assert_eq!(got, sent);
        }
    }
}
