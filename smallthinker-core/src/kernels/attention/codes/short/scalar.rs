//! The reference.

use super::super::super::scalar::{fma, widened};
use super::super::scalar::Eight;
use super::super::{LANES, NOT_FINITE, SQUARES, Square};
use super::{DITHER, MOST, Mix, Stretch, inside, squares, stretching, worth};

pub(in super::super) fn stretch(s: Stretch<'_>) {
    for square in squares(&s.positions) {
        let mut greatest = [0.0; LANES];
        let mut finite = true;
        for position in inside(&s.positions, square) {
            let columns = s.values.iter().skip(square).step_by(SQUARES);
            let scale = columns.map(|values| values.scales[position]).max().unwrap_or(0);
            finite &= scale < NOT_FINITE;
            let usable = (1..NOT_FINITE).contains(&scale);
            let scale = if usable { widened(scale) } else { 0.0 };
            greatest[position] = scale;
            s.inverses[square * LANES + position] = if usable { 1.0 / scale } else { 0.0 };
        }
        for (weights, peaks) in s.weights.iter_mut().zip(&mut *s.peaks).take(s.rows) {
            let weights = &mut weights.as_chunks_mut::<LANES>().0[square];
            weights.iter_mut().zip(greatest).for_each(|(w, scale)| *w *= scale);
            let (by, most) = stretching(weights.iter().fold(0.0, |m: f32, w| m.max(*w)));
            peaks[square] = if finite { most } else { f32::NAN };
            weights.iter_mut().for_each(|w| *w *= by);
        }
    }
}

pub(in super::super) fn mix(m: Mix<'_>) {
    let mut room = Square::EMPTY;
    for s in squares(&m.positions) {
        let square = m.values[s].eight(&mut room);
        let inverses = &m.inverses.as_chunks::<LANES>().0[s];
        for (r, out) in m.out.chunks_mut(m.width).enumerate().take(m.rows) {
            let weights = &m.weights[r].as_chunks::<LANES>().0[s];
            let mut dots = [0_i32; LANES];
            for position in inside(&m.positions, s) {
                let ratio = widened(square.scales[position]) * inverses[position];
                // Of what is not a number any integer will do: the peak or the row's sum of weights is not one either.
                let steps = fma(weights[position], ratio, DITHER[position % DITHER.len()]).min(MOST) as i32;
                let four = &square.codes[position / 4 * 4 * LANES..][..4 * LANES];
                let codes = four.iter().skip(position % 4).step_by(4);
                dots.iter_mut().zip(codes).for_each(|(dot, code)| *dot += steps * i32::from(*code));
            }
            let factor = m.peaks[r][s] * worth(m.gains[r]);
            out.iter_mut().zip(dots).for_each(|(out, dot)| *out = fma(dot as f32, factor, *out));
        }
    }
}
