//! The whole engine over storage that fails: every generation ends with the right text or with an error that names the
//! file, in time, and the one after the trouble is right.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use crate::gguf::{Double, Gguf};
use crate::pack::{PackOptions, pack};
use crate::test_models::{Fixture, Random, Spec};
use crate::{Error, FinishReason, GenerateOptions, Model, ModelOptions, Result};

/// What goes wrong with reads, decided by a number that tells schedules apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    /// Some reads give fewer bytes than wanted, which is allowed: the rest must be asked for.
    Short,
    /// Some reads are interrupted by signals, which is no error either.
    Interrupted,
    /// One read fails.
    FailsOnce,
    /// Some reads fail.
    FailsAtTimes,
    /// From some read on, all fail.
    FailsForEver,
    /// The file ends early.
    Truncated,
    /// Reads take long now and then.
    Slow,
}

impl Trouble {
    const ALL: [Trouble; 8] = [
        Trouble::None,
        Trouble::Short,
        Trouble::Interrupted,
        Trouble::FailsOnce,
        Trouble::FailsAtTimes,
        Trouble::FailsForEver,
        Trouble::Truncated,
        Trouble::Slow,
    ];

    /// Whether the text must come nevertheless.
    fn harmless(self) -> bool {
        matches!(self, Trouble::None | Trouble::Short | Trouble::Interrupted | Trouble::Slow)
    }
}

#[derive(Debug, Clone, Copy)]
struct Schedule {
    trouble: Trouble,
    seed: u64,
    /// Reads without trouble before it begins.
    calm: u64,
}

const CALM: Schedule = Schedule { trouble: Trouble::None, seed: 0, calm: 0 };

/// A file with a schedule of troubles, which can be changed while it is in use.
#[derive(Debug)]
struct Storage {
    file: File,
    len: u64,
    schedule: Mutex<Schedule>,
    reads: AtomicU64,
    /// Said to lie in memory, so that compute threads read.
    in_memory: bool,
}

impl Storage {
    fn set(&self, schedule: Schedule) {
        *self.schedule.lock().unwrap() = schedule;
        self.reads.store(0, Ordering::SeqCst);
    }
}

#[derive(Debug)]
struct Faulty(Arc<Storage>);

impl Double for Faulty {
    fn lies_in_memory(&self) -> bool {
        self.0.in_memory
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        let Schedule { trouble, seed, calm } = *self.0.schedule.lock().unwrap();
        let n = self.0.reads.fetch_add(1, Ordering::SeqCst);
        let mut random = Random::new(seed ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let sometimes = random.below(8) == 0;
        let fails = || Err(io::Error::from_raw_os_error(5)); // EIO
        if n >= calm {
            match trouble {
                Trouble::None => {}
                Trouble::Short if buf.len() > 1 => {
                    let len = 1 + random.below(buf.len() as u32 - 1) as usize;
                    return self.0.file.read_at(&mut buf[..len], offset);
                }
                Trouble::Short => {}
                Trouble::Interrupted if sometimes => return Err(io::ErrorKind::Interrupted.into()),
                Trouble::Interrupted => {}
                Trouble::FailsOnce if n == calm => return fails(),
                Trouble::FailsOnce => {}
                Trouble::FailsAtTimes if sometimes => return fails(),
                Trouble::FailsAtTimes => {}
                Trouble::FailsForEver => return fails(),
                Trouble::Truncated => {
                    let end = self.0.len / 16 * (seed / 8 % 16);
                    let left = end.saturating_sub(offset).min(buf.len() as u64) as usize;
                    return if left == 0 { Ok(0) } else { self.0.file.read_at(&mut buf[..left], offset) };
                }
                Trouble::Slow if sometimes => {
                    thread::sleep(Duration::from_micros(u64::from(random.below(2_000))));
                }
                Trouble::Slow => {}
            }
        }
        self.0.file.read_at(buf, offset)
    }
}

/// Where the file lies, and how.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Disk,
    Memory,
    /// Packed, so that it is read into slots directly.
    PackedDisk,
    PackedMemory,
}

struct Rig {
    fixture: Fixture,
    storage: Arc<Storage>,
    model: Model,
    prompt: Vec<u32>,
    /// What follows the prompt.
    expected: Vec<u32>,
}

const TOKENS: usize = 12;

impl Rig {
    /// A model whose experts hardly fit, over storage that has been calm while it was opened.
    fn new(kind: Kind, slots_more: u64) -> Rig {
        let mut spec =
            Spec { layers: 4, ffn: 256, experts: 12, top_k: 2, tied: false, context: 64, ..Spec::default() };
        if !matches!(kind, Kind::PackedDisk) {
            // Rearranged, in bands of which the last is not whole.
            (spec.dtype, spec.ffn, spec.experts) = (crate::tensor::DType::Q4_0, 160, 72);
        }
        let mut fixture = Fixture::new(spec);
        let (packed, in_memory) = match kind {
            Kind::Disk => (false, false),
            Kind::Memory => (false, true),
            Kind::PackedDisk => (true, false),
            Kind::PackedMemory => (true, true),
        };
        let prompt = Random::new(3).tokens(20);
        let everything = fixture.open();
        let expected = generate(&everything, &prompt, None).unwrap();
        if packed {
            let packed = fixture.path.with_extension("packed");
            pack(&fixture.path, &packed, PackOptions::default()).unwrap();
            fixture.path = packed;
        }
        let file = File::open(&fixture.path).unwrap();
        let len = file.metadata().unwrap().len();
        let storage = Storage { file, len, schedule: Mutex::new(CALM), reads: AtomicU64::new(0), in_memory };
        let storage = Arc::new(storage);
        let gguf = Gguf::open(&fixture.path).unwrap();
        let double = gguf.source().doubled(|_, _, _| Box::new(Faulty(Arc::clone(&storage))));
        let mut options = ModelOptions::default();
        (options.threads, options.chunk) = (Some(2), Some(7));
        let plan = Model::plan_for(&fixture.path, &options).unwrap();
        // Of several sessions, all but the first take from the cache.
        let sessions = 3 * (plan.kv_full_context + plan.scratch);
        options.memory_budget = Some(plan.floor + slots_more * plan.expert_slot + sessions);
        let model = Model::open_gguf(gguf.with_source(double), options).unwrap();
        Rig { fixture, storage, model, prompt, expected }
    }

    /// Checks what a generation gave under a trouble.
    fn check(&self, result: Result<Vec<u32>>, trouble: Trouble) -> bool {
        match result {
            Ok(tokens) => {
                assert_eq!(tokens, self.expected, "{trouble:?}");
                true
            }
            Err(error) => {
                assert!(!trouble.harmless(), "{trouble:?}: {error}");
                let fits = match &error {
                    Error::Io { path, .. } => trouble != Trouble::Truncated && *path == self.fixture.path,
                    Error::ShortRead { path, .. } => {
                        trouble == Trouble::Truncated && *path == self.fixture.path
                    }
                    _ => false,
                };
                assert!(fits, "{trouble:?}: {error}");
                false
            }
        }
    }
}

/// What follows the prompt in a session of its own.
fn generate(model: &Model, prompt: &[u32], cancel_after: Option<Duration>) -> Result<Vec<u32>> {
    let mut session = model.session()?;
    session.append_tokens(prompt)?;
    let flag = session.cancel_flag();
    let mut options = GenerateOptions::max_tokens(TOKENS);
    options.ignore_stop_tokens = true;
    let generation = session.generate(options)?;
    let canceller = cancel_after.map(|after| {
        thread::spawn(move || {
            thread::sleep(after);
            flag.cancel();
        })
    });
    let done = generation.complete();
    canceller.into_iter().for_each(|c| c.join().unwrap());
    let done = done?;
    let whole = done.tokens.len() == TOKENS;
    assert!(whole || done.finish_reason == FinishReason::Cancelled, "{:?}", done.finish_reason);
    Ok(done.tokens)
}

/// Runs `test` and fails if it takes longer than any disk: something waits for ever.
fn in_time(test: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    let runner = thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match wait.recv_timeout(Duration::from_secs(600)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the engine hangs"),
        _ => runner.join().unwrap(),
    }
}

#[test]
fn a_thousand_fault_schedules_end_in_the_right_text_or_in_an_error() {
    in_time(|| {
        let rigs = [
            (Kind::Disk, 0, 500),
            (Kind::Disk, 12, 500),
            (Kind::PackedDisk, 6, 200),
            (Kind::Memory, 0, 250),
            (Kind::Memory, 12, 250),
            (Kind::PackedMemory, 6, 100),
        ];
        for (kind, slots_more, schedules) in rigs {
            let rig = Rig::new(kind, slots_more);
            let mut ended = [[0; 2]; Trouble::ALL.len()];
            for seed in 0..schedules {
                let trouble = Trouble::ALL[seed as usize % Trouble::ALL.len()];
                let calm = Random::new(seed + 1).below(150).into();
                rig.storage.set(Schedule { trouble, seed, calm });
                let good = rig.check(generate(&rig.model, &rig.prompt, None), trouble);
                ended[trouble as usize][usize::from(good)] += 1;
                rig.storage.set(CALM);
                rig.check(generate(&rig.model, &rig.prompt, None), Trouble::None);
            }
            for trouble in Trouble::ALL {
                let [failed, right] = ended[trouble as usize];
                assert!(
                    trouble.harmless() || failed > 0,
                    "{kind:?}, {trouble:?} has never done any harm: {right} right"
                );
            }
            assert!(rig.model.stats().experts.evictions > 0);
        }
    });
}

#[test]
fn cancelling_at_any_time_leaves_a_prefix_and_a_session_that_works() {
    in_time(|| {
        let rigs = [Kind::Disk, Kind::Memory].map(|kind| Rig::new(kind, 0));
        let mut cut = 0;
        for seed in 0..90 {
            let rig = &rigs[usize::from(seed % 3 == 0)];
            rig.storage.set(Schedule { trouble: Trouble::Slow, seed, calm: 0 });
            let after = Duration::from_micros(Random::new(seed + 1).below(30_000).into());
            let tokens = generate(&rig.model, &rig.prompt, Some(after)).unwrap();
            assert_eq!(tokens, rig.expected[..tokens.len()]);
            cut += usize::from(tokens.len() < TOKENS);
            rig.storage.set(CALM);
            rig.check(generate(&rig.model, &rig.prompt, None), Trouble::None);
        }
        assert!(cut > 0, "no generation was cancelled");
    });
}

#[test]
fn sessions_at_the_floor_share_the_trouble_and_nothing_else() {
    in_time(|| {
        let rigs = [Kind::Disk, Kind::Memory].map(|kind| Arc::new(Rig::new(kind, 0)));
        for seed in 0..60 {
            let rig = &rigs[usize::from(seed % 3 == 0)];
            let trouble = Trouble::ALL[seed as usize % Trouble::ALL.len()];
            rig.storage.set(Schedule { trouble, seed, calm: seed * 3 });
            let sessions: Vec<_> = (0..3)
                .map(|_| {
                    let rig = Arc::clone(rig);
                    thread::spawn(move || {
                        rig.check(generate(&rig.model, &rig.prompt, None), trouble);
                    })
                })
                .collect();
            sessions.into_iter().for_each(|s| s.join().unwrap());
            rig.storage.set(CALM);
            rig.check(generate(&rig.model, &rig.prompt, None), Trouble::None);
        }
    });
}

#[test]
fn the_budget_can_change_at_any_time() {
    in_time(|| [Kind::Disk, Kind::Memory].into_iter().for_each(change_budget));
}

fn change_budget(kind: Kind) {
    let rig = Arc::new(Rig::new(kind, 0));
    let plan = rig.model.plan().clone();
    let sessions = {
        let rig = Arc::clone(&rig);
        thread::spawn(move || {
            for _ in 0..60 {
                rig.check(generate(&rig.model, &rig.prompt, None), Trouble::None);
            }
        })
    };
    let mut random = Random::new(5);
    let mut seen = [0, 0];
    while !sessions.is_finished() {
        let more = u64::from(random.below(plan.experts as u32 + 8));
        let budget = plan.budget + more * plan.expert_slot;
        rig.model.set_memory_budget(budget).unwrap();
        let stats = rig.model.stats();
        assert_eq!(stats.budget, budget);
        assert!(stats.budget_used <= budget, "{} of {budget}", stats.budget_used);
        assert!(stats.experts.resident <= stats.experts.slots);
        seen[usize::from(stats.experts.slots == plan.experts)] += 1;
        thread::sleep(Duration::from_millis(2));
    }
    sessions.join().unwrap();
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}: only one kind of budget");
    let before = rig.model.stats();
    let error = rig.model.set_memory_budget(plan.floor - 1).unwrap_err();
    assert!(matches!(error, Error::Budget { .. }), "{error}");
    assert_eq!(rig.model.stats().budget, before.budget);
}

#[test]
fn a_file_replaced_while_running_is_still_the_one_that_was_opened() {
    in_time(|| {
        let spec = Spec { layers: 4, ffn: 256, experts: 12, top_k: 2, context: 64, ..Spec::default() };
        let fixture = Fixture::new(spec);
        let prompt = Random::new(3).tokens(20);
        let expected = generate(&fixture.open(), &prompt, None).unwrap();
        let floor = Model::plan_for(&fixture.path, &ModelOptions::default()).unwrap().floor;
        let open = || fixture.open_with(|o| o.memory_budget = Some(floor + (1 << 20)));
        let (before, after) = (open(), open());
        assert_eq!(generate(&before, &prompt, None).unwrap(), expected);
        let other = fixture.path.with_extension("other");
        std::fs::write(&other, b"another file").unwrap();
        std::fs::rename(&other, &fixture.path).unwrap();
        for model in [&before, &after] {
            assert_eq!(generate(model, &prompt, None).unwrap(), expected);
        }
    });
}
