//! Packed files: what is in them, that they give what the plain file gives, and what is refused.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Fixture, Random, Spec, VOCAB};
use smallthinker_core::gguf::{Array, Gguf, GgufWriter, TensorInfo, Value};
use smallthinker_core::pack::{PackOptions, PackReport, pack};
use smallthinker_core::tensor::{DType, dequantize, quantize};
use smallthinker_core::{Error, ErrorKind, GenerateOptions, Model, ModelOptions, Result, TokenLogprobs};

const PAGE: u64 = 4096;

fn packed(fixture: &Fixture) -> PathBuf {
    let out = fixture.path.with_file_name("packed.gguf");
    pack(&fixture.path, &out, PackOptions::default()).unwrap();
    out
}

fn bytes_of(gguf: &Gguf, info: &TensorInfo) -> Vec<u8> {
    let mut bytes = vec![0; info.n_bytes as usize];
    gguf.source().read_exact_at(info.shard, info.offset, &mut bytes).unwrap();
    bytes
}

/// A file to be written, as a list of what is in it.
struct File {
    metadata: Vec<(String, Value)>,
    tensors: Vec<(String, DType, Vec<u64>, Vec<u8>)>,
}

impl File {
    fn read(path: &Path) -> File {
        let gguf = Gguf::open(path).unwrap();
        let tensor = |t: &TensorInfo| (t.name.clone(), t.dtype, t.dims.clone(), bytes_of(&gguf, t));
        let tensors = gguf.tensors().iter().map(tensor).collect();
        File { metadata: gguf.metadata().map(|(k, v)| (k.to_owned(), v.clone())).collect(), tensors }
    }

    fn write(&self, path: &Path) {
        let mut writer = GgufWriter::new();
        self.metadata.iter().for_each(|(k, v)| writer.metadata(k, v.clone()).unwrap());
        self.tensors.iter().for_each(|(name, dtype, dims, _)| writer.tensor(name, *dtype, dims).unwrap());
        let mut out = writer.create(path).unwrap();
        self.tensors.iter().for_each(|(.., bytes)| out.write(bytes).unwrap());
        out.finish().unwrap();
    }

    fn set(&mut self, key: &str, value: Value) {
        self.metadata.iter_mut().find(|(k, _)| k == key).unwrap().1 = value;
    }

    fn tensor(&mut self, name: &str) -> &mut (String, DType, Vec<u64>, Vec<u8>) {
        self.tensors.iter_mut().find(|(n, ..)| n == name).unwrap()
    }
}

/// What a model makes of a prompt: all logits, and the log probabilities of ten tokens that it adds.
fn results(model: &Model) -> (Vec<f32>, Vec<TokenLogprobs>) {
    let tokens = Random::new(5).tokens(30);
    let mut session = model.session().unwrap();
    session.append_tokens(&tokens).unwrap();
    let logits = session.logits().unwrap();
    let mut options = GenerateOptions::max_tokens(10);
    (options.logprobs, options.ignore_stop_tokens) = (Some(VOCAB), true);
    (logits, session.generate(options).unwrap().complete().unwrap().logprobs)
}

/// Opens a model with slots for all its experts or for hardly any.
fn open(path: &Path, all: bool, buffered: bool) -> Result<Model> {
    let mut options = ModelOptions::default();
    (options.threads, options.chunk, options.buffered_reads) = (Some(2), Some(7), buffered);
    if !all {
        let plan = Model::plan_for(path, &options)?;
        options.memory_budget = Some(plan.floor + 3 * plan.expert_slot);
    }
    Model::open_with(path, options)
}

fn specs() -> Vec<Spec> {
    // Neither whole groups of columns nor whole tiles of rows.
    let spec = |dtype, down_dtype| Spec { hidden: 160, ffn: 96, dtype, down_dtype, ..Spec::default() };
    vec![
        spec(DType::Q4_0, None),
        spec(DType::Q8_0, None),
        spec(DType::Q4_0, Some(DType::Q8_0)),
        spec(DType::F16, Some(DType::Q4_0)),
        spec(DType::BF16, None),
        Spec { down_by_neuron: true, tied: false, ..spec(DType::Q4_0, None) },
    ]
}

fn check_same(plain: &Path, packed: &Path) {
    let expected = results(&open(plain, true, true).unwrap());
    for (all, buffered) in [(true, true), (false, true), (false, false)] {
        let model = open(packed, all, buffered).unwrap();
        assert_eq!(model.plan().fits(), all);
        assert_eq!(results(&model), expected, "all: {all}, buffered: {buffered}");
        let stats = model.stats().experts;
        assert!(all || stats.evictions > 0 && stats.bytes_read > 0, "read while in use");
    }
}

#[test]
fn logits_are_those_of_the_plain_file_in_every_bit() {
    for spec in specs() {
        let fixture = Fixture::new(spec);
        check_same(&fixture.path, &packed(&fixture));
    }
}

#[test]
fn layers_may_differ_in_their_types() {
    let fixture = Fixture::new(specs()[0].clone());
    let mut file = File::read(&fixture.path);
    for (name, to) in [
        ("blk.1.ffn_gate_exps.weight", DType::F16),
        ("blk.1.ffn_down_exps.weight", DType::Q8_0),
        ("blk.3.ffn_up_exps.weight", DType::F32),
    ] {
        let (_, dtype, dims, bytes) = file.tensor(name);
        let mut values = vec![0.0; dims.iter().product::<u64>() as usize];
        dequantize(*dtype, bytes, &mut values).unwrap();
        (*dtype, *bytes) = (to, Vec::new());
        quantize(to, &values, bytes).unwrap();
    }
    file.write(&fixture.path);
    let out = packed(&fixture);
    check_same(&fixture.path, &out);
    let gguf = Gguf::open(out).unwrap();
    let types = gguf.get_str_array("smallthinker.pack.gate.types").unwrap().unwrap();
    assert!(types.iter().eq(["Q4_0", "F16", "Q4_0", "Q4_0", "Q4_0"]), "{types:?}");
}

#[test]
fn a_packed_file_is_the_plain_one_but_for_its_experts() {
    // Types that lie as in the plain file, so that each byte can be looked for.
    for down_by_neuron in [false, true] {
        let fixture = Fixture::new(Spec { down_by_neuron, ..Spec::default() });
        let path = packed(&fixture);
        let (plain, packed) = (Gguf::open(&fixture.path).unwrap(), Gguf::open(&path).unwrap());
        let kept: Vec<_> = packed
            .metadata()
            .filter(|(key, _)| *key != "general.alignment" && !key.starts_with("smallthinker.pack."))
            .collect();
        assert_eq!(kept, plain.metadata().collect::<Vec<_>>());
        assert_eq!(packed.get_u32("general.alignment").unwrap(), Some(4096));
        assert_eq!(packed.get_u32("smallthinker.pack.version").unwrap(), Some(1));
        assert_eq!(packed.get_str("smallthinker.pack.layout").unwrap(), Some("lanes-neurons"));
        let down = packed.get_u32_array("smallthinker.pack.down.shapes").unwrap().unwrap();
        assert_eq!(down, (if down_by_neuron { [64, 32] } else { [32, 64] }).repeat(5));
        assert_eq!(packed.tensors().len(), plain.tensors().len() - 2 * 5);
        for tensor in packed.tensors() {
            assert_eq!(tensor.offset % PAGE, 0);
            let found = bytes_of(&packed, tensor);
            let Some(prefix) = tensor.name.strip_suffix("exps_packed.weight") else {
                let original = plain.tensor(&tensor.name).unwrap();
                assert_eq!((tensor.dtype, &tensor.dims), (original.dtype, &original.dims));
                assert_eq!(found, bytes_of(&plain, original), "{}", tensor.name);
                continue;
            };
            let parts = ["gate", "up", "down"]
                .map(|part| bytes_of(&plain, plain.tensor(&format!("{prefix}{part}_exps.weight")).unwrap()));
            let mut expected = Vec::new();
            for expert in 0..6 {
                for part in &parts {
                    let bytes = part.len() / 6;
                    expected.extend(&part[expert * bytes..][..bytes]);
                    expected.resize(expected.len().next_multiple_of(PAGE as usize), 0);
                }
            }
            assert_eq!((tensor.dtype, tensor.dims[1]), (DType::I8, 6));
            assert_eq!(tensor.dims[0] % PAGE, 0);
            assert_eq!(found, expected, "{}", tensor.name);
        }
        let plan = |path| Model::plan_for(path, &ModelOptions::default()).unwrap();
        let (plain, packed) = (plan(&fixture.path), plan(&path));
        assert_eq!((plain.resident, plain.experts), (packed.resident, packed.experts));
        // Matrices of a plain file begin anywhere in a page, and are read by whole pages.
        assert!((packed.expert_slot..=packed.expert_slot + 3 * PAGE).contains(&plain.expert_slot));
    }
}

#[test]
fn shards_become_one_file() {
    let fixture = Fixture::new(specs()[0].clone());
    let whole = File::read(&fixture.path);
    let names = [1, 2].map(|n| fixture.path.with_file_name(format!("m-0000{n}-of-00002.gguf")));
    let (first, second) = whole.tensors.split_at(whole.tensors.len() / 2 + 1);
    for (no, (tensors, path)) in [first, second].into_iter().zip(&names).enumerate() {
        let mut metadata = whole.metadata.clone();
        metadata.push(("split.no".into(), Value::U16(no as u16)));
        metadata.push(("split.count".into(), Value::U16(2)));
        File { metadata, tensors: tensors.to_vec() }.write(path);
    }
    let (a, b) = (packed(&fixture), fixture.path.with_file_name("from_shards.gguf"));
    pack(&names[1], &b, PackOptions::default()).unwrap();
    assert_eq!(fs::read(a).unwrap(), fs::read(b).unwrap());
    let error = pack(&names[0], &names[1], PackOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
}

#[test]
fn progress_counts_every_byte_and_can_cancel() {
    let fixture = Fixture::new(Spec::default());
    let out = fixture.path.with_file_name("packed.gguf");
    let entries = || fs::read_dir(fixture.path.parent().unwrap()).unwrap().count();
    let mut calls = Vec::new();
    let mut stop = |done, total| {
        calls.push((done, total));
        calls.len() < 3
    };
    let cancelled = pack(&fixture.path, &out, PackOptions { progress: Some(&mut stop) });
    assert!(matches!(cancelled, Err(Error::Cancelled)));
    assert_eq!((calls.len(), entries()), (3, 1), "nothing is left");
    calls.clear();
    let mut note = |done, total| {
        calls.push((done, total));
        true
    };
    let report = pack(&fixture.path, &out, PackOptions { progress: Some(&mut note) }).unwrap();
    assert!(calls.is_sorted() && calls.iter().all(|(_, total)| *total == report.data_bytes));
    assert_eq!(calls.last().unwrap().0, report.data_bytes);
    let listed = Gguf::open(&out).unwrap().tensors().iter().map(|t| t.n_bytes).sum::<u64>();
    let PackReport { tensors, experts, data_bytes, .. } = report;
    assert_eq!((tensors, experts, data_bytes), (Gguf::open(&out).unwrap().tensors().len(), 30, listed));
}

#[test]
fn what_can_not_be_packed_is_refused_and_leaves_no_file() {
    let fixture = Fixture::new(specs()[2].clone());
    let refused = |input: &Path, out: &Path, kind: ErrorKind, text: &str| {
        let before = fs::read(out).ok();
        let error = pack(input, out, PackOptions::default()).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!(fs::read(out).ok(), before);
    };
    let out = packed(&fixture);
    let other = fixture.path.with_file_name("other.gguf");
    refused(&out, &other, ErrorKind::Unsupported, "packed already");
    refused(&fixture.path, &fixture.path, ErrorKind::InvalidArgument, "another file");
    refused(Path::new("/missing.gguf"), &other, ErrorKind::NotFound, "/missing.gguf");
    // The last scale of all that get packed.
    let gguf = Gguf::open(&fixture.path).unwrap();
    let info = gguf.tensor("blk.4.ffn_down_exps.weight").unwrap();
    let at = (info.offset + info.n_bytes) as usize - DType::Q8_0.block_bytes();
    let mut bytes = fs::read(&fixture.path).unwrap();
    bytes[at..at + 2].copy_from_slice(&0x7e00u16.to_le_bytes());
    fs::write(&fixture.path, bytes).unwrap();
    refused(&fixture.path, &other, ErrorKind::Malformed, &format!("offset {at}: found NaN"));
}

#[test]
fn a_packed_scale_that_is_no_number_is_refused_when_it_arrives() {
    let fixture = Fixture::new(specs()[2].clone());
    let path = packed(&fixture);
    let whole = fs::read(&path).unwrap();
    let info = Gguf::open(&path).unwrap().tensor("blk.2.ffn_exps_packed.weight").unwrap().clone();
    let (ffn, groups, page) = (96usize, 1, PAGE as usize);
    let lanes = ffn * groups * (128 + 16);
    let expert = (info.offset + 3 * info.dims[0]) as usize;
    // The first and the last scale of gate, the first of down.
    let scales = [ffn * groups * 128, lanes - 2, 2 * lanes.next_multiple_of(page)];
    for (at, dtype) in scales.into_iter().zip(["Q4_0", "Q4_0", "Q8_0"]) {
        let at = expert + at;
        let mut damaged = whole.clone();
        damaged[at..at + 2].copy_from_slice(&0xfc00u16.to_le_bytes());
        fs::write(&path, damaged).unwrap();
        let field = format!("scale of a {dtype} block at offset {at}: found -inf");
        let check = |error: Error| {
            assert_eq!(error.kind(), ErrorKind::Malformed, "{error}");
            assert!(
                error.to_string().contains(&field) && error.to_string().contains("packed.gguf"),
                "{error}"
            );
        };
        check(open(&path, true, false).unwrap_err());
        let streaming = open(&path, false, false).unwrap();
        let mut session = streaming.session().unwrap();
        session.append_tokens(&Random::new(5).tokens(30)).unwrap();
        check(session.logits().unwrap_err());
    }
}

#[test]
fn a_wrong_description_is_refused_by_name() {
    let fixture = Fixture::new(specs()[2].clone());
    let path = packed(&fixture);
    let strings = |names: &[&str]| Value::Array(Array::String(names.iter().collect()));
    let refused = |change: &dyn Fn(&mut File), kind: ErrorKind, texts: &[&str]| {
        let mut file = File::read(&path);
        change(&mut file);
        let wrong = path.with_file_name("wrong.gguf");
        file.write(&wrong);
        let error = Model::open(&wrong).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        texts.iter().for_each(|text| assert!(error.to_string().contains(text), "{text}: {error}"));
        assert!(Model::plan_for(&wrong, &ModelOptions::default()).is_err());
    };
    let (malformed, unsupported) = (ErrorKind::Malformed, ErrorKind::Unsupported);
    let set = |key: &str, value: Value| {
        let key = format!("smallthinker.pack.{key}");
        move |file: &mut File| file.set(&key, value.clone())
    };
    refused(&set("version", Value::U32(2)), unsupported, &["pack.version", "found 2, supported: 1"]);
    refused(&set("version", Value::String("1".into())), malformed, &["pack.version", "u32"]);
    let other = set("layout", Value::String("spirals".into()));
    refused(&other, unsupported, &["pack.layout", "spirals", "lanes-neurons"]);
    refused(&set("up.types", strings(&["Q4_0"; 4])), malformed, &["pack.up.types", "5, one per layer"]);
    refused(&set("up.types", strings(&["Q9_9"; 5])), unsupported, &["pack.up.types", "Q9_9", "Q4_0"]);
    refused(&set("up.types", strings(&["I8"; 5])), unsupported, &["pack.up.types", "I8"]);
    // 160 columns are no whole blocks of 256.
    refused(&set("gate.types", strings(&["Q4_K"; 5])), malformed, &["pack.gate.types", "Q4_K for layer 0"]);
    refused(&set("gate.types", strings(&["F32"; 5])), malformed, &["shape of blk.0.ffn_exps_packed.weight"]);
    let sizes = |sizes: &[u32]| Value::Array(Array::U32(sizes.to_vec()));
    refused(&set("up.shapes", sizes(&[160, 96])), malformed, &["pack.up.shapes", "10, two per layer"]);
    refused(&set("up.shapes", sizes(&[160, 96].repeat(4))), malformed, &["pack.up.shapes"]);
    refused(&set("up.shapes", sizes(&[96, 160].repeat(5))), malformed, &["pack.up.shapes", "[160, 96]"]);
    refused(&set("up.shapes", sizes(&[u32::MAX; 10])), malformed, &["pack.up.shapes", "for layer 0"]);
    for key in ["layout", "gate.types", "down.shapes"] {
        let key = format!("smallthinker.pack.{key}");
        let without = |file: &mut File| file.metadata.retain(|(k, _)| *k != key);
        refused(&without, malformed, &[&key, "no such key"]);
    }
    let experts = "blk.3.ffn_exps_packed.weight";
    let plain = |file: &mut File| file.metadata.retain(|(k, _)| k != "smallthinker.pack.version");
    refused(&plain, unsupported, &["blk.0.ffn_exps_packed.weight"]);
    let both = |file: &mut File| file.tensor(experts).0 = "blk.3.ffn_up_exps.weight".into();
    refused(&both, unsupported, &["blk.3.ffn_up_exps.weight"]);
    let none = |file: &mut File| file.tensors.retain(|(name, ..)| name != experts);
    refused(&none, malformed, &[experts, "no such tensor"]);
    let short = |file: &mut File| {
        let (_, _, dims, bytes) = file.tensor(experts);
        dims[1] -= 1;
        bytes.truncate((dims[0] * dims[1]) as usize);
    };
    refused(&short, malformed, &["shape of", experts]);
    let floats = |file: &mut File| {
        let (_, dtype, _, bytes) = file.tensor(experts);
        *dtype = DType::F16;
        bytes.extend(bytes.clone());
    };
    refused(&floats, malformed, &["type of", experts, "I8"]);
    let resident = |file: &mut File| {
        let (_, dtype, dims, bytes) = file.tensor("blk.1.attn_q.weight");
        *dtype = DType::I8;
        bytes.resize((dims[0] * dims[1]) as usize, 1);
    };
    refused(&resident, unsupported, &["type of blk.1.attn_q.weight", "I8", "Q4_0"]);
    let unaligned = |file: &mut File| {
        file.set("general.alignment", Value::U32(32));
        file.tensors.insert(0, ("lm_head_profiler.weight".into(), DType::F32, vec![8], vec![0; 32]));
    };
    refused(&unaligned, malformed, &["offset of blk.0.ffn_exps_packed.weight", "4096"]);
}

/// One byte of the head wrong: an error, or a model that loads; never a panic.
#[test]
fn a_byte_of_the_head_may_be_anything() {
    let fixture = Fixture::new(Spec { layers: 2, dtype: DType::Q4_0, ..Spec::default() });
    let path = packed(&fixture);
    let whole = fs::read(&path).unwrap();
    let head = Gguf::open(&path).unwrap().tensors().iter().map(|t| t.offset).min().unwrap() as usize;
    let pack_keys = whole.windows(18).position(|w| w == b"smallthinker.pack.").unwrap();
    let mut random = Random::new(11);
    for round in 0..120 {
        // What is new most often: the description and the directory.
        let from = if round % 4 == 0 { 0 } else { pack_keys };
        let at = from + random.below((head - from) as u32) as usize;
        let mut damaged = whole.clone();
        damaged[at] = random.below(256) as u8;
        let wrong = path.with_file_name("wrong.gguf");
        fs::write(&wrong, damaged).unwrap();
        let mut options = ModelOptions::default();
        (options.threads, options.memory_budget) = (Some(1), Some(64 << 20));
        if Model::plan_for(&wrong, &options).is_ok() {
            let _ = Model::open_with(&wrong, options);
        }
    }
}
