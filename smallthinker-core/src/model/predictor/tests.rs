//! Sketches against plain computations.

use crate::arena::Arena;
use crate::cancel::CancelFlag;
use crate::kernels::Kernels;
use crate::kernels::tests::Rng;
use crate::model::weights::Resident;
use crate::pool::Pool;
use crate::tensor::DType;

use super::{Rule, Sketch, directions, sketch};

fn head(dtype: DType, values: &[f32], vocab: usize, hidden: usize) -> Resident {
    let mut arena = Arena::new(Resident::footprint(dtype, vocab, hidden), "test").unwrap();
    Resident::from_values(dtype, values, vocab, hidden, &mut arena).unwrap()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Rows with all their differences in some directions: `[vocab][hidden]` and the directions.
fn planted(rng: &mut Rng, vocab: usize, hidden: usize, rank: usize) -> (Vec<f32>, Vec<Vec<f32>>) {
    let directions: Vec<Vec<f32>> = (0..rank).map(|_| rng.vector(hidden)).collect();
    let mean = rng.vector(hidden);
    let rows = (0..vocab).flat_map(|_| {
        let mut row: Vec<f32> = mean.iter().map(|m| 3.0 * m).collect();
        for direction in &directions {
            let along = rng.vector(1)[0];
            row.iter_mut().zip(direction).for_each(|(x, d)| *x += along * d);
        }
        row
    });
    (rows.collect(), directions)
}

#[test]
fn directions_span_where_rows_differ_and_are_orthonormal() {
    let (vocab, hidden, rank) = (700, 96, 10);
    let (rows, planted) = planted(&mut Rng(3), vocab, hidden, rank);
    let head = head(DType::F32, &rows, vocab, hidden);
    let pool = Pool::new(2).unwrap();
    let team = pool.team(&CancelFlag::new()).unwrap();
    let kernels = Kernels::detect();
    let found = directions::find(&head.view(), 16, kernels, &team, &CancelFlag::new()).unwrap();
    // No more than `rank` directions exist: what is found spans them, and turning keeps lengths.
    let found: Vec<&[f32]> = found.rows.chunks_exact(hidden).collect();
    let total: f64 = found.iter().map(|d| dot(d, d)).sum();
    assert!((total - rank as f64).abs() < 1e-3, "{total} directions");
    for direction in &planted {
        let inside: f64 = found.iter().map(|d| dot(d, direction).powi(2)).sum();
        let ratio = inside / dot(direction, direction);
        assert!((ratio - 1.0).abs() < 1e-3, "{ratio}");
    }
    // With as many as there are, they are orthonormal.
    let found = directions::find(&head.view(), rank, kernels, &team, &CancelFlag::new()).unwrap();
    for (i, a) in found.rows.chunks_exact(hidden).enumerate() {
        for (j, b) in found.rows.chunks_exact(hidden).enumerate() {
            let want = if i == j { 1.0 } else { 0.0 };
            assert!((dot(a, b) - want).abs() < 1e-4, "{i} {j}: {}", dot(a, b));
        }
    }
}

/// Signs and scales are those of the rows' coordinates, computed here one by one, and estimates have the error that the
/// head's choice of rows counts on.
#[test]
fn a_sketch_is_what_it_says() {
    let mut rng = Rng(11);
    let (vocab, hidden) = (3000, 160);
    let mut values: Vec<f32> = (0..vocab).flat_map(|_| rng.vector(hidden)).collect();
    // Rows that do not differ from the mean, and some much longer ones.
    for (i, row) in values.chunks_exact_mut(hidden).enumerate() {
        let factor = [1.0, 1.0, 4.0, 0.25][i % 4];
        row.iter_mut().for_each(|x| *x = *x * factor + 1.0);
    }
    for dtype in [DType::F32, DType::Q8_0] {
        let head = head(dtype, &values, vocab, hidden);
        let pool = Pool::new(3).unwrap();
        let team = pool.team(&CancelFlag::new()).unwrap();
        let found = Sketch::new(&head.view(), Kernels::detect(), &team, &CancelFlag::new()).unwrap();
        assert_eq!(found.stride() % 2, 0);
        assert!(found.bytes() as usize <= sketch::bytes(vocab, hidden, head.bytes() as usize));
        let count = 8 * found.stride();
        let found_directions =
            directions::find(&head.view(), count, Kernels::detect(), &team, &CancelFlag::new()).unwrap();
        let mut wrong = 0;
        let mut errors = Vec::new();
        let state = rng.vector(hidden);
        let z: Vec<f64> = found_directions.rows.chunks_exact(hidden).map(|d| dot(d, &state)).collect();
        let length = z.iter().map(|z| z * z).sum::<f64>().sqrt();
        let scales: Vec<f32> = found.scales(0, vocab).collect();
        let mut row = vec![0.0; hidden];
        for (i, scale) in scales.iter().enumerate() {
            head.view().row_values(i, &mut row).unwrap();
            row.iter_mut().zip(&found.mean).for_each(|(x, m)| *x -= m);
            let coordinates: Vec<f64> =
                found_directions.rows.chunks_exact(hidden).map(|d| dot(d, &row)).collect();
            let signs = found.signs(i);
            let mut estimate = 0.0;
            for (j, (c, z)) in coordinates.iter().zip(&z).enumerate() {
                let plus = signs[j / 8] & (1 << (j % 8)) != 0;
                estimate += f64::from(*scale) * if plus { *z } else { -z };
                wrong += usize::from(plus != (*c >= 0.0));
            }
            let want = coordinates.iter().map(|c| c * c).sum::<f64>()
                / coordinates.iter().map(|c| c.abs()).sum::<f64>();
            assert!((f64::from(*scale) / want - 1.0).abs() < 0.03, "row {i}: {scale} for {want}");
            errors.push((estimate - dot(&row, &state)) / (f64::from(*scale) * length));
        }
        // Coordinates of quantized vectors differ a little, so that some signs about zero do.
        let share = wrong as f64 / (vocab * count) as f64;
        assert!(
            share < if dtype == DType::F32 { 1e-4 } else { 0.01 },
            "{dtype}: {share} of the signs differ"
        );
        let deviation = (errors.iter().map(|e| e * e).sum::<f64>() / vocab as f64).sqrt();
        assert!((0.4..1.0).contains(&deviation), "{dtype}: {deviation}");
    }
}

/// Weights that are not numbers, or too large for sums of their squares, spoil their own row's estimate only; such rows are always
/// computed.
#[test]
fn rows_that_are_not_numbers() {
    let mut rng = Rng(5);
    let (vocab, hidden) = (700, 96);
    let mut values: Vec<f32> = (0..vocab).flat_map(|_| rng.vector(hidden)).collect();
    let pool = Pool::new(2).unwrap();
    let team = pool.team(&CancelFlag::new()).unwrap();
    let sketch = |values: &[f32]| {
        let head = head(DType::F32, values, vocab, hidden);
        Sketch::new(&head.view(), Kernels::detect(), &team, &CancelFlag::new()).unwrap()
    };
    assert!(sketch(&values).always.is_empty());
    for (row, value) in [(3, f32::NAN), (64, f32::INFINITY), (699, 1e30)] {
        values[row * hidden + 7] = value;
    }
    let found = sketch(&values);
    assert_eq!(found.always, [3, 64, 699]);
    let Rule::Error { outside } = found.rule else { panic!("not a trained one") };
    assert!(outside.is_finite() && found.mean.iter().all(|x| x.abs() < 1.0));
    assert!(
        found.scales(0, vocab).enumerate().all(|(row, s)| (s > 0.0) != found.always.contains(&(row as u32)))
    );
}

/// The whole budget is used, and not more.
#[test]
fn size_of_a_sketch() {
    for (vocab, hidden, row) in
        [(151_936, 1536, 864), (151_936, 2560, 1440), (2048, 160, 144), (32_000, 4096, 2304)]
    {
        let head = vocab * row;
        let share = (sketch::bytes(vocab, hidden, head) + 64 * row) as f64 / head as f64;
        assert!((0.12..0.14).contains(&share), "{vocab} × {hidden}: {share}");
    }
    assert!(sketch::bytes(259, 64, 259 * 36) > 0, "small heads have one too");
}
