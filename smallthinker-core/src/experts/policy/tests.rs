//! Policies against their definitions, written plainly.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

const LAYERS: usize = 4;
const EXPERTS: usize = 5;

/// What happens to a policy.
#[derive(Debug, Clone)]
enum Event {
    /// The next layer's turn: uses of its experts by `tokens` tokens.
    Turn { tokens: usize, uses: Vec<u32> },
    /// An expert of the layer gets a slot, if it has none.
    Insert(usize),
    /// The victim among those that are not `kept` leaves.
    Evict { kept: HashSet<ExpertId> },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let turn = (1usize..4).prop_flat_map(|tokens| {
        prop::collection::vec(0..=tokens as u32, EXPERTS).prop_map(move |uses| Event::Turn { tokens, uses })
    });
    let insert = (0..EXPERTS).prop_map(Event::Insert);
    let kept = prop::collection::hash_set((0..LAYERS, 0..EXPERTS), 0..6);
    let evict = kept.prop_map(|kept| Event::Evict { kept });
    prop::collection::vec(prop_oneof![3 => turn, 6 => insert, 2 => evict], 0..200)
}

/// The definition of a policy: told every event, the layer, and for an eviction the experts that may go; returns those of
/// them that are right to go.
type Definition<'a> = &'a mut dyn FnMut(&Event, usize, &[ExpertId]) -> Vec<ExpertId>;

/// Runs events through a policy and checks each victim.
fn check(policy: CachePolicy, events: &[Event], definition: Definition<'_>) -> Result<(), TestCaseError> {
    let mut policy = policy.start(LAYERS, EXPERTS);
    let mut inside: Vec<ExpertId> = Vec::new();
    let mut layer = 0;
    for event in events {
        match event {
            Event::Turn { tokens, uses } => {
                layer = (layer + 1) % LAYERS;
                policy.turn(layer, *tokens, uses);
                definition(event, layer, &[]);
            }
            Event::Insert(expert) if !inside.contains(&(layer, *expert)) => {
                inside.push((layer, *expert));
                policy.inserted((layer, *expert));
                definition(event, layer, &[]);
            }
            Event::Insert(_) => {}
            Event::Evict { kept } => {
                let mut candidates: Vec<ExpertId> =
                    inside.iter().copied().filter(|id| !kept.contains(id)).collect();
                candidates.sort_unstable();
                let victim = policy.victim(&|id| !kept.contains(&id));
                let right = definition(event, layer, &candidates);
                prop_assert_eq!(victim.is_some(), !candidates.is_empty());
                if let Some(victim) = victim {
                    prop_assert!(right.contains(&victim), "{victim:?} of {candidates:?}, right: {right:?}");
                    inside.retain(|id| *id != victim);
                    policy.removed(victim);
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn lru_evicts_the_longest_unused(events in events()) {
        let (mut clock, mut last_use) = (0u64, HashMap::<ExpertId, u64>::new());
        check(CachePolicy::Lru, &events, &mut |event, layer, candidates| {
            let mut stamp = |id| { clock += 1; last_use.insert(id, clock); };
            match event {
                Event::Turn { uses, .. } => {
                    (0..EXPERTS).filter(|e| uses[*e] > 0).for_each(|e| stamp((layer, e)));
                    Vec::new()
                }
                Event::Insert(expert) => { stamp((layer, *expert)); Vec::new() }
                Event::Evict { .. } => candidates.iter().copied().min_by_key(|id| last_use[id]).into_iter().collect(),
            }
        })?;
    }

    #[test]
    fn cyclic_evicts_the_farthest_expected_use(events in events()) {
        // Every token's choices, newest last, with fractions where a batch does not tell which token chose what.
        let mut history: HashMap<usize, Vec<Vec<f64>>> = HashMap::new();
        check(CachePolicy::Cyclic, &events, &mut |event, layer, candidates| match event {
            Event::Turn { tokens, uses } => {
                let share: Vec<f64> = uses.iter().map(|u| f64::from(*u) / *tokens as f64).collect();
                (0..*tokens).for_each(|_| history.entry(layer).or_default().push(share.clone()));
                Vec::new()
            }
            Event::Insert(_) => Vec::new(),
            Event::Evict { .. } => {
                let wait = |(l, e): ExpertId| {
                    let newest_first = history.get(&l).into_iter().flat_map(|h| h.iter().rev());
                    let rate: f64 = newest_first
                        .enumerate()
                        .map(|(age, chosen)| 0.01 * 0.99f64.powi(age as i32) * chosen[e])
                        .sum();
                    let others = (0..LAYERS).position(|n| (layer + 1 + n) % LAYERS == l).unwrap();
                    others as f64 + LAYERS as f64 * (1.0 / rate.max(1e-6) - 1.0)
                };
                let farthest = candidates.iter().copied().map(wait).fold(f64::NEG_INFINITY, f64::max);
                // Rates are kept in single precision.
                candidates.iter().copied().filter(|id| wait(*id) >= farthest * (1.0 - 1e-5)).collect()
            }
        })?;
    }
}

#[test]
fn names_go_both_ways_and_errors_tell_them() {
    for policy in CachePolicy::ALL {
        assert_eq!(policy.to_string().parse::<CachePolicy>().unwrap(), policy);
    }
    let error = "fifo".parse::<CachePolicy>().unwrap_err().to_string();
    assert_eq!(error, "invalid argument cache_policy: found \"fifo\", allowed: lru, cyclic");
}

/// With one hot and many cold experts per layer, recency keeps the cold ones of the last layers, frequency the hot ones.
#[test]
fn cyclic_keeps_experts_in_steady_use() {
    let mut policy = CachePolicy::Cyclic.start(LAYERS, EXPERTS);
    for token in 0..20 {
        for layer in 0..LAYERS {
            let mut uses = vec![0; EXPERTS];
            (uses[0], uses[1 + token % 4]) = (1, 1);
            policy.turn(layer, 1, &uses);
        }
    }
    for id in (0..LAYERS).flat_map(|l| (0..EXPERTS).map(move |e| (l, e))) {
        policy.inserted(id);
    }
    for _ in 0..LAYERS * (EXPERTS - 1) {
        let victim = policy.victim(&|_| true).unwrap();
        assert_ne!(victim.1, 0, "the expert that every token uses");
        policy.removed(victim);
    }
}
