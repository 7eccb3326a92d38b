"""Models that several rooms test on, made once and kept in the cache of `models`."""

from __future__ import annotations

import gc
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import models
from catonnx.errors import RuntimeUnavailableError
from catonnx.ops.build import build, find_compiler
from models.cache import MissingPackageError
from tests import workers
from tests.ops.compiler import keeping


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder that workers share before there are any; give each of them its core."""
    if workers.FOLDER not in os.environ:
        os.environ[workers.FOLDER] = tempfile.mkdtemp(prefix="catonnx-tests-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(workers.FOLDER), ignore_errors=True))
    worker: dict[str, str] | None = getattr(config, "workerinput", None)
    if worker is not None:
        workers.keep_to_a_core(worker["workerid"])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Say what `-n auto` means."""
    return workers.count()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Collect garbage less often, and without a walk through all modules and tests: it took a fifth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.fixture
def all_cores() -> Iterator[None]:
    """All cores of the machine, in a worker too: for what depends on the number of threads."""
    with workers.all_cores():
        yield


@pytest.fixture(scope="session")
def tiny_llama() -> Path:
    """Folder of 3 random Llama layers with cache (Optimum, opset 18)."""
    return models.path("tiny-llama")


@pytest.fixture(scope="session")
def tiny_llama_dynamo() -> Path:
    """Folder of the same layers without cache (dynamo, opset 20)."""
    return models.path("tiny-llama-dynamo")


@pytest.fixture(scope="session")
def tiny_llama_opset23() -> Path:
    """Folder of the same layers with RMSNormalization, RotaryEmbedding and Attention nodes (dynamo, opset 23)."""
    return models.path("tiny-llama-opset23")


@pytest.fixture(scope="session")
def tiny_llama_script() -> Path:
    """Folder of the same layers without cache (TorchScript, opset 18)."""
    return models.path("tiny-llama-script")


@pytest.fixture(scope="session")
def tiny_gpt2() -> Path:
    """Folder of 2 random GPT-2 layers with cache (Optimum, opset 18)."""
    return models.path("tiny-gpt2")


@pytest.fixture(scope="session")
def tiny_bert() -> Path:
    """Folder of 2 random BERT layers (Optimum, opset 18)."""
    return models.path("tiny-bert")


@pytest.fixture(scope="session")
def tiny_vit() -> Path:
    """Folder of 2 random ViT layers (Optimum, opset 18), with `feeds.npz`."""
    return models.path("tiny-vit")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct with cache; for tests marked `real_model`."""
    return _real("smollm2")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of all-MiniLM-L6-v2; for tests marked `real_model`."""
    return _real("minilm")


@pytest.fixture(scope="session")
def news() -> Path:
    """File of news stories, one a line, to calibrate on."""
    return models.path("news")


@pytest.fixture(scope="session")
def wikipedia() -> Path:
    """File of Wikipedia prose to evaluate on."""
    return models.path("wikipedia")


def _real(name: str) -> Path:
    try:
        return models.path(name)
    except MissingPackageError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def ops_library() -> Path:
    """The library of our operators, compiled without a warning; or the one that CATONNX_TESTED_OPS names."""
    named = os.environ.get("CATONNX_TESTED_OPS")
    if named:
        return Path(named)
    try:
        compiler = shlex.join(keeping(find_compiler()))
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))

    def fill(folder: Path) -> None:
        build(folder / "library.so", compiler=compiler, flags=["-Werror"], cuda=False)

    return workers.once("ops", fill) / "library.so"
