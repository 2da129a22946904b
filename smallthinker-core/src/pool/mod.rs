//! The engine's compute threads: workers that stay hot while a token is computed.
//!
//! A fork-join per matrix through a general scheduler costs several microseconds, hundreds of times per
//! token. Here publishing a job is one atomic increment that spinning workers see, and joining is one
//! counter. Waiters spin briefly, then yield, then sleep, so that a busy neighbour on the same cores is
//! not starved and an idle engine takes no CPU.
//!
//! Which thread runs which task never matters for the result: tasks write disjoint outputs, each computed
//! in a fixed order.

mod share;
#[cfg(test)]
mod tests;

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use share::{Share, half};

use crate::cancel::CancelFlag;
use crate::{Error, Result};

/// Spins before the first yield: a few microseconds, the length of a typical gap between two stages.
const SPINS: u32 = 2_000;
/// Bytes that a job reads at least for several threads to be faster than one: to tell another thread and to hear from it takes
/// about a microsecond, and what one thread made the other has to fetch.
const WORTH: usize = 64 << 10;
/// How long a worker yields before it sleeps: longer than sampling a token takes.
const IDLE: Duration = Duration::from_millis(2);
/// How often a caller that waits for its turn looks at its cancel flag.
const TURN_POLL: Duration = Duration::from_millis(20);

type Task<'a> = dyn Fn(Range<usize>) -> Result<()> + Sync + 'a;

/// A fixed set of threads, used by one forward pass at a time.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    queue: Mutex<Queue>,
    /// The turn may have changed hands.
    turn: Condvar,
}

/// Who uses the threads, and who is next.
#[derive(Default)]
struct Queue {
    busy: bool,
    next: u64,
    waiting: VecDeque<u64>,
}

/// The job in progress. Written only while no worker reads it.
#[derive(Clone, Copy)]
struct Job {
    task: Option<*const Task<'static>>,
    count: usize,
    /// Indices that a thread takes at a time, at most.
    most: usize,
}

impl Job {
    /// What a thread of so many begins with, and what is left of its share.
    fn share(&self, thread: usize, threads: usize) -> (Range<usize>, Range<usize>) {
        let bound = |i: usize| i * self.count / threads;
        let (from, to) = (bound(thread), bound(thread + 1));
        let middle = from + half((to - from) as u64, self.most) as usize;
        (from..middle, middle..to)
    }
}

/// Keeps what one thread writes and others wait for apart from everything else: a line that moves between cores costs as much as
/// a hundred instructions, and a job of a small model is hardly longer.
#[repr(align(128))]
struct Line<T>(T);

/// What a worker waits for, and what it wants to know then, on one line.
struct Notice {
    /// Number of jobs published so far, the end of the pool being one; a change tells workers to look at `job`.
    epoch: AtomicU64,
    job: UnsafeCell<Job>,
}

struct Shared {
    notice: Line<Notice>,
    /// The tasks that are left to each thread.
    shares: Vec<Share>,
    /// Workers that have not yet finished the current job.
    running: Line<AtomicUsize>,
    failed: Line<AtomicBool>,
    failure: Mutex<Option<(usize, Error)>>,
    stop: AtomicBool,
    /// Workers that sleep, or are about to unless there is a job. Changed under the lock.
    sleepers: AtomicUsize,
    asleep: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is written by the one thread that holds the team, before `epoch` is released and only when
// `running` is zero; workers read it after acquiring `epoch`. The raw task pointer is used only in between.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` refers to a `Sync` closure, callable from any thread.
unsafe impl Send for Shared {}

impl Pool {
    /// Starts `threads - 1` workers; the calling thread of each job is the last one.
    pub(crate) fn new(threads: usize) -> Result<Pool> {
        let shared = Arc::new(Shared {
            notice: Line(Notice {
                epoch: AtomicU64::new(0),
                job: UnsafeCell::new(Job { task: None, count: 0, most: 1 }),
            }),
            shares: (0..threads.max(1)).map(|_| Share::default()).collect(),
            running: Line(AtomicUsize::new(0)),
            failed: Line(AtomicBool::new(false)),
            failure: Mutex::new(None),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            asleep: Mutex::new(()),
            wake: Condvar::new(),
        });
        let mut pool = Pool { shared, workers: Vec::new(), queue: Mutex::default(), turn: Condvar::new() };
        for i in 1..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new()
                .name(format!("smallthinker-{i}"))
                .spawn(move || shared.work(i))
                .map_err(|e| Error::Internal { message: format!("cannot start compute thread {i}: {e}") })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads that take part in a job, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Waits for this caller's turn, first come, first served. One forward pass at a time uses the threads;
    /// concurrent sessions alternate between tokens and between chunks of prompts.
    pub(crate) fn team(&self, cancel: &CancelFlag) -> Result<Turn<'_>> {
        let mut queue = lock(&self.queue);
        let ticket = queue.next;
        queue.next += 1;
        queue.waiting.push_back(ticket);
        while queue.busy || queue.waiting.front() != Some(&ticket) {
            if let Err(cancelled) = cancel.check() {
                queue.waiting.retain(|t| *t != ticket);
                self.turn.notify_all();
                return Err(cancelled);
            }
            let woken = self.turn.wait_timeout(queue, TURN_POLL);
            queue = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        queue.waiting.pop_front();
        queue.busy = true;
        Ok(Turn(Team { pool: self, alone: false, _one_thread: PhantomData }))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.publish();
        for worker in self.workers.drain(..) {
            // A worker catches panics of its tasks, so this cannot fail; nothing could be done if it did.
            let _ = worker.join();
        }
    }
}

/// The right to use the pool's threads until dropped.
pub(crate) struct Turn<'p>(Team<'p>);

impl<'p> Deref for Turn<'p> {
    type Target = Team<'p>;

    fn deref(&self) -> &Team<'p> {
        &self.0
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.0.pool.queue).busy = false;
        self.0.pool.turn.notify_all();
    }
}

/// A pool's threads, which do one job at a time.
pub(crate) struct Team<'p> {
    pool: &'p Pool,
    /// The calling thread does all.
    alone: bool,
    /// Neither `Sync` nor `Send`: a task must not start a job inside a job, nor may two threads with a team each.
    _one_thread: PhantomData<*const ()>,
}

impl Team<'_> {
    /// The same for jobs that read about `bytes` bytes: where the calling thread would be done before the others could
    /// help, it does them alone.
    pub(crate) fn for_bytes(&self, bytes: usize) -> Team<'_> {
        Team { pool: self.pool, alone: self.alone || bytes < WORTH, _one_thread: PhantomData }
    }

    /// Threads that take part in a job.
    pub(crate) fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Runs `task(0)`, …, `task(count - 1)`, each exactly once, on all threads, and waits for all.
    /// Returns the error of the lowest failing index; a panic inside a task is such an error.
    pub(crate) fn run(&self, count: usize, task: &(dyn Fn(usize) -> Result<()> + Sync)) -> Result<()> {
        self.run_ranges(count, 1, &|mut range| range.try_for_each(task))
    }

    /// Runs `task` on ranges of up to `most` indices that together are `0..count`, and waits for all; errors are those
    /// of [`run`](Self::run). A thread's ranges become shorter towards the end of the job, so that all finish at about the
    /// same time; before, they are long, so that reads are.
    pub(crate) fn run_ranges(&self, count: usize, most: usize, task: &Task<'_>) -> Result<()> {
        if count > u32::MAX as usize {
            return Err(Error::Internal { message: format!("{count} tasks in one stage") });
        }
        if self.alone || self.pool.workers.is_empty() || count <= 1 {
            let most = most.max(1);
            let mut ranges = (0..count).step_by(most).map(|from| from..count.min(from.saturating_add(most)));
            return ranges.try_for_each(|range| guarded(task, range, count));
        }
        let shared = &*self.pool.shared;
        // SAFETY: erases the lifetime only; this function does not return before every worker is done
        // with the pointer (`running` is zero).
        let erased = unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(task) };
        let job = Job { task: Some(erased), count, most };
        for (i, share) in shared.shares.iter().enumerate() {
            share.set(&job.share(i, shared.shares.len()).1);
        }
        shared.running.0.store(self.pool.workers.len(), Ordering::Relaxed);
        // SAFETY: all teams of the one turn are this thread's, and `running` was zero, so nobody reads the job now.
        unsafe { *shared.notice.0.job.get() = job };
        shared.publish();
        shared.drain(0, task, job);
        let mut spins = 0;
        while shared.running.0.load(Ordering::Acquire) != 0 {
            pause(&mut spins);
        }
        // What workers wrote before they left is seen here, so a plain look is enough.
        if shared.failed.0.load(Ordering::Relaxed) {
            shared.failed.0.store(false, Ordering::Relaxed);
            let failure = lock(&shared.failure).take();
            return Err(failure.map_or(Error::Internal { message: "a task failed".into() }, |(_, e)| e));
        }
        Ok(())
    }
}

impl Shared {
    fn work(&self, thread: usize) {
        let mut seen = 0;
        while let Some(epoch) = self.await_job(seen) {
            seen = epoch;
            // SAFETY: the acquire load of `epoch` saw this job's release; the publisher does not write
            // again before `running` is zero, which needs this worker's decrement below.
            let job = unsafe { *self.notice.0.job.get() };
            if let Some(task) = job.task {
                // SAFETY: the publisher keeps the closure alive until `running` is zero.
                self.drain(thread, unsafe { &*task }, job);
            }
            self.running.0.fetch_sub(1, Ordering::Release);
        }
    }

    /// The number of the next job after `seen`, or `None` when the pool closes.
    fn await_job(&self, seen: u64) -> Option<u64> {
        let (mut spins, mut since) = (0, None);
        loop {
            let epoch = self.notice.0.epoch.load(Ordering::SeqCst);
            if epoch != seen {
                return (!self.stop.load(Ordering::Acquire)).then_some(epoch);
            }
            pause(&mut spins);
            if spins > SPINS && since.get_or_insert_with(Instant::now).elapsed() > IDLE {
                let mut asleep = lock(&self.asleep);
                self.sleepers.fetch_add(1, Ordering::SeqCst);
                while self.notice.0.epoch.load(Ordering::SeqCst) == seen {
                    asleep = self.wake.wait(asleep).unwrap_or_else(PoisonError::into_inner);
                }
                self.sleepers.fetch_sub(1, Ordering::SeqCst);
                (spins, since) = (0, None);
            }
        }
    }

    /// Tells workers of a job, or of the end. Either a worker that goes to sleep counts itself before the look at `sleepers` here,
    /// and is woken, or it sees the new epoch after it counted itself, and stays awake: these are all in one order. The lock keeps
    /// the call from falling between a worker's last look and its sleep.
    fn publish(&self) {
        self.notice.0.epoch.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.asleep));
            self.wake.notify_all();
        }
    }

    /// Runs this thread's share in order, so that it reads weights one after the other, then what others have left.
    fn drain(&self, thread: usize, task: &Task<'_>, job: Job) {
        let (threads, most) = (self.shares.len(), job.most);
        let own = self.shares.get(thread);
        let others = || self.shares.iter().cycle().skip(thread + 1).take(threads - 1);
        let begin = job.share(thread, threads).0;
        let mut next = (!begin.is_empty()).then_some(begin);
        loop {
            // Of so few, nothing is left.
            next =
                next.or_else(|| if job.count > threads { own.and_then(|own| own.first(most)) } else { None });
            next =
                next.or_else(|| if job.count > threads { others().find_map(|s| s.last(most)) } else { None });
            let Some(range) = next.take() else { return };
            let i = range.start;
            if let Err(error) = guarded(task, range, job.count) {
                let mut failure = lock(&self.failure);
                if failure.as_ref().is_none_or(|(at, _)| i < *at) {
                    *failure = Some((i, error));
                }
                self.failed.0.store(true, Ordering::Relaxed);
            }
        }
    }
}

fn guarded(task: &Task<'_>, range: Range<usize>, count: usize) -> Result<()> {
    let i = range.start;
    catch_unwind(AssertUnwindSafe(|| task(range)))
        .unwrap_or_else(|_| Err(Error::Internal { message: format!("task {i} of {count} panicked") }))
}

fn pause(spins: &mut u32) {
    *spins = spins.saturating_add(1);
    if *spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
