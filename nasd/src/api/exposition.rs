//! The text format that Prometheus reads, version 0.0.4.

use nasd_volume::histogram::Cumulative;
use std::fmt::{Display, Write};

/// What an answer in this format is called.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Names and values of labels.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// Metrics, one behind the other.
#[derive(Default)]
pub struct Exposition(String);

/// A metric, to which samples are added.
pub struct Metric<'a> {
    text: &'a mut String,
    name: &'a str,
}

// Writing to a string can't fail.
impl Exposition {
    fn begin<'a>(&'a mut self, name: &'a str, kind: &str, help: &str) -> Metric<'a> {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        Metric { text: &mut self.0, name }
    }

    /// What goes up and down.
    pub fn gauge<'a>(&'a mut self, name: &'a str, help: &str) -> Metric<'a> {
        self.begin(name, "gauge", help)
    }

    /// What only grows; its name ends with `_total`.
    pub fn counter<'a>(&'a mut self, name: &'a str, help: &str) -> Metric<'a> {
        self.begin(name, "counter", help)
    }

    /// Durations; its name ends with `_seconds`.
    pub fn histogram<'a>(&'a mut self, name: &'a str, help: &str) -> Metric<'a> {
        self.begin(name, "histogram", help)
    }

    /// All of it.
    pub fn text(self) -> String {
        self.0
    }
}

impl Metric<'_> {
    /// A value.
    pub fn sample(&mut self, labels: Labels, value: impl Display) {
        self.line("", labels, None, value);
    }

    /// Whether something is so: 1 or 0.
    pub fn flag(&mut self, labels: Labels, is: bool) {
        self.sample(labels, u8::from(is));
    }

    /// What a histogram counted.
    pub fn observed(&mut self, labels: Labels, seen: &Cumulative) {
        for (end, n) in &seen.below {
            self.line("_bucket", labels, Some(&end.as_secs_f64().to_string()), n);
        }
        self.line("_bucket", labels, Some("+Inf"), seen.count);
        self.line("_sum", labels, None, seen.sum.as_secs_f64());
        self.line("_count", labels, None, seen.count);
    }

    fn line(&mut self, suffix: &str, labels: Labels, le: Option<&str>, value: impl Display) {
        let all: Vec<String> = labels
            .iter()
            .copied()
            .chain(le.map(|le| ("le", le)))
            .map(|(name, value)| {
                let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                format!("{name}=\"{value}\"")
            })
            .collect();
        let labels = if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) };
        let _ = writeln!(self.text, "{}{suffix}{labels} {value}", self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_format_is_that_of_the_documentation() {
        let mut e = Exposition::default();
        e.gauge("g", "a \\ and\na line").sample(&[("path", "C:\\DIR\\\n\"x\"")], 1.5);
        let mut c = e.counter("c_total", "counts");
        c.sample(&[], 3_u64);
        c.flag(&[("a", "1"), ("b", "2")], true);
        let seen = Cumulative {
            below: vec![(Duration::from_millis(500), 1)],
            count: 2,
            sum: Duration::from_secs(3),
        };
        e.histogram("h_seconds", "takes").observed(&[("s", "x")], &seen);
        let expected = r#"# HELP g a \\ and\na line
# TYPE g gauge
g{path="C:\\DIR\\\n\"x\""} 1.5
# HELP c_total counts
# TYPE c_total counter
c_total 3
c_total{a="1",b="2"} 1
# HELP h_seconds takes
# TYPE h_seconds histogram
h_seconds_bucket{s="x",le="0.5"} 1
h_seconds_bucket{s="x",le="+Inf"} 2
h_seconds_sum{s="x"} 3
h_seconds_count{s="x"} 2
"#;
        assert_eq!(e.text(), expected);
    }
}
