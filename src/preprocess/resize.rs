//! Resizes by a triangle filter whose support grows with the reduction, one axis after the other, in fixed point. Weights, sums and
//! samples are those of `fast_image_resize`. Weights of sizes that come again are kept: no frame after the first of its size allocates.

use std::ops::AddAssign;

use pulp::{Arch, Simd, WithSimd};

/// Sizes of an axis whose weights are kept.
const KEPT: usize = 32;
/// Sums of a column's samples that are made side by side.
const LANES: usize = 64;
/// Rows that go across together.
const ROWS: usize = 4;

/// A part of a picture, row after row.
pub(super) struct Region<'a> {
    /// From its first sample on, little-endian.
    pub bytes: &'a [u8],
    /// Bytes from a row to the next.
    pub stride: usize,
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Samples of a pixel, 1 or 3.
    pub channels: usize,
}

/// A sample, and how it is weighted.
trait Sample: Copy + Default {
    /// Holds any weighted sum.
    type Sum: Copy + AddAssign;
    /// Bits of a weight, with its sign.
    const WEIGHT: u32;
    /// Most bits of a weight behind the point.
    const PRECISION: u32;
    /// Half of the last place.
    fn half(precision: u32) -> Self::Sum;
    /// Weighted.
    fn times(self, weight: i32) -> Self::Sum;
    /// Without the bits behind the point.
    fn whole(sum: Self::Sum, precision: u32) -> Self;
}

impl Sample for u8 {
    type Sum = i32;
    const WEIGHT: u32 = 16;
    const PRECISION: u32 = 21;

    #[inline(always)]
    fn half(precision: u32) -> i32 {
        1 << (precision - 1)
    }

    #[inline(always)]
    fn times(self, weight: i32) -> i32 {
        // A product of 16 bits each is one instruction for a vector.
        i32::from(self) * i32::from(weight as i16)
    }

    #[inline(always)]
    fn whole(sum: i32, precision: u32) -> u8 {
        (sum >> precision).clamp(0, 255) as u8
    }
}

impl Sample for u16 {
    type Sum = i64;
    const WEIGHT: u32 = 32;
    const PRECISION: u32 = 45;

    #[inline(always)]
    fn half(precision: u32) -> i64 {
        1 << (precision - 1)
    }

    #[inline(always)]
    fn times(self, weight: i32) -> i64 {
        i64::from(self) * i64::from(weight)
    }

    #[inline(always)]
    fn whole(sum: i64, precision: u32) -> u16 {
        (sum >> precision).clamp(0, 65_535) as u16
    }
}

/// The samples that an output is the weighted mean of.
struct Taps {
    /// The first one.
    start: usize,
    /// Place of its weight,
    first: usize,
    /// and how many there are.
    count: usize,
}

/// The outputs of one axis.
struct Axis {
    /// Samples that there are, outputs, bits of a weight.
    key: (usize, usize, u32),
    taps: Vec<Taps>,
    weights: Vec<i32>,
    /// Bits of a weight behind the point.
    precision: u32,
}

impl Axis {
    fn new<S: Sample>(from: usize, to: usize) -> Self {
        let scale = from as f64 / to as f64;
        let radius = scale.max(1.0);
        let nearness = 1.0 / radius;
        let (mut taps, mut exact) = (Vec::with_capacity(to), Vec::new());
        for output in 0..to {
            let centre = (output as f64 + 0.5) * scale;
            let weight = |sample: usize| {
                let distance = ((sample as f64 - (centre - 0.5)) * nearness).abs();
                if distance < 1.0 { 1.0 - distance } else { 0.0 }
            };
            let end = (centre + radius).ceil().min(from as f64) as usize;
            let near = (centre - radius).floor().max(0.0) as usize..end;
            let start = near.clone().find(|sample| weight(*sample) != 0.0).unwrap_or(end);
            let end = near.rev().find(|sample| weight(*sample) != 0.0).map_or(end, |last| last + 1);
            let first = exact.len();
            exact.extend((start..end).map(weight));
            let sum: f64 = exact[first..].iter().sum();
            exact[first..].iter_mut().for_each(|weight| *weight /= sum);
            taps.push(Taps { start, first, count: end - start });
        }
        let fixed = |weight: f64, precision: u32| (weight * (1u64 << precision) as f64).round();
        // As many bits as the largest weight leaves room for.
        let most = exact.iter().copied().fold(0.0, f64::max);
        let is_full = |precision: &u32| fixed(most, precision + 1) >= (1u64 << (S::WEIGHT - 1)) as f64;
        let precision = (0..S::PRECISION).find(is_full).unwrap_or(S::PRECISION);
        let weights = exact.into_iter().map(|weight| fixed(weight, precision) as i32).collect();
        Self { key: (from, to, S::WEIGHT), taps, weights, precision }
    }

    #[inline(always)]
    fn weights(&self, taps: &Taps) -> &[i32] {
        &self.weights[taps.first..][..taps.count]
    }
}

/// The axes that came last.
#[derive(Default)]
struct Axes(Vec<Axis>);

impl Axes {
    /// Place of an axis; none where nothing changes.
    fn find<S: Sample>(&mut self, from: usize, to: usize) -> Option<usize> {
        if from == to {
            return None;
        }
        let known = self.0.iter().position(|axis| axis.key == (from, to, S::WEIGHT));
        Some(known.unwrap_or_else(|| {
            self.0.push(Axis::new::<S>(from, to));
            self.0.len() - 1
        }))
    }

    /// That of the columns and that of the rows.
    fn both<S: Sample>(&mut self, region: &Region<'_>, [width, height]: [usize; 2]) -> [Option<&Axis>; 2] {
        if self.0.len() + 2 > KEPT {
            self.0.clear();
        }
        let found = [self.find::<S>(region.width, width), self.find::<S>(region.height, height)];
        found.map(|axis| axis.map(|axis| &self.0[axis]))
    }
}

/// Rows on their way across.
#[derive(Default)]
struct Lines<S> {
    rows: Vec<S>,
    /// The same, sample by sample of all of them: what is weighted alike lies side by side.
    mixed: Vec<[S; ROWS]>,
    /// What was made of it.
    made: Vec<[S; ROWS]>,
}

/// Resizes picture after picture in the same buffers.
#[derive(Default)]
pub(super) struct Resizer {
    axes: Axes,
    bytes: Lines<u8>,
    words: Lines<u16>,
    between: Vec<u16>,
}

impl Resizer {
    /// A region of bytes at `[width, height]` into `target`, interleaved as it is.
    pub(super) fn bytes(&mut self, region: &Region<'_>, size: [usize; 2], target: &mut [u8]) {
        let [columns, rows] = self.axes.both::<u8>(region, size);
        Arch::new().dispatch(Bytes { region, columns, rows, lines: &mut self.bytes, size, target });
    }

    /// The same for samples of 16 bits, of which those in `mask` count.
    pub(super) fn words(&mut self, region: &Region<'_>, mask: u16, size: [usize; 2], target: &mut [u16]) {
        let [columns, rows] = self.axes.both::<u16>(region, size);
        let (lines, between) = (&mut self.words, &mut self.between);
        Arch::new().dispatch(Words { region, mask, columns, rows, lines, between, size, target });
    }
}

/// A picture of bytes. Not a closure: that would be called, not compiled, for the processor that it runs on.
struct Bytes<'a> {
    region: &'a Region<'a>,
    columns: Option<&'a Axis>,
    rows: Option<&'a Axis>,
    lines: &'a mut Lines<u8>,
    size: [usize; 2],
    target: &'a mut [u8],
}

impl WithSimd for Bytes<'_> {
    type Output = ();

    /// Rows first: there are fewer bytes to put side by side then.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { region, columns, rows, lines, size, target } = self;
        let (length, width) = (region.width * region.channels, size[0] * region.channels);
        lines.rows.resize(ROWS * length, 0);
        for (block, target) in target.chunks_mut(ROWS * width).enumerate() {
            for (row, line) in (block * ROWS..size[1]).zip(lines.rows.chunks_exact_mut(length)) {
                match rows {
                    Some(axis) => down(region.bytes, region.stride, axis, row, line),
                    None => line.copy_from_slice(&region.bytes[row * region.stride..][..length]),
                }
            }
            across(lines, region.channels, columns, target);
        }
    }
}

/// A picture of words.
struct Words<'a> {
    region: &'a Region<'a>,
    mask: u16,
    columns: Option<&'a Axis>,
    rows: Option<&'a Axis>,
    lines: &'a mut Lines<u16>,
    between: &'a mut Vec<u16>,
    size: [usize; 2],
    target: &'a mut [u16],
}

impl WithSimd for Words<'_> {
    type Output = ();

    /// Columns first.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { region, mask, columns, rows, lines, between, size, target } = self;
        let (length, width) = (region.width * region.channels, size[0] * region.channels);
        lines.rows.resize(ROWS * length, 0);
        between.resize(region.height * width, 0);
        let narrow = if rows.is_some() { &mut between[..] } else { &mut *target };
        for (block, narrow) in narrow.chunks_mut(ROWS * width).enumerate() {
            for (row, line) in (block * ROWS..region.height).zip(lines.rows.chunks_exact_mut(length)) {
                let samples = region.bytes[row * region.stride..].chunks_exact(2);
                for (word, bytes) in line.iter_mut().zip(samples) {
                    *word = u16::from_le_bytes([bytes[0], bytes[1]]) & mask;
                }
            }
            across(lines, region.channels, columns, narrow);
        }
        let Some(axis) = rows else { return };
        for (row, target) in target.chunks_exact_mut(width).enumerate() {
            down(between, width, axis, row, target);
        }
    }
}

/// Sums of `N` neighbours, each with the samples `step` further on.
#[inline(always)]
fn sums<S: Sample, const N: usize>(samples: &[S], step: usize, weights: &[i32], half: S::Sum) -> [S::Sum; N] {
    let mut sums = [half; N];
    // A copy, which nothing else can be: only then do the sums stay in registers.
    let mut near = [S::default(); N];
    for (number, weight) in weights.iter().enumerate() {
        near.copy_from_slice(&samples[number * step..][..N]);
        for lane in 0..N {
            sums[lane] += near[lane].times(*weight);
        }
    }
    sums
}

#[inline(always)]
fn whole<S: Sample, const N: usize>(sums: [S::Sum; N], precision: u32) -> [S; N] {
    let mut whole = [S::default(); N];
    for lane in 0..N {
        whole[lane] = S::whole(sums[lane], precision);
    }
    whole
}

/// One row from those above and below it.
#[inline(always)]
fn down<S: Sample>(samples: &[S], stride: usize, axis: &Axis, row: usize, target: &mut [S]) {
    let taps = &axis.taps[row];
    let (samples, weights) = (&samples[taps.start * stride..], axis.weights(taps));
    let (length, half) = (target.len(), S::half(axis.precision));
    let mut at = 0;
    while at + LANES <= length {
        let sums = sums::<S, LANES>(&samples[at..], stride, weights, half);
        target[at..][..LANES].copy_from_slice(&whole::<S, LANES>(sums, axis.precision));
        at += LANES;
        // The last ones once more, rather than one by one.
        if at < length && at + LANES > length {
            at = length - LANES;
        }
    }
    for at in at..length {
        [target[at]] = whole(sums(&samples[at..], stride, weights, half), axis.precision);
    }
}

/// Rows from their own pixels.
#[inline(always)]
fn across<S: Sample>(lines: &mut Lines<S>, channels: usize, axis: Option<&Axis>, target: &mut [S]) {
    let Lines { rows, mixed, made } = lines;
    let Some(axis) = axis else { return target.copy_from_slice(&rows[..target.len()]) };
    let (length, width) = (rows.len() / ROWS, axis.taps.len() * channels);
    // Behind the last pixel there is room for what is read and written with it.
    mixed.resize(length + 1, [S::default(); ROWS]);
    made.resize(width + 1, [S::default(); ROWS]);
    let (first, second) = rows.split_at(2 * length);
    let ((first, second), (third, fourth)) = (first.split_at(length), second.split_at(length));
    for ((((mixed, first), second), third), fourth) in mixed.iter_mut().zip(first).zip(second).zip(third).zip(fourth) {
        *mixed = [*first, *second, *third, *fourth];
    }
    let (samples, sums) = (mixed.as_flattened(), made.as_flattened_mut());
    match channels {
        3 => pixels::<S, { 3 * ROWS }, { 4 * ROWS }>(samples, axis, sums),
        _ => pixels::<S, ROWS, ROWS>(samples, axis, sums),
    }
    for (row, target) in target.chunks_exact_mut(width).enumerate() {
        for (target, made) in target.iter_mut().zip(&*made) {
            *target = made[row];
        }
    }
}

/// Pixels of `PIXEL` samples; `N` at a time are read and written, a power of two.
#[inline(always)]
fn pixels<S: Sample, const PIXEL: usize, const N: usize>(samples: &[S], axis: &Axis, made: &mut [S]) {
    let half = S::half(axis.precision);
    for (x, taps) in axis.taps.iter().enumerate() {
        let sums = sums::<S, N>(&samples[taps.start * PIXEL..], PIXEL, axis.weights(taps), half);
        made[x * PIXEL..][..N].copy_from_slice(&whole::<S, N>(sums, axis.precision));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use fast_image_resize::images::Image;
    use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer as Reference};

    use super::*;

    /// The same numbers in every run.
    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self, below: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % below
        }
    }

    fn reference(cut: &mut [u8], from: [usize; 2], to: [usize; 2], kind: PixelType) -> Vec<u8> {
        let source = Image::from_slice_u8(from[0] as u32, from[1] as u32, cut, kind).expect("source");
        let mut target = Image::new(to[0] as u32, to[1] as u32, kind);
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
        Reference::new().resize(&source, &mut target, &options).expect("resizes");
        target.into_vec()
    }

    /// A crop of a picture, and what is made of it in both ways.
    fn compare(resizer: &mut Resizer, numbers: &mut Numbers, from: [usize; 2], to: [usize; 2]) {
        for (channels, deep) in [(1, false), (3, false), (1, true), (3, true)] {
            let pixel = channels * if deep { 2 } else { 1 };
            let (left, top) = (numbers.next(5), numbers.next(5));
            let stride = (from[0] + left + numbers.next(5)) * pixel;
            // Flat, coarse and wild.
            let wild = [1, 40, 256][numbers.next(3)];
            let picture: Vec<u8> =
                (0..stride * (from[1] + top)).map(|_| (255 - numbers.next(256) / wild * wild) as u8).collect();
            let bytes = &picture[top * stride + left * pixel..];
            let region = Region { bytes, stride, width: from[0], height: from[1], channels };
            let mut cut: Vec<u8> =
                (0..from[1]).flat_map(|row| &bytes[row * stride..][..from[0] * pixel]).copied().collect();
            let (found, kind) = if deep {
                let mut words = vec![0u16; to[0] * to[1] * channels];
                let mask = u16::MAX >> (numbers.next(2) * 4);
                resizer.words(&region, mask, to, &mut words);
                for word in cut.chunks_exact_mut(2) {
                    let value = u16::from_le_bytes([word[0], word[1]]) & mask;
                    word.copy_from_slice(&value.to_ne_bytes());
                }
                let kind = if channels == 3 { PixelType::U16x3 } else { PixelType::U16 };
                (words.into_iter().flat_map(u16::to_ne_bytes).collect(), kind)
            } else {
                let mut bytes = vec![0u8; to[0] * to[1] * channels];
                resizer.bytes(&region, to, &mut bytes);
                (bytes, if channels == 3 { PixelType::U8x3 } else { PixelType::U8 })
            };
            let expected = reference(&mut cut, from, to, kind);
            assert!(found == expected, "{from:?} to {to:?}, {kind:?}");
        }
    }

    #[test]
    fn every_sample_is_that_of_the_reference() {
        let (mut resizer, mut numbers) = (Resizer::default(), Numbers(7));
        for number in 0..150 {
            let mut side = |most: usize| 1 + numbers.next(most);
            let (from, to) = ([side(300), side(300)], [side(150), side(150)]);
            // One axis alone, or none, is another path.
            let to = match number % 5 {
                0 => [from[0], to[1]],
                1 => [to[0], from[1]],
                2 => [to[0], to[1] + 200],
                _ => to,
            };
            compare(&mut resizer, &mut numbers, from, to);
        }
        for (from, to) in [([64, 64], [64, 64]), ([1, 1], [33, 5]), ([8, 2000], [32, 32]), ([4000, 9], [256, 3])] {
            compare(&mut resizer, &mut numbers, from, to);
        }
        assert!(resizer.axes.0.len() <= KEPT);
    }

    #[test]
    fn weights_of_a_size_that_comes_again_are_kept() {
        let (mut resizer, picture) = (Resizer::default(), vec![7; 3 * 90 * 70]);
        for _ in 0..5 {
            for width in [90, 80, 30] {
                let region = Region { bytes: &picture, stride: 270, width, height: 70, channels: 3 };
                resizer.bytes(&region, [32, 32], &mut [0; 3 * 32 * 32]);
            }
        }
        // Three of columns and one of rows.
        assert_eq!(resizer.axes.0.len(), 4);
    }

    #[test]
    #[ignore = "a measurement: cargo test --release --lib resize -- --ignored --nocapture"]
    fn times_beside_the_reference() {
        let picture: Vec<u8> = (0..1280 * 1024 * 6u32).map(|k| (k.wrapping_mul(2_654_435_761) >> 21) as u8).collect();
        for (channels, kind) in [(3, PixelType::U8x3), (1, PixelType::U8)] {
            let (mut resizer, mut reference) = (Resizer::default(), Reference::new());
            let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
            let region = Region { bytes: &picture, stride: 1280 * channels, width: 1280, height: 1024, channels };
            let (mut target, mut large) = (vec![0; 256 * 256 * channels], Vec::new());
            let mut times = [const { Vec::new() }; 2];
            for _ in 0..100 {
                let begun = Instant::now();
                resizer.bytes(&region, [256, 256], &mut target);
                times[0].push(begun.elapsed());
                let begun = Instant::now();
                // It takes no picture that it could not change.
                large.clear();
                large.extend_from_slice(&picture[..1280 * 1024 * channels]);
                let source = Image::from_slice_u8(1280, 1024, &mut large, kind).expect("source");
                let mut made = Image::from_slice_u8(256, 256, &mut target, kind).expect("target");
                reference.resize(&source, &mut made, &options).expect("resizes");
                times[1].push(begun.elapsed());
            }
            let medians = times.map(|mut times| {
                times.sort();
                times[times.len() / 2]
            });
            println!("1280x1024 to 256x256, {kind:?}: own {:?}, fast_image_resize {:?}", medians[0], medians[1]);
        }
    }
}
