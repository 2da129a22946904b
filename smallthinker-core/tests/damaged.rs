//! Files whose directory is sound and whose weights are not.

mod common;

use std::fs;

use common::{Fixture, Spec};
use smallthinker_core::gguf::Gguf;
use smallthinker_core::tensor::DType;
use smallthinker_core::{ErrorKind, GenerateOptions, Model};

#[test]
fn a_scale_that_is_no_number_is_refused_by_name() {
    let spec =
        Spec { hidden: 128, ffn: 64, dtype: DType::Q4_0, down_dtype: Some(DType::Q8_0), ..Spec::default() };
    let fixture = Fixture::new(spec);
    let whole = fs::read(&fixture.path).unwrap();
    let gguf = Gguf::open(&fixture.path).unwrap();
    let infinity = 0x7c00u16.to_le_bytes();
    for (name, block_bytes) in [
        ("token_embd.weight", 18),
        ("blk.1.attn_q.weight", 18),
        ("blk.0.ffn_up_exps.weight", 18),
        ("blk.4.ffn_down_exps.weight", 34),
    ] {
        let info = gguf.tensor(name).unwrap();
        // The last block: every block is looked at.
        let at = (info.offset + info.n_bytes) as usize - block_bytes;
        let mut damaged = whole.clone();
        damaged[at..at + 2].copy_from_slice(&infinity);
        fs::write(&fixture.path, damaged).unwrap();
        let error = Model::open(&fixture.path).unwrap_err();
        let message = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Malformed, "{name}: {message}");
        assert!(message.contains(&format!("offset {at}: found inf")), "{name}: {message}");
        assert!(message.contains("model.gguf"), "{name}: {message}");
    }
    fs::write(&fixture.path, whole).unwrap();
    Model::open(&fixture.path).unwrap();
}

/// Logits that have no order are the model's fault, and are said to be, whichever of the two kinds they are.
#[test]
fn a_logit_that_is_no_number_ends_the_generation() {
    let fixture = Fixture::new(Spec { tied: false, ..Spec::default() });
    let whole = fs::read(&fixture.path).unwrap();
    let gguf = Gguf::open(&fixture.path).unwrap();
    let row = 4 * fixture.spec.hidden;
    let place = |name: &str, row_number: usize| gguf.tensor(name).unwrap().offset as usize + row_number * row;
    let (norm, head) = (place("output_norm.weight", 0), |token| place("output.weight", token));
    // NaN everywhere; plus infinity for one token and minus infinity for another, whatever the sign of the residual is.
    let nan = vec![(norm, vec![f32::NAN])];
    let unit = |first: f32| [vec![first], vec![0.0; fixture.spec.hidden - 1]].concat();
    let infinite = vec![(head(7), unit(f32::INFINITY)), (head(8), unit(f32::NEG_INFINITY))];
    for damage in [nan, infinite] {
        let mut damaged = whole.clone();
        for (at, values) in damage {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            damaged[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        fs::write(&fixture.path, damaged).unwrap();
        let mut session = fixture.open().session().unwrap();
        session.append_tokens(&[1, 2, 3]).unwrap();
        let error = session.generate(GenerateOptions::max_tokens(3)).unwrap().complete().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
        assert!(error.to_string().contains("a logit"), "{error}");
    }
}
