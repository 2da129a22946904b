//! How a text uses a model: which experts, how often, and how many of their neurons (the figures 4 to 6 of the technical
//! report).

use super::trace::PassKind;
use crate::tokenizer::Specials;
use crate::{CancelFlag, Error, Model, Result};

/// What [`profile`] found.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct RoutingProfile {
    /// Tokens of the text.
    pub tokens: usize,
    /// `[layer][expert]`: the share of tokens that used the expert, 0 to 1. A layer's add up to the number of experts that
    /// a token uses.
    pub frequency: Vec<Vec<f64>>,
    /// `[layer]`: of the neurons of the experts used, the share that ReLU set to zero, 0 to 1.
    pub sparsity: Vec<f64>,
}

/// Evaluates `text` token by token, as if the model had written it, in pieces as long as its context.
///
/// Errors: [`Error::InvalidArgument`] for a text without tokens; [`Error::Cancelled`] when `cancel` is set; those of a
/// session.
pub fn profile(model: &Model, text: &str, cancel: &CancelFlag) -> Result<RoutingProfile> {
    let tokens = model.tokenizer().encode(text, Specials::Text)?;
    if tokens.is_empty() {
        return Err(Error::argument("text", "no tokens", "at least one"));
    }
    let h = model.hparams();
    let mut uses = vec![vec![0u64; h.n_experts]; h.n_layers];
    let mut neurons = vec![[0u64; 2]; h.n_layers];
    for piece in tokens.chunks(model.context_length().max(1)) {
        let mut session = model.session()?;
        session.set_cancel_flag(cancel.clone());
        session.record_routing()?;
        for token in piece {
            session.append_tokens(std::slice::from_ref(token))?;
            session.evaluate_as(PassKind::Decode)?;
        }
        for (all, found) in neurons.iter_mut().zip(session.active_neurons()) {
            all.iter_mut().zip(found).for_each(|(all, found)| *all += found);
        }
        let lost = || Error::Internal { message: "a recording without a trace".into() };
        let trace = session.take_routing().ok_or_else(lost)?;
        for pass in trace.passes() {
            for (uses, choices) in uses.iter_mut().zip(pass.layers(trace.shape())) {
                choices.iter().for_each(|&expert| uses[expert as usize] += 1);
            }
        }
    }
    let share = |of: u64, all: u64| if all == 0 { 0.0 } else { of as f64 / all as f64 };
    let frequency = |uses: &Vec<u64>| uses.iter().map(|&n| share(n, tokens.len() as u64)).collect();
    Ok(RoutingProfile {
        tokens: tokens.len(),
        frequency: uses.iter().map(frequency).collect(),
        sparsity: neurons.iter().map(|[active, all]| share(all - active, *all)).collect(),
    })
}
