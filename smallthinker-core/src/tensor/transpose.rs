//! Transposing bytes, which packing weights by neuron comes down to.

/// Transposes 16 × 16 bytes: four rounds that interleave the rows of the first half with those of the second.
#[inline]
pub(super) fn transpose(rows: &[[u8; 16]; 16]) -> [[u8; 16]; 16] {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has SSE2.
    return unsafe { sse2(rows) };
    #[cfg(not(target_arch = "x86_64"))]
    plain(rows)
}

/// Compilers do not find these instructions in [`plain`].
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "sse2")]
fn sse2(rows: &[[u8; 16]; 16]) -> [[u8; 16]; 16] {
    use std::arch::x86_64::{
        _mm_cvtsi128_si64, _mm_set_epi64x, _mm_unpackhi_epi8, _mm_unpackhi_epi64, _mm_unpacklo_epi8,
    };
    let mut m = [_mm_set_epi64x(0, 0); 16];
    for (m, row) in m.iter_mut().zip(rows) {
        let row = i128::from_le_bytes(*row);
        *m = _mm_set_epi64x((row >> 64) as i64, row as i64);
    }
    for _ in 0..4 {
        let before = m;
        for i in 0..8 {
            m[2 * i] = _mm_unpacklo_epi8(before[i], before[i + 8]);
            m[2 * i + 1] = _mm_unpackhi_epi8(before[i], before[i + 8]);
        }
    }
    let mut out = [[0; 16]; 16];
    for (out, row) in out.iter_mut().zip(m) {
        let (low, high) = (_mm_cvtsi128_si64(row), _mm_cvtsi128_si64(_mm_unpackhi_epi64(row, row)));
        *out = (u128::from(low as u64) | u128::from(high as u64) << 64).to_le_bytes();
    }
    out
}

#[cfg(any(test, not(target_arch = "x86_64")))]
fn plain(rows: &[[u8; 16]; 16]) -> [[u8; 16]; 16] {
    let mut m = *rows;
    for _ in 0..4 {
        m = std::array::from_fn(|i| {
            let (a, b) = (&m[i / 2], &m[i / 2 + 8]);
            let from = 8 * (i % 2);
            std::array::from_fn(|j| if j % 2 == 0 { a[from + j / 2] } else { b[from + j / 2] })
        });
    }
    m
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns() {
        let rows: [[u8; 16]; 16] =
            std::array::from_fn(|i| std::array::from_fn(|j| (i * 53 + j * 31 + i * j) as u8));
        let columns = std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]));
        assert_eq!(transpose(&rows), columns);
        assert_eq!(plain(&rows), columns);
    }
}
