//! The filters against a plain full-sort implementation in f64, the draw against exact probabilities.

use proptest::prelude::*;

use super::*;

fn params(temperature: f32) -> SamplingParams {
    SamplingParams { temperature, seed: Some(1), ..SamplingParams::default() }
}

/// The module's definition, written for clarity: sort everything, cut, normalise. Also tells how close
/// the top-p and min-p cuts came to falling elsewhere.
fn naive(p: &SamplingParams, logits: &[f32]) -> (Vec<(u32, f64)>, f64) {
    let t = f64::from(p.temperature);
    let mut all: Vec<(u32, f64)> = logits
        .iter()
        .enumerate()
        .filter(|(_, l)| l.is_finite())
        .map(|(i, &l)| (i as u32, f64::from(l) / t))
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if p.top_k > 0 {
        all.truncate(p.top_k);
    }
    let max = all[0].1;
    let total: f64 = all.iter().map(|c| (c.1 - max).exp()).sum();
    let mut margin = f64::INFINITY;
    let mut kept = Vec::new();
    let mut sum = 0.0;
    for (id, logit) in all {
        let probability = (logit - max).exp() / total;
        kept.push((id, probability));
        sum += probability;
        margin = margin.min((sum - f64::from(p.top_p)).abs());
        if p.top_p < 1.0 && sum >= f64::from(p.top_p) {
            break;
        }
    }
    let least = f64::from(p.min_p) * kept[0].1;
    for c in &kept {
        if c.1 < kept[0].1 {
            margin = margin.min((c.1 - least).abs());
        }
    }
    kept.retain(|c| c.1 >= least);
    let total: f64 = kept.iter().map(|c| c.1).sum();
    kept.iter_mut().for_each(|c| c.1 /= total);
    kept.sort_by_key(|c| c.0);
    (kept, margin)
}

fn distribution(p: &SamplingParams, logits: &[f32]) -> Vec<(u32, f64)> {
    let mut out = Vec::new();
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    filters::collect(p, logits, max, &mut out);
    let total: f64 = out.iter().map(|c| c.weight).sum();
    let mut d: Vec<_> = out.iter().map(|c| (c.id, c.weight / total)).collect();
    d.sort_by_key(|c| c.0);
    d
}

fn logit() -> impl Strategy<Value = f32> {
    // Few distinct values make ties; minus infinity as a sparse head writes it.
    prop_oneof![4 => -12.0f32..12.0, 2 => (-3i8..4).prop_map(f32::from), 1 => Just(f32::NEG_INFINITY)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn filters_match_full_sort(
        logits in prop::collection::vec(logit(), 1..3000),
        temperature in 0.05f32..3.0,
        top_k in prop_oneof![Just(0usize), 1usize..50, 100usize..4000],
        top_p in prop_oneof![Just(1.0f32), 0.01f32..1.0],
        min_p in prop_oneof![Just(0.0f32), 0.0f32..0.6],
    ) {
        prop_assume!(logits.iter().any(|l| l.is_finite()));
        let p = SamplingParams { top_k, top_p, min_p, ..params(temperature) };
        let (expected, margin) = naive(&p, &logits);
        prop_assume!(margin > 1e-9);
        let got = distribution(&p, &logits);
        prop_assert_eq!(got.len(), expected.len());
        for (g, e) in got.iter().zip(&expected) {
            prop_assert_eq!(g.0, e.0);
            prop_assert!((g.1 - e.1).abs() < 1e-9, "{:?} {:?}", g, e);
        }
    }

    #[test]
    fn greedy_is_the_first_maximum(logits in prop::collection::vec(logit(), 1..1200)) {
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        prop_assume!(best.is_finite());
        let expected = logits.iter().position(|&l| l == best).unwrap() as u32;
        prop_assert_eq!(Sampler::new(SamplingParams::default()).unwrap().sample(&logits, &[]).unwrap(), expected);
        let one = SamplingParams { top_k: 1, ..params(1.0) };
        prop_assert_eq!(Sampler::new(one).unwrap().sample(&logits, &[]).unwrap(), expected);
    }
}

#[test]
fn frequencies_follow_the_probabilities() {
    let logits: Vec<f32> = (0..20).map(|i| (i as f32 * 0.7).sin() * 2.0).collect();
    let p = SamplingParams { top_k: 12, min_p: 0.05, ..params(0.8) };
    let (expected, _) = naive(&p, &logits);
    let mut sampler = Sampler::new(p).unwrap();
    let draws = 200_000;
    let mut counts = [0u32; 20];
    for _ in 0..draws {
        counts[sampler.sample(&logits, &[]).unwrap() as usize] += 1;
    }
    assert_eq!(counts.iter().filter(|c| **c > 0).count(), expected.len());
    let chi2: f64 = expected
        .iter()
        .map(|&(id, p)| {
            let e = p * f64::from(draws);
            (f64::from(counts[id as usize]) - e).powi(2) / e
        })
        .sum();
    // At most 11 degrees of freedom: the 99.9 % quantile of chi-square is 31.3.
    assert!(chi2 < 31.3, "chi-square {chi2}");
}

#[test]
fn same_seed_same_tokens_and_state_resumes() {
    let logits: Vec<f32> = (0..1000).map(|i| (i as f32 * 1.3).cos() * 3.0).collect();
    let run =
        |s: &mut Sampler, n: usize| -> Vec<u32> { (0..n).map(|_| s.sample(&logits, &[]).unwrap()).collect() };
    let mut a = Sampler::new(params(1.0)).unwrap();
    let first = run(&mut a, 50);
    assert_eq!(run(&mut Sampler::new(params(1.0)).unwrap(), 50), first);
    let other = SamplingParams { seed: Some(2), ..params(1.0) };
    assert_ne!(run(&mut Sampler::new(other).unwrap(), 50), first);
    let saved = a.state();
    let next = run(&mut a, 50);
    let mut b = Sampler::new(params(1.0)).unwrap();
    b.restore(saved);
    assert_eq!(run(&mut b, 50), next);
    assert_eq!(a.seed(), 1);
}

#[test]
fn bias_and_penalty() {
    let greedy = SamplingParams::default();
    let choose = |p: &SamplingParams, history: &[u32]| {
        Sampler::new(p.clone()).unwrap().sample(&[3.0, 2.0, -1.0, -1.5], history)
    };
    assert_eq!(choose(&greedy, &[0, 0]).unwrap(), 0);
    let banned = SamplingParams { logit_bias: vec![(0, f32::NEG_INFINITY)], ..greedy.clone() };
    assert_eq!(choose(&banned, &[]).unwrap(), 1);
    let pushed = SamplingParams { logit_bias: vec![(3, 5.0)], ..greedy.clone() };
    assert_eq!(choose(&pushed, &[]).unwrap(), 3);
    // 3 / 2 = 1.5 falls behind 2; the repeated history entry must not count twice.
    let penalty = SamplingParams { repetition_penalty: 2.0, ..greedy.clone() };
    assert_eq!(choose(&penalty, &[0]).unwrap(), 1);
    assert_eq!(choose(&SamplingParams { repetition_penalty: 1.4, ..greedy.clone() }, &[0, 0]).unwrap(), 0);
    // Negative logits are multiplied: −1 becomes −2, behind −1.5.
    let negatives = SamplingParams {
        logit_bias: vec![(0, f32::NEG_INFINITY), (1, f32::NEG_INFINITY)],
        ..penalty.clone()
    };
    assert_eq!(choose(&negatives, &[2]).unwrap(), 3);
    // Outside the window, or inside the whole conversation.
    let near = SamplingParams { repetition_window: 2, ..penalty.clone() };
    assert_eq!(choose(&near, &[0, 2, 2]).unwrap(), 0);
    let whole = SamplingParams { repetition_window: 0, ..penalty.clone() };
    assert_eq!(choose(&whole, &[0, 2, 2]).unwrap(), 1);
    assert!(choose(&penalty, &[4]).unwrap_err().to_string().contains("history"));
    let outside = SamplingParams { logit_bias: vec![(9, 1.0)], ..greedy };
    assert!(choose(&outside, &[]).unwrap_err().to_string().contains("logit_bias"));
}

#[test]
fn bad_logits_are_errors() {
    for t in [0.0, 1.0] {
        let mut s = Sampler::new(params(t)).unwrap();
        for bad in [&[][..], &[1.0, f32::NAN], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY; 3]] {
            assert!(s.sample(bad, &[]).unwrap_err().to_string().contains("logits"), "{bad:?}");
        }
        assert_eq!(s.sample(&[f32::NEG_INFINITY, -7.0], &[]).unwrap(), 1);
    }
}

#[test]
fn extreme_values_stay_defined() {
    let extreme = SamplingParams {
        logit_bias: vec![(0, f32::MAX), (1, -f32::MAX)],
        repetition_penalty: 1e-30,
        ..params(1e-40)
    };
    let mut s = Sampler::new(extreme).unwrap();
    assert_eq!(s.sample(&[f32::MAX, -f32::MAX, 0.0], &[0, 1, 2]).unwrap(), 0);
}

#[test]
fn parameters_outside_their_range_are_named() {
    let d = SamplingParams::default();
    let cases = [
        ("temperature", SamplingParams { temperature: -0.1, ..d.clone() }),
        ("temperature", SamplingParams { temperature: f32::NAN, ..d.clone() }),
        ("top_p", SamplingParams { top_p: 0.0, ..d.clone() }),
        ("top_p", SamplingParams { top_p: 1.1, ..d.clone() }),
        ("min_p", SamplingParams { min_p: -0.1, ..d.clone() }),
        ("min_p", SamplingParams { min_p: f32::NAN, ..d.clone() }),
        ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..d.clone() }),
        ("logit_bias", SamplingParams { logit_bias: vec![(0, f32::NAN)], ..d.clone() }),
    ];
    for (name, p) in cases {
        assert!(Sampler::new(p).unwrap_err().to_string().contains(name), "{name}");
    }
    assert!(d.validate().is_ok());
}

proptest! {
    #[test]
    fn a_value_without_an_order_is_named_wherever_it_is(
        mut logits in prop::collection::vec(logit(), 1..1200),
        place in 0usize..1200,
        bad in prop_oneof![Just(f32::NAN), Just(f32::INFINITY)],
    ) {
        let place = place % logits.len();
        logits[place] = bad;
        let error = Sampler::new(params(0.0)).unwrap().sample(&logits, &[]).unwrap_err().to_string();
        prop_assert!(error.contains(&format!("for token {place}")), "{}", error);
    }
}
