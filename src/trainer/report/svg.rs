//! Curves and histograms.

use std::fmt::Write;

use serde::Serialize;

/// A loss curve on a logarithmic axis.
pub fn curve(points: &[(usize, f64)]) -> String {
    let values: Vec<f64> = points.iter().map(|(_, loss)| loss.max(1e-9).ln()).collect();
    let (low, high) = range(&values);
    let path: Vec<String> = values
        .iter()
        .enumerate()
        .map(|(i, v)| {
            let x = 600.0 * i as f64 / (values.len().max(2) - 1) as f64;
            format!("{x:.1},{:.1}", 120.0 - 110.0 * (v - low) / (high - low))
        })
        .collect();
    format!(
        "<svg width=\"620\" height=\"130\"><polyline fill=\"none\" stroke=\"#176\" points=\"{}\"/><text x=\"4\" y=\"12\">\
         {:.4}</text><text x=\"4\" y=\"126\">{:.4}</text></svg>",
        path.join(" "),
        high.exp(),
        low.exp()
    )
}

fn range(values: &[f64]) -> (f64, f64) {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if high > low { (low, high) } else { (low.min(0.0), high.max(1.0)) }
}

/// A histogram of values from 0 to `high`, with a line.
pub fn histogram(values: &[f32], high: f32, line: Option<f32>) -> String {
    let mut svg = String::from("<svg width=\"244\" height=\"44\">");
    bars(&mut svg, values.iter().map(|value| value / high), 40, (240.0, 0.0, 42.0), "#479");
    if let Some(line) = line {
        let x = 240.0 * line / high;
        let _ = write!(svg, "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"44\" stroke=\"#c22\"/>");
    }
    svg + "</svg>"
}

/// Halvings and doublings that a comparison shows, to each side of 1.
const BELOW: f32 = 3.0;
const ABOVE: f32 = 5.0;
/// Width of a comparison, and height of one of its rows.
pub const WIDTH: f32 = 640.0;
const ROW: f32 = 60.0;

/// Where a ratio lies on the axis of a comparison; what lies beyond is at its end. The page's script does the same.
fn place(ratio: f32) -> f32 {
    ((ratio.max(1e-6).log2() + BELOW) / (BELOW + ABOVE)).clamp(0.0, 1.0)
}

/// Histograms below each other on one logarithmic axis, in units of the threshold, which is a line of the class `t`.
pub fn comparison(rows: &[(&str, Vec<f32>)]) -> String {
    let height = ROW * rows.len() as f32 + 16.0;
    let mut svg = format!("<svg width=\"{WIDTH}\" height=\"{height}\">");
    for (index, (name, ratios)) in rows.iter().enumerate() {
        let top = ROW * index as f32;
        bars(&mut svg, ratios.iter().map(|ratio| place(*ratio)), 64, (WIDTH, top + 14.0, ROW - 16.0), "#479");
        let _ = write!(svg, "<text x=\"4\" y=\"{}\">{name}: {}</text>", top + 11.0, ratios.len());
    }
    for power in -(BELOW as i32)..=ABOVE as i32 {
        let ratio = f32::powi(2.0, power);
        // Labels are in the middle of their place, but for those at the ends.
        let anchor = ["start", "middle", "end"][usize::from(place(ratio) > 0.0) + usize::from(place(ratio) >= 1.0)];
        let (x, y) = (place(ratio) * WIDTH, height - 3.0);
        let _ = write!(svg, "<text x=\"{x:.0}\" y=\"{y}\" text-anchor=\"{anchor}\">{ratio}</text>");
    }
    let x = place(1.0) * WIDTH;
    let _ = write!(
        svg,
        "<line class=\"t\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{}\" stroke=\"#c22\"/>",
        height - 14.0
    );
    svg + "</svg>"
}

/// Bars of the counts of places in 0 to 1, in a box of a width, from a top, of a height.
fn bars(
    svg: &mut String,
    places: impl Iterator<Item = f32>,
    count: usize,
    (width, top, tall): (f32, f32, f32),
    fill: &str,
) {
    let mut bins = vec![0usize; count];
    places.for_each(|place| bins[((place * count as f32) as usize).min(count - 1)] += 1);
    let tallest = bins.iter().copied().max().unwrap_or(1).max(1);
    let step = width / count as f32;
    for (index, bin) in bins.iter().enumerate().filter(|(_, bin)| **bin > 0) {
        let height = tall * *bin as f32 / tallest as f32;
        let _ = write!(
            svg,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{fill}\"/>",
            index as f32 * step,
            top + tall - height,
            step - 1.0
        );
    }
}

/// A straight line through points, by least squares.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Fit {
    /// Value at 0.
    pub start: f64,
    /// Value added by each unit.
    pub slope: f64,
    /// Share of the values' variance that the line explains.
    pub r2: f64,
}

impl Fit {
    /// Through at least two points at different places.
    pub fn of(points: &[(f64, f64)]) -> Self {
        let count = points.len() as f64;
        let mean = |of: &dyn Fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
        let (x, y) = (mean(&|p| p.0), mean(&|p| p.1));
        let slope = mean(&|p| (p.0 - x) * (p.1 - y)) / mean(&|p| (p.0 - x).powi(2));
        let start = y - slope * x;
        let rest = mean(&|p| (p.1 - start - slope * p.0).powi(2));
        Self { start, slope, r2: 1.0 - rest / mean(&|p| (p.1 - y).powi(2)) }
    }
}

/// A panel of points and their line, both axes from 0, `width` by `height` with its top left corner at a place.
pub fn panel(
    title: &str,
    across: &str,
    points: &[(f64, f64)],
    fit: &Fit,
    (left, top): (f64, f64),
    (width, height): (f64, f64),
) -> String {
    let most = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).fold(f64::MIN_POSITIVE, f64::max);
    let (far, high) = (most(|p| p.0), most(|p| p.1));
    let (inner, tall) = (width - 70.0, height - 64.0);
    let x = |value: f64| left + 50.0 + inner * value / far;
    let y = |value: f64| top + 26.0 + tall * (1.0 - value / high);
    let mut svg = format!("<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{title}</text>", top + 12.0);
    let _ = write!(
        svg,
        "<polyline fill=\"none\" stroke=\"#888\" points=\"{0:.1},{1:.1} {0:.1},{2:.1} {3:.1},{2:.1}\"/>",
        x(0.0),
        y(high),
        y(0.0),
        x(far)
    );
    let _ = write!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#c22\"/>",
        x(0.0),
        y(fit.start),
        x(far),
        y(fit.start + fit.slope * far)
    );
    for (at, value) in points {
        let _ = write!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"#176\"/>", x(*at), y(*value));
        let below = top + height - 24.0;
        let _ = write!(svg, "<text x=\"{:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">{at}</text>", x(*at));
    }
    for value in [0.0, high] {
        let label = y(value) + 4.0;
        let _ = write!(svg, "<text x=\"{:.1}\" y=\"{label:.1}\" text-anchor=\"end\">{value:.0}</text>", x(0.0) - 4.0);
    }
    let Fit { start, slope, r2 } = fit;
    let _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\">{across}: {start:.1} + {slope:.2} each, R\u{b2} {r2:.4}</text>",
        left + 50.0,
        top + height - 6.0
    );
    svg
}

/// What the page's script needs to move the lines of a comparison: `x = WIDTH * clamp((log2(t) + below) / span)`.
pub fn axis() -> (f32, f32) {
    (BELOW, BELOW + ABOVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_and_histograms_stay_inside_their_box() {
        let svg = curve(&[(10, 1.0), (20, 0.1), (30, 0.01)]);
        assert!(svg.contains("0.0,10.0") && svg.contains("600.0,120.0"), "{svg}");
        assert!(!curve(&[]).contains("NaN") && !curve(&[(1, 1.0)]).contains("NaN"));
        assert!(!histogram(&[0.1, 0.2], 0.3, Some(0.15)).contains("NaN"));
        assert!(!histogram(&[], 1.0, None).contains("rect"));
    }

    #[test]
    fn a_line_goes_through_its_points() {
        let points: Vec<(f64, f64)> = [1.0, 2.0, 4.0, 8.0].map(|x| (x, 3.0 + 0.5 * x)).to_vec();
        let Fit { start, slope, r2 } = Fit::of(&points);
        assert!((start - 3.0).abs() < 1e-9 && (slope - 0.5).abs() < 1e-9 && (r2 - 1.0).abs() < 1e-9);
        let bent: Vec<(f64, f64)> = points.iter().map(|(x, _)| (*x, x * x)).collect();
        let fit = Fit::of(&bent);
        assert!((0.8..0.99).contains(&fit.r2), "{fit:?}");
        let svg = panel("time", "cameras", &points, &Fit::of(&points), (0.0, 0.0), (300.0, 200.0));
        assert!(
            svg.contains("3.0 + 0.50 each") && svg.matches("<circle").count() == 4 && !svg.contains("NaN"),
            "{svg}"
        );
    }

    #[test]
    fn a_comparison_shows_ratios_of_any_size() {
        assert_eq!((place(0.0), place(1.0), place(1e9)), (0.0, 0.375, 1.0));
        let svg = comparison(&[("good", vec![0.2, 0.9]), ("spoilt", vec![0.0, 3.0, 1e9])]);
        assert!(svg.contains("good: 2") && svg.contains("spoilt: 3") && !svg.contains("NaN"), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 5);
    }
}
