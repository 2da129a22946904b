//! Experts with packed weights for many tokens, some experts at a time: together they have enough work for all
//! threads, who then wait for each other three times per group, not per expert.

use std::iter::repeat;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use crate::Result;
use crate::experts::ExpertSlot;
use crate::forward::Pass;
use crate::forward::clock::Stage;
use crate::forward::linear::{Batch, TaskBuffers, arrange, gemm, panels};
use crate::forward::moe::MoeScratch;
use crate::forward::moe_batch::User;
use crate::forward::neurons::NEURONS;
use crate::kernels::gemm::{ActTiles, PanelRows, PanelSource, block_places};
use crate::kernels::{ActGroup, ActRow, Acts, GROUP, Kernels};
use crate::model::expert_index::{LayerExperts, Part};
use crate::pool::Team;
use crate::tensor::packed::TILE;
use crate::tiles::{banded_tiles, tiles};

/// Most experts of a group.
pub(crate) const MOST_EXPERTS: usize = 16;

/// An expert of a group, and the tokens that chose it.
struct Member<'a> {
    slot: Arc<ExpertSlot>,
    users: &'a [User],
}

/// Adds the experts' outputs to `y`, those of each token in ascending order of expert number.
pub(super) fn experts(
    pass: &mut Pass<'_>,
    layer: usize,
    parts: &LayerExperts,
    users: &[Vec<User>],
    xs: &Acts,
    s: &mut MoeScratch,
    y: &mut [f32],
) -> Result<()> {
    let (team, kernels, cache) = (pass.team, pass.kernels, pass.cache);
    let touched: Vec<usize> = (0..users.len()).filter(|&e| !users[e].is_empty()).collect();
    let mut rest = &touched[..];
    while !rest.is_empty() {
        // The other slots are for experts on their way. Sessions may take slots meanwhile, but not these.
        let hold = cache.hold(MOST_EXPERTS);
        let most = hold.experts;
        let (group, later) =
            rest.split_at(group_size(rest.iter().map(|&e| users[e].len()), xs.tokens(), most));
        rest = later;
        let acquire = |&e: &usize| {
            let slot = cache.acquire((layer, e), team, pass.cancel)?;
            Ok(Member { slot, users: &users[e] })
        };
        let members: Vec<Member<'_>> = group.iter().map(acquire).collect::<Result<_>>()?;
        cache.remind(most);
        pass.request_guess(layer);
        pass.clock.lap(Stage::Wait);
        let sizes: Vec<usize> = members.iter().map(|m| m.users.len()).collect();
        let (rows, spare) = s.batch.parts();
        arrange(team, xs, &sizes, &|e, i| members[e].users[i].0, rows)?;
        let sources = |part| -> Vec<PanelSource<'_>> {
            members.iter().map(|m| panels(&m.slot.matrix(parts, part))).collect()
        };
        neurons(team, kernels, [&sources(Part::Gate), &sources(Part::Up)], rows, spare, &mut s.tiles)?;
        pass.clock.lap(Stage::GateUp);
        down(team, kernels, &sources(Part::Down), &s.tiles, spare, &members, y)?;
        pass.clock.lap(Stage::Down);
        let bytes = |slot_bytes: usize| (members.len() * slot_bytes) as u64;
        pass.clock.bytes(Stage::GateUp, bytes(parts.gate.slot_bytes + parts.up.slot_bytes));
        pass.clock.bytes(Stage::Down, bytes(parts.down.slot_bytes));
    }
    Ok(())
}

/// How many of the next experts make a group, given how many tokens chose each: those that have no more vectors
/// together than a single expert may have, so that groups need no more memory.
fn group_size(users: impl Iterator<Item = usize>, tokens: usize, most: usize) -> usize {
    let mut sum = 0;
    let fits = |n: &usize| {
        sum += n;
        sum <= tokens
    };
    users.take(most).take_while(fits).count().max(1)
}

/// `relu(gate x) ⊙ (up x)` of each expert's vectors, quantized, 32 neurons per task.
fn neurons(
    team: &Team<'_>,
    kernels: &Kernels,
    [gates, ups]: [&[PanelSource<'_>]; 2],
    xs: &ActTiles,
    spare: &Mutex<Vec<TaskBuffers>>,
    out: &mut ActTiles,
) -> Result<()> {
    let bands = xs.batches();
    let sizes = (0..bands.len()).map(|e| xs.batch(e).tokens());
    let blocks = out.prepare(sizes, gates.first().map_or(0, |g| g.rows));
    let places = out.tiles();
    let mut block_at = vec![0; blocks];
    block_places(blocks).into_iter().enumerate().for_each(|(block, place)| block_at[place] = block);
    banded_tiles(team, out.blocks_mut(), blocks, &bands, 1, &|e, tile| {
        let at = tile.cols().start;
        let rows_of = |place: usize| NEURONS * block_at[place]..NEURONS * (block_at[place] + 1);
        let (gate, up, rows, xs) = (gates[e], ups[e], rows_of(at), xs.batch(e));
        // What this thread is likely to do next.
        let next = match at + 1 < blocks {
            true => gate.unit(rows_of(at + 1).start),
            false => gates.get(e + 1).map_or([&[][..]; 2], |gate| gate.unit(rows_of(0).start)),
        };
        Batch::with(spare, |buffers| {
            let TaskBuffers { gemm: scratch, out: [gates, ups], groups } = buffers;
            let up_next = up.unit(rows.start);
            gemm(kernels, &PanelRows { next: up_next, ..gate.rows(rows.clone()) }, xs, scratch, gates)?;
            gemm(kernels, &PanelRows { next, ..up.rows(rows) }, xs, scratch, ups)?;
            let n = xs.tokens() * NEURONS;
            let (gates, ups) = (&mut gates[..n], &ups[..n]);
            kernels.relu_mul(gates, ups)?;
            // A block of each of eight vectors makes a group.
            groups.resize(n.div_ceil(GROUP), ActGroup::ZERO);
            kernels.quantize_acts(gates, groups)?;
            let all = ActRow { cols: n, values: gates, groups, lanes: &[] };
            for t in tile.rows() {
                let to = &mut tile.row(t)[0];
                for (place, token) in places[t].1.clone().enumerate() {
                    all.block(token).iter().for_each(|block| to.put(place, block));
                }
            }
            Ok(())
        })
    })
}

/// Adds the down projections, times the choices' weights, to the rows of `y` that chose the experts. A task makes some
/// outputs of all experts: their sums stay in its cache.
fn down(
    team: &Team<'_>,
    kernels: &Kernels,
    downs: &[PanelSource<'_>],
    neurons: &ActTiles,
    spare: &Mutex<Vec<TaskBuffers>>,
    members: &[Member<'_>],
    y: &mut [f32],
) -> Result<()> {
    let hidden = downs.first().map_or(0, |d| d.rows);
    let tokens = y.len() / hidden.max(1);
    tiles(team, y, hidden, (tokens, TILE), &|tile| {
        let cols: Range<usize> = tile.cols();
        Batch::with(spare, |buffers| {
            let out = &mut buffers.out[0];
            let next = downs.iter().skip(1).map(|d| d.unit(cols.start)).chain(repeat([&[][..]; 2]));
            for (e, ((member, down), next)) in members.iter().zip(downs).zip(next).enumerate() {
                let rows = PanelRows { next, ..down.rows(cols.clone()) };
                gemm(kernels, &rows, neurons.batch(e), &mut buffers.gemm, out)?;
                let out = out.chunks_exact(cols.len().max(1));
                for ((t, weight), out) in member.users.iter().zip(out) {
                    kernels.add_scaled(tile.row(*t), *weight, out)?;
                }
            }
            Ok(())
        })
    })
}
