//! Questions that have a default.

use anyhow::{Result, bail};
use std::fmt::Display;
use std::io::{BufRead, Write};

/// Who is asked.
pub enum Asked<'a> {
    /// Nobody: every default is right.
    Nobody,
    /// Whoever reads and types here.
    Person { says: Box<dyn BufRead + 'a>, sees: Box<dyn Write + 'a> },
}

impl Asked<'_> {
    /// What was given already, or the answer; `understand` says what is wrong with one, and it is asked for again.
    pub fn answer<T>(
        &mut self,
        given: Option<T>,
        question: &str,
        default: impl Display,
        understand: impl Fn(&str) -> Result<T>,
    ) -> Result<T> {
        if let Some(given) = given {
            return Ok(given);
        }
        let Asked::Person { says, sees } = self else {
            return understand(&default.to_string());
        };
        let default = default.to_string();
        loop {
            write!(sees, "{question} [{default}]: ")?;
            sees.flush()?;
            let mut line = String::new();
            if says.read_line(&mut line)? == 0 {
                bail!("nobody answers; give the answers as options, or --yes for the defaults");
            }
            let typed = line.trim();
            match understand(if typed.is_empty() { &default } else { typed }) {
                Ok(answer) => return Ok(answer),
                Err(e) => writeln!(sees, "{e:#}")?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    fn number(typed: &str) -> Result<u32> {
        typed.parse().map_err(|_| anyhow!("{typed:?} is no number"))
    }

    #[test]
    fn nothing_means_the_default_and_nonsense_another_question() {
        let mut seen = Vec::new();
        let mut asked = Asked::Person { says: Box::new(&b"\nfive\n5\n"[..]), sees: Box::new(&mut seen) };
        assert_eq!(asked.answer(None, "how many", 3, number).expect("the default"), 3);
        assert_eq!(asked.answer(None, "and now", 3, number).expect("the second answer"), 5);
        assert_eq!(asked.answer(Some(7), "given", 3, number).expect("given"), 7);
        assert!(asked.answer(None, "and", 3, number).is_err(), "nobody answers any more");
        drop(asked);
        let seen = String::from_utf8(seen).expect("text");
        assert_eq!(seen, "how many [3]: and now [3]: \"five\" is no number\nand now [3]: and [3]: ");
    }
}
