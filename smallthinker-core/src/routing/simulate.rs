//! Decoding a trace in virtual time: how fast a machine with some storage would be, computed on any other.
//!
//! File order: `storage` (a device) → `machine` (who computes and who reads) → `contents` (the cache, by the engine's rules)
//! → `guesses` → this file (a token's way through the layers, as `crate::forward` takes it).

use std::time::Duration;

use super::contents::Contents;
use super::guesses::Guesses;
use super::machine::Machine;
use super::replay::{Accesses, Cache, ReplayPolicy, check_slots};
use super::storage::Storage;
use super::trace::{PassKind, Trace};
use crate::bench::TokenCost;
use crate::experts::LookAheadStats;
use crate::{CachePolicy, Error, Result, Stage};

/// What a decoded token's computations take if all experts are in memory; all layers together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ComputeTimes {
    /// Routers.
    pub router: Duration,
    /// From the routers' choices to the experts: norms, queries, keys, values, attention and its output.
    pub attention: Duration,
    /// The experts.
    pub experts: Duration,
    /// Everything else, as if after the last layer: embedding, head, sampling.
    pub rest: Duration,
}

impl ComputeTimes {
    /// From what a token took in all and by stage. Waiting for experts is left out.
    pub fn by_stage(total: Duration, time: impl Fn(Stage) -> Duration) -> ComputeTimes {
        let sum = |stages: &[Stage]| stages.iter().map(|stage| time(*stage)).sum::<Duration>();
        let router = time(Stage::Router);
        let attention = sum(&[Stage::Norm, Stage::Qkv, Stage::Attention, Stage::AttentionOut]);
        let experts = sum(&[Stage::GateUp, Stage::Gate, Stage::Up, Stage::Down]);
        let rest = total.saturating_sub(router + attention + experts + time(Stage::Wait));
        ComputeTimes { router, attention, experts, rest }
    }

    /// All of it.
    pub fn total(&self) -> Duration {
        self.router + self.attention + self.experts + self.rest
    }
}

/// From a measurement.
impl From<&TokenCost> for ComputeTimes {
    fn from(cost: &TokenCost) -> ComputeTimes {
        ComputeTimes::by_stage(cost.time, |stage| cost.stages.time(stage))
    }
}

/// The machine to simulate.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SimOptions {
    /// What the cache evicts.
    pub policy: ReplayPolicy,
    /// Slots of the cache.
    pub slots: usize,
    /// Where experts are read from.
    pub storage: Storage,
    /// How fast it computes.
    pub compute: ComputeTimes,
    /// Threads that read, 1 or more.
    pub readers: usize,
    /// Bytes per second of what was read that the threads that compute rearrange together before they compute with it, above 0;
    /// infinite for packed files.
    pub pack_bytes_per_second: f64,
    /// Looking ahead: the share of guesses, three for four of a layer's choices, that are right, 0 to 1. Wrong guesses are
    /// experts that other tokens have chosen there, the frequent ones more often. `None`: not looking ahead.
    pub look_ahead: Option<f64>,
}

impl SimOptions {
    /// Four readers, 5 GB/s of rearranging, the default policy, not looking ahead.
    pub fn new(slots: usize, storage: Storage, compute: ComputeTimes) -> SimOptions {
        SimOptions {
            policy: ReplayPolicy::Cache(CachePolicy::default()),
            slots,
            storage,
            compute,
            readers: 4,
            pack_bytes_per_second: 5e9,
            look_ahead: None,
        }
    }

    fn check(&self, trace: &Trace) -> Result<()> {
        check_slots(trace.shape(), self.slots)?;
        self.storage.check()?;
        if self.readers == 0 {
            return Err(Error::argument("readers", 0, "1 or more"));
        }
        let pack = self.pack_bytes_per_second;
        if pack.is_nan() || pack <= 0.0 {
            return Err(Error::argument("pack_bytes_per_second", pack, "above 0"));
        }
        match self.look_ahead {
            Some(share) if !(0.0..=1.0).contains(&share) => {
                Err(Error::argument("look_ahead", share, "a share, 0 to 1"))
            }
            _ => Ok(()),
        }
    }
}

/// What decoding would be like. The cache has seen the trace's prompts, whose time is not counted.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Simulation {
    /// Tokens decoded.
    pub tokens: usize,
    /// Time from the first to the last.
    pub time: Duration,
    /// Part of it that computation waited for reads, or rearranged what was read.
    pub stall: Duration,
    /// What the cache did. An expert on its way is a miss; bytes read for guesses count.
    pub accesses: Accesses,
    /// What became of guesses.
    pub look_ahead: LookAheadStats,
}

impl Simulation {
    /// Tokens decoded per second; 0 if none were or if they took no time.
    pub fn tokens_per_second(&self) -> f64 {
        if self.time.is_zero() { 0.0 } else { self.tokens as f64 / self.time.as_secs_f64() }
    }

    /// Share of uses that were hits, 0 to 1; 0 if nothing was decoded.
    pub fn hit_rate(&self) -> f64 {
        self.accesses.hit_rate()
    }

    /// [`stall`](Self::stall) as a share of the time, 0 to 1.
    pub fn stall_share(&self) -> f64 {
        if self.time.is_zero() { 0.0 } else { self.stall.as_secs_f64() / self.time.as_secs_f64() }
    }

    /// Bytes read per decoded token, rounded down; 0 if nothing was decoded.
    pub fn bytes_per_token(&self) -> u64 {
        self.accesses.bytes_read.checked_div(self.tokens as u64).unwrap_or(0)
    }
}

/// Decodes `trace` in virtual time: no thread, no sleep, no clock, so that the result is the same on every machine.
///
/// A layer takes its router's time, requests what is absent, takes attention's time, guesses for the next layer (that
/// takes the router's time again), and rearranges and computes the experts in rounds: those that have arrived, while the others
/// load.
///
/// Errors: [`Error::InvalidArgument`] naming the option.
pub fn simulate(trace: &Trace, options: &SimOptions) -> Result<Simulation> {
    options.check(trace)?;
    let shape = trace.shape();
    let mut run = Run {
        layer: per_layer(&options.compute, shape.layers(), shape.top_k),
        contents: Contents::new(Cache::new(trace, options.policy, options.slots)),
        machine: Machine::new(options.storage, options.readers),
        guesses: options.look_ahead.map(|share| Guesses::new(trace, share)),
        pack: options.pack_bytes_per_second,
        stall: 0.0,
    };
    let mut time = 0.0;
    for pass in trace.passes() {
        let layers: Vec<&[u32]> = pass.layers(shape).collect();
        if pass.kind() == PassKind::Decode {
            let began = run.machine.now;
            run.token(&layers)?;
            time += run.machine.now - began;
        } else {
            while run.contents.is_loading() && run.wait() {}
            for (layer, choices) in layers.into_iter().enumerate() {
                run.contents.prompt_turn(layer, pass.tokens(), choices);
            }
        }
    }
    let duration = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    Ok(Simulation {
        tokens: trace.tokens(PassKind::Decode),
        time: duration(time),
        stall: duration(run.stall),
        accesses: run.contents.counts,
        look_ahead: run.contents.look_ahead,
    })
}

/// Seconds of computing.
struct LayerTimes {
    router: f64,
    attention: f64,
    one_expert: f64,
    /// Of a token, outside of layers.
    rest: f64,
}

fn per_layer(compute: &ComputeTimes, layers: usize, top_k: usize) -> LayerTimes {
    let per_layer = |time: Duration| time.as_secs_f64() / layers as f64;
    LayerTimes {
        router: per_layer(compute.router),
        attention: per_layer(compute.attention),
        one_expert: per_layer(compute.experts) / top_k as f64,
        rest: compute.rest.as_secs_f64(),
    }
}

/// A simulation in progress.
struct Run<'t> {
    layer: LayerTimes,
    contents: Contents<'t>,
    machine: Machine,
    guesses: Option<Guesses<'t>>,
    /// Bytes per second of rearranging.
    pack: f64,
    /// Seconds that computation has waited or rearranged.
    stall: f64,
}

impl Run<'_> {
    fn compute(&mut self, seconds: f64) {
        let contents = &mut self.contents;
        self.machine.compute(seconds, &mut |part| contents.arrived(&part));
    }

    /// Waits for the next event; returns whether there is one.
    fn wait(&mut self) -> bool {
        let contents = &mut self.contents;
        self.machine.wait(&mut |part| contents.arrived(&part))
    }

    /// A token, whose choices in each layer are known.
    fn token(&mut self, layers: &[&[u32]]) -> Result<()> {
        for (layer, choices) in layers.iter().enumerate() {
            self.compute(self.layer.router);
            self.contents.turn(layer, choices, &mut self.machine);
            self.compute(self.layer.attention);
            if let (Some(guesses), Some(next)) = (&mut self.guesses, layers.get(layer + 1)) {
                let guess = guesses.of(layer + 1, next);
                self.compute(self.layer.router);
                self.contents.guess(layer + 1, &guess, &mut self.machine);
            }
            self.experts(choices)?;
        }
        self.compute(self.layer.rest);
        Ok(())
    }

    /// Computes the chosen experts of a layer, in rounds of those that are there.
    fn experts(&mut self, choices: &[u32]) -> Result<()> {
        while self.contents.awaits() {
            let taken = self.contents.acquire(choices, &mut self.machine);
            if taken.experts > 0 {
                let rearranging = taken.raw_bytes as f64 / self.pack;
                self.stall += rearranging;
                self.compute(rearranging + taken.experts as f64 * self.layer.one_expert);
                continue;
            }
            let began = self.machine.now;
            if !self.wait() {
                return Err(Error::Internal { message: "a simulation that waits for nothing".into() });
            }
            self.stall += self.machine.now - began;
        }
        Ok(())
    }
}
