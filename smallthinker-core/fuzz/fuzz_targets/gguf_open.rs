//! Parses arbitrary bytes as a GGUF file and, where that succeeds, reads everything the file offers. Nothing may
//! panic, no read of a listed tensor may fall short, and `-malloc_limit_mb` shows that no count allocates
//! more than the file can fill.
//!
//! From `smallthinker-core`:
//! `cargo +nightly fuzz run gguf_open fuzz/corpus/gguf_open src/gguf/testdata -- -malloc_limit_mb=64 -max_len=65536`

#![no_main]

use libfuzzer_sys::fuzz_target;
use smallthinker_core::gguf::Gguf;
use smallthinker_core::tokenizer::{Specials, Tokenizer, TokenizerSpec};

fuzz_target!(|data: &[u8]| {
    let Ok(file) = Gguf::from_bytes(data.to_vec()) else { return };
    for (key, value) in file.metadata() {
        let _ = (file.get_u32(key), file.get_f32(key), file.get_str(key));
        let _ = (file.get_i32_array(key), file.get_str_array(key));
        assert!(!value.to_string().is_empty());
    }
    let tokenizer = TokenizerSpec::from_gguf(&file).and_then(|spec| Tokenizer::new(spec, file.path()));
    if let Ok(tokenizer) = tokenizer
        && let Ok(ids) = tokenizer.encode("Hello, <|im_end|>", Specials::Parse)
    {
        tokenizer.decode(&ids, false).expect("its own tokens");
    }
    for tensor in file.tensors() {
        assert_eq!(tensor.rows() * tensor.cols(), tensor.n_elements());
        let mut bytes = vec![0; tensor.n_bytes as usize];
        file.source().read_exact_at(tensor.shard, tensor.offset, &mut bytes).expect("a listed tensor is readable");
    }
});
