//! Curves and histograms.

use std::fmt::Write;

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
    fn a_comparison_shows_ratios_of_any_size() {
        assert_eq!((place(0.0), place(1.0), place(1e9)), (0.0, 0.375, 1.0));
        let svg = comparison(&[("good", vec![0.2, 0.9]), ("spoilt", vec![0.0, 3.0, 1e9])]);
        assert!(svg.contains("good: 2") && svg.contains("spoilt: 3") && !svg.contains("NaN"), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 5);
    }
}
