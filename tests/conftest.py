"One thread a worker, no window, no network, and the same global state before every test."
import os

# Two workers share two cores: threads inside them only fight. Set before torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import random, socket, sys
import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "Tests that share a page or a site go to one worker, in order; every other test to whichever is free. (pytest-xdist 3.8 does not see its own marks under pytest 9.2.)"
    from xdist.scheduler import LoadGroupScheduling
    class ByPage(LoadGroupScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            return file if file.endswith(("_browser.py", "test_docs.py")) else super()._split_scope(nodeid)
    return ByPage(config, log)


@pytest.fixture(autouse=True, scope="session")
def loopback_only():
    "Tests never download: connecting to anything but this machine is an error that says so."
    real = socket.socket.connect
    def connect(self, addr):
        inet = self.family in (socket.AF_INET, socket.AF_INET6)
        if inet and str(addr[0]) not in ("127.0.0.1", "::1", "localhost", "0.0.0.0"):
            raise OSError(f"tests never use the network, yet something connects to {addr[0]}:{addr[1]}")
        return real(self, addr)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(socket.socket, "connect", connect)
        yield


@pytest.fixture(autouse=True)
def same_start():
    "Tests share one process: seeds, and what a test or a notebook may have left switched, start the same each time."
    random.seed(0)
    if np := sys.modules.get("numpy"): np.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0); torch.set_grad_enabled(True); torch.set_default_dtype(torch.float32)
    yield
    if plt := sys.modules.get("matplotlib.pyplot"):
        plt.close("all"); sys.modules["matplotlib"].rcdefaults()
