"""Documentation that runs: every Python block of README.md."""

import pathlib
import re
import subprocess
import sys

README = pathlib.Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks():
    return BLOCK.findall(README.read_text(encoding="utf-8")) if README.is_file() else []


def pytest_generate_tests(metafunc):
    if "block" in metafunc.fixturenames:
        found = blocks()
        metafunc.parametrize("block", found, ids=[f"block{i + 1}" for i in range(len(found))])


def test_readme_has_examples():
    assert blocks(), f"{README}: missing, or without Python blocks"


def test_readme_block_runs(block, tmp_path):
    command = [sys.executable, "-W", "error", "-c", block]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
