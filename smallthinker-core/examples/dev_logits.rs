use smallthinker_core::*;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let ids: Vec<u32> = std::fs::read_to_string(&a[2]).unwrap().trim().split(',').map(|x| x.parse().unwrap()).collect();
    let mut o = ModelOptions::default();
    o.threads = Some(2);
    if let Ok(c) = std::env::var("CHUNK") { o.chunk = Some(c.parse().unwrap()); }
    let m = Model::open_with(&a[1], o).unwrap();
    eprintln!("{:?}", m.stats());
    let mut s = m.session().unwrap();
    s.append_tokens(&ids).unwrap();
    let l = s.logits().unwrap();
    std::fs::write(&a[3], l.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    let mut g = GenerateOptions::max_tokens(64);
    g.stop_tokens = vec![];
    let d = s.generate(g).unwrap().complete().unwrap();
    eprintln!("{:?}", d.tokens);
    eprintln!("{:#?} {} tok/s {} prefill", d.stats, d.stats.decode_tokens_per_second(), d.stats.prefill_tokens_per_second());
}
