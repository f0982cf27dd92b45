"""What holds for every test: fast ones stay fast, and nobody's own cache is read or written."""

import gc
import signal
import sys

import pytest

from dcsft_harness import coordinates

gc.disable()
# A shell's background jobs ignore Ctrl-C, and so would what they start: the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Takes what the imports made out of the garbage collector's sight.

    transformers collects by hand after every training run and lmms-eval after every evaluation; each
    time a million objects of torch and TRL, which never go away, would be looked at for nothing.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory, request):
    """One cache of the embedded suite for all tests of a run, drawn by the code as it is now."""
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # pytest-xdist gives each process a folder in the run's
        folder = folder.parent
    folder = folder / "cache"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCSFT_CACHE", str(folder))
        patch.delenv("DCSFT_DATA", raising=False)
        yield folder


@pytest.fixture(autouse=True)
def no_convention(monkeypatch):
    """No model has declared how it writes boxes, whichever ran in an earlier test."""
    monkeypatch.setattr(coordinates, "_current", None)
    monkeypatch.delenv(coordinates.VARIABLE, raising=False)


@pytest.fixture
def pixels(no_convention):
    """A model has declared that it writes boxes in pixels of the original image."""
    coordinates.declare(coordinates.PIXEL)


@pytest.fixture(autouse=True)
def one_thread(request):
    """Unit tests run tiny models, whose threads would spend their time waiting for each other.

    The end-to-end runs keep the machine's own number, as a user's would.
    """
    torch = sys.modules.get("torch")
    if torch is None or request.node.get_closest_marker("slow"):
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
