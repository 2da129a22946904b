//! The quantized block structures as they lie in a file, the one cast from bytes to them, and their decoding
//! into small integers with scales. Layouts are those of the `ggml` blocks of the same names.

use super::DType;

/// Elements that share one decoded [`Sub`] and one activation scale.
pub(crate) const SUB: usize = 32;

/// A type without padding whose every bit pattern is valid and whose alignment is 1, so that any bytes of the
/// right length are a value of it.
///
/// # Safety
/// The type must be `repr(C)` (or an array of such), made of `u8` and `i8` only.
pub(crate) unsafe trait Plain: Copy + 'static {}

// SAFETY: an array of plain values has no padding and the alignment of its elements, 1.
unsafe impl<P: Plain, const N: usize> Plain for [P; N] {}

/// Views `bytes` as whole values of `P`, and returns what is left over.
#[inline]
pub(crate) fn cast<P: Plain>(bytes: &[u8]) -> (&[P], &[u8]) {
    const { assert!(align_of::<P>() == 1 && size_of::<P>() > 0) };
    let count = bytes.len() / size_of::<P>();
    let (whole, rest) = bytes.split_at(count * size_of::<P>());
    // SAFETY: `whole` holds exactly `count` values; `P: Plain` makes every pattern valid and alignment 1.
    (unsafe { std::slice::from_raw_parts(whole.as_ptr().cast::<P>(), count) }, rest)
}

/// A value of `P` that starts with `bytes` (cut to its size) and ends in zero bytes.
#[inline]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) fn padded<P: Plain>(bytes: &[u8]) -> P {
    let mut value = std::mem::MaybeUninit::<P>::zeroed();
    let count = bytes.len().min(size_of::<P>());
    // SAFETY: `count` bytes fit the source and the destination, which cannot overlap; all zeros and any bytes
    // are valid values of a `Plain` type.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), value.as_mut_ptr().cast::<u8>(), count);
        value.assume_init()
    }
}

/// 32 decoded elements: element `i` is `scale[i / 16] * q[i] - min`.
pub(crate) struct Sub {
    pub(crate) q: [i8; SUB],
    pub(crate) scale: [f32; 2],
    pub(crate) min: f32,
}

/// A block type of a file.
pub(crate) trait Block: Plain {
    /// The type whose blocks these are.
    const DTYPE: DType;

    /// Decodes elements `32 * i .. 32 * i + 32`; `i` counts modulo the block's length.
    fn sub(&self, i: usize) -> Sub;
}

/// An IEEE half as stored, little-endian.
#[inline]
pub(crate) fn f16(bytes: [u8; 2]) -> f32 {
    half::f16::from_le_bytes(bytes).to_f32_const()
}

/// A signed byte.
#[inline]
pub(crate) fn integer([byte]: [u8; 1]) -> f32 {
    f32::from(byte as i8)
}

macro_rules! block {
    ($(#[$doc:meta])* $name:ident, $dtype:ident, { $($field:ident: $ty:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        #[repr(C)]
        pub(crate) struct $name { $(pub(crate) $field: $ty),+ }
        const _: () = assert!(size_of::<$name>() == DType::$dtype.block_bytes() && align_of::<$name>() == 1);
        // SAFETY: repr(C), byte fields only; the assertion above excludes padding.
        unsafe impl Plain for $name {}
    };
}

// SAFETY: a byte is a plain value.
unsafe impl Plain for u8 {}

block!(/// Element `i` and `i + 16` share byte `i`; value `d * (q - 8)`.
    BlockQ4_0, Q4_0, { d: [u8; 2], qs: [u8; 16] });
block!(/// As Q4_0 with a minimum: `d * q + m`.
    BlockQ4_1, Q4_1, { d: [u8; 2], m: [u8; 2], qs: [u8; 16] });
block!(/// As Q4_0 with a fifth bit per element in `qh`; value `d * (q - 16)`.
    BlockQ5_0, Q5_0, { d: [u8; 2], qh: [u8; 4], qs: [u8; 16] });
block!(/// As Q5_0 with a minimum: `d * q + m`.
    BlockQ5_1, Q5_1, { d: [u8; 2], m: [u8; 2], qh: [u8; 4], qs: [u8; 16] });
block!(/// Signed bytes; value `d * q`.
    BlockQ8_0, Q8_0, { d: [u8; 2], qs: [i8; 32] });
block!(/// Eight sub-blocks of 32 with 6-bit scales and minima; value `d * scale * q - dmin * min`.
    BlockQ4K, Q4_K, { d: [u8; 2], dmin: [u8; 2], scales: [u8; 12], qs: [u8; 128] });
block!(/// As Q4_K with a fifth bit per element in `qh`: bit `s` of byte `l` is element `l` of sub-block `s`.
    BlockQ5K, Q5_K, { d: [u8; 2], dmin: [u8; 2], scales: [u8; 12], qh: [u8; 32], qs: [u8; 128] });
block!(/// Sixteen sub-blocks of 16 with 8-bit scales; value `d * scale * (q - 32)`.
    BlockQ6K, Q6_K, { ql: [u8; 128], qh: [u8; 64], scales: [i8; 16], d: [u8; 2] });

/// The 6-bit scales and minima of the eight sub-blocks of a Q4_K or Q5_K block, one byte each.
/// The first four lie in the low six bits of bytes 0-3 and 4-7; of the last four, the low nibbles share
/// bytes 8-11 and the high two bits top bytes 0-7.
#[inline]
pub(crate) fn k_scales(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3] = *packed;
    let a = u32::from_le_bytes([a0, a1, a2, a3]);
    let b = u32::from_le_bytes([b0, b1, b2, b3]);
    let c = u32::from_le_bytes([c0, c1, c2, c3]);
    let low = |x: u32| u64::from(x & 0x3f3f_3f3f);
    let high = |nibbles: u32, top: u32| u64::from((nibbles & 0x0f0f_0f0f) | ((top >> 2) & 0x3030_3030)) << 32;
    ((low(a) | high(c, a)).to_le_bytes(), (low(b) | high(c >> 4, b)).to_le_bytes())
}

#[inline]
fn nibbles(qs: &[u8; 16]) -> [i8; SUB] {
    std::array::from_fn(|i| if i < 16 { (qs[i] & 15) as i8 } else { (qs[i - 16] >> 4) as i8 })
}

#[inline]
fn fifth_bits(qh: [u8; 4], qs: &[u8; 16]) -> [i8; SUB] {
    let bits = u32::from_le_bytes(qh);
    let low = nibbles(qs);
    std::array::from_fn(|i| low[i] | ((((bits >> i) & 1) as i8) << 4))
}

/// Sub-block `s` of the 128 nibble bytes of a K-quant: low nibbles of chunk `s / 2` for even `s`, else high.
#[inline]
fn k_nibbles(qs: &[u8; 128], s: usize) -> [i8; SUB] {
    let start = 32 * (s / 2 % 4);
    let shift = 4 * (s % 2);
    std::array::from_fn(|i| ((qs[start + i] >> shift) & 15) as i8)
}

impl Block for BlockQ4_0 {
    const DTYPE: DType = DType::Q4_0;
    #[inline]
    fn sub(&self, _: usize) -> Sub {
        Sub { q: nibbles(&self.qs).map(|q| q - 8), scale: [f16(self.d); 2], min: 0.0 }
    }
}

impl Block for BlockQ4_1 {
    const DTYPE: DType = DType::Q4_1;
    #[inline]
    fn sub(&self, _: usize) -> Sub {
        Sub { q: nibbles(&self.qs), scale: [f16(self.d); 2], min: -f16(self.m) }
    }
}

impl Block for BlockQ5_0 {
    const DTYPE: DType = DType::Q5_0;
    #[inline]
    fn sub(&self, _: usize) -> Sub {
        Sub { q: fifth_bits(self.qh, &self.qs).map(|q| q - 16), scale: [f16(self.d); 2], min: 0.0 }
    }
}

impl Block for BlockQ5_1 {
    const DTYPE: DType = DType::Q5_1;
    #[inline]
    fn sub(&self, _: usize) -> Sub {
        Sub { q: fifth_bits(self.qh, &self.qs), scale: [f16(self.d); 2], min: -f16(self.m) }
    }
}

impl Block for BlockQ8_0 {
    const DTYPE: DType = DType::Q8_0;
    #[inline]
    fn sub(&self, _: usize) -> Sub {
        Sub { q: self.qs, scale: [f16(self.d); 2], min: 0.0 }
    }
}

impl Block for BlockQ4K {
    const DTYPE: DType = DType::Q4_K;
    #[inline]
    fn sub(&self, i: usize) -> Sub {
        let (scales, mins) = k_scales(&self.scales);
        let scale = f16(self.d) * f32::from(scales[i % 8]);
        Sub { q: k_nibbles(&self.qs, i), scale: [scale; 2], min: f16(self.dmin) * f32::from(mins[i % 8]) }
    }
}

impl Block for BlockQ5K {
    const DTYPE: DType = DType::Q5_K;
    #[inline]
    fn sub(&self, i: usize) -> Sub {
        let (scales, mins) = k_scales(&self.scales);
        let scale = f16(self.d) * f32::from(scales[i % 8]);
        let low = k_nibbles(&self.qs, i);
        let q = std::array::from_fn(|l| low[l] | (((self.qh[l] >> (i % 8)) & 1) << 4) as i8);
        Sub { q, scale: [scale; 2], min: f16(self.dmin) * f32::from(mins[i % 8]) }
    }
}

impl Block for BlockQ6K {
    const DTYPE: DType = DType::Q6_K;
    #[inline]
    fn sub(&self, i: usize) -> Sub {
        // Each half of 128 elements has 64 bytes of low nibbles (quarters 0 and 1 in the low, 2 and 3 in the
        // high halves) and 32 bytes of bit pairs, one pair per quarter.
        let (half, quarter) = (i / 4 % 2, i % 4);
        let (low_at, high_at) = (64 * half + 32 * (quarter % 2), 32 * half);
        let q = std::array::from_fn(|l| {
            let low = (self.ql[low_at + l] >> (4 * (quarter / 2))) & 15;
            let high = (self.qh[high_at + l] >> (2 * quarter)) & 3;
            (low | (high << 4)) as i8 - 32
        });
        let d = f16(self.d);
        let scale = [0, 1].map(|part| d * f32::from(self.scales[2 * (i % 8) + part]));
        Sub { q, scale, min: 0.0 }
    }
}
