//! Server-sent events, as far as this project's own server sends them: `id:`, `event:` and `data:` of one line each.

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sent {
    /// Where the stream is behind it.
    pub id: Option<String>,
    /// What it is about; none when it only says where the stream is.
    pub data: Option<String>,
    /// Of the transaction where the stream is; a comment for whoever knows it.
    pub epoch: Option<u64>,
}

/// Takes a stream apart, whatever pieces it comes in.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    next: Sent,
}

impl Parser {
    /// Takes the next piece; gives the events that are whole with it.
    pub fn take(&mut self, piece: &[u8]) -> Vec<Sent> {
        let mut whole = Vec::new();
        for &byte in piece {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = String::from_utf8_lossy(&line);
            let (key, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value).to_owned();
            match key {
                "id" => self.next.id = Some(value),
                "data" => self.next.data = Some(value),
                "" if line.is_empty() && self.next != Sent::default() => {
                    whole.push(std::mem::take(&mut self.next));
                }
                "" => self.next.epoch = value.strip_prefix("epoch ").and_then(|n| n.parse().ok()),
                _ => {}
            }
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_make_no_difference(cuts in proptest::collection::vec(0_usize..90, 0..8)) {
            let text = b": epoch 4\nid: 1.0\n\nid: 2.0\nevent: data\ndata: {\"a\": 1}\n\n:\n\ndata:x\n\n";
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&at| at < text.len()).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let mut parser = Parser::default();
            let found: Vec<Sent> = cuts.windows(2).flat_map(|w| parser.take(&text[w[0]..w[1]])).collect();
            let sent = |id: Option<&str>, data: Option<&str>| Sent { id: id.map(str::to_owned), data: data.map(str::to_owned), epoch: None };
            prop_assert_eq!(found, vec![
                Sent { epoch: Some(4), ..sent(Some("1.0"), None) },
                sent(Some("2.0"), Some("{\"a\": 1}")),
                sent(None, Some("x")),
            ]);
        }
    }
}
