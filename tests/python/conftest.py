"""What the Python tests share: the model under test."""

import os

import pytest

import smallthinker


def _model_path() -> str:
    """ST_TEST_MODEL, or the model that comes with the package; never a silent skip."""
    path = os.environ.get("ST_TEST_MODEL")
    if path is None:
        return smallthinker.shipped_model_path()
    if not os.path.isfile(path):
        raise FileNotFoundError(f"ST_TEST_MODEL={path}: no such file")
    return path


@pytest.fixture(scope="session")
def model_path() -> str:
    return _model_path()


@pytest.fixture(scope="session")
def model(model_path):
    """One model for all tests that do not close it."""
    with smallthinker.Model(model_path) as model:
        yield model


@pytest.fixture(scope="session")
def long_prompt(model) -> str:
    """A prompt that takes about two seconds to evaluate, or fills the context."""
    word = " word"
    sample = model.generate(word * 200, max_tokens=1).stats
    tokens = min(2 * sample["prefill_tok_s"], 0.9 * model.context_length)
    return word * int(tokens * 200 / sample["prompt_tokens"])
