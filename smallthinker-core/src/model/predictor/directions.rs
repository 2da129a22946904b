//! The directions along which the rows of a matrix differ most, by subspace iteration on a sample of its rows (Halko,
//! Martinsson, Tropp, arXiv 0909.4061), then turned at random within the space that they span.

use crate::Result;
use crate::cancel::CancelFlag;
use crate::kernels::Kernels;
use crate::pool::Team;
use crate::sample::SplitMix64;
use crate::tensor::matrix::Matrix;
use crate::tiles::tiles;

/// Rows of the sample at least, as far as there are so many, and per column.
const SAMPLE: usize = 4096;
const SAMPLE_PER_COLUMN: usize = 2;
/// Multiplications by the covariance. More change little.
const ITERATIONS: usize = 4;
/// Rows that a task computes, so that what it reads is read once for all of them; also those that are made
/// orthogonal together.
const BAND: usize = 16;
/// Rows with a larger square of their length are left out.
const LARGEST: f32 = 1e20;
/// Any seed will do; a fixed one makes the same sketch each time.
const SEED: u64 = 0x5eed_0f5e_ed0f;

/// What was found.
pub(super) struct Directions {
    /// The mean of the sample.
    pub(super) mean: Vec<f32>,
    /// Mean square of the distance from it.
    pub(super) variance: f64,
    /// `[count][cols]`, orthonormal; zero where there are no more directions.
    pub(super) rows: Vec<f32>,
}

/// Finds `count` directions.
pub(super) fn find(
    matrix: &Matrix<'_>,
    count: usize,
    kernels: &Kernels,
    team: &Team<'_>,
    cancel: &CancelFlag,
) -> Result<Directions> {
    let cols = matrix.cols;
    let (mean, covariance, n) = covariance(matrix, kernels, team)?;
    let variance = (0..cols).map(|i| f64::from(covariance[i * cols + i])).sum::<f64>() / n.max(1) as f64;
    let mut random = SplitMix64::new(SEED);
    let mut rows: Vec<f32> = (0..count * cols).map(|_| random.next_unit() as f32 - 0.5).collect();
    let mut next = vec![0.0; rows.len()];
    for _ in 0..ITERATIONS {
        cancel.check()?;
        multiply(&rows, &covariance, cols, kernels, team, &mut next)?;
        std::mem::swap(&mut rows, &mut next);
        orthonormalise(&mut rows, cols, kernels, team)?;
    }
    turn(&mut rows, cols, &mut random);
    Ok(Directions { mean, variance, rows })
}

/// Mean and covariance (times the number of rows) of rows that lie evenly in the matrix, and their number.
fn covariance(
    matrix: &Matrix<'_>,
    kernels: &Kernels,
    team: &Team<'_>,
) -> Result<(Vec<f32>, Vec<f32>, usize)> {
    let cols = matrix.cols;
    let n = matrix.rows.min(SAMPLE.max(SAMPLE_PER_COLUMN * cols));
    let mut sample = vec![0.0f32; n * cols];
    tiles(team, &mut sample, cols, (BAND, cols), &|tile| {
        tile.rows().try_for_each(|i| {
            let row = tile.row(i);
            matrix.row_values(i * matrix.rows / n, row)?;
            let square = kernels.dot_f32(row, row)?;
            if square.is_nan() || square > LARGEST {
                row.fill(0.0); // one such row would spoil all sums
            }
            Ok(())
        })
    })?;
    let mut sums = vec![0.0f64; cols];
    for row in sample.chunks_exact(cols) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    let mean: Vec<f32> = sums.iter().map(|sum| (sum / n as f64) as f32).collect();
    // By column, so that a covariance is a product of two rows.
    let mut columns = vec![0.0f32; n * cols];
    tiles(team, &mut columns, n, (BAND, n), &|tile| {
        let band = tile.rows();
        for (i, row) in sample.chunks_exact(cols).enumerate() {
            band.clone().for_each(|c| tile.row(c)[i] = row[c] - mean[c]);
        }
        Ok(())
    })?;
    drop(sample);
    let mut covariance = vec![0.0f32; cols * cols];
    tiles(team, &mut covariance, cols, (BAND, cols), &|tile| {
        let band = tile.rows();
        // The other half is the same.
        for j in band.start..cols {
            for i in band.clone() {
                tile.row(i)[j] =
                    kernels.dot_f32(&columns[i * n..(i + 1) * n], &columns[j * n..(j + 1) * n])?;
            }
        }
        Ok(())
    })?;
    for i in 0..cols {
        for j in 0..i {
            covariance[i * cols + j] = covariance[j * cols + i];
        }
    }
    Ok((mean, covariance, n))
}

/// `out[i][j]` = row `i` of `a` · row `j` of `b`; rows have `cols` elements.
fn multiply(
    a: &[f32],
    b: &[f32],
    cols: usize,
    kernels: &Kernels,
    team: &Team<'_>,
    out: &mut [f32],
) -> Result<()> {
    let width = b.len() / cols.max(1);
    tiles(team, out, width, (BAND, width), &|tile| {
        let band = tile.rows();
        for (j, b) in b.chunks_exact(cols).enumerate() {
            for i in band.clone() {
                tile.row(i)[j] = kernels.dot_f32(&a[i * cols..(i + 1) * cols], b)?;
            }
        }
        Ok(())
    })
}

/// Makes rows orthogonal and of length 1, a band at a time (modified Gram-Schmidt). A row that depends on those before
/// it becomes zero.
fn orthonormalise(rows: &mut [f32], cols: usize, kernels: &Kernels, team: &Team<'_>) -> Result<()> {
    let remove = |row: &mut [f32], others: &[f32]| {
        others.chunks_exact(cols).try_for_each(|other| {
            let along = kernels.dot_f32(other, row)?;
            kernels.axpy_f32(row, -along, other)
        })
    };
    let lengths = rows.chunks_exact(cols).map(|row| kernels.dot_f32(row, row));
    let lengths = lengths.collect::<Result<Vec<f32>>>()?;
    let mut lengths = lengths.chunks(BAND);
    let mut rest = rows;
    while let (false, Some(lengths)) = (rest.is_empty(), lengths.next()) {
        let (band, behind) = rest.split_at_mut(rest.len().min(BAND * cols));
        for (i, before) in lengths.iter().enumerate() {
            let (done, row) = band.split_at_mut(i * cols);
            let row = &mut row[..cols];
            remove(row, done)?;
            let length = kernels.dot_f32(row, row)?;
            // What is left of a dependent row is rounding.
            let factor =
                if length > before * 1e-11 && length.is_normal() { 1.0 / length.sqrt() } else { 0.0 };
            row.iter_mut().for_each(|x| *x *= factor);
        }
        let band = &*band;
        tiles(team, behind, cols, (BAND, cols), &|tile| {
            tile.rows().try_for_each(|i| remove(tile.row(i), band))
        })?;
        rest = behind;
    }
    Ok(())
}

/// Turns orthonormal rows within their span: rounds of random pairs, each turned by 45 degrees, mix all of them.
fn turn(rows: &mut [f32], cols: usize, random: &mut SplitMix64) {
    let count = rows.len() / cols.max(1);
    let mut order: Vec<usize> = (0..count).collect();
    let rounds = count.next_power_of_two().trailing_zeros() + 4;
    for _ in 0..rounds {
        for i in (1..count).rev() {
            order.swap(i, (random.next_u64() % (i as u64 + 1)) as usize);
        }
        for pair in order.chunks_exact(2) {
            let (low, high) = (pair[0].min(pair[1]), pair[0].max(pair[1]));
            let (first, second) = rows.split_at_mut(high * cols);
            let (a, b) = (&mut first[low * cols..(low + 1) * cols], &mut second[..cols]);
            for (a, b) in a.iter_mut().zip(b) {
                let half = std::f32::consts::FRAC_1_SQRT_2;
                (*a, *b) = ((*a + *b) * half, (*a - *b) * half);
            }
        }
    }
}
