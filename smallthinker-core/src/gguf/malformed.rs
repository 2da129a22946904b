//! A corpus of malformed GGUF files, each with the field that its refusal must name. It is written from the
//! published layout and uses nothing of this crate, so that other test crates can include it by path.

/// Writes GGUF bytes field by field, true or false alike.
#[derive(Clone, Default)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Bytes {
    /// Magic, version and the two counts.
    pub(super) fn head(version: u32, n_tensors: u64, n_kv: u64) -> Bytes {
        Bytes(b"GGUF".to_vec()).u32(version).u64(n_tensors).u64(n_kv)
    }
    pub(super) fn raw(mut self, bytes: &[u8]) -> Bytes {
        self.0.extend_from_slice(bytes);
        self
    }
    pub(super) fn u32(self, v: u32) -> Bytes {
        self.raw(&v.to_le_bytes())
    }
    pub(super) fn u64(self, v: u64) -> Bytes {
        self.raw(&v.to_le_bytes())
    }
    pub(super) fn string(self, s: &str) -> Bytes {
        self.u64(s.len() as u64).raw(s.as_bytes())
    }
    /// A metadata entry of type `u32`.
    pub(super) fn kv_u32(self, key: &str, v: u32) -> Bytes {
        self.string(key).u32(4).u32(v)
    }
    /// A directory entry.
    pub(super) fn tensor(self, name: &str, dims: &[u64], dtype: u32, offset: u64) -> Bytes {
        let entry = self.string(name).u32(dims.len() as u32);
        dims.iter().fold(entry, |b, &d| b.u64(d)).u32(dtype).u64(offset)
    }
    /// Zeros up to the next multiple of `alignment`, then `n` bytes of data.
    pub(super) fn data(mut self, alignment: usize, n: usize) -> Bytes {
        self.0.resize(self.0.len().next_multiple_of(alignment) + n, 0);
        self
    }
}

/// A malformed file.
pub(super) struct Case {
    /// What is wrong with it.
    pub(super) name: &'static str,
    /// Text that the error must contain: the field.
    pub(super) field: &'static str,
    /// The file.
    pub(super) bytes: Vec<u8>,
}

/// One metadata entry `k` and no tensors.
fn one_kv() -> Bytes {
    Bytes::head(3, 0, 1)
}

/// One tensor `w` of these dimensions, type and offset, with 64 bytes of data.
fn one_tensor(dims: &[u64], dtype: u32, offset: u64) -> Bytes {
    Bytes::head(3, 1, 0).tensor("w", dims, dtype, offset).data(32, 64)
}

fn aligned(alignment: u32) -> Bytes {
    Bytes::head(3, 1, 1).kv_u32("general.alignment", alignment).tensor("w", &[4], 0, 0).data(32, 64)
}

/// The corpus.
pub(super) fn corpus() -> Vec<Case> {
    let mut cases = header_cases();
    cases.extend(metadata_cases());
    cases.extend(tensor_cases());
    cases
}

fn case(name: &'static str, field: &'static str, bytes: Bytes) -> Case {
    Case { name, field, bytes: bytes.0 }
}

fn header_cases() -> Vec<Case> {
    vec![
        case("empty file", "magic", Bytes::default()),
        case("wrong magic", "magic", Bytes::default().raw(b"GGML").u32(3).u64(0).u64(0)),
        case("magic only", "version", Bytes::default().raw(b"GGUF")),
        case("version 0", "version", Bytes::head(0, 0, 0)),
        case("version 1", "version", Bytes::head(1, 0, 0)),
        case("version 4", "version", Bytes::head(4, 0, 0)),
        case("big-endian", "version", Bytes::head(3u32.swap_bytes(), 0, 0)),
        case("no counts", "tensor_count", Bytes::default().raw(b"GGUF").u32(3)),
        case("huge entry count", "metadata_kv_count", Bytes::head(3, 0, u64::MAX)),
        case("entry count that wraps", "metadata_kv_count", Bytes::head(3, 0, 1 << 60)),
        case("entry count beyond the file", "metadata_kv_count", Bytes::head(3, 0, 1).u64(1)),
        case("huge tensor count", "tensor_count", Bytes::head(3, u64::MAX, 0)),
        case("tensor count beyond the file", "tensor_count", Bytes::head(3, 1, 0).u64(1)),
        case(
            "tensor count used up by metadata",
            "tensor_count",
            Bytes::head(3, 1, 1).kv_u32(&"k".repeat(64), 1),
        ),
    ]
}

fn metadata_cases() -> Vec<Case> {
    let pad = [0u8; 32];
    vec![
        case("huge key length", "metadata key 0", one_kv().u64(u64::MAX).raw(&pad)),
        case("key longer than the file", "metadata key 0", one_kv().u64(1000).raw(&pad)),
        case("key over 64 KiB", "metadata key 0", one_kv().kv_u32(&"k".repeat(70_000), 1)),
        case("empty key", "metadata key 0", one_kv().kv_u32("", 1).raw(&pad)),
        case("key not UTF-8", "metadata key 0", one_kv().u64(2).raw(&[0xff, 0xfe]).u32(4).u32(1)),
        case("key twice", "same.key", Bytes::head(3, 0, 2).kv_u32("same.key", 1).kv_u32("same.key", 2)),
        case("unknown value type", "some.key", one_kv().string("some.key").u32(13).raw(&pad)),
        case("bool of 2", "some.key", one_kv().string("some.key").u32(7).raw(&[2])),
        case("huge string", "some.key", one_kv().string("some.key").u32(8).u64(u64::MAX - 7).raw(&pad)),
        case("string beyond the file", "some.key", one_kv().string("some.key").u32(8).u64(33).raw(&pad)),
        case("string not UTF-8", "some.key", one_kv().string("some.key").u32(8).u64(2).raw(&[0xc3, 0x28])),
        case("huge array", "some.key", one_kv().string("some.key").u32(9).u32(4).u64(u64::MAX).raw(&pad)),
        case(
            "array size that wraps",
            "some.key",
            one_kv().string("some.key").u32(9).u32(10).u64(1 << 61).raw(&pad),
        ),
        case("array beyond the file", "some.key", one_kv().string("some.key").u32(9).u32(4).u64(9).raw(&pad)),
        case("array of huge strings", "some.key", {
            one_kv().string("some.key").u32(9).u32(8).u64(2).string("ok").u64(1 << 40).raw(&pad)
        }),
        case(
            "more strings than bytes",
            "some.key",
            one_kv().string("some.key").u32(9).u32(8).u64(5).raw(&pad),
        ),
        case(
            "array of unknown type",
            "some.key",
            one_kv().string("some.key").u32(9).u32(99).u64(1).raw(&pad),
        ),
        case("array of arrays", "some.key", {
            (0..1000).fold(one_kv().string("some.key").u32(9), |b, _| b.u32(9).u64(1))
        }),
        case("alignment 0", "general.alignment", aligned(0)),
        case("alignment 24", "general.alignment", aligned(24)),
        case("alignment 2^31", "offset of tensor w", aligned(1 << 31)),
        case("alignment as u64", "general.alignment", {
            Bytes::head(3, 0, 1).string("general.alignment").u32(10).u64(32)
        }),
        case("alignment as string", "general.alignment", {
            Bytes::head(3, 0, 1).string("general.alignment").u32(8).string("32")
        }),
    ]
}

fn tensor_cases() -> Vec<Case> {
    let twice = Bytes::head(3, 2, 0).tensor("same.w", &[4], 0, 0).tensor("same.w", &[4], 0, 32);
    let overlap = Bytes::head(3, 2, 0).tensor("a", &[16], 0, 0).tensor("b", &[4], 0, 32);
    let padding = [0u8; 64];
    vec![
        case("huge name length", "tensor name 0", Bytes::head(3, 1, 0).u64(u64::MAX).raw(&padding)),
        case("empty name", "tensor name 0", Bytes::head(3, 1, 0).tensor("", &[4], 0, 0).data(32, 64)),
        case("name not UTF-8", "tensor name 0", Bytes::head(3, 1, 0).u64(1).raw(&[0x80]).raw(&padding)),
        case("name twice", "same.w", twice.data(32, 64)),
        case("no dimensions", "n_dims of tensor w", one_tensor(&[], 0, 0)),
        case("five dimensions", "n_dims of tensor w", one_tensor(&[1; 5], 0, 0)),
        case("2^32 - 1 dimensions", "n_dims of tensor w", {
            Bytes::head(3, 1, 0).string("w").u32(u32::MAX).raw(&padding)
        }),
        case("zero dimension", "dims of tensor w", one_tensor(&[4, 0], 0, 0)),
        case("elements that wrap", "dims of tensor w", one_tensor(&[1 << 32, 1 << 32], 0, 0)),
        case("elements that wrap to few", "dims of tensor w", one_tensor(&[1 << 62, 4, 1, 4], 0, 0)),
        case("bytes that wrap", "dims of tensor w", one_tensor(&[1 << 62, 2], 0, 0)),
        case("row not whole blocks", "dims of tensor w", one_tensor(&[33], 2, 0)),
        case("row of half a super-block", "dims of tensor w", one_tensor(&[128], 12, 0)),
        case("unknown tensor type", "type of tensor w", one_tensor(&[4], 99, 0)),
        case("retired tensor type", "type of tensor w", one_tensor(&[32], 4, 0)),
        case("unaligned offset", "offset of tensor w", one_tensor(&[4], 0, 4)),
        case("offset beyond the file", "offset of tensor w", one_tensor(&[4], 0, 96)),
        case("size beyond the file", "offset of tensor w", one_tensor(&[17], 0, 0)),
        case("offset plus size wraps", "offset of tensor w", one_tensor(&[16], 0, u64::MAX - 31)),
        case("no data at all", "offset of tensor w", Bytes::head(3, 1, 0).tensor("w", &[4], 0, 0)),
        case("overlapping tensors", "offset of tensor b", overlap.data(32, 64)),
    ]
}
