//! Writes the plots to `BENCH_CURVES`, and the tables into the page `BENCH_PAGE`. What was not measured stays as it was.

use std::io;
use std::path::Path;

use super::figures::{CHARTS, Measured, TABLES, replaced};

/// Writes what these variables ask for. `method` is the sentence of the page about the run.
pub fn write(measured: &Measured, method: &str) -> io::Result<()> {
    if let Some(dir) = std::env::var_os("BENCH_CURVES") {
        curves(measured, Path::new(&dir))?;
    }
    if let Some(path) = std::env::var_os("BENCH_PAGE") {
        let mut page = std::fs::read_to_string(&path)?;
        let curves = CHARTS.iter().map(|chart| (chart.name, measured.table_of_curve(chart)));
        let tables = TABLES.iter().map(|(name, beginnings)| (*name, measured.table_of_rows(beginnings)));
        for (name, text) in curves.chain(tables).chain([("method", Some(format!("{method}\n")))]) {
            let Some(text) = text else { continue };
            let missing = || io::Error::other(format!("the page has no place for {name}"));
            page = replaced(&page, name, &text).ok_or_else(missing)?;
        }
        std::fs::write(&path, page)?;
    }
    Ok(())
}

fn curves(measured: &Measured, dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for chart in CHARTS {
        let Some(svg) = measured.plot(chart).svg() else { continue };
        std::fs::write(dir.join(chart.name).with_extension("svg"), svg)?;
        std::fs::write(dir.join(chart.name).with_extension("csv"), measured.csv(chart))?;
    }
    Ok(())
}
