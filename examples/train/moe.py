"""The mixture of experts: choosing, batching, computing and balancing.

Token-slots (a token and one of its chosen experts) are sorted by expert into blocks of rows that belong to one
expert each, so that all experts together are three batched matrix products of static shape. No token is dropped.
"""
import math

import jax
import jax.numpy as jnp


@jax.custom_vjp
def take(x, index, inverse):
    """x[index], a zero row where the index is len(x). `inverse` [len(x), copies] lists the places of `index` where
    each row of x went (len(index) for nowhere), so that the gradient is a gather too: scattering is slow everywhere."""
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


def take_forward(x, index, inverse):
    """The value of `take` and what its gradient needs."""
    return take(x, index, inverse), inverse


def take_backward(inverse, grad):
    """The gradient of `take`: every row collects from where it went."""
    return jnp.take(grad, inverse, axis=0, mode="fill", fill_value=0).sum(1), None, None


take.defvjp(take_forward, take_backward)


def places(ids, n_experts, block):
    """Where each token-slot goes. ids [slots] -> (place [slots], slot of each place or `slots` if empty, owner of
    each block). There are at most slots / block + experts blocks, whatever the routing.

    A slot's rank within its expert is a running count. It is taken inside chunks by a triangular matrix product and
    between chunks by a short cumulative sum; whole numbers below 2**24 are exact in float32."""
    slots = ids.shape[0]
    chunk = math.gcd(slots, 256)
    one_hot = jax.nn.one_hot(ids.reshape(-1, chunk), n_experts, dtype=jnp.float32)
    earlier = jnp.tril(jnp.ones((chunk, chunk)), -1)
    in_chunk = jnp.einsum("ij,cje->cie", earlier, one_hot)
    totals = one_hot.sum(1)
    before_chunk = jnp.cumsum(totals, 0) - totals
    blocks = jnp.ceil(totals.sum(0) / block).astype(jnp.int32)
    last = jnp.cumsum(blocks)
    start = ((last - blocks) * block).astype(jnp.float32)
    place = ((in_chunk + before_chunk[:, None] + start) * one_hot).sum(-1).reshape(-1).astype(jnp.int32)
    n_blocks = -(-slots // block) + n_experts
    owner = jnp.clip(jnp.searchsorted(last, jnp.arange(n_blocks), side="right"), 0, n_experts - 1)
    slot = jnp.full((n_blocks * block,), slots, jnp.int32).at[place].set(jnp.arange(slots), unique_indices=True)
    return place, slot, owner


def experts(k, how, x, logits, gate, up, down):
    """The weighted sum of the k chosen experts for x [B, T, hidden], router logits [B, T, experts] -> [B, T, hidden],
    and a report: `share` [B, experts] of each row's token-slots; `sparsity`, the share of zeros after ReLU; `density`,
    a smooth count of the others: (sum a)^2 / (f sum a^2) is m / f for m equal activations, whatever their size."""
    batch, length, width = x.shape
    e, f = gate.shape[:2]
    n = batch * length
    top, ids = jax.lax.top_k(logits.reshape(n, e), k)
    weight = jax.nn.sigmoid(top)
    weight = weight / weight.sum(-1, keepdims=True)

    place, slot, owner = places(ids.reshape(-1), e, how.block)
    rows = take(x.reshape(n, width).astype(how.dtype), slot // k, place.reshape(n, k))
    rows = rows.reshape(-1, how.block, width)
    # A copy per block; converted after it, so that gradients add up in float32.
    gate, up, down = (w[owner].astype(how.dtype) for w in (gate, up, down))
    activation = jax.nn.relu(jnp.einsum("nbh,nfh->nbf", rows, gate))
    y = jnp.einsum("nbf,nhf->nbh", activation * jnp.einsum("nbh,nfh->nbf", rows, up), down)
    y = take(y.reshape(-1, width), place, slot[:, None]).reshape(n, k, width)
    y = jnp.sum(y.astype(jnp.float32) * weight[..., None], 1).reshape(batch, length, width)

    share = jax.nn.one_hot(ids.reshape(batch, -1), e).mean(1)
    # Rows without a token are zero in both, so only real ones count.
    active = jnp.sum(activation > 0, dtype=jnp.float32) / (n * k * f)
    a = activation.astype(jnp.float32)
    density = jnp.sum(a.sum(-1) ** 2 / (f * (a * a).sum(-1) + 1e-6)) / (n * k)
    return y, {"share": share, "sparsity": 1 - active, "density": density}


def balance_loss(share, probability, group):
    """The load-balance loss with every `group` consecutive rows balanced by themselves; share and probability
    [layers, rows, experts] -> the mean over layers and groups of experts * sum(share * probability). Equal load gives
    1.0; what a group does not see does not bind it."""
    layers, _, e = share.shape
    share, probability = (x.reshape(layers, -1, group, e).mean(2) for x in (share, probability))
    return e * jnp.mean(jnp.sum(share * probability, -1))
