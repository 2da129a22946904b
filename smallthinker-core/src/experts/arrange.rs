//! Bringing experts into the layout that they are computed in, once they have been read. Compute threads do it, when the pass
//! needs the expert: readers would take turns with them on the same cores, and the one that has to wait holds up the others.

use super::slot::{ExpertId, Slot};
use super::{ExpertCache, Shared};
use crate::Result;
use crate::model::expert_index::ExpertMatrix;
use crate::pool::Team;
use crate::tensor::packed::Band;
use crate::tiles::runs;

/// What one task rearranges: some rows of a matrix.
struct Part<'a> {
    matrix: &'a ExpertMatrix,
    shard: usize,
    offset: u64,
    /// The rows, as in the file.
    file: &'a [u8],
    /// Their place.
    band: Band<'a>,
}

impl ExpertCache {
    /// Makes an expert that was [taken](super::slot::State::take_raw) ready, or failed.
    pub(super) fn arrange(&self, id: ExpertId, mut pieces: Slot, mut spare: Slot, team: &Team<'_>) {
        let result = arrange(&self.shared, id, &mut pieces, &mut spare, team);
        self.shared.lock().arranged(id, pieces, spare, result);
        self.shared.changed.notify_all();
    }
}

/// Rearranges the raw pieces of an expert. They trade places with those of `spare`, so that nothing is copied twice.
fn arrange(
    shared: &Shared,
    (layer, expert): ExpertId,
    pieces: &mut Slot,
    spare: &mut Slot,
    team: &Team<'_>,
) -> Result<()> {
    let experts = &shared.index.layers[layer];
    let mut parts: Vec<Part<'_>> = Vec::new();
    for ((m, piece), (from, to)) in
        experts.matrices().into_iter().zip(&experts.pieces).zip(pieces.iter().zip(spare.iter_mut()))
    {
        if !from.raw {
            continue;
        }
        let mut offset = piece.place(expert);
        let bands =
            Band::all(m.dtype, m.layout, m.rows, m.cols, to.slab.get_mut(..m.slot_bytes).unwrap_or(&mut []));
        for (file, band) in from.get(0..piece.bytes).chunks(m.band_bytes().max(1)).zip(bands) {
            parts.push(Part { matrix: m, shard: piece.shard, offset, file, band });
            offset += file.len() as u64;
        }
    }
    let (width, bytes) = (parts.len(), parts.iter().map(|part| part.file.len()).sum());
    runs(&team.for_bytes(bytes), &mut parts, width, (1, 1), &|tile| {
        for Part { matrix: m, shard, offset, file, band } in tile.row(0) {
            shared.source.check_blocks(m.dtype, *shard, *offset, file)?;
            band.pack(m.dtype, m.layout, file, m.cols);
        }
        Ok(())
    })?;
    drop(parts);
    for (from, to) in pieces.iter_mut().zip(spare.iter_mut()).filter(|(from, _)| from.raw) {
        std::mem::swap(from, to);
        (from.at, from.raw) = (0, false);
    }
    Ok(())
}
