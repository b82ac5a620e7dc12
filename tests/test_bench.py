"The latency bench: what it times, what it writes, what it says when something is missing."
import sys, time
import pytest, torch
from torch.testing import assert_close
import mhex
from mhex import bench


def small(name, k, in_channels=3, **kw): return mhex.create_backbone("resnet18_28", k, in_channels=in_channels, width=8, blocks=(1, 1))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(bench, "create_backbone", small)
    monkeypatch.setattr(bench, "TRAINING", {"resnet18_28": 4})


def test_rows_file_and_table(tiny, tmp_path, capsys):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    rows = bench.latency("resnet18_28", batches=(1, 2), rounds=3, threads=1, out=tmp_path/"deep/er/rows.jsonl", progress=True)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert "resnet18_28, 28 px, batch 2: 100%" in capsys.readouterr().err
    assert bench.load_rows(tmp_path/"deep/er/rows.jsonl") == rows and [p.name for p in (tmp_path/"deep/er").iterdir()] == ["rows.jsonl"]
    for r in rows:
        assert {"model", "size", "k", "batch", "method", "ratio", "q25", "q75", "rounds", "threads", "versions"} <= set(r)
        assert 0 < r["q25"] <= r["ratio"] <= r["q75"] and r["threads"] == 1 and r["k"] == 9 and r["rounds"] == 3
    methods = {r["method"] for r in rows}
    assert {*bench.PEERS, "MHEX forward", "MHEX map, one class", "MHEX exact maps, all 9 classes", "MHEX training step, to the plain one"} <= methods
    table = bench.latency_table(rows).splitlines()
    assert table[0] == "| time, plain forward = 1 | resnet18_28, 28 px, batch 1 | resnet18_28, 28 px, batch 2 | resnet18_28, 28 px, batch 4 |"
    assert len(table) == 2 + len(methods) and all(l.count("|") == 5 for l in table)
    assert next(l for l in table if "Integrated" in l).split("|")[3].strip() == ""  # batch 1 only


@pytest.mark.parametrize("package, method", [("captum", "LayerGradCam (Captum)"), ("pytorch_grad_cam", "Grad-CAM (pytorch-grad-cam)"), ("torchcam", "LayerCAM (TorchCAM)")])
def test_missing_peer_is_a_row_that_says_so(tiny, monkeypatch, package, method):
    for m in [package, *(n for n in list(sys.modules) if n.startswith(package + "."))]: monkeypatch.setitem(sys.modules, m, None)
    monkeypatch.setitem(sys.modules, package, None)
    for sub in ("attr", "methods", "utils.model_targets"): monkeypatch.setitem(sys.modules, f"{package}.{sub}", None)
    rows = bench.latency("resnet18_28", batches=1, rounds=1, training=False, progress=False)
    r = next(r for r in rows if r["method"] == method)
    assert "pip install" in r["missing"] and "ratio" not in r
    assert "not installed" in next(l for l in bench.latency_table(rows).splitlines() if method in l)


def test_a_broken_library_is_not_called_missing(tiny, monkeypatch):
    def broken(net, x): raise RuntimeError("broken inside")
    monkeypatch.setitem(bench.PEERS, "LayerCAM (TorchCAM)", broken)
    with pytest.raises(RuntimeError, match="broken inside"): bench.latency("resnet18_28", batches=1, rounds=1, training=False, progress=False)


def test_nothing_written_when_it_fails(tiny, monkeypatch, tmp_path):
    def broken(net, x): raise RuntimeError("broken inside")
    monkeypatch.setitem(bench.PEERS, "LayerCAM (TorchCAM)", broken)
    with pytest.raises(RuntimeError): bench.latency("resnet18_28", batches=1, rounds=1, progress=False, out=tmp_path/"rows.jsonl")
    assert list(tmp_path.iterdir()) == []
    (tmp_path/"a").write_text("")
    with pytest.raises(PermissionError, match="choose another"): bench.latency("resnet18_28", out=tmp_path/"a/b/rows.jsonl")


def test_interrupted(tiny, monkeypatch, tmp_path):
    "Ctrl-C keeps the networks and batches that were measured"
    real = bench._measure
    def stop(net, x, *a):
        if len(x) == 2: raise KeyboardInterrupt
        return real(net, x, *a)
    monkeypatch.setattr(bench, "_measure", stop)
    with pytest.raises(KeyboardInterrupt): bench.latency("resnet18_28", batches=(1, 2), rounds=1, peers=False, training=False, progress=False, out=tmp_path/"rows.jsonl")
    assert {r["batch"] for r in bench.load_rows(tmp_path/"rows.jsonl")} == {1} and [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("bad", [dict(rounds=0), dict(threads=0), dict(batches=()), dict(batches=(0,)), dict(models=()), dict(models="resnet19"), dict(rounds=True)])
def test_bad_input(bad):
    with pytest.raises(ValueError): bench.latency(**{**dict(models="resnet18_28", progress=False), **bad})


def test_pairs_measure_ratios(monkeypatch):
    "On a clock that the calls themselves move: what else the machine does plays no part"
    now = [0.]
    def takes(t):
        def f(): now[0] += t
        return f
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    r = bench.paired(takes(5), {"three": takes(15), "slow": takes(20)}, rounds=12, slow={"slow"})
    assert r == {"three": [3.]*12, "slow": [4.]*3}


def test_twin_reads_the_same_memory_and_is_its_own_module():
    net = small("", 3, 1).eval()
    x = torch.randn(2, 1, 28, 28)
    twin = bench._twin(net)
    model = mhex.attach(twin, 3, mode="probe")
    assert torch.equal(model(x), net(x)) and all(p.requires_grad for p in net.parameters())
    assert mhex.hooks.hook_count(net) == 0
    assert [p.data_ptr() for p in net.parameters()] == [p.data_ptr() for p in twin.parameters()]


def test_training_steps_train_and_start_alike():
    net, x = small("", 9, 1), torch.randn(4, 1, 28, 28)
    before = [p.clone() for p in net.parameters()]
    plain, step = bench.training_calls(net, x)
    plain(); step()
    for p, b in zip(net.parameters(), before): assert_close(p, b)  # copies are trained


def test_memory_stays_flat():
    g = bench.memory_growth(1000)
    assert g["n"] == 1000 and g["explain"] < 8 and g["plain"] < 8, g
