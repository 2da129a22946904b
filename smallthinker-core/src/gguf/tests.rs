use std::path::Path;

use proptest::prelude::*;

use super::malformed::{Bytes, corpus};
use super::{Array, Gguf, Value};
use crate::error::{Error, ErrorKind};
use crate::tensor::DType;

/// Written by the `gguf` Python package, see testdata/golden.py.
const GOLDEN: &[u8] = include_bytes!("testdata/golden.gguf");

fn parse(bytes: &[u8]) -> crate::Result<Gguf> {
    Gguf::from_bytes(bytes.to_vec())
}

#[test]
fn every_malformed_file_is_refused_by_field() {
    for case in corpus() {
        let error = match parse(&case.bytes) {
            Ok(_) => panic!("{}: accepted", case.name),
            Err(e) => e,
        };
        assert!(
            matches!(error.kind(), ErrorKind::Malformed | ErrorKind::Unsupported),
            "{}: {error}",
            case.name
        );
        let (Error::Malformed { field, .. } | Error::Unsupported { field, .. }) = &error else {
            unreachable!()
        };
        assert!(field.contains(case.field), "{}: field {field:?}, expected {:?}", case.name, case.field);
        assert!(error.to_string().contains("<memory>"), "{}: {error}", case.name);
    }
}

#[test]
fn truncation_at_every_byte_is_an_error() {
    assert!(parse(GOLDEN).is_ok());
    // The padding after the last tensor may be missing.
    let last = parse(GOLDEN).unwrap().tensors().iter().map(|t| t.offset + t.n_bytes).max().unwrap();
    for len in 0..GOLDEN.len() {
        let result = parse(&GOLDEN[..len]);
        assert_eq!(result.is_ok(), len as u64 >= last, "truncated to {len} bytes");
    }
}

#[test]
fn reads_what_the_python_package_wrote() {
    let file = parse(GOLDEN).unwrap();
    assert_eq!(file.version(), 3);
    assert_eq!(file.file_bytes(), GOLDEN.len() as u64);
    let strings = ["a", "", "Ġmerge ĠĠ", "日本"].map(String::from).to_vec();
    let expected = [
        ("general.architecture", Value::String("smallthinker".into())),
        ("general.name", Value::String("golden – élan".into())),
        ("t.u8", Value::U8(200)),
        ("t.i8", Value::I8(-100)),
        ("t.u16", Value::U16(60000)),
        ("t.i16", Value::I16(-30000)),
        ("t.u32", Value::U32(4_000_000_000)),
        ("t.i32", Value::I32(-2_000_000_000)),
        ("t.f32", Value::F32(0.15625)),
        ("t.true", Value::Bool(true)),
        ("t.false", Value::Bool(false)),
        ("t.u64", Value::U64((1 << 63) + 1)),
        ("t.i64", Value::I64(-(1 << 62))),
        ("t.f64", Value::F64(1e300)),
        ("t.strings", Value::Array(Array::String(strings.iter().collect()))),
        ("t.ints", Value::Array(Array::I32(vec![1, -2, 3]))),
        ("t.floats", Value::Array(Array::F32(vec![0.5, -1.25]))),
        ("t.bools", Value::Array(Array::Bool(vec![true, false, true]))),
        ("t.u8s", Value::Array(Array::U8(vec![1, 2, 255]))),
    ];
    let found: Vec<_> = file.metadata().map(|(k, v)| (k, v.clone())).collect();
    assert_eq!(found, expected);

    // Name, type, dims, offset and size as gguf.GGUFReader reports them.
    let directory: Vec<_> = file
        .tensors()
        .iter()
        .map(|t| (t.name.as_str(), t.dtype, t.dims.clone(), t.offset, t.n_bytes))
        .collect();
    let expected = [
        ("ramp.f32", DType::F32, vec![5, 2], 832, 40),
        ("ramp.f16", DType::F16, vec![8, 4, 2], 896, 128),
        ("ramp.q8_0", DType::Q8_0, vec![32, 2], 1024, 68),
        ("ramp.q4_0", DType::Q4_0, vec![32, 2], 1120, 36),
    ];
    assert_eq!(directory, expected);

    let f16 = file.tensor("ramp.f16").unwrap();
    assert_eq!((f16.cols(), f16.rows(), f16.n_elements()), (8, 8, 64));
    let mut first = [0u8; 8];
    file.source().read_exact_at(0, file.tensor("ramp.f32").unwrap().offset, &mut first).unwrap();
    assert_eq!(first, [(-4.0f32).to_le_bytes(), (-3.875f32).to_le_bytes()].concat()[..]);
}

#[test]
fn getters_check_type_and_range() {
    let file = parse(GOLDEN).unwrap();
    assert_eq!(file.get_u32("absent").unwrap(), None);
    assert_eq!(file.get_u32("t.u8").unwrap(), Some(200), "any width that fits");
    assert_eq!(file.get_u64("t.u64").unwrap(), Some((1 << 63) + 1));
    assert_eq!(file.get_f32("t.f32").unwrap(), Some(0.15625));
    assert_eq!(file.get_bool("t.true").unwrap(), Some(true));
    assert_eq!(file.require_str("general.name").unwrap(), "golden – élan");
    assert_eq!(file.require_str_array("t.strings").unwrap().len(), 4);
    assert_eq!(file.require_i32_array("t.ints").unwrap(), [1, -2, 3]);
    assert_eq!(file.require_u32_array("t.u8s").unwrap(), [1, 2, 255]);
    assert_eq!(file.require_f32_array("t.floats").unwrap(), [0.5, -1.25]);
    assert_eq!(file.get_bool_array("t.bools").unwrap(), Some(&[true, false, true][..]));

    let message = |e: Error| e.to_string();
    let wrong = message(file.get_u32("general.name").unwrap_err());
    assert_eq!(wrong, "<memory>: malformed general.name: found string \"golden – élan\", allowed: u32");
    let range = message(file.get_u32("t.i8").unwrap_err());
    assert_eq!(range, "<memory>: malformed t.i8: found i8 -100, allowed: u32");
    let missing = message(file.require_u32("absent").unwrap_err());
    assert_eq!(missing, "<memory>: malformed absent: found no such key, allowed: u32");
    let element = message(file.get_u32_array("t.ints").unwrap_err());
    assert_eq!(
        element,
        "<memory>: malformed t.ints: found array of 3 i32, element 1 out of range, allowed: array of u32"
    );
    assert!(file.get_f32("t.f64").is_err(), "1e300 is no f32");
    assert!(file.get_str("t.strings").is_err());
    assert!(file.get_str_array("t.ints").is_err());
    assert!(file.get_bool("t.u8").is_err());
}

#[test]
fn version_2_and_other_alignments() {
    let bytes = Bytes::head(2, 2, 1).kv_u32("general.alignment", 1);
    let bytes = bytes.tensor("a", &[1], 0, 0).tensor("b", &[1], 0, 5).data(1, 9);
    let end = bytes.0.len() as u64;
    let file = parse(&bytes.0).unwrap();
    assert_eq!(file.version(), 2);
    assert_eq!(file.tensor("b").unwrap().offset, end - 4);
}

#[test]
fn a_header_longer_than_one_read_is_joined() {
    // 40,000 strings of varying length cross the read boundary at every phase.
    let n = 40_000u64;
    let mut bytes = Bytes::head(3, 0, 1).string("tokens").u32(9).u32(8).u64(n);
    for i in 0..n {
        bytes = bytes.string(&"x".repeat(i as usize % 23));
    }
    let file = parse(&bytes.0).unwrap();
    let tokens = file.require_str_array("tokens").unwrap();
    assert!(bytes.0.len() > 600_000);
    assert!(tokens.iter().enumerate().all(|(i, t)| t.len() == i % 23 && t.bytes().all(|b| b == b'x')));
}

#[test]
fn reads_past_the_end_are_short_reads() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, GOLDEN).unwrap();
    let file = Gguf::open(&path).unwrap();
    let len = GOLDEN.len() as u64;
    let error = file.source().read_exact_at(0, len - 3, &mut [0; 10]).unwrap_err();
    let expected = format!("{}: short read at offset {}: expected 10 bytes, got 3", path.display(), len - 3);
    assert_eq!(error.to_string(), expected);
    assert!(file.source().read_exact_at(0, u64::MAX - 2, &mut [0; 10]).is_err());
    assert!(file.source().read_exact_at(1, 0, &mut [0; 1]).is_err());
}

#[test]
fn only_regular_files_are_opened() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Gguf::open(dir.path().join("none.gguf")).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(Gguf::open(dir.path()).unwrap_err().to_string().contains("a directory"));
    #[cfg(unix)]
    assert!(Gguf::open("/dev/zero").unwrap_err().to_string().contains("a special file"));
}

/// A shard with one tensor `w<number>` of 4 floats.
fn shard(no: u32, count: u32, tensors: u32) -> Vec<u8> {
    let head = Bytes::head(3, 1, 3).kv_u32("split.no", no).kv_u32("split.count", count);
    head.kv_u32("split.tensors.count", tensors).tensor(&format!("w{no}"), &[4], 0, 0).data(32, 16).0
}

fn write_shards(dir: &Path, shards: &[Vec<u8>]) {
    for (i, bytes) in shards.iter().enumerate() {
        std::fs::write(dir.join(format!("m-{:05}-of-{:05}.gguf", i + 1, shards.len())), bytes).unwrap();
    }
}

#[test]
fn shards_open_from_any_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let shards: Vec<_> = (0..3).map(|i| shard(i, 3, 3)).collect();
    write_shards(dir.path(), &shards);
    for number in 1..=3 {
        let file = Gguf::open(dir.path().join(format!("m-{number:05}-of-00003.gguf"))).unwrap();
        let found: Vec<_> = file.tensors().iter().map(|t| (t.name.as_str(), t.shard)).collect();
        assert_eq!(found, [("w0", 0), ("w1", 1), ("w2", 2)]);
        assert!(file.path().ends_with("m-00001-of-00003.gguf"));
        assert!(file.source().path(2).ends_with("m-00003-of-00003.gguf"));
        assert_eq!(file.file_bytes(), shards.iter().map(|s| s.len() as u64).sum::<u64>());
        assert_eq!(file.tensor("w2").unwrap().shard, 2);
    }
}

#[test]
fn inconsistent_shards_are_refused_by_key() {
    let open = |shards: &[Vec<u8>]| {
        let dir = tempfile::tempdir().unwrap();
        write_shards(dir.path(), shards);
        Gguf::open(dir.path().join(format!("m-00001-of-{:05}.gguf", shards.len()))).unwrap_err().to_string()
    };
    assert!(open(&[shard(0, 2, 2), shard(0, 2, 2)]).contains("split.no"));
    assert!(open(&[shard(0, 3, 2), shard(1, 2, 2)]).contains("split.count"));
    assert!(open(&[shard(0, 2, 2), shard(1, 3, 2)]).contains("split.count"));
    assert!(open(&[shard(0, 2, 5), shard(1, 2, 5)]).contains("split.tensors.count"));
    let twin = Bytes::head(3, 1, 2).kv_u32("split.no", 1).kv_u32("split.count", 2);
    assert!(open(&[shard(0, 2, 2), twin.tensor("w0", &[4], 0, 0).data(32, 16).0]).contains("w0"));

    let dir = tempfile::tempdir().unwrap();
    let lone = dir.path().join("m-00001-of-00002.gguf");
    std::fs::write(&lone, shard(0, 2, 2)).unwrap();
    assert_eq!(Gguf::open(&lone).unwrap_err().kind(), ErrorKind::NotFound);
    let renamed = dir.path().join("m.gguf");
    std::fs::rename(&lone, &renamed).unwrap();
    assert!(Gguf::open(&renamed).unwrap_err().to_string().contains("split.count"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever bytes change, the result is a value, and what is accepted lies inside the file.
    #[test]
    fn mutated_files_never_panic(
        edits in prop::collection::vec((0..GOLDEN.len(), prop_oneof![any::<u8>(), Just(0)]), 1..8),
        cut in 0..GOLDEN.len() * 4,
    ) {
        let mut bytes = GOLDEN.to_vec();
        for (at, byte) in edits {
            bytes[at] = byte;
        }
        bytes.truncate(cut.max(4));
        let len = bytes.len() as u64;
        if let Ok(file) = Gguf::from_bytes(bytes) {
            for t in file.tensors() {
                prop_assert!(t.offset + t.n_bytes <= len);
                prop_assert!(t.n_elements() > 0 && t.rows() * t.cols() == t.n_elements());
            }
        }
    }

    /// Eight-byte fields replaced by numbers near powers of two, where sums and products wrap.
    #[test]
    fn extreme_numbers_never_panic(at in 8..GOLDEN.len() - 8, shift in 0..64u32, delta in -40i64..40) {
        let mut bytes = GOLDEN.to_vec();
        let number = (1u64 << shift).wrapping_add_signed(delta);
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        if let Ok(file) = Gguf::from_bytes(bytes) {
            prop_assert!(file.tensors().iter().all(|t| t.offset + t.n_bytes <= GOLDEN.len() as u64));
        }
    }
}
