//! What a tokenizer takes of the memory budget, against the blocks that the allocator handed out.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use smallthinker_core::tokenizer::{Specials, Tokenizer, TokenizerSpec};

/// Bytes and blocks in use, and the most bytes there were. This file has one test, so nobody else allocates.
static BYTES: AtomicUsize = AtomicUsize::new(0);
static BLOCKS: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: hands everything to the system's allocator; `realloc` is the default one, of these two.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let bytes = BYTES.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(bytes, Relaxed);
        BLOCKS.fetch_add(1, Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Relaxed);
        BLOCKS.fetch_sub(1, Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The printable ASCII characters, all pairs of small letters, and 120,000 words of four that merge two pairs.
fn large() -> TokenizerSpec {
    let mut spec = TokenizerSpec { model: "gpt2".into(), pre: "qwen2".into(), ..TokenizerSpec::default() };
    (b'!'..=b'~').for_each(|b| spec.tokens.push(char::from(b).encode_utf8(&mut [0; 4])));
    let letters = || (b'a'..=b'z').map(char::from);
    let pairs: Vec<String> = letters().flat_map(|a| letters().map(move |b| format!("{a}{b}"))).collect();
    for pair in &pairs {
        spec.tokens.push(pair);
        spec.merges.push(&format!("{} {}", &pair[..1], &pair[1..]));
    }
    for (left, right) in pairs.iter().flat_map(|l| pairs.iter().map(move |r| (l, r))).take(120_000) {
        spec.tokens.push(&format!("{left}{right}"));
        spec.merges.push(&format!("{left} {right}"));
    }
    for name in ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>"] {
        spec.tokens.push(name);
        spec.token_types.resize(spec.tokens.len() - 1, 1);
        spec.token_types.push(if name == "<think>" { 4 } else { 3 });
    }
    spec.chat_template = Some("{{ messages }}<|im_end|>".into());
    spec
}

#[test]
fn a_tokenizer_takes_what_it_says_in_few_blocks() {
    let spec = large();
    let tokens = spec.tokens.len();
    let (bytes, blocks) = (BYTES.load(Relaxed), BLOCKS.load(Relaxed));
    PEAK.store(bytes, Relaxed);
    let tokenizer = Tokenizer::new(spec.clone(), Path::new("m.gguf")).unwrap();
    let (taken, more) = (BYTES.load(Relaxed) - bytes, BLOCKS.load(Relaxed) - blocks);
    let said = tokenizer.memory_bytes();
    // The struct itself is on the stack here.
    assert_eq!(said, taken + size_of::<Tokenizer>());
    assert!(more < 32, "{more} blocks");
    assert!(taken < 32 * tokens, "{taken} bytes for {tokens} tokens");
    let peak = PEAK.load(Relaxed) - bytes;
    assert!(peak < 128 * tokens, "{peak} bytes while it was built");

    // Nor does it keep anything of the texts it has seen.
    let ids = tokenizer.encode("abcd!yyzz aaab", Specials::Text);
    assert!(ids.is_err(), "the space has no token");
    assert_eq!(tokenizer.encode(&"abcd!".repeat(1000), Specials::Text).unwrap().len(), 2000);
    drop(ids);
    let now = BYTES.load(Relaxed) - bytes;
    assert!(now < taken + 1000, "{now} bytes after encoding, {taken} before");
}
