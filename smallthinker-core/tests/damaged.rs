//! Files whose directory is sound and whose weights are not.

mod common;

use std::fs;

use common::{Fixture, Spec};
use smallthinker_core::gguf::Gguf;
use smallthinker_core::tensor::DType;
use smallthinker_core::{ErrorKind, Model};

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
