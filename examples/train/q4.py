"""Training that knows it will be rounded: weights as a Q4_0 file holds them, with the gradient of the exact ones."""
import jax
import jax.numpy as jnp

KEPT = ("router", "attn_norm", "ffn_norm", "norm")  # float32 in a GGUF


def q4_0(w):
    """w with every 32 consecutive elements of its last axis rounded to 16 steps: the value of largest magnitude is -8
    steps, and the step is a float16."""
    blocks = w.reshape(*w.shape[:-1], -1, 32)
    high, low = blocks.max(-1, keepdims=True), blocks.min(-1, keepdims=True)
    step = jnp.where(-low > high, low, high) / -8
    inverse = jnp.where(step == 0, 0.0, 1 / jnp.where(step == 0, 1.0, step))
    code = jnp.clip(jnp.floor(blocks * inverse + 8.5), 0, 15) - 8
    return (code * step.astype(jnp.float16).astype(jnp.float32)).reshape(w.shape)


def straight_through(params):
    """The parameters with rounded values; differentiating passes through the rounding."""
    rounded = lambda w: w + jax.lax.stop_gradient(q4_0(w) - w)
    return {k: v if k in KEPT else rounded(v) for k, v in params.items()}
