//! Which expert to evict. Pure: policies know ids and the order of use, nothing of slots or files.

mod cyclic;
mod lru;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use super::slot::ExpertId;
use crate::Error;

/// How the expert cache chooses what to evict. Changes speed, never a result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CachePolicy {
    /// The expert whose last use is longest ago, the policy of the technical report.
    Lru,
    /// The expert whose next use is expected last, from how often tokens chose it lately and from when its layer comes
    /// round again. The default: it reads less and decodes faster on every trace so far.
    #[default]
    Cyclic,
}

impl CachePolicy {
    /// Every policy.
    pub const ALL: [CachePolicy; 2] = [CachePolicy::Lru, CachePolicy::Cyclic];

    /// Its name: "lru" or "cyclic".
    pub const fn name(self) -> &'static str {
        match self {
            CachePolicy::Lru => "lru",
            CachePolicy::Cyclic => "cyclic",
        }
    }

    /// The policy for a model of so many layers with so many experts each.
    pub(crate) fn start(self, layers: usize, experts: usize) -> Box<dyn Policy> {
        match self {
            CachePolicy::Lru => Box::new(lru::Lru::new(layers, experts)),
            CachePolicy::Cyclic => Box::new(cyclic::Cyclic::new(layers, experts)),
        }
    }
}

impl fmt::Display for CachePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CachePolicy {
    type Err = Error;

    fn from_str(name: &str) -> Result<CachePolicy, Error> {
        CachePolicy::ALL.into_iter().find(|p| p.name() == name).ok_or_else(|| {
            let names = CachePolicy::ALL.map(CachePolicy::name).join(", ");
            Error::argument("cache_policy", format!("{name:?}"), names)
        })
    }
}

/// A policy at work: it is told who is in the cache and who is used, and names who should go.
pub(crate) trait Policy: Send {
    /// A pass has come to `layer` with `tokens` tokens, `uses[e]` of which chose its expert `e`, here or not.
    fn turn(&mut self, layer: usize, tokens: usize, uses: &[u32]);

    /// An expert has got a slot.
    fn inserted(&mut self, id: ExpertId);

    /// An expert has lost its slot.
    fn removed(&mut self, id: ExpertId);

    /// Who should lose its slot, of those that have one and that `may_go`.
    fn victim(&mut self, may_go: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId>;
}
