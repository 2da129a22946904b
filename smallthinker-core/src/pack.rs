//! Packs a model file: the experts of the copy lie as they do in memory, so that one read brings one of them, straight into
//! its place. Worth it for a model that does not fit the memory budget; `pack_format` describes the file.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::gguf::{ALIGNMENT_KEY, Gguf, GgufWriter, TensorInfo, TensorStream};
use crate::model::Directory;
use crate::model::expert_index::{ExpertIndex, LayerExperts, Part};
use crate::model::pack_format::{self, VERSION_KEY};
use crate::tensor::DType;
use crate::tensor::packed::{Layout, pack as pack_matrix};
use crate::{Error, Result};

/// Bytes of a tensor copied at a time.
const CHUNK: usize = 4 << 20;

/// How to pack.
#[derive(Default)]
pub struct PackOptions<'p> {
    /// Called with the bytes of tensor data written so far and the bytes to write; returns false to cancel.
    pub progress: Option<&'p mut (dyn FnMut(u64, u64) -> bool + 'p)>,
}

/// What was packed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PackReport {
    /// Tensors written.
    pub tensors: usize,
    /// Experts packed, of all layers.
    pub experts: usize,
    /// Bytes of tensor data written.
    pub data_bytes: u64,
}

/// Packs the model file `input` (any shard of a sharded one) to the single file `out`, which appears only when it is
/// complete. Everything but the experts is copied as it is.
///
/// # Errors
/// Those of [`Model::open`](crate::Model::open), also for weights that it would refuse only when it reads them;
/// [`Error::Unsupported`] if `input` is packed already; [`Error::InvalidArgument`] if `out` is `input`; [`Error::Io`];
/// [`Error::Cancelled`].
pub fn pack(input: &Path, out: &Path, options: PackOptions<'_>) -> Result<PackReport> {
    let gguf = Gguf::open(input)?;
    if pack_format::is_packed(&gguf)? {
        let found = "a file that is packed already";
        return Err(Error::unsupported(gguf.path(), VERSION_KEY, found, "files that are not packed"));
    }
    refuse_input(&gguf, out)?;
    let Directory { index, .. } = Directory::read(&gguf, None)?;
    let layers: Vec<Packed<'_>> =
        index.layers.iter().map(|l| Packed::new(&gguf, l)).collect::<Result<_>>()?;
    let planned = plan(&gguf, &index);

    let mut writer = GgufWriter::new();
    let added = pack_format::metadata(&index);
    // The copy is one file whatever the input is.
    let kept = |key: &str| key != ALIGNMENT_KEY && !key.starts_with("split.");
    for (key, value) in gguf.metadata().filter(|(key, _)| kept(key)) {
        writer.metadata(key, value.clone())?;
    }
    for (key, value) in added {
        writer.metadata(&key, value)?;
    }
    for tensor in &planned {
        match tensor {
            Planned::Copy(t) => writer.tensor(&t.name, t.dtype, &t.dims)?,
            Planned::Experts(i) => {
                let dims = [layers[*i].bytes as u64, index.n_experts as u64];
                writer.tensor(&pack_format::tensor_name(*i), DType::I8, &dims)?;
            }
        }
    }
    let total = writer.data_bytes();
    let stream = writer.create(out)?;
    let mut job = Job { gguf: &gguf, stream, progress: options.progress, done: 0, total, buffer: Vec::new() };
    for tensor in &planned {
        match tensor {
            Planned::Copy(t) => job.copy(t)?,
            Planned::Experts(i) => job.experts(&layers[*i], index.n_experts)?,
        }
    }
    job.stream.finish()?;
    Ok(PackReport { tensors: planned.len(), experts: index.experts(), data_bytes: total })
}

/// The input is what other engines read: it must not be lost by a slip.
fn refuse_input(gguf: &Gguf, out: &Path) -> Result<()> {
    let Ok(place) = out.canonicalize() else { return Ok(()) };
    let mut shards = (0..gguf.source().n_shards()).map(|shard| gguf.source().path(shard));
    match shards.any(|shard| shard.canonicalize().is_ok_and(|shard| shard == place)) {
        true => Err(Error::argument("out", out.display(), "another file than the one to pack")),
        false => Ok(()),
    }
}

/// One tensor to write.
enum Planned<'g> {
    Copy(&'g TensorInfo),
    /// The experts of a layer.
    Experts(usize),
}

/// The tensors in the order of the input; the experts of a layer stand where the first of their tensors was.
fn plan<'g>(gguf: &'g Gguf, index: &ExpertIndex) -> Vec<Planned<'g>> {
    let names = |i: usize| Part::ALL.map(|part| (part.tensor(i), i));
    let layer_of: HashMap<String, usize> = (0..index.layers.len()).flat_map(names).collect();
    let mut planned = HashSet::new();
    let tensor = |t: &'g TensorInfo| match layer_of.get(&t.name) {
        None => Some(Planned::Copy(t)),
        Some(i) => planned.insert(*i).then_some(Planned::Experts(*i)),
    };
    gguf.tensors().iter().filter_map(tensor).collect()
}

/// The experts of a layer, as they are and as they are going to be.
struct Packed<'i> {
    from: &'i LayerExperts,
    to: LayerExperts,
    /// Of one expert.
    bytes: usize,
}

impl Packed<'_> {
    fn new<'i>(gguf: &Gguf, from: &'i LayerExperts) -> Result<Packed<'i>> {
        let mut to = from.clone();
        let too_large = || {
            Error::unsupported(gguf.path(), "size of an expert", from.expert_bytes(), "sizes that fit memory")
        };
        let bytes = pack_format::join(&mut to).ok_or_else(too_large)?;
        Ok(Packed { from, to, bytes })
    }
}

/// The packing in progress.
struct Job<'a, 'p> {
    gguf: &'a Gguf,
    stream: TensorStream,
    progress: Option<&'p mut (dyn FnMut(u64, u64) -> bool + 'p)>,
    done: u64,
    total: u64,
    /// Scratch: bytes as they are in the input.
    buffer: Vec<u8>,
}

impl Job<'_, '_> {
    fn copy(&mut self, tensor: &TensorInfo) -> Result<()> {
        let mut at = 0;
        while at < tensor.n_bytes {
            let bytes = (tensor.n_bytes - at).min(CHUNK as u64);
            self.buffer.resize(bytes as usize, 0);
            self.gguf.source().read_exact_at(tensor.shard, tensor.offset + at, &mut self.buffer)?;
            self.stream.write(&self.buffer)?;
            at += bytes;
            self.wrote(bytes)?;
        }
        Ok(())
    }

    fn experts(&mut self, layer: &Packed<'_>, n_experts: usize) -> Result<()> {
        let source = self.gguf.source();
        // What lies between matrices stays zero.
        let mut packed = vec![0; layer.bytes];
        for expert in 0..n_experts {
            for (m, piece) in layer.to.matrices().into_iter().zip(&layer.from.pieces) {
                let place = packed.get_mut(m.range()).unwrap_or(&mut []);
                let offset = piece.place(expert);
                if m.layout == Layout::Rows {
                    source.read_exact_at(piece.shard, offset, place)?;
                } else {
                    self.buffer.resize(piece.bytes, 0);
                    source.read_exact_at(piece.shard, offset, &mut self.buffer)?;
                    source.check_blocks(m.dtype, piece.shard, offset, &self.buffer)?;
                    pack_matrix(m.dtype, m.layout, &self.buffer, 0, m.rows, m.cols, place);
                }
            }
            self.stream.write(&packed)?;
            self.wrote(layer.bytes as u64)?;
        }
        Ok(())
    }

    fn wrote(&mut self, bytes: u64) -> Result<()> {
        self.done += bytes;
        match self.progress.as_mut().is_none_or(|report| report(self.done, self.total)) {
            true => Ok(()),
            false => Err(Error::Cancelled),
        }
    }
}
