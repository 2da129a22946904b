//! A rotation that spreads what is large in a few elements over all of them, before they are rounded to few bits: the Walsh-Hadamard
//! transform, scaled to keep lengths (QuaRot, arXiv 2404.00456). It is its own inverse. Queries and keys that are both
//! rotated have the products that they had; of rotated values attention gives the rotated output.

/// Elements whose sums and differences are made in registers.
const SMALL: usize = 8;

/// Rotates every head. Heads of a length that is no power of two are rotated in parts of the largest that divides it.
pub(crate) fn rotate(heads: &mut [f32], head_dim: usize) {
    let part = 1 << head_dim.trailing_zeros();
    let scale = (1.0 / (part as f64).sqrt()) as f32;
    let nearest = if part < SMALL { 1 } else { SMALL };
    for x in heads.chunks_exact_mut(part) {
        let mut half = part / 2;
        while half >= nearest {
            for both in x.chunks_exact_mut(2 * half) {
                let (a, b) = both.split_at_mut(half);
                a.iter_mut().zip(b).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
            }
            half /= 2;
        }
        x.as_chunks_mut().0.iter_mut().for_each(|x| *x = eight(*x));
        x.iter_mut().for_each(|x| *x *= scale);
    }
}

/// The transform of eight elements, not scaled.
fn eight(x: [f32; SMALL]) -> [f32; SMALL] {
    let [a, b, c, d, e, f, g, h] = x;
    let [a, b, c, d, e, f, g, h] = [a + e, b + f, c + g, d + h, a - e, b - f, c - g, d - h];
    let [a, b, c, d, e, f, g, h] = [a + c, b + d, a - c, b - d, e + g, f + h, e - g, f - h];
    [a + b, a - b, c + d, c - d, e + f, e - f, g + h, g - h]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::tests::Rng;

    /// Against the matrix: row `i` and column `j` have a minus sign where `i & j` has an odd number of ones.
    #[test]
    fn multiplies_by_the_hadamard_matrix() {
        let mut rng = Rng(0x4ada);
        for (head_dim, part) in
            [(1, 1), (2, 2), (4, 4), (8, 8), (16, 16), (30, 2), (80, 16), (96, 32), (128, 128)]
        {
            let x = rng.vector(3 * head_dim);
            let mut rotated = x.clone();
            rotate(&mut rotated, head_dim);
            for (from, to) in x.chunks(part).zip(rotated.chunks(part)) {
                for (i, to) in to.iter().enumerate() {
                    let sign = |j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                    let sum: f64 = from.iter().enumerate().map(|(j, x)| sign(j) * f64::from(*x)).sum();
                    let error = (f64::from(*to) - sum / (part as f64).sqrt()).abs();
                    assert!(error < 1e-6, "{head_dim}: element {i} off by {error}");
                }
            }
            rotate(&mut rotated, head_dim);
            let error = x.iter().zip(&rotated).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error < 1e-6, "{head_dim}: twice is {error} from the beginning");
        }
    }
}
