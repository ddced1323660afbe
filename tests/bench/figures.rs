//! What was measured, as plots and as tables of the page.

use super::plot::{Plot, Series, number};

/// A row of the benchmark: the median for each broker.
pub struct Record {
    /// The measurement, such as `sessions-1000`.
    pub name: String,
    /// The figure, if the measurement has several, such as `back`.
    pub line: String,
    pub unit: &'static str,
    /// In the order of the brokers.
    pub values: Vec<Option<f64>>,
}

/// The records of a run.
pub struct Measured<'a> {
    pub brokers: Vec<&'static str>,
    pub records: &'a [Record],
}

/// A curve, which is drawn and has a table.
pub struct Chart {
    /// Of its files, and of its place on the page.
    pub name: &'static str,
    /// The beginning of its measurements' names. What follows is the number on the horizontal axis.
    rows: &'static str,
    line: &'static str,
    title: &'static str,
    better: &'static str,
    x: &'static str,
    y: &'static str,
}

/// A table of measurements that are no curve: its name on the page, and the beginnings of their names.
pub const TABLES: &[(&str, &[&str])] = &[
    ("rates", &["qos"]),
    ("round-trip", &["rtt-"]),
    ("memory", &["rss", "cpu", "start"]),
    ("one-by-one", &["connections", "handshakes"]),
];

const LOWER: &str = "lower is better";
const HIGHER: &str = "higher is better";

const fn chart(files: [&'static str; 3], title: &'static str, better: &'static str, axes: [&'static str; 2]) -> Chart {
    let [name, rows, line] = files;
    let [x, y] = axes;
    Chart { name, rows, line, title, better, x, y }
}

/// All curves.
pub const CHARTS: &[Chart] = &[
    chart(
        ["light-qos0-1to1", "light-qos0-1to1-", ""],
        "Processor time of a message, QoS 0, one to one",
        LOWER,
        ["messages per second", "µs per message"],
    ),
    chart(
        ["light-qos0-1to5", "light-qos0-1to5-", ""],
        "Processor time of a message, QoS 0, one to five",
        LOWER,
        ["messages per second", "µs per message"],
    ),
    chart(
        ["light-qos1-1to1", "light-qos1-1to1-", ""],
        "Processor time of a message, QoS 1, one to one",
        LOWER,
        ["messages per second", "µs per message"],
    ),
    chart(
        ["light-qos1-1to5", "light-qos1-1to5-", ""],
        "Processor time of a message, QoS 1, one to five",
        LOWER,
        ["messages per second", "µs per message"],
    ),
    chart(
        ["filters-exact", "filters-exact-", ""],
        "Deliveries with many filters without wildcards",
        HIGHER,
        ["filters (many/N/a)", "deliveries per second"],
    ),
    chart(
        ["filters-plus", "filters-plus-", ""],
        "Deliveries with many filters with +",
        HIGHER,
        ["filters (+/N/a)", "deliveries per second"],
    ),
    chart(
        ["filters-hash", "filters-hash-", ""],
        "Deliveries with many filters with #",
        HIGHER,
        ["filters (many/N/#)", "deliveries per second"],
    ),
    chart(
        ["retained-ten", "retained-", "ten"],
        "Selecting ten of many retained messages",
        LOWER,
        ["retained messages", "µs from SUBSCRIBE to the last"],
    ),
    chart(
        ["retained-all", "retained-", "all"],
        "Selecting all of many retained messages",
        HIGHER,
        ["retained messages", "messages per second"],
    ),
    chart(
        ["sessions-back", "sessions-", "back"],
        "A reconnect among sessions of absent clients",
        LOWER,
        ["sessions", "µs until CONNACK"],
    ),
    chart(
        ["sessions-kept", "sessions-", "kept"],
        "Processor time of a message that an absent client gets later",
        LOWER,
        ["sessions", "µs per message"],
    ),
    chart(
        ["connected-each", "connected-", "each"],
        "Memory of an idle connection",
        LOWER,
        ["connections", "KiB per connection"],
    ),
    chart(
        ["connected-one-more", "connected-", "one more"],
        "One more connection beside idle ones",
        LOWER,
        ["connections", "µs until CONNACK"],
    ),
    chart(
        ["passwords", "passwords-", "until all are in"],
        "200 clients with passwords come back at the same time",
        LOWER,
        ["users that share them", "s until all are connected"],
    ),
];

impl Measured<'_> {
    /// The points of a curve: the number on the horizontal axis, and the brokers' values.
    fn points(&self, chart: &Chart) -> Vec<(f64, &[Option<f64>])> {
        let of = self.records.iter().filter(|record| record.line == chart.line);
        of.filter_map(|record| Some((record.name.strip_prefix(chart.rows)?.parse().ok()?, record.values.as_slice())))
            .collect()
    }

    /// The curve of those brokers for which it was measured.
    pub fn plot(&self, chart: &Chart) -> Plot {
        let points = self.points(chart);
        let series = self.brokers.iter().enumerate().map(|(at, name)| Series {
            name: (*name).into(),
            points: points.iter().filter_map(|(x, values)| Some((*x, values[at].filter(|y| *y > 0.0)?))).collect(),
        });
        Plot {
            title: chart.title.into(),
            better: chart.better.into(),
            x: chart.x.into(),
            y: chart.y.into(),
            series: series.filter(|series| !series.points.is_empty()).collect(),
        }
    }

    /// The values of a curve as they were measured, separated by commas.
    pub fn csv(&self, chart: &Chart) -> String {
        let mut text = format!("{},{}\n", chart.x, self.brokers.join(","));
        for (x, values) in self.points(chart) {
            let values: Vec<String> =
                values.iter().map(|value| value.map_or(String::new(), |value| format!("{value:.3}"))).collect();
            text.push_str(&format!("{x},{}\n", values.join(",")));
        }
        text
    }

    /// The table of a curve in Markdown, if it was measured.
    pub fn table_of_curve(&self, chart: &Chart) -> Option<String> {
        let rows = self.points(chart).into_iter().map(|(x, values)| (number(x), values)).collect();
        self.table(&format!("{}: {}", chart.x, chart.y), rows)
    }

    /// The table in Markdown of the measurements whose names begin so, if there are any.
    pub fn table_of_rows(&self, beginnings: &[&str]) -> Option<String> {
        let of = self.records.iter().filter(|record| beginnings.iter().any(|start| record.name.starts_with(start)));
        let label = |record: &Record| [&*record.name, &*record.line].join(" ").trim().to_owned();
        let unit = |record: &Record| if record.unit.is_empty() { String::new() } else { format!(", {}", record.unit) };
        self.table(
            "",
            of.map(|record| (format!("{}{}", label(record), unit(record)), record.values.as_slice())).collect(),
        )
    }

    fn table(&self, title: &str, rows: Vec<(String, &[Option<f64>])>) -> Option<String> {
        let shown: Vec<usize> =
            (0..self.brokers.len()).filter(|at| rows.iter().any(|(_, values)| values[*at].is_some())).collect();
        let of = |wanted: &str| self.brokers.iter().position(|name| *name == wanted).filter(|at| shown.contains(at));
        let ratio = of("mosquitto").zip(of("pigateway"));
        let mut header = format!("| {title} |");
        shown.iter().for_each(|at| header.push_str(&format!(" {} |", self.brokers[*at])));
        if ratio.is_some() {
            header.push_str(" pigateway to mosquitto |");
        }
        let columns = header.matches('|').count() - 1;
        let mut table = format!("{header}\n{}|\n", "|---".repeat(columns));
        for (label, values) in &rows {
            let shown = shown.iter().map(|at| values[*at].map_or("-".into(), number));
            let ratio = ratio.map(|(theirs, ours)| {
                let both = values[theirs].zip(values[ours]).filter(|(theirs, _)| *theirs > 0.0);
                both.map_or("-".into(), |(theirs, ours)| number(ours / theirs))
            });
            let cells: Vec<String> = shown.chain(ratio).collect();
            table.push_str(&format!("| {label} | {} |\n", cells.join(" | ")));
        }
        (!rows.is_empty() && !shown.is_empty()).then_some(table)
    }
}

/// The page with this text behind the mark with this name, up to the next empty line. `None` if it has no such mark.
pub fn replaced(page: &str, name: &str, text: &str) -> Option<String> {
    let mark = format!("<!-- measured: {name} -->\n");
    let start = page.find(&mark)? + mark.len();
    // from the mark's own end of line on, because there may be nothing yet
    let end = page[start - 1..].find("\n\n").map_or(page.len(), |len| start + len);
    Some(format!("{}{text}{}", &page[..start], &page[end..]))
}
