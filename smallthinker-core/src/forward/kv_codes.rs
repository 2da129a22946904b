//! Keys and values as codes: 32 dimensions of one position share a scale.

use crate::forward::kv_cache::{KvType, PAGE};
use crate::forward::kv_page::Part;
use crate::kernels::attention::{Coded, LANES, Square, Square4, squares};

/// 32 codes with their scale in half precision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Block {
    pub(super) scale: u16,
    pub(super) codes: [i8; LANES],
}

/// A square as the cache fills it.
pub(super) trait Stored: Coded {
    /// Up to 32 elements as codes. If one is not finite, all become NaN.
    fn quantize(x: &[f32]) -> Block;
    /// Appends a block for a session file.
    fn append_bytes(block: &Block, out: &mut Vec<u8>);
    /// The blocks that were.
    fn blocks(bytes: &[u8]) -> impl Iterator<Item = Block>;
}

impl Stored for Square {
    fn quantize(x: &[f32]) -> Block {
        let Some(largest) = largest(x) else { return NAN };
        let scale = half::f16::from_f32_const(largest / 127.0);
        let step = scale.to_f32_const();
        let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
        let mut codes = [0; LANES];
        for (code, v) in codes.iter_mut().zip(x) {
            // The scale was rounded, so that the largest element may lie beyond 127 of its steps.
            *code = round((v * inverse).clamp(-127.0, 127.0)) as i8;
        }
        Block { scale: scale.to_bits(), codes }
    }

    fn append_bytes(block: &Block, out: &mut Vec<u8>) {
        out.extend(block.scale.to_le_bytes());
        out.extend(block.codes.map(|code| code as u8));
    }

    fn blocks(bytes: &[u8]) -> impl Iterator<Item = Block> {
        bytes.as_chunks::<{ KvType::Q8_BLOCK }>().0.iter().map(|[low, high, codes @ ..]| Block {
            scale: scale_of([*low, *high]),
            codes: codes.map(|c| c as i8),
        })
    }
}

impl Stored for Square4 {
    /// The 16 codes divide the range of the elements into equal parts. The scale then is that which makes the codes come nearest
    /// to the elements (least squares).
    fn quantize(x: &[f32]) -> Block {
        let Some(largest) = largest(x) else { return NAN };
        // Below this the inverse might not be finite.
        let inverse = if largest > 64.0 * f32::MIN_POSITIVE { 8.0 / largest } else { 0.0 };
        let mut codes = [1; LANES];
        let (mut products, mut squares) = (0.0, 0.0);
        for (code, v) in codes.iter_mut().zip(x) {
            // Parts are numbered from -8 to 7; the middle of each is half a part farther.
            let part = round((v * inverse - 0.5).clamp(-8.0, 7.0));
            let odd = 2.0 * part + 1.0;
            (products, squares) = (products + odd * (v * inverse), squares + odd * odd);
            *code = odd as i8;
        }
        let scale = if inverse > 0.0 { products / (squares * inverse) } else { 0.0 };
        Block { scale: half::f16::from_f32_const(scale).to_bits(), codes }
    }

    /// The lower half of each byte is a code of the first 16.
    fn append_bytes(block: &Block, out: &mut Vec<u8>) {
        out.extend(block.scale.to_le_bytes());
        let held = block.codes.map(|code| (code + 15) as u8 / 2);
        out.extend((0..LANES / 2).map(|i| held[i] | held[LANES / 2 + i] << 4));
    }

    fn blocks(bytes: &[u8]) -> impl Iterator<Item = Block> {
        bytes.as_chunks::<{ KvType::Q4_BLOCK }>().0.iter().map(|[low, high, pairs @ ..]| {
            let of = |i: usize| if i < LANES / 2 { pairs[i] & 15 } else { pairs[i - LANES / 2] >> 4 };
            let codes = std::array::from_fn(|i| of(i) as i8 * 2 - 15);
            Block { scale: scale_of([*low, *high]), codes }
        })
    }
}

/// What is not finite.
const NAN: Block = Block { scale: half::f16::NAN.to_bits(), codes: [1; LANES] };

/// Whatever a file says, scales are not negative.
fn scale_of(bytes: [u8; 2]) -> u16 {
    u16::from_le_bytes(bytes) & 0x7fff
}

/// The largest of the elements' magnitudes; `None` if one is not finite.
fn largest(x: &[f32]) -> Option<f32> {
    let largest = f32::from_bits(x.iter().fold(0, |m, v| m.max(v.abs().to_bits())));
    largest.is_finite().then_some(largest)
}

/// A small number to the nearest integer, ties to even.
fn round(x: f32) -> f32 {
    /// Adding and subtracting this rounds.
    const ROUND: f32 = 12_582_912.0;
    x + ROUND - ROUND
}

impl Part {
    /// Square, from the beginning of this part, of 32 dimensions of one position.
    fn square(self, head_dim: usize, position: usize, chunk: usize) -> usize {
        match self {
            Part::Keys => position / LANES * head_dim.div_ceil(LANES) + chunk,
            Part::Values => chunk * (PAGE / LANES) + position / LANES,
        }
    }

    /// Place in it of the code of one dimension.
    fn code<S: Coded>(self, position: usize, dim: usize) -> usize {
        match self {
            Part::Keys => S::key(position, dim),
            Part::Values => S::value(position, dim),
        }
    }
}

/// Puts 32 codes of one position where they belong among a head's keys and values.
pub(super) fn put<S: Coded>(
    all: &mut [S],
    part: Part,
    head_dim: usize,
    position: usize,
    chunk: usize,
    block: &Block,
) {
    let start = match part {
        Part::Keys => 0,
        Part::Values => squares(head_dim),
    };
    let square = &mut all[start + part.square(head_dim, position, chunk)];
    let at = position % LANES;
    square.scales_mut()[at] = block.scale;
    for (dim, code) in block.codes.into_iter().enumerate() {
        square.set_code(part.code::<S>(at, dim), code);
    }
}

/// The codes of one position among those of this part.
pub(super) fn get<S: Coded>(
    of_part: &[S],
    part: Part,
    head_dim: usize,
    position: usize,
    chunk: usize,
) -> Block {
    let square = &of_part[part.square(head_dim, position, chunk)];
    let at = position % LANES;
    Block {
        scale: square.scales()[at],
        codes: std::array::from_fn(|dim| square.code(part.code::<S>(at, dim))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::hadamard;
    use crate::kernels::tests::Rng;

    fn values(block: &Block) -> [f64; LANES] {
        let scale = half::f16::from_bits(block.scale).to_f64();
        block.codes.map(|code| f64::from(code) * scale)
    }

    fn error(x: &[f32], values: impl IntoIterator<Item = f64>) -> f64 {
        x.iter().zip(values).map(|(x, v)| (f64::from(*x) - v).powi(2)).sum()
    }

    #[test]
    fn codes_come_as_near_as_their_number_allows() {
        let mut rng = Rng(0xc0d5);
        for n in (1..=LANES).cycle().take(500) {
            let size = 2.0_f32.powi((rng.next() % 12) as i32 - 3);
            let x: Vec<f32> = rng.vector(n).iter().map(|x| x * size).collect();
            let largest = x.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            let eight = Square::quantize(&x);
            for (x, v) in x.iter().zip(values(&eight)) {
                // Half of a step, and what half precision makes of the scale.
                let bound = f64::from(largest) / 253.0 + 4e-6;
                assert!((f64::from(*x) - v).abs() <= bound, "{x} as {v}");
            }
            let four = Square4::quantize(&x);
            let equal_parts = f64::from(largest) / 16.0;
            for (x, code) in x.iter().zip(four.codes) {
                assert!(code % 2 != 0 && (-15..=15).contains(&code), "{code}");
                let error = (f64::from(*x) - f64::from(code) * equal_parts).abs();
                assert!(error <= 1.0001 * equal_parts, "{x} as {code} parts of {equal_parts}");
            }
            // No other scale would do better, but for its rounding to half precision.
            let found = error(&x, values(&four));
            let scale = half::f16::from_bits(four.scale).to_f64();
            for other in (900..1100).map(|i| scale * f64::from(i) / 1000.0) {
                let others = error(&x, four.codes.map(|code| f64::from(code) * other));
                let bound = others + 1e-6 * f64::from(largest).powi(2) + 1e-11;
                assert!(found <= bound, "{scale}: {found}, {other}: {others}");
            }
        }
    }

    #[test]
    fn ends_of_the_range() {
        for x in [vec![0.0; 32], vec![-0.0; 5], vec![1e-42; 32], vec![-1e-42, 1e-44]] {
            assert_eq!(values(&Square::quantize(&x)), [0.0; LANES], "{x:?}");
            assert_eq!(values(&Square4::quantize(&x)).map(f64::abs), [0.0; LANES], "{x:?}");
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![1.0; 32];
            x[17] = bad;
            assert!(values(&Square::quantize(&x)).iter().all(|v| v.is_nan()), "{bad}");
            assert!(values(&Square4::quantize(&x)).iter().all(|v| v.is_nan()), "{bad}");
        }
        // Beyond half precision: never a number that is wrong.
        for x in [f32::MAX, -f32::MAX, 2e7] {
            let finite = |v: &f64| v.is_finite();
            assert!(!values(&Square::quantize(&[x; 32])).iter().any(finite), "{x}");
            assert!(!values(&Square4::quantize(&[x; 32])).iter().any(finite), "{x}");
        }
        let ones = values(&Square4::quantize(&[1.0, -1.0]));
        assert!((ones[0] - 1.0).abs() < 1e-3 && (ones[1] + 1.0).abs() < 1e-3, "{ones:?}");
    }

    /// Whatever a session file holds comes out as it was, but for the sign of scales.
    #[test]
    fn blocks_of_any_bytes_are_kept() {
        fn check<S: Stored>(size: usize, rng: &mut Rng) {
            let bytes: Vec<u8> = (0..100 * size).map(|_| rng.next() as u8).collect();
            let (mut again, mut expected) = (Vec::new(), bytes.clone());
            S::blocks(&bytes).for_each(|block| S::append_bytes(&block, &mut again));
            expected.iter_mut().skip(1).step_by(size).for_each(|high| *high &= 0x7f);
            assert_eq!(again, expected);
        }
        let mut rng = Rng(0xf11e);
        check::<Square>(KvType::Q8_BLOCK, &mut rng);
        check::<Square4>(KvType::Q4_BLOCK, &mut rng);
    }

    /// What the rotation is for.
    #[test]
    fn one_large_element_does_not_spoil_the_others_once_they_are_rotated() {
        let mut rng = Rng(0x0171);
        let mut x = rng.vector(128);
        x[40] = 60.0;
        let coded = |x: &[f32]| -> Vec<f32> {
            let blocks = x.chunks(LANES).map(Square4::quantize);
            blocks.flat_map(|block| values(&block).map(|v| v as f32)).collect()
        };
        let plain = error(&x, coded(&x).iter().map(|v| f64::from(*v)));
        let mut rotated = x.clone();
        hadamard::rotate(&mut rotated, 128);
        let mut back = coded(&rotated);
        hadamard::rotate(&mut back, 128);
        let spread = error(&x, back.iter().map(|v| f64::from(*v)));
        assert!(spread < plain / 4.0, "squared errors: {plain} plain, {spread} rotated");
    }
}
