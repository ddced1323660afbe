//! Each curve of the benchmark has its plot and its table on the page, and plots are what readers can open.

use std::fs;
use std::process::Command;

use super::figures::{CHARTS, Measured, Record, TABLES, replaced};
use super::{files, text};

#[test]
fn every_curve_has_its_plot_and_its_table() {
    let page = text("docs/speed.md");
    let mut shown: Vec<String> = files("docs/plots", "svg").iter().map(|path| path.display().to_string()).collect();
    shown.sort();
    let mut expected: Vec<String> = CHARTS.iter().map(|chart| format!("docs/plots/{}.svg", chart.name)).collect();
    expected.sort();
    assert_eq!(shown, expected);
    for chart in CHARTS {
        assert_eq!(page.matches(&format!("](plots/{}.svg)\n", chart.name)).count(), 1, "{}", chart.name);
    }
    for name in CHARTS.iter().map(|chart| chart.name).chain(TABLES.iter().map(|(name, _)| *name)).chain(["method"]) {
        assert!(replaced(&page, name, "").unwrap().len() < page.len(), "{name} has no figures");
    }
}

#[test]
fn a_plot_shows_each_broker_and_is_well_formed() {
    let record = |name: &str, values: [f64; 3]| Record {
        name: name.into(),
        line: "back".into(),
        unit: "µs",
        values: values.map(|value| Some(value).filter(|value| *value > 0.0)).to_vec(),
    };
    let records = [record("sessions-100", [78.0, 84.0, 0.0]), record("sessions-10000", [80.0, 880.0, 0.0])];
    let measured = Measured { brokers: vec!["mosquitto", "pigateway", "rumqttd"], records: &records };
    let chart = CHARTS.iter().find(|chart| chart.name == "sessions-back").unwrap();
    let svg = measured.plot(chart).svg().unwrap();
    for part in
        ["<polyline class=\"line mosquitto\" points=\"112.0,", ">pigateway</text>", ">10,000</text>", "lower is better"]
    {
        assert!(svg.contains(part), "{part}: {svg}");
    }
    // it was not measured
    assert!(!svg.contains(">rumqttd<"));
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.svg"), &svg).unwrap();
    let parse = "import sys, xml.etree.ElementTree as e; e.parse(sys.argv[1])";
    let python = Command::new("python3").args(["-c", parse]).arg(dir.path().join("a.svg")).output().unwrap();
    assert!(python.status.success(), "{python:?}");
    let table = measured.table_of_curve(chart).unwrap();
    assert!(table.ends_with("|---|---|---|---|\n| 100 | 78 | 84 | 1.08 |\n| 10,000 | 80 | 880 | 11 |\n"), "{table}");
    assert_eq!(
        measured.table_of_rows(&["sess"]).unwrap().lines().last(),
        Some("| sessions-10000 back, µs | 80 | 880 | 11 |")
    );
    assert!(measured.csv(chart).ends_with("\n10000,80.000,880.000,\n"));
    let page = "a\n\n<!-- measured: b -->\nold\nold\n\nc\n";
    assert_eq!(replaced(page, "b", "new\n").unwrap(), "a\n\n<!-- measured: b -->\nnew\n\nc\n");
    assert_eq!(replaced("<!-- measured: b -->\n\nc\n", "b", "new\n").unwrap(), "<!-- measured: b -->\nnew\n\nc\n");
    assert_eq!(replaced(page, "c", "new\n"), None);
}
