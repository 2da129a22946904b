//! Keys and values of every kind, and attention to them in `f64`.

use super::*;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    F16,
    F32,
    Q8,
    Q4,
}

/// Keys and values of a block.
pub(super) enum Block {
    F16([Vec<Line<u16>>; 2]),
    F32([Vec<Line<f32>>; 2]),
    Q8([Vec<Square>; 2]),
    Q4([Vec<Square4>; 2]),
}

impl Block {
    pub(super) fn sides(&self) -> [Lines<'_>; 2] {
        match self {
            Block::F16(sides) => sides.each_ref().map(|side| Lines::F16(side)),
            Block::F32(sides) => sides.each_ref().map(|side| Lines::F32(side)),
            Block::Q8(sides) => sides.each_ref().map(|side| Lines::Q8(side)),
            Block::Q4(sides) => sides.each_ref().map(|side| Lines::Q4(side)),
        }
    }
}

/// Keys and values of some blocks as plain rows, of numbers that their kind can hold.
pub(super) struct Cache {
    pub(super) head_dim: usize,
    pub(super) keys: Vec<Vec<f32>>,
    pub(super) values: Vec<Vec<f32>>,
    pub(super) kind: Kind,
}

/// The scale of 32 codes at a position, in tests.
pub(super) fn scale(position: usize, chunk: usize) -> half::f16 {
    half::f16::from_f32(1e-3 * (5 + (position * 7 + chunk * 3) % 11) as f32)
}

impl Cache {
    pub(super) fn new(rng: &mut Rng, head_dim: usize, blocks: usize, kind: Kind) -> Cache {
        let round = |x: f32, position: usize, d: usize| match kind {
            Kind::F16 => half::f16::from_f32(x).to_f32(),
            Kind::F32 => x,
            Kind::Q8 => (x * 63.0).round() * scale(position, d / LANES).to_f32(),
            // Odd numbers up to 15.
            Kind::Q4 => {
                ((x * 4.0).floor() * 2.0 + 1.0).clamp(-15.0, 15.0) * scale(position, d / LANES).to_f32()
            }
        };
        let mut rows = |scale: f32| -> Vec<Vec<f32>> {
            let mut row = |p: usize| -> Vec<f32> {
                rng.vector(head_dim).into_iter().enumerate().map(|(d, x)| round(x * scale, p, d)).collect()
            };
            (0..blocks * BLOCK).map(&mut row).collect()
        };
        Cache { head_dim, keys: rows(2.0), values: rows(1.0), kind }
    }

    pub(super) fn lines<E: Copy + Default>(
        &self,
        block: usize,
        convert: impl Fn(f32) -> E,
    ) -> [Vec<Line<E>>; 2] {
        let zero = Line([E::default(); LANES]);
        let mut keys = vec![zero; key_lines(self.head_dim)];
        let mut values = vec![zero; value_lines(self.head_dim)];
        for p in 0..BLOCK {
            for d in 0..self.head_dim {
                keys[p / 32 * self.head_dim + d].0[p % 32] = convert(self.keys[block * BLOCK + p][d]);
                values[d / 32 * BLOCK + p].0[d % 32] = convert(self.values[block * BLOCK + p][d]);
            }
        }
        [keys, values]
    }

    pub(super) fn squares<S: Coded>(&self, zero: S, block: usize) -> [Vec<S>; 2] {
        let mut keys = vec![zero; squares(self.head_dim)];
        let mut values = keys.clone();
        for p in 0..BLOCK {
            let at = block * BLOCK + p;
            for d in 0..self.head_dim {
                let scale = scale(at, d / 32);
                let (k, v) = (p / 32 * self.head_dim.div_ceil(32) + d / 32, d / 32 * (BLOCK / 32) + p / 32);
                keys[k].scales_mut()[p % 32] = scale.to_bits();
                values[v].scales_mut()[p % 32] = scale.to_bits();
                let code = |x: f32| (x / scale.to_f32()).round() as i8;
                keys[k].set_code(S::key(p % 32, d % 32), code(self.keys[at][d]));
                values[v].set_code(S::value(p % 32, d % 32), code(self.values[at][d]));
            }
        }
        [keys, values]
    }

    /// A block as the kernels take it.
    pub(super) fn block(&self, block: usize) -> Block {
        match self.kind {
            Kind::F16 => Block::F16(self.lines(block, |x| half::f16::from_f32(x).to_bits())),
            Kind::F32 => Block::F32(self.lines(block, |x| x)),
            Kind::Q8 => Block::Q8(self.squares(Square::EMPTY, block)),
            Kind::Q4 => {
                let zero = Square4 { scales: [0; LANES], codes: [0; LANES * LANES / 2] };
                Block::Q4(self.squares(zero, block))
            }
        }
    }

    /// `rows` see all blocks, in spans of two.
    pub(super) fn attend(&self, rows: &mut QueryRows, n: usize) -> Vec<f32> {
        let blocks: Vec<Block> = (0..self.keys.len() / BLOCK).map(|block| self.block(block)).collect();
        self.attend_to(&blocks, |block| blocks.get(block + 1), rows, n)
    }

    /// As `attend`, to these blocks, while those that `announced` returns are announced.
    pub(super) fn attend_to<'b>(
        &self,
        blocks: &[Block],
        announced: impl Fn(usize) -> Option<&'b Block>,
        rows: &mut QueryRows,
        n: usize,
    ) -> Vec<f32> {
        let total = QueryRows::total_len(self.head_dim);
        let mut totals = vec![0.0; n * total];
        for (i, block) in blocks.iter().enumerate() {
            if let Some([keys, values]) = announced(i).map(Block::sides) {
                rows.announce(keys, values);
            }
            let [keys, values] = block.sides();
            rows.add_block(i * BLOCK, keys, values).unwrap();
            if i % 2 == 1 {
                rows.end_span(&mut totals);
            }
        }
        rows.end_span(&mut totals);
        let mut out = vec![f32::NAN; n * self.head_dim];
        for (out, total) in out.chunks_mut(self.head_dim).zip(totals.chunks(total)) {
            finish(total, out);
        }
        out
    }

    pub(super) fn is_coded(&self) -> bool {
        matches!(self.kind, Kind::Q8 | Kind::Q4)
    }

    /// The query that meets the keys: of codes, 32 of 8 bits to a scale.
    pub(super) fn taken(&self, q: &[f32]) -> Vec<f32> {
        if !self.is_coded() {
            return q.to_vec();
        }
        let scale = (std::f64::consts::LOG2_E / (self.head_dim as f64).sqrt()) as f32;
        let part = |part: &[f32]| -> Vec<f32> {
            let part: Vec<f32> = part.iter().map(|x| x * scale).collect();
            let largest = part.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            let step = largest / 127.0;
            part.iter().map(|x| (x * (127.0 / largest)).round_ties_even() * step / scale).collect()
        };
        q.chunks(LANES).flat_map(part).collect()
    }

    /// What a row gets in wide arithmetic, with queries as they are taken, and how far from it is allowed.
    pub(super) fn naive(&self, q: &[f32], seen: &Range<usize>) -> Vec<(f64, f64)> {
        let dot = |k: &Vec<f32>| q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let scores: Vec<f64> =
            self.keys[seen.clone()].iter().map(|k| dot(k) / (self.head_dim as f64).sqrt()).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let all = seen.clone().zip(&weights);
        let value = |p: usize, d: usize| f64::from(self.values[p][d]);
        let of_dim = |d: usize| {
            let want = all.clone().map(|(p, w)| w / sum * value(p, d)).sum();
            let bound = match self.kind {
                // Weights are integers of 15 bits, so that each of up to 256 values of at most 1 is off by 1.5e-5 in
                // either direction; the greatest counts for 1 or more.
                Kind::Q8 => 3e-4,
                Kind::Q4 => {
                    1e-5 + all.clone().map(|(p, _)| self.step(p, d, seen, &weights)).sum::<f64>() / sum
                }
                _ => 3e-6,
            };
            (want, bound)
        };
        (0..self.head_dim).map(of_dim).collect()
    }

    /// Of values of 4 bits: what a step of the weight counts for. The greatest product of a weight and the greatest scale of its
    /// position, among 32 positions, is 255 steps.
    pub(super) fn step(&self, position: usize, dim: usize, seen: &Range<usize>, weights: &[f64]) -> f64 {
        let scale = |p: usize, chunk: usize| f64::from(scale(p, chunk).to_f32());
        let greatest = |p: usize| (0..self.head_dim.div_ceil(LANES)).map(|c| scale(p, c)).fold(0.0, f64::max);
        let first = position / LANES * LANES;
        let same = first.max(seen.start)..(first + LANES).min(seen.end);
        let peak = same.map(|p| weights[p - seen.start] * greatest(p)).fold(0.0, f64::max);
        peak / 255.0 * f64::from(self.values[position][dim].abs()) / scale(position, dim / LANES)
    }
}
