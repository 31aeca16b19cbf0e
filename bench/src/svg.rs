//! A chart of a report: a bar for each chain, CPU a packet, its programs side by side.

use std::fmt::Write as _;

use crate::chain::is_sink;
use crate::report::{Report, Row};

/// Where the bars begin and how long the longest is.
const BARS_X: f64 = 210.0;
const BARS_WIDTH: f64 = 470.0;
/// Room right of the bars, for figures.
const FIGURES_WIDTH: f64 = 250.0;
const BAR_HEIGHT: f64 = 18.0;
const LINE_HEIGHT: f64 = 26.0;
const TOP: f64 = 64.0;
/// Colours of the programs of a chain, in the order of their names, and of the sink.
const COLOURS: [&str; 6] = ["#2f6f9f", "#5b9bd5", "#9dc3e6", "#b7a57a", "#d8c48a", "#8a8a8a"];
const SINK: &str = "#dddddd";

/// Draws it.
pub fn chart(report: &Report) -> String {
    let longest = report.rows.iter().map(|row| row.with_sink_ns.max).fold(1.0, f64::max);
    let scale = BARS_WIDTH / longest;
    let mut body = String::new();
    let (mut y, mut traffic) = (TOP, "");
    for row in &report.rows {
        if row.traffic != traffic {
            traffic = &row.traffic;
            y += 12.0;
            text(&mut body, 12.0, y + 13.0, "font-weight='bold'", traffic);
            y += LINE_HEIGHT;
        }
        bar(&mut body, row, y, scale);
        y += LINE_HEIGHT;
    }
    let (width, height) = (BARS_X + BARS_WIDTH + FIGURES_WIDTH, y + 20.0);
    let machine = &report.machine;
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}' \
         font-family='sans-serif' font-size='12'>\n<rect width='{width}' height='{height}' fill='white'/>\n"
    );
    let title = "CPU of the whole chain, ns a packet (bar: median by program, line: least to greatest)";
    text(&mut svg, 12.0, 20.0, "font-size='15' font-weight='bold'", title);
    let place = format!("{}; {}; {} s each", machine.text(), machine.wire, report.seconds);
    text(&mut svg, 12.0, 38.0, "fill='#444'", &place);
    text(
        &mut svg,
        12.0,
        54.0,
        "fill='#444'",
        "light grey: the sink that counts, the same for all; ratio: to A in the same round",
    );
    svg.push_str(&body);
    svg.push_str("</svg>\n");
    svg
}

fn bar(svg: &mut String, row: &Row, y: f64, scale: f64) {
    text(svg, 24.0, y + 13.0, "", &row.chain);
    let programs = row.program_ns.iter().filter(|(name, _)| !is_sink(name));
    let sink = row.program_ns.iter().filter(|(name, _)| is_sink(name));
    let mut x = BARS_X;
    for (index, (name, ns)) in programs.chain(sink).enumerate() {
        let width = ns * scale;
        let colour = if is_sink(name) { SINK } else { COLOURS[index % COLOURS.len()] };
        let _ = writeln!(
            svg,
            "<rect x='{x:.1}' y='{y:.1}' width='{width:.1}' height='{BAR_HEIGHT}' fill='{colour}'>\
             <title>{} {ns:.0} ns</title></rect>",
            escape(name)
        );
        if width > 7.0 * name.len() as f64 + 4.0 {
            let ink = if index < 1 && !is_sink(name) { "fill='white'" } else { "fill='#222'" };
            text(svg, x + 3.0, y + 13.0, &format!("font-size='10' {ink}"), name);
        }
        x += width;
    }
    let (least, most) = (BARS_X + row.chain_ns.min * scale, BARS_X + row.chain_ns.max * scale);
    let middle = y + BAR_HEIGHT - 2.0;
    let _ = writeln!(
        svg,
        "<path d='M{least:.1} {middle:.1}H{most:.1}M{least:.1} {0:.1}v6M{most:.1} {0:.1}v6' stroke='black'/>",
        middle - 3.0
    );
    let ratio = row.over_a.map_or(String::new(), |ratio| format!(", {:.2} of A", ratio.median));
    let lost = match row.lost_percent.max {
        0.0 => ", no loss".to_owned(),
        percent => format!(", {percent:.1} % lost"),
    };
    let figures = format!("{:.0} ns{ratio}{lost}", row.chain_ns.median);
    text(svg, x.max(most) + 6.0, y + 13.0, "", &figures);
}

fn text(svg: &mut String, x: f64, y: f64, style: &str, text: &str) {
    let _ = writeln!(svg, "<text x='{x:.1}' y='{y:.1}' {style}>{}</text>", escape(text));
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Spread;

    #[test]
    fn names_cannot_break_it() {
        let row = Row {
            chain: "a <b> & c".to_owned(),
            chain_ns: Spread { median: 9.0, min: 8.0, max: 10.0 },
            program_ns: [("count".to_owned(), 1.0), ("x".to_owned(), 9.0)].into(),
            ..Row::default()
        };
        let svg = chart(&Report { rows: vec![row], ..Report::default() });
        assert!(svg.contains("a &lt;b&gt; &amp; c") && svg.contains("9 ns, no loss"), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 3);
    }
}
