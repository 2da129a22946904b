//! Transposing, which packing weights comes down to: bytes for those by neuron, groups of four for those by row.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m128i, _mm_cvtsi128_si64, _mm_set_epi64x, _mm_unpackhi_epi64};

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
    use std::arch::x86_64::{_mm_unpackhi_epi8, _mm_unpacklo_epi8};
    let mut m = [_mm_set_epi64x(0, 0); 16];
    for (m, row) in m.iter_mut().zip(rows) {
        *m = vector(row);
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
        *out = bytes(row);
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

/// Transposes 4 × 4 groups of four bytes.
#[inline]
pub(super) fn transpose_quads(rows: &[[u8; 16]; 4]) -> [[u8; 16]; 4] {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has SSE2.
    return unsafe { quads_sse2(rows) };
    #[cfg(not(target_arch = "x86_64"))]
    quads_plain(rows)
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "sse2")]
fn quads_sse2(rows: &[[u8; 16]; 4]) -> [[u8; 16]; 4] {
    use std::arch::x86_64::{_mm_unpackhi_epi32, _mm_unpackhi_epi64, _mm_unpacklo_epi32, _mm_unpacklo_epi64};
    let [a, b, c, d] = rows.map(|row| vector(&row));
    let (ab, cd) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
    let (first, second) = (_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd));
    let (ab, cd) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
    let (third, fourth) = (_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd));
    [bytes(first), bytes(second), bytes(third), bytes(fourth)]
}

#[cfg(any(test, not(target_arch = "x86_64")))]
fn quads_plain(rows: &[[u8; 16]; 4]) -> [[u8; 16]; 4] {
    std::array::from_fn(|k| std::array::from_fn(|i| rows[i / 4][4 * k + i % 4]))
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "sse2")]
fn vector(bytes: &[u8; 16]) -> __m128i {
    let bytes = i128::from_le_bytes(*bytes);
    _mm_set_epi64x((bytes >> 64) as i64, bytes as i64)
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "sse2")]
fn bytes(vector: __m128i) -> [u8; 16] {
    let (low, high) = (_mm_cvtsi128_si64(vector), _mm_cvtsi128_si64(_mm_unpackhi_epi64(vector, vector)));
    (u128::from(low as u64) | u128::from(high as u64) << 64).to_le_bytes()
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

    #[test]
    fn rows_of_quads_become_columns() {
        let rows: [[u8; 16]; 4] = std::array::from_fn(|i| std::array::from_fn(|j| (16 * i + j) as u8));
        let columns = [0, 4, 8, 12].map(|from| {
            let quads = [0, 16, 32, 48].map(|row| [0, 1, 2, 3].map(|e| row + from + e));
            <[u8; 16]>::try_from(quads.as_flattened()).unwrap()
        });
        assert_eq!(transpose_quads(&rows), columns);
        assert_eq!(quads_plain(&rows), columns);
    }
}
