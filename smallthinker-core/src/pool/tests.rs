use super::*;

#[test]
fn every_task_runs_once_for_any_thread_count() {
    for threads in [1, 2, 3, 8] {
        let pool = Pool::new(threads).unwrap();
        let team = pool.team(&CancelFlag::new()).unwrap();
        for count in [0, 1, 2, 7, 100] {
            let hits: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..50 {
                team.run(count, &|i| {
                    hits[i].fetch_add(1, Ordering::Relaxed);
                    Ok(())
                })
                .unwrap();
            }
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 50), "{threads} threads, {count} tasks");
        }
    }
}

#[test]
fn small_jobs_are_done_by_the_calling_thread() {
    let pool = Pool::new(4).unwrap();
    let team = pool.team(&CancelFlag::new()).unwrap();
    let (caller, all) = (std::thread::current().id(), std::sync::Barrier::new(4));
    for bytes in [0, WORTH - 1] {
        let hits = AtomicUsize::new(0);
        team.for_bytes(bytes)
            .run(9, &|_| {
                assert_eq!(std::thread::current().id(), caller);
                hits.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
            .unwrap();
        assert_eq!(hits.into_inner(), 9);
    }
    // Of a large one, each thread has a task to begin with: this would not end if one had two of them.
    for bytes in [WORTH, usize::MAX] {
        let wait = |_| {
            all.wait();
            Ok(())
        };
        team.for_bytes(bytes).run(4, &wait).unwrap();
    }
}

#[test]
fn ranges_cover_every_index_once_and_none_is_too_long() {
    for threads in [1, 2, 3, 8] {
        let pool = Pool::new(threads).unwrap();
        let team = pool.team(&CancelFlag::new()).unwrap();
        for (count, most) in [(0, 4), (1, 4), (7, 1), (100, 9), (100, usize::MAX), (5, 0)] {
            let hits: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            let longest = AtomicUsize::new(0);
            team.run_ranges(count, most, &|range| {
                longest.fetch_max(range.len(), Ordering::Relaxed);
                for hit in &hits[range] {
                    hit.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
            .unwrap();
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1), "{threads}, {count}, {most}");
            assert!(longest.into_inner() <= most.max(1), "{threads}, {count}, {most}");
        }
    }
}

#[test]
fn wakes_after_sleep() {
    let pool = Pool::new(2).unwrap();
    let team = pool.team(&CancelFlag::new()).unwrap();
    for _ in 0..3 {
        std::thread::sleep(IDLE * 5);
        let sum = AtomicUsize::new(0);
        team.run(64, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
            Ok(())
        })
        .unwrap();
        assert_eq!(sum.into_inner(), 2016);
    }
}

#[test]
fn lowest_error_wins_and_a_panic_is_an_error() {
    let pool = Pool::new(3).unwrap();
    let team = pool.team(&CancelFlag::new()).unwrap();
    let fail = |i: usize| if i >= 5 { Err(Error::NotFinite { layer: i, what: "x" }) } else { Ok(()) };
    assert!(matches!(team.run(20, &fail), Err(Error::NotFinite { layer: 5, .. })));
    let error = team.run(4, &|i| if i == 2 { panic!("boom") } else { Ok(()) }).unwrap_err();
    assert!(error.to_string().contains("task 2 of 4 panicked"), "{error}");
    team.run(4, &|_| Ok(())).unwrap();
}

#[test]
fn turns_alternate() {
    let pool = Pool::new(1).unwrap();
    let order = Mutex::new(Vec::new());
    let start = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        for who in 0..2 {
            let (pool, order, start) = (&pool, &order, &start);
            scope.spawn(move || {
                start.wait();
                for _ in 0..20 {
                    let _team = pool.team(&CancelFlag::new()).unwrap();
                    lock(order).push(who);
                    // Long enough that the other one is waiting by the time this turn ends.
                    std::thread::sleep(Duration::from_millis(3));
                }
            });
        }
    });
    let order = order.into_inner().unwrap();
    let changes = order.windows(2).filter(|w| w[0] != w[1]).count();
    assert!(changes > 20, "{order:?}");
}

#[test]
fn waiting_for_a_turn_can_be_cancelled() {
    let pool = Pool::new(1).unwrap();
    let cancel = CancelFlag::new();
    let _held = pool.team(&cancel).unwrap();
    cancel.cancel();
    assert!(matches!(pool.team(&cancel), Err(Error::Cancelled)));
}
