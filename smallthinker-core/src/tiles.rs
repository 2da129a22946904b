//! Splitting one output matrix among the tasks of a parallel stage.

use std::marker::PhantomData;
use std::ops::Range;

use crate::pool::Team;
use crate::{Error, Result};

/// A rectangle of a row-major matrix, owned by one task.
pub(crate) struct Tile<'a, T = f32> {
    base: *mut T,
    width: usize,
    // Private: the soundness of `row` rests on them.
    rows: Range<usize>,
    cols: Range<usize>,
    _matrix: PhantomData<&'a mut [T]>,
}

impl<T> Tile<'_, T> {
    /// Rows of the matrix that this tile covers.
    pub(crate) fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Columns of the matrix that this tile covers.
    pub(crate) fn cols(&self) -> Range<usize> {
        self.cols.clone()
    }

    /// This tile's part of row `row` of the matrix (`self.rows` says which there are).
    pub(crate) fn row(&mut self, row: usize) -> &mut [T] {
        assert!(self.rows.contains(&row), "row {row} outside {:?}", self.rows);
        // SAFETY: row < rows.end and cols.end <= width, checked against the matrix where tiles are made; tiles of one
        // job don't overlap, and `&mut self` keeps a second slice of this tile from existing.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.base.add(row * self.width + self.cols.start),
                self.cols.end - self.cols.start,
            )
        }
    }
}

struct Base<T>(*mut T);
// SAFETY: each task derives only its own tile's slices from the pointer, and may send their elements.
unsafe impl<T: Send> Sync for Base<T> {}

/// Runs `task` once for every tile of `out`, a matrix of rows of `width`, cut into pieces of at most
/// `tile_rows` × `tile_cols`.
pub(crate) fn tiles<T: Send>(
    team: &Team<'_>,
    out: &mut [T],
    width: usize,
    (tile_rows, tile_cols): (usize, usize),
    task: &(dyn Fn(&mut Tile<'_, T>) -> Result<()> + Sync),
) -> Result<()> {
    let (tile_rows, tile_cols) = (tile_rows.max(1), tile_cols.max(1));
    let rows = out.len().checked_div(width).unwrap_or(0);
    let (down, across) = (rows.div_ceil(tile_rows), width.div_ceil(tile_cols));
    let base = Base(out.as_mut_ptr());
    let base = &base;
    team.run(down * across, &|i| {
        let (r, c) = (i / across * tile_rows, i % across * tile_cols);
        task(&mut Tile {
            base: base.0,
            width,
            rows: r..(r + tile_rows).min(rows),
            cols: c..(c + tile_cols).min(width),
            _matrix: PhantomData,
        })
    })
}

/// Runs `task` for tiles of one row of `out`, a matrix of rows of `width`, that together are all of it. A tile has up to
/// `most` units of `unit` columns, the fewer the nearer the end of the job is; see [`Team::run_ranges`].
pub(crate) fn runs<T: Send>(
    team: &Team<'_>,
    out: &mut [T],
    width: usize,
    (unit, most): (usize, usize),
    task: &(dyn Fn(&mut Tile<'_, T>) -> Result<()> + Sync),
) -> Result<()> {
    let unit = unit.max(1);
    let rows = out.len().checked_div(width).unwrap_or(0);
    let across = width.div_ceil(unit);
    let base = Base(out.as_mut_ptr());
    let base = &base;
    team.run_ranges(rows * across, most, &|mut units| {
        while let Some(first) = (!units.is_empty()).then_some(units.start) {
            let r = first / across;
            let end = units.end.min((r + 1) * across);
            units.start = end;
            task(&mut Tile {
                base: base.0,
                width,
                rows: r..r + 1,
                cols: (first - r * across) * unit..((end - r * across) * unit).min(width),
                _matrix: PhantomData,
            })?;
        }
        Ok(())
    })
}

/// As [`tiles`], with the rows cut into the given `bands`, which ascend and don't overlap. `task` also gets the number
/// of the band.
pub(crate) fn banded_tiles<T: Send>(
    team: &Team<'_>,
    out: &mut [T],
    width: usize,
    bands: &[Range<usize>],
    tile_cols: usize,
    task: &(dyn Fn(usize, &mut Tile<'_, T>) -> Result<()> + Sync),
) -> Result<()> {
    let tile_cols = tile_cols.max(1);
    let rows = out.len().checked_div(width).unwrap_or(0);
    let mut end = 0;
    for band in bands {
        if band.start < end || band.end < band.start || band.end > rows {
            return Err(Error::Internal { message: format!("rows {band:?} of {rows}, after {end}") });
        }
        end = band.end;
    }
    let across = width.div_ceil(tile_cols);
    let base = Base(out.as_mut_ptr());
    let base = &base;
    team.run(bands.len() * across, &|i| {
        let (band, c) = (i / across, i % across * tile_cols);
        let cols = c..(c + tile_cols).min(width);
        task(band, &mut Tile { base: base.0, width, rows: bands[band].clone(), cols, _matrix: PhantomData })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::CancelFlag;
    use crate::pool::Pool;

    #[test]
    fn tiles_cover_every_cell_once() {
        let pool = Pool::new(3).unwrap();
        let team = pool.team(&CancelFlag::new()).unwrap();
        for (rows, width, shape) in
            [(1, 7, (1, 3)), (5, 8, (2, 8)), (4, 9, (3, 4)), (3, 5, (0, 0)), (0, 4, (1, 1))]
        {
            let mut out = vec![0.0f32; rows * width];
            tiles(&team, &mut out, width, shape, &|tile| {
                let (rows, cols) = (tile.rows(), tile.cols());
                for r in rows {
                    for (x, c) in tile.row(r).iter_mut().zip(cols.clone()) {
                        *x += (r * width + c + 1) as f32;
                    }
                }
                Ok(())
            })
            .unwrap();
            assert!(out.iter().enumerate().all(|(i, &x)| x == (i + 1) as f32), "{rows}x{width} {shape:?}");
        }
    }

    #[test]
    fn runs_cover_every_cell_once() {
        let pool = Pool::new(3).unwrap();
        let team = pool.team(&CancelFlag::new()).unwrap();
        for (rows, width, shape) in
            [(1, 70, (16, 4)), (5, 8, (1, 3)), (4, 9, (2, 100)), (3, 5, (0, 0)), (0, 4, (1, 1))]
        {
            let mut out = vec![0.0f32; rows * width];
            runs(&team, &mut out, width, shape, &|tile| {
                let (row, cols) = (tile.rows().start, tile.cols());
                assert_eq!(tile.rows().len(), 1);
                assert!(cols.len() <= shape.0.max(1) * shape.1.max(1));
                for (x, c) in tile.row(row).iter_mut().zip(cols) {
                    *x += (row * width + c + 1) as f32;
                }
                Ok(())
            })
            .unwrap();
            assert!(out.iter().enumerate().all(|(i, &x)| x == (i + 1) as f32), "{rows}x{width} {shape:?}");
        }
    }

    #[test]
    fn bands_may_differ_in_height_but_not_overlap() {
        let pool = Pool::new(3).unwrap();
        let team = pool.team(&CancelFlag::new()).unwrap();
        let mut out = vec![0.0f32; 7 * 5];
        banded_tiles(&team, &mut out, 5, &[0..1, 1..1, 2..5, 5..7], 2, &|band, tile| {
            tile.rows().for_each(|r| tile.row(r).iter_mut().for_each(|x| *x += band as f32 + 1.0));
            Ok(())
        })
        .unwrap();
        let rows = [1.0, 0.0, 3.0, 3.0, 3.0, 4.0, 4.0];
        assert!(out.chunks(5).zip(rows).all(|(row, x)| row == [x; 5]), "{out:?}");
        for bands in [&[0..3, 2..4][..], &[3..4, 0..1], &[0..1, 1..8]] {
            assert!(banded_tiles(&team, &mut out, 5, bands, 2, &|_, _| Ok(())).is_err(), "{bands:?}");
        }
    }
}
