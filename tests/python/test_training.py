"""The training code of `examples/train` against plain mathematics, the `gguf` package and its own promises."""

import pathlib
import sys

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import checkpoint
import smallthinker

sys.path.append(str(pathlib.Path(__file__).parents[2] / "examples" / "train"))
import merge  # noqa: E402
import model  # noqa: E402
import moe  # noqa: E402
import predictor  # noqa: E402
import q4  # noqa: E402
import shards  # noqa: E402
import store  # noqa: E402
import train  # noqa: E402
from runners import JaxModel  # noqa: E402

TINY = model.Config(vocab=96, layers=4, hidden=32, heads=2, kv_heads=1, head_dim=16, ffn=32,
                    experts=8, top_k=2, window=32)


def normal(seed, *shape):
    return jax.random.normal(jax.random.PRNGKey(seed), shape, jnp.float32)


def dense_experts(k, x, logits, gate, up, down):
    """Every expert for every token, then the weighted sum."""
    top, ids = jax.lax.top_k(logits, k)
    score = jax.nn.sigmoid(top)
    share = (jax.nn.one_hot(ids, len(gate)) * (score / score.sum(-1, keepdims=True))[..., None]).sum(-2)
    hidden = jax.nn.relu(jnp.einsum("bth,efh->btef", x, gate)) * jnp.einsum("bth,efh->btef", x, up)
    return jnp.einsum("btef,ehf,bte->bth", hidden, down, share)


@pytest.mark.parametrize("block, skew", [(8, 0.0), (32, 0.0), (32, 50.0)])
def test_batched_experts_and_their_gradients_equal_dense_ones(block, skew):
    """With `skew` all tokens choose the same experts."""
    x, logits = normal(0, 2, 48, 32), normal(1, 2, 48, 8) + skew * (jnp.arange(8) < 2)
    weights = normal(2, 8, 16, 32), normal(3, 8, 16, 32), normal(4, 8, 32, 16)
    how, weigh = model.Compute(block=block), normal(5, 2, 48, 32)
    ours = lambda *a: jnp.sum(weigh * moe.experts(2, how, *a)[0])
    plain = lambda *a: jnp.sum(weigh * dense_experts(2, *a))
    arguments = (x, logits, *weights)
    for a, b in zip(jax.grad(ours, range(5))(*arguments), jax.grad(plain, range(5))(*arguments)):
        assert jnp.linalg.norm(a - b) <= 1e-4 * jnp.linalg.norm(b)
    y, report = moe.experts(2, how, *arguments)
    assert abs(y - dense_experts(2, *arguments)).max() < 1e-3
    gates = jnp.einsum("bth,efh->btef", x, weights[0])
    chosen = jax.nn.one_hot(jax.lax.top_k(logits, 2)[1], 8).sum(-2)
    active = ((gates > 0) * chosen[..., None]).sum() / (2 * 48 * 2 * 16)
    assert report["sparsity"] == pytest.approx(1 - float(active), abs=1e-6)
    np.testing.assert_allclose(report["share"], chosen.mean(1) / 2, atol=1e-6)


def test_balance_binds_only_inside_a_group():
    """Two rows that use one expert each: unbalanced by themselves, balanced together."""
    share = probability = jnp.eye(2)[None]
    assert float(moe.balance_loss(share, probability, 1)) == pytest.approx(2.0)
    assert float(moe.balance_loss(share, probability, 2)) == pytest.approx(1.0)


def test_attention_chunks_change_nothing():
    """Longer than a chunk, with and without a window, against JAX's own attention."""
    q, k, v = normal(0, 2, 300, 4, 16), normal(1, 2, 300, 2, 16), normal(2, 2, 300, 2, 16)
    for window in (0, 64):
        ours = model.attention(q, k, v, window, model.Compute()).reshape(q.shape)
        local = (window - 1, 0) if window else None
        theirs = jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=local)
        assert abs(ours - theirs).max() < 1e-4


def test_rounding_is_that_of_a_q4_0_file():
    w = np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32)
    w[3, :32] = 0
    kind = gguf.GGMLQuantizationType.Q4_0
    expected = gguf.quants.dequantize(gguf.quants.quantize(w, kind), kind)
    ours = np.asarray(q4.q4_0(jnp.asarray(w)))
    # A value half-way between two steps may go either way.
    assert (np.abs(ours - expected) > 1e-6).mean() < 1e-3
    grad = jax.grad(lambda p: jnp.sum(3 * q4.straight_through(p)["up"]))({"up": jnp.asarray(w)})
    assert (grad["up"] == 3).all()


def test_a_checkpoint_in_parts_is_the_same(tmp_path):
    params = {k: np.asarray(v) for k, v in model.init(TINY, jax.random.PRNGKey(0)).items()}
    limit = 160_000
    store.save_parts(str(tmp_path / "part"), TINY, params, {"step": 3}, limit)
    files = sorted(tmp_path.glob("part.*.npz"))
    assert len(files) > 1 and all(f.stat().st_size <= limit for f in files)
    cfg, loaded, progress = store.load_params(*files)
    assert cfg == TINY and progress == {"step": 3} and loaded.keys() == params.keys()
    for name, value in params.items():
        np.testing.assert_array_equal(loaded[name], value.astype(np.float16).astype(np.float32))


def test_merging_is_the_weighted_mean():
    a, b = {"w": np.float32([1, 2])}, {"w": np.float32([3, 6])}
    np.testing.assert_allclose(merge.merge([a, b])["w"], [2, 4])
    np.testing.assert_allclose(merge.merge([a, b], [0.25, 0.75])["w"], [2.5, 5])
    with pytest.raises(ValueError):
        merge.merge([a, b], [0.5, 0.6])


def test_batches_follow_the_shares_and_can_be_resumed(tmp_path):
    mix = {"a": 0.5, "b": 0.3, "c": 0.2}
    for d, domain in enumerate(mix):
        for i in range(2):
            numbers = d * 1000 + i * 16 + np.arange(16)
            np.save(tmp_path / f"{domain}.{i:05}.npy", np.repeat(numbers[:, None], 5, 1).astype(np.uint16))
    stream = shards.batches(str(tmp_path), mix, groups=4, group=2)
    seen = [next(stream) for _ in range(25)]
    domains = np.concatenate([d for _, d in seen])
    assert np.bincount(domains).tolist() == [50, 30, 20]
    for rows, d in seen:
        assert rows.shape == (8, 5) and (rows[:, 0] // 1000 == np.repeat(d, 2)).all() and (np.diff(d) >= 0).all()
    first = [r[0] for rows, _ in seen for r in rows if r[0] < 1000]
    assert sorted(first[:32]) == list(range(32))  # every row once before any comes again
    again = shards.batches(str(tmp_path), mix, groups=4, group=2, step=20)
    for rows, d in seen[20:]:
        other, e = next(again)
        assert (rows == other).all() and (d == e).all()


def test_files_without_a_whole_group_are_refused(tmp_path):
    np.save(tmp_path / "prose.00000.npy", np.zeros((3, 5), np.uint16))
    with pytest.raises(ValueError, match="prose.00000.npy: 3 rows, at least 4"):
        next(shards.batches(str(tmp_path), {"prose": 1.0}, 1, 4))


def test_snapshots_are_spread_over_the_last_fifth():
    """A stage that goes on from a checkpoint keeps those that it has."""
    assert [train.due(share, 5) for share in (0.0, 0.8, 0.81, 0.84, 0.86, 0.92, 0.96, 1.0)] == [0, 0, 1, 1, 2, 3, 4, 4]
    assert [train.due(1.0, n) for n in (0, 1, 2)] == [0, 0, 1]


def test_the_engine_picks_the_rows_of_the_sketch_in_the_file(model_path, tmp_path):
    """How many rows are within the margin, by the training code and by the engine."""
    checkpoint.export(model_path, tmp_path)
    text = "Once upon a time there was a little fox who lived by the sea. What is 23 plus 45? def main(argv): return 0\n" * 6
    with smallthinker.Model(model_path, lm_head="sparse") as sparse:
        ids = sparse.tokenize(text)
        found = smallthinker.heads(sparse, text)
    net = JaxModel(str(tmp_path))
    states, choices, top = predictor.states(net, [np.asarray([ids], np.int32)])
    fields = gguf.GGUFReader(model_path).fields
    if "smallthinker.head_sketch.signs" not in fields:
        pytest.skip("a model without a trained sketch")
    value = lambda name: np.asarray(fields[f"smallthinker.head_sketch.{name}"].contents())
    signs = np.unpackbits(value("signs").astype(np.uint8).reshape(found["vocab"], -1), axis=1, bitorder="little")
    p = {"directions": jnp.asarray(value("directions"), jnp.float32).reshape(signs.shape[1], -1),
         "bits": jnp.asarray(signs, jnp.float32) * 2 - 1, "scale": jnp.log(jnp.asarray(value("scales"), jnp.float32)),
         "mean": jnp.asarray(value("mean"), jnp.float32)}
    head = np.asarray(q4.q4_0(net.params["embed"]))
    assert np.allclose((states.astype(np.float32) * head[choices]).sum(1), top, rtol=2e-3, atol=2e-2)
    below, of_choices = (np.asarray(a) for a in predictor.distances(p, head, states, choices))
    rows = (below <= value("margin")).sum(1)
    rows[rows > found["vocab"] // 2] = found["vocab"]
    assert found["positions"] == len(ids)
    assert found["sparse"]["rows"] == pytest.approx(rows.mean(), rel=0.03)
    assert (below == -np.inf).sum() == predictor.LEAST * len(ids) and np.mean(of_choices <= value("margin")) > 0.99


def test_training_a_sketch_finds_the_rows_of_a_head():
    """Its loss falls, and the margin lets through what it should."""
    rng = np.random.default_rng(0)
    head = rng.normal(size=(256, 32)).astype(np.float32)
    x = rng.normal(size=(4096, 32)).astype(np.float32)
    logits = x @ head.T
    y, top = logits.argmax(-1).astype(np.int32), logits.max(-1)
    p = predictor.start(head, x, 32, rng)
    m = v = {k: jnp.zeros_like(a) for k, a in p.items()}
    losses = []
    for i in range(1, 101):
        part = slice(1024 * (i % 3), 1024 * (i % 3 + 1))
        p, m, v, value = predictor.step(p, m, v, float(i), 0.01, x[part], y[part], top[part])
        losses.append(float(value))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    margin, rows, missed = predictor.choose_margin(p, head, x[3072:], y[3072:], 0.2)
    assert rows == pytest.approx(0.2 * 256, rel=0.02) and missed < 0.2
    # The same, token by token.
    estimates, wrong, picked = np.asarray(predictor.estimates(p, x[3072:])), 0, 0
    for s, full, choice in zip(estimates, logits[3072:], y[3072:]):
        first = np.argsort(-s)[: predictor.LEAST]
        rows_of = set(first) | set(np.flatnonzero(s >= full[first].max() - margin))
        picked, wrong = picked + len(rows_of), wrong + (choice not in rows_of)
    assert picked / 1024 == pytest.approx(rows, rel=1e-3) and wrong / 1024 == pytest.approx(missed, abs=2e-3)
