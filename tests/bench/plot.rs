//! Draws a curve as SVG. A drawing has its own paper, so that it can be read on any page, and takes the dark colours where
//! the reader's system does.

use std::fmt::Write;

/// A drawing with a line for each broker.
pub struct Plot {
    pub title: String,
    /// Says which direction is better.
    pub better: String,
    /// What the axes show, with the unit.
    pub x: String,
    pub y: String,
    pub series: Vec<Series>,
}

/// A broker's line. All values are greater than zero.
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 112.0;
const RIGHT: f64 = 600.0;
const TOP: f64 = 96.0;
const BOTTOM: f64 = 320.0;

const STYLE: &str = "\
    text { font: 13px sans-serif; fill: #1f2328 } .title { font-weight: bold; font-size: 15px }\n\
    .paper { fill: #ffffff } .grid { stroke: #d1d9e0 }\n\
    .line { fill: none; stroke-width: 2 } .swatch { stroke-width: 2 }\n\
    .pigateway { stroke: #0969da; fill: #0969da } .mosquitto { stroke: #bc4c00; fill: #bc4c00 }\n\
    .rumqttd { stroke: #1a7f37; fill: #1a7f37 } .other { stroke: #6e7781; fill: #6e7781 }\n\
    @media (prefers-color-scheme: dark) {\n\
    text { fill: #e6edf3 } .paper { fill: #0d1117 } .grid { stroke: #3d444d }\n\
    .pigateway { stroke: #58a6ff; fill: #58a6ff } .mosquitto { stroke: #f0883e; fill: #f0883e }\n\
    .rumqttd { stroke: #3fb950; fill: #3fb950 } .other { stroke: #9198a1; fill: #9198a1 }\n\
    }\n\
    .line.line { fill: none }\n";

/// An axis: where values are, and the values that have a label.
struct Axis {
    logarithmic: bool,
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Axis {
    /// The horizontal axis, which is logarithmic and labels the measured numbers.
    fn across(mut values: Vec<f64>) -> Axis {
        values.sort_by(f64::total_cmp);
        values.dedup();
        Axis { logarithmic: true, low: values[0], high: values[values.len() - 1].max(values[0] * 1.01), ticks: values }
    }

    /// The vertical axis. It begins at zero, except where small values could not be told apart beside the largest.
    fn up(values: &[f64]) -> Axis {
        let (low, high) =
            values.iter().fold((f64::MAX, 0.0_f64), |(low, high), value| (low.min(*value), high.max(*value)));
        let steps = |power: i32| [1.0, 2.0, 5.0].map(|step| step * 10_f64.powi(power));
        if high <= 8.0 * low {
            let step = (-9..12).flat_map(steps).find(|step| high / step <= 6.0).unwrap_or(high);
            let count = (high / step).ceil();
            let ticks: Vec<f64> = (0..=count as u32).map(|at| f64::from(at) * step).collect();
            return Axis { logarithmic: false, low: 0.0, high: count * step, ticks };
        }
        let all: Vec<f64> = (-9..12).flat_map(steps).collect();
        let from = all.iter().rposition(|step| *step <= low).unwrap_or(0);
        let to = all.iter().position(|step| *step >= high).unwrap_or(all.len() - 1);
        let decades_only = to - from > 8;
        let is_shown = |at: &usize| !decades_only || at.is_multiple_of(3);
        Axis {
            logarithmic: true,
            low: all[from],
            high: all[to],
            ticks: (from..=to).filter(is_shown).map(|at| all[at]).collect(),
        }
    }

    /// The place of a value, from 0 to 1.
    fn at(&self, value: f64) -> f64 {
        let scaled = |value: f64| if self.logarithmic { value.ln() } else { value };
        (scaled(value) - scaled(self.low)) / (scaled(self.high) - scaled(self.low))
    }
}

impl Plot {
    /// The drawing, if there is anything to draw.
    pub fn svg(&self) -> Option<String> {
        let points = || self.series.iter().flat_map(|series| series.points.iter());
        points().next()?;
        let across = Axis::across(points().map(|(x, _)| *x).collect());
        let up = Axis::up(&points().map(|(_, y)| *y).collect::<Vec<_>>());
        let mut svg = self.frame(&across, &up);
        for (number, series) in self.series.iter().enumerate() {
            let class = match series.name.as_str() {
                name @ ("pigateway" | "mosquitto" | "rumqttd") => name,
                _ => "other",
            };
            let places: Vec<(f64, f64)> = series.points.iter().map(|(x, y)| place(across.at(*x), up.at(*y))).collect();
            let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let _ = writeln!(svg, "<polyline class=\"line {class}\" points=\"{}\"/>", path.join(" "));
            places.iter().for_each(|at| svg.push_str(&mark(class, *at)));
            let x = LEFT + 122.0 * number as f64;
            let _ =
                writeln!(svg, "<line class=\"swatch {class}\" x1=\"{x}\" y1=\"74\" x2=\"{}\" y2=\"74\"/>", x + 24.0);
            svg.push_str(&mark(class, (x + 12.0, 74.0)));
            let _ = writeln!(svg, "<text x=\"{}\" y=\"78\">{}</text>", x + 32.0, escaped(&series.name));
        }
        svg.push_str("</svg>\n");
        Some(svg)
    }

    /// Everything but the lines: paper, title, axes with their labels, and the grid.
    fn frame(&self, across: &Axis, up: &Axis) -> String {
        let [title, better, x, y] = [&self.title, &self.better, &self.x, &self.y].map(|text| escaped(text));
        let middle = (TOP + BOTTOM) / 2.0;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
             height=\"{HEIGHT}\" role=\"img\">\n<title>{title} ({better})</title>\n<style>\n{STYLE}</style>\n\
             <rect class=\"paper\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"6\"/>\n\
             <text class=\"title\" x=\"{LEFT}\" y=\"28\">{title}</text>\n<text x=\"{LEFT}\" y=\"50\">{better}</text>\n\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{x}</text>\n\
             <text transform=\"translate(18 {middle}) rotate(-90)\" text-anchor=\"middle\">{y}</text>\n",
            (LEFT + RIGHT) / 2.0,
            BOTTOM + 46.0
        );
        for tick in &up.ticks {
            let (_, y) = place(0.0, up.at(*tick));
            let _ = writeln!(svg, "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{RIGHT}\" y2=\"{y:.1}\"/>");
            let label = number(*tick);
            let _ = writeln!(svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", LEFT - 8.0, y + 4.0);
        }
        for tick in &across.ticks {
            let (x, _) = place(across.at(*tick), 0.0);
            let _ = writeln!(svg, "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{BOTTOM}\"/>");
            let label = number(*tick);
            let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>", BOTTOM + 20.0);
        }
        svg
    }
}

fn place(across: f64, up: f64) -> (f64, f64) {
    (LEFT + across * (RIGHT - LEFT), BOTTOM - up * (BOTTOM - TOP))
}

/// A point. Its shape tells brokers apart where colours do not.
fn mark(class: &str, (x, y): (f64, f64)) -> String {
    let corners = |corners: &[(f64, f64)]| {
        let corners: Vec<String> = corners.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy)).collect();
        format!("<polygon class=\"{class}\" points=\"{}\"/>\n", corners.join(" "))
    };
    match class {
        "pigateway" => format!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>\n"),
        "mosquitto" => corners(&[(-4.0, -4.0), (4.0, -4.0), (4.0, 4.0), (-4.0, 4.0)]),
        "rumqttd" => corners(&[(0.0, -5.0), (5.0, 4.0), (-5.0, 4.0)]),
        _ => corners(&[(0.0, -5.0), (5.0, 0.0), (0.0, 5.0), (-5.0, 0.0)]),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A number with three digits that count, and commas between thousands.
pub fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let decimals = 2 - value.abs().log10().floor() as i32;
    let unit = 10_f64.powi(-decimals);
    // a division by a power of ten would give what cannot be shown exactly
    let rounded = if decimals > 0 { value } else { (value / unit).round() * unit };
    let text = format!("{rounded:.*}", decimals.max(0) as usize);
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let groups: Vec<&str> =
        whole.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    let fraction = fraction.trim_end_matches('0');
    format!("{}{}{fraction}", groups.join(","), if fraction.is_empty() { "" } else { "." })
}
