"The comparison of methods: rows, interruption, processes, tables, and what is said when something does not fit."
import importlib.util, json, math, os, subprocess, sys, threading, warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pytest, torch

warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")
import mhex
from mhex import cli, compare, nets
from mhex.compare import faithfulness, read_rows
from mhex.compare_report import accuracy_table, load_summary, mean_ranks, paired_table, score_table, summarise, two_level_interval, verdict, write_comparison
from mhex.explainers.base import explain_with
from shared_data import need

TINY = dict(epochs=1, rows=64, backbone_kw=dict(width=8, blocks=(1, 1)), judge=dict(backbone_kw=dict(width=8, blocks=(1,))))
SMALL = dict(data="digits", methods=["mhex-exact", "layercam", "rollout"], metrics=["hard", "deletion"], seeds=1, images=6, choose=4, steps=3, progress=False, **TINY)


def timeless(rows): return [{k: v for k, v in r.items() if "seconds" not in k} for r in rows]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    "A small run: its folder and rows"
    out = tmp_path_factory.mktemp("bench")/"run"
    return out, faithfulness(out=out, **SMALL)


@pytest.fixture
def copy(ran, tmp_path):
    "The networks of the small run, without its rows"
    import shutil
    shutil.copytree(ran[0]/"networks", tmp_path/"run"/"networks")
    return tmp_path/"run"


# ---- rows

def test_probe_of_the_twin(copy, monkeypatch):
    "Without weights, probe mode explains the plain twin: its networks are used, its predictions unchanged, noise scores the same on both"
    trained = []
    real = nets._fit
    monkeypatch.setattr(nets, "_fit", lambda learn, folder, plan, name, progress: (trained.append(name), real(learn, folder, plan, name, progress)))
    rows = faithfulness(out=copy, **{**SMALL, "methods": ["mhex-exact", "gradcam"], "metrics": ["deletion"]}, mode="probe")
    assert trained == ["digits-quick-evidence-probe-mhex-0"], "only heads are trained"
    got = {(r["network"], r["metric"]): r["value"] for r in rows if r["method"] == "prediction"}
    assert got["mhex", "accuracy"] == got["plain", "accuracy"] and got["mhex", "auc"] == got["plain", "auc"]
    assert {r["network"] for r in rows if r["method"] == "random"} == {"plain"} and {r["plan"] for r in rows} == {"digits-quick-evidence-probe"}, "one function, so one row of controls"


def test_rows_say_what_they_are(ran):
    out, rows = ran
    assert rows == sorted(rows, key=compare._key) and {r["judge"] for r in rows} == {None, "self", "independent"}
    for r in (r for r in rows if r["method"] not in ("prediction", "rollout")):
        assert {"plan", "data", "recipe", "split", "seed", "network", "method", "metric", "masking", "better", "target", "value", "n", "values", "seconds", "versions"} <= r.keys()
        assert r["n"] == len(r["values"]) == 6 and abs(np.mean(r["values"])-r["value"]) < 1e-4 and r["masking"] == "zero" and r["target"] == "predicted"
    assert {r["network"] for r in rows if r["method"] == "mhex-exact"} == {"mhex"} and {r["network"] for r in rows if r["method"] == "layercam"} == {"plain"}
    assert {r["network"] for r in rows if r["method"] == "random"} == {"plain", "mhex"}, "noise on each network that is explained"
    assert {*compare.CONTROLS} <= {r["method"] for r in rows}, "controls are there without being asked for"
    assert all(len(r["choice_scores"]) == 2 for r in rows if r["method"] == "layercam"), "as many candidates as blocks"
    assert {(r["network"], r["metric"]) for r in rows if r["method"] == "prediction"} == {(k, m) for k in ("mhex", "plain") for m in ("accuracy", "auc")}


def test_method_that_does_not_fit(ran):
    "It is a row that says why, and the run goes on"
    rows = [r for r in ran[1] if r["method"] == "rollout"]
    assert len(rows) == 4 and all(r["missing"].startswith(("TypeError", "ValueError")) and "value" not in r for r in rows)


def test_values_by_hand(ran):
    "Hard drop of LayerCAM at the block that the validation split chooses, by loops"
    out, rows = ran
    plan = nets.make_plan("digits", **TINY)
    net, data = nets.network(plan, out, "plain"), nets.load_plan(plan)
    judges = {"self": net.model, "independent": nets.network(plan, out, "judge").model}

    def prob(model, x):
        with torch.no_grad(): return model(x[None]).softmax(1)[0]

    def drop(split, n, layer, judge):
        got = []
        for i in np.random.default_rng(0).permutation(len(data[split]))[:n]:
            x = data.batch(split, [int(i)])[0][0]
            t = int(prob(net.model, x).argmax())
            m = explain_with("layercam", net.model, x[None], t, layer=layer).map[0]
            m = torch.full_like(m, .5) if m.max() == m.min() else (m-m.min())/(m.max()-m.min())
            p, q = prob(judge, x)[t].item(), prob(judge, x*(m <= .5))[t].item()
            got.append(max(0, (p-q)/p))
        return sum(got)/n

    scores = [drop("valid", 4, l, judges["self"]) for l in range(2)]
    for j, judge in judges.items():
        row = next(r for r in rows if (r["method"], r["metric"], r["judge"]) == ("layercam", "hard_drop", j))
        assert np.allclose(row["choice_scores"], scores, atol=1e-3) and row["chosen"] == {"layer": int(np.argmax(scores))}
        assert abs(row["value"]-drop("test", 6, row["chosen"]["layer"], judge)) < 1e-3


def test_only_masks_are_rescaled():
    "A metric that takes effects gets the map as it is; a ranking is the same either way, a constant map included."
    from mhex.metrics import deletion, infidelity, insertion, predictor, road, soft_drop
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 3)).eval()
    x = torch.rand(4, 1, 12, 12)
    part, judge, t = compare.Part(x), predictor(net), net(x).argmax(1)
    leaf = x.clone().requires_grad_()
    effects = torch.autograd.grad(judge.model(leaf).softmax(1).gather(1, t[:, None]).sum(), leaf)[0][:, 0]
    raw, squeezed = infidelity(judge, x, effects, t), infidelity(judge, x, compare.unit_maps(effects), t)
    assert torch.equal(compare.score("infidelity", effects, part, t, judge), raw) and raw.mean() < squeezed.mean()/10
    assert torch.equal(compare.score("soft_drop", effects, part, t, judge), soft_drop(judge, x, compare.unit_maps(effects), t))
    for maps in (effects, torch.randn(4, 12, 12), torch.full((4, 12, 12), -2.)):
        for f, kw in ((deletion, dict(steps=10)), (insertion, dict(steps=10)), (road, {})):
            assert torch.equal(compare.score(f.__name__, maps, part, t, judge), f(judge, x, compare.unit_maps(maps), t, **kw))


def test_agreement_takes_more_images(tmp_path):
    "Without a judge: at least 200 images, controls without a network among them"
    rows = faithfulness("shapes", methods=["mhex-exact"], metrics=["pointing", "SAD"], seeds=1, judges="self", size=20, images=5, choose=4, out=tmp_path/"o", progress=False, **TINY)
    n = {(r["metric"], r["n"]) for r in rows if r["method"] != "prediction"}
    assert n == {("pointing_game", 200), ("soft_drop", 5)} and {"dark-spot", "local-contrast"} <= {r["method"] for r in rows}
    uniform = next(r for r in rows if (r["method"], r["metric"]) == ("uniform", "pointing_game"))
    data = nets.load_plan(nets.make_plan("shapes", size=20, **TINY))
    assert abs(uniform["value"]-data.test.masks[np.random.default_rng(0).permutation(400)[:200]].float().mean().item()) < 1e-4, "chance is the mean area"


def test_only_agreement_maps_more(copy, monkeypatch):
    "Where every cell has a judge, whole chunks are mapped and no more; what is drawn stays what it was, bit for bit"
    plan = nets.make_plan("digits", **TINY)
    few, more = (compare.Bench(plan, copy, images=70, choose=4, agreement=a) for a in (False, True))
    assert [b.mapped(s) for b in (few, more) for s in ("valid", "test")] == [64, 128, 200, 200]
    a, b = (o.maps("smoothgrad", "plain", "test", dict(samples=2)) for o in (few, more))
    assert len(a) == 128 and torch.equal(a[:70], b[:70])
    assert [compare.Bench(plan, copy, images=n, agreement=False).mapped("test") for n in (195, 300, None)] == [200, 300, None]
    taken, real = [], compare.take_part
    monkeypatch.setattr(compare, "take_part", lambda data, split, n, device: taken.append((split, n)) or real(data, split, n, device))
    faithfulness(out=copy, **{**SMALL, "methods": ["layercam"], "metrics": ["deletion"], "judges": "self"})
    assert sorted(taken) == [("test", 64), ("valid", 64)]


def test_values_keep_their_digits(ran):
    "Four digits would make ties of what differs"
    values = [v for r in ran[1] if r["metric"] == "deletion" for v in r.get("values", ())]
    assert max(abs(v-round(v, 4)) for v in values) > 1e-5 and all(v == round(v, 8) for v in values)


def test_one_plan_twice(tmp_path, monkeypatch):
    "Data named twice is one plan; two plans of one name are refused"
    monkeypatch.setattr(compare, "_train", lambda *a: None)
    monkeypatch.setattr(compare, "_compare", lambda state, out, plans, *a: [p.name for p in plans])
    assert faithfulness(["digits", "digits", nets.make_plan("digits", mode="probe")], out=tmp_path/"o", progress=False) == ["digits-quick-evidence", "digits-quick-evidence-probe"]
    with pytest.raises(ValueError, match="two plans are called digits-quick-evidence and differ .*rows None, here 64"): faithfulness(["digits", nets.make_plan("digits", rows=64)], out=tmp_path/"new")
    assert not (tmp_path/"new").exists()


# ---- interrupted and resumed

def test_resume(copy, ran, monkeypatch):
    "Ctrl-C in the middle leaves whole rows; the same call computes the rest only, and ends with what an undisturbed run has"
    count, real = [0], compare.score
    def stop(*a, **k):
        count[0] += 1
        if count[0] == 7: raise KeyboardInterrupt
        return real(*a, **k)
    monkeypatch.setattr(compare, "score", stop)
    with pytest.raises(KeyboardInterrupt): faithfulness(out=copy, **SMALL)
    part = [r for r in read_rows(copy) if "values" in r]
    assert 0 < len(part) < 7 and not list(copy.rglob("*.tmp"))
    keys, want = {compare._key(r) for r in part}, {compare._key(r): r for r in timeless(ran[1])}
    monkeypatch.setattr(compare, "score", real)
    rows = faithfulness(out=copy, **SMALL)
    assert timeless(rows) == list(want.values()) and [r for r in rows if compare._key(r) in keys] == part, "rows that were there are as they were, seconds included"


def test_nothing_is_computed_twice(ran, monkeypatch):
    monkeypatch.setattr(compare, "score", lambda *a, **k: pytest.fail("a cell was computed again"))
    monkeypatch.setattr(nets, "fit_recipe", lambda *a, **k: pytest.fail("a network was trained again"))
    assert faithfulness(out=ran[0], **{**SMALL, "methods": ["mhex-exact", "layercam"]})
    rows = faithfulness(out=ran[0], **{**SMALL, "methods": ["mhex-exact"], "metrics": ["deletion"]})
    assert {r["method"] for r in rows} == {"mhex-exact", "prediction", *compare.CONTROLS} and {r["metric"] for r in rows} == {"deletion", "accuracy", "auc"}, "what was asked for, not all that is there"


def test_training_that_was_cut_off(tmp_path, monkeypatch):
    "No network file before the training is complete; the checkpoint is taken up and then removed"
    plan, real = nets.make_plan("digits", **TINY), nets.evaluate
    def stop(*a, **k): raise KeyboardInterrupt
    monkeypatch.setattr(nets, "evaluate", stop)
    with pytest.raises(KeyboardInterrupt): nets.network(plan, tmp_path, "plain")
    names = sorted(p.name for p in tmp_path.rglob("*") if p.is_file())
    assert "checkpoint.pt" in names and nets.WEIGHTS not in names and nets.FACTS not in names
    monkeypatch.setattr(nets, "evaluate", real)
    nets.network(plan, tmp_path, "plain")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [nets.FACTS, nets.WEIGHTS]


def test_facts_land_last(tmp_path, monkeypatch):
    "Interrupted between the two files of a network: the facts, which say that it is complete, are not there, and the next call ends it"
    plan, real, count = nets.make_plan("digits", **TINY), os.replace, [0]
    def stop(src, dst):
        count[0] += (mine := Path(dst).name in (nets.WEIGHTS, nets.FACTS))
        if mine and count[0] == 2: raise KeyboardInterrupt
        real(src, dst)
    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt): nets.network(plan, tmp_path, "plain")
    assert not list(tmp_path.rglob(nets.FACTS)) and list(tmp_path.rglob(nets.WEIGHTS))
    assert nets.network(plan, tmp_path, "plain").facts["kind"] == "plain"
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [nets.FACTS, nets.WEIGHTS]


def test_settings_of_methods(copy, monkeypatch):
    "They stand in the folder and are held to; a folder from before that is taken as it is"
    small = {**SMALL, "methods": ["mhex-exact"], "metrics": ["deletion"], "judges": "self"}
    rows, path = faithfulness(out=copy, **small), copy/compare.SETTINGS_FILE
    there = json.loads(path.read_text("utf-8"))
    assert there.pop("method_settings") == compare.SETTINGS
    path.write_text(json.dumps(there), "utf-8")
    assert faithfulness(out=copy, **small) == rows and json.loads(path.read_text("utf-8"))["method_settings"] == compare.SETTINGS
    monkeypatch.setattr(compare, "SETTINGS", {**compare.SETTINGS, "rise": dict(samples=512)})
    with pytest.raises(ValueError, match="rise {'samples': 256}, here {'samples': 512}"): faithfulness(out=copy, **small)


def test_one_run_a_folder(tmp_path):
    "A second run is refused while the first one lives, and not after it was killed"
    pytest.importorskip("fcntl", reason="this test holds the lock as POSIX does")
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'ab'); fcntl.flock(f, fcntl.LOCK_EX); print('locked', flush=True); time.sleep(600)"
    p = subprocess.Popen([sys.executable, "-c", code, str(tmp_path/compare.LOCK_FILE)], stdout=subprocess.PIPE, text=True)
    try:
        assert p.stdout.readline() == "locked\n"
        with pytest.raises(RuntimeError) as e: faithfulness(out=tmp_path, **SMALL)
        assert str(tmp_path) in str(e.value) and "choose another folder" in str(e.value) and [o.name for o in tmp_path.iterdir()] == [compare.LOCK_FILE], "nothing was written"
    finally: p.kill(); p.wait(); p.stdout.close()
    with compare._locked(tmp_path): pass


def test_lock_of_windows(tmp_path, monkeypatch):
    "Where there is no fcntl, and where a file system has no locks"
    def locking(fd, mode, n, error=[None, PermissionError(13, "Permission denied"), OSError(37, "No locks available")]):
        assert (mode, n) == (2, 1)
        if e := error.pop(0): raise e
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=locking))
    with compare._locked(tmp_path): pass
    with pytest.raises(RuntimeError, match="another run"), compare._locked(tmp_path): pass
    with pytest.warns(UserWarning, match="No locks available"), compare._locked(tmp_path): pass


def test_other_settings_are_refused(ran):
    for change, said in ((dict(images=7), "images 6, here 7"), (dict(steps=4), "steps 3, here 4"), (dict(epochs=2), "epochs 1, here 2")):
        with pytest.raises(ValueError, match=said): faithfulness(out=ran[0], **{**SMALL, **change})


# ---- processes

def test_files_merge(ran, tmp_path):
    "Rows dealt out to files are the rows of one; a cell that differs is said; a cell that could not run gives way to one that could"
    (tmp_path/"rows").mkdir()
    def put(name, rows): (tmp_path/"rows"/name).write_text("".join(json.dumps(r)+"\n" for r in rows))
    rows = ran[1]
    put("a-0.jsonl", rows[::2]); put("a-1.jsonl", [*rows[1::2], rows[0]])
    assert read_rows(tmp_path) == rows
    row = next(r for r in rows if "values" in r)
    put("a-2.jsonl", [{k: v for k, v in row.items() if k not in ("value", "values", "n")} | {"missing": "ImportError: no captum"}])
    assert read_rows(tmp_path) == rows
    put("a-2.jsonl", [{**row, "value": row["value"]+1}])
    with pytest.raises(ValueError, match="two rows for"): read_rows(tmp_path)
    put("a-2.jsonl", [{"ratio": 1}])
    with pytest.raises(ValueError, match="something else than rows"): read_rows(tmp_path)


def test_networks_are_dealt_out_once(monkeypatch, tmp_path):
    "A train plan and its probe share twin and judge: one process trains each; heads on the twin are trained when all twins are there"
    plans, seen = [nets.make_plan("digits"), nets.make_plan("digits", mode="probe")], []
    monkeypatch.setattr(compare, "_prediction_rows", lambda plan, net: [])
    for i in range(2):
        now = [0]
        state = SimpleNamespace(process_index=i, num_processes=2, wait_for_everyone=lambda: now.__setitem__(0, now[0]+1))
        compare._train(state, tmp_path, plans, 3, compare.JUDGES, lambda p, s: SimpleNamespace(net=lambda k: seen.append((p.network_name(k, s), p.mode, i, now[0]))))
        assert now == [2]
    assert len(seen) == 2*(3*2+1) and {i for _, _, i, _ in seen} == {0, 1}, "every plan has its networks"
    at = {name: {(i, r) for n, _, i, r in seen if n == name} for name, *_ in seen}
    assert len(at) == 3*2+1+3 and all(len(v) == 1 for v in at.values()), "each by one process"
    assert all({r for _, r in v} == {int("probe" in n)} for n, v in at.items())


def test_cells_are_dealt_out_before_rows_are_written(monkeypatch, tmp_path):
    "A process that is slow to read what is there still deals out the same cells as the others"
    plan, gate, wrote, real, slow = nets.make_plan("digits"), threading.Barrier(2), threading.Event(), compare.read_rows, [True]
    work = {plan.name: [("plain", m, [("deletion", "self")]) for m in ("gradcam", "layercam", "random", "uniform")]}
    compare._File(tmp_path, f"{plan.name}-0", 9).add(made([1.], plan=plan.name, method="prediction", metric="accuracy", judge=None))
    def read(folder):
        if threading.current_thread().name == "1" and slow and slow.pop(): wrote.wait(2)
        return real(folder)
    def cells(m, kind, cells, done): done(made([.5], plan=plan.name, method=m)); wrote.set()
    monkeypatch.setattr(compare, "read_rows", read)
    got = {}
    def go(i): got[i] = compare._compare(SimpleNamespace(process_index=i, num_processes=2, wait_for_everyone=lambda: gate.wait(20)), tmp_path, [plan], work, 1, lambda p, s: SimpleNamespace(cells=cells), False)
    threads = [threading.Thread(target=go, args=(i,), name=str(i)) for i in range(2)]
    for t in threads: t.start()
    for t in threads: t.join(30)
    assert got[0] == got[1] and {r["method"] for r in got[0]} == {"gradcam", "layercam", "random", "uniform", "prediction"}


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="accelerate is not installed: pip install accelerate")
def test_two_processes(ran, tmp_path):
    "accelerate launch with two processes on the CPU (gloo): networks and cells are shared out, and the merged rows are those of one process"
    (tmp_path/"go.py").write_text(f"import sys\nfrom mhex.compare import faithfulness\nif __name__=='__main__': faithfulness(out=sys.argv[1], **{SMALL!r})\n")
    env = {**os.environ, "PYTHONPATH": str(Path(mhex.__file__).parent.parent), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0".split()
    r = subprocess.run([sys.executable, *launch, str(tmp_path/"go.py"), str(tmp_path/"run")], env=env, capture_output=True, text=True, timeout=500)
    assert not r.returncode, r.stdout[-2000:]+r.stderr[-4000:]
    assert timeless(read_rows(tmp_path/"run")) == timeless(ran[1])
    files = {p.name: [json.loads(l) for l in p.read_text().splitlines()] for p in (tmp_path/"run"/"rows").iterdir()}
    assert sorted(n[-7:] for n in files) == ["0.jsonl", "1.jsonl"] and all(any(r["method"] != "prediction" for r in o) for o in files.values()), "each process wrote cells of its own"


def test_no_accelerate(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match="pip install accelerate"): compare.processes()


# ---- tables

def made(value, plan="p", seed=0, network="plain", method="layercam", metric="deletion", judge="self", better="lower"):
    v = np.asarray(value, dtype=float)
    return dict(plan=plan, data=plan, recipe="quick", split="test", seed=seed, network=network, method=method, metric=metric, masking="zero", better=better, judge=judge,
                value=float(np.nanmean(v)), n=int((~np.isnan(v)).sum()), values=[None if math.isnan(o) else o for o in v.tolist()])


def test_table_against_loops(ran):
    out, rows = ran
    summary = load_summary(out)
    for s in (s for s in summary if "value" in s):
        same = [r for r in rows if "value" in r and all(r.get(k) == s.get(k) for k in ("network", "method", "metric", "judge"))]
        total = sum(r["value"] for r in same)/len(same)
        assert s["value"] == pytest.approx(total, abs=2e-5) and s["seeds"] == [r["seed"] for r in same]
    table = {r["method"]: r for r in score_table(summary, "digits-quick-evidence", "self")}
    cells = {m: r["deletion (zero) ↓"] for m, r in table.items()}
    best = min((s["value"], s["method"]) for s in summary if (s["metric"], s.get("judge")) == ("deletion", "self") and "value" in s)
    assert cells["rollout"] == "—" and [c for c in cells.values() if c.startswith("▲")][0].startswith(f"▲ {best[0]:.3f} (")


def test_difference_above_noise():
    "Two networks that judge themselves: what each method gains over noise on its own network"
    rows = []
    for s in range(2):
        up = [.01*s]*3  # two seeds never score alike
        rows += [made(np.add(v, up).tolist(), seed=s, **kw) for v, kw in (([.1, .2, .3], dict(network="mhex", method="mhex-exact")), ([.2, .4, .6], dict(network="mhex", method="random")),
                                                                          ([.5, .6, .4], {}), ([.9, .9, .9], dict(method="random")))]
    found = {(r["network"], r["method"]): r for r in summarise(rows)}
    gain, own = np.mean([.9-.5, .9-.6, .9-.4]), np.mean([.1, .2, .3])
    assert found["plain", "layercam"]["difference"] == pytest.approx(own-gain, abs=1e-4) and found["plain", "layercam"]["ahead"] == "0 of 2", "lower is better: noise less map is the gain"
    assert found["mhex", "random"]["difference"] == pytest.approx(np.mean([.1, .2, .3]), abs=1e-4) and "above_noise" not in found["mhex", "random"]
    assert found["mhex", "mhex-exact"]["reference"]
    other = {(r["network"], r["method"]): r for r in summarise([{**r, "judge": "independent"} for r in rows])}
    assert other["plain", "layercam"]["difference"] == pytest.approx(.3, abs=1e-4), "one judge for all: plain differences"


def rows_of(values, method, **kw):
    return [dict(plan="p", data="d", recipe="r", seed=s, network="mhex" if method.startswith("mhex") else "plain", method=method, metric="road", masking="noise-linear", better="lower", judge="independent",
                 value=float(np.mean(v)), n=len(v), values=[float(o) for o in v], **kw) for s, v in enumerate(values)]


def test_difference_over_seeds_and_images():
    "The interval is Student's over seeds, p is over images, and the verdict asks both"
    from scipy import stats
    g = np.random.default_rng(0)
    ours, base = g.random((5, 60)), g.random(60)
    for shift, want in (([.3]*5, "ahead"), ([.9, .6, -.2, -.1, -.1], "ahead, not over seeds"), ([0]*5, "not told apart"), ([-.3]*5, "behind")):
        noise = .02*g.standard_normal((5, 60))
        theirs = ours+np.array(shift)[:, None]+noise  # lower is better
        r = next(o for o in summarise(rows_of(ours, "mhex-chosen")+rows_of(theirs, "layercam")) if o["method"] == "layercam")
        d = (theirs-ours).mean(1)
        lo, hi = stats.t.interval(.95, 4, d.mean(), stats.sem(d))
        assert (r["difference"], r["seed_lo"], r["seed_hi"]) == pytest.approx((d.mean(), lo, hi), abs=2e-5)
        assert r["p_holm"] == pytest.approx(stats.wilcoxon((theirs-ours).mean(0)).pvalue, rel=.1) and r["ahead"] == f"{(d > 0).sum()} of 5"
        assert verdict(r) == want
    cell = next(iter(paired_table([r | {"reference": False}], "p", "independent")))["ROAD (noise-linear) ↓"]
    assert cell.startswith(f"{r['difference']:+.3f} ({r['seed_lo']:+.2f} to {r['seed_hi']:+.2f}), p".replace("-", "−"))


def test_one_network_is_not_five():
    "In a probe of a given network peers do not depend on the seed of the heads: no interval over seeds is pretended"
    a, b = np.random.default_rng(0).random((2, 40))
    r = next(o for o in summarise(rows_of([a]*5, "mhex-chosen")+rows_of([a+b]*5, "layercam")) if o["method"] == "layercam")
    assert r["ahead"] == "one network" and "seed_lo" not in r and verdict(r) == "ahead on one network"
    other = next(o for o in summarise(rows_of([a, a+.01], "mhex-chosen")+rows_of([a+b]*2, "layercam")) if o["method"] == "layercam")
    assert other["ahead"] == "2 of 2" and "seed_lo" in other


def test_images_of_one_specimen_are_drawn_together():
    "Ten images of one tile are one piece of evidence: the test is over specimens, the interval wider"
    from scipy import stats
    g = np.random.default_rng(0)
    which = np.repeat(np.arange(8), 10).tolist()
    ours, theirs = (np.repeat(g.random(8), 10)+.01*g.standard_normal((3, 80)) for _ in range(2))
    def row(**kw): return next(o for o in summarise(rows_of(ours, "mhex-chosen", **kw)+rows_of(theirs, "layercam", **kw)) if o["method"] == "layercam")
    lone, tiles = row(), row(groups=which)
    means = (theirs-ours).mean(0).reshape(8, 10).mean(1)
    assert tiles["p_holm"] == pytest.approx(stats.wilcoxon(means).pvalue, rel=.1) and tiles["specimens"] == 8 and "specimens" not in lone
    assert tiles["hi"]-tiles["lo"] > 1.5*(lone["hi"]-lone["lo"]) and tiles["difference"] == lone["difference"]


def test_tiles_say_their_specimens():
    from mhex.data import load_data
    data = load_data("magnetic_tile", size=32, root=need("inspection/magnetic_tile.csv"))
    part = compare.take_part(data, "test", 30)
    assert part.groups == data.test.groups[np.random.default_rng(0).permutation(len(data.test))[:30]].tolist() and len(set(part.groups)) < 30
    assert compare.take_part(load_data("digits"), "test", 5).groups is None


def test_seeds_that_are_not_there():
    "A method with fewer seeds is compared on those it has; samples that one side could not score are left out"
    rows = [made([.1, np.nan, .3], seed=s, network="mhex", method="mhex", judge=None, better="higher") for s in range(3)]+[made([.3, .5, .3], seed=1, judge=None, better="higher")]
    found = {r["method"]: r for r in summarise(rows)}
    assert found["layercam"]["seeds"] == [1] and found["layercam"]["ahead"] == "0 of 1" and found["layercam"]["difference"] == pytest.approx(-.1, abs=1e-4)


def test_ranks_by_hand():
    rows = [made([v], plan=p, seed=s, method=m, network="mhex" if m == "mhex" else "plain") for p, s, vs in (("a", 0, (.1, .2, .3)), ("a", 1, (.2, .1, .3)), ("b", 0, (.1, .1, .2))) for m, v in zip(("mhex", "gradcam", "rise"), vs)]
    r = mean_ranks(summarise(rows), "deletion", "self")
    assert np.allclose(r["ranks"], [(1+2+1.5)/3, (2+1+1.5)/3, 3]) and r["blocks"] == 3 and r["cd"] == pytest.approx(2.343*(3*4/(6*3))**.5, abs=2e-3)
    assert mean_ranks(summarise(rows), "insertion", "self") is None and mean_ranks(summarise(rows[:3]), "deletion", "self") is None
    rows.append(made([.1], plan="b", seed=1, method="mhex", network="mhex"))
    assert mean_ranks(summarise(rows), "deletion", "self") is None, "no two methods are in every block"


def test_two_networks_that_judge_themselves_are_ranked_by_what_they_gain():
    "A network that loses its confidence to noise does not lift its maps: rank, mark and pair say the same"
    def cells(s, judge): return [made([v+.01*s], seed=s, network=k, method=m, judge=judge) for k, m, v in (("mhex", "mhex-exact", .1), ("mhex", "random", .2), ("plain", "layercam", .5), ("plain", "gradcam", .85), ("plain", "random", .9))]
    found = summarise([r for s in range(3) for r in cells(s, "self")])
    r = mean_ranks(found, "deletion", "self")
    assert dict(zip(r["names"], r["ranks"])) == {"LayerCAM": 1, "MHEX, exact": 2, "Grad-CAM": 3, "control: noise": 4} and r["label"].startswith("gain over noise")
    assert next(o for o in found if o["method"] == "layercam")["difference"] < 0
    marked = [t["method"] for t in score_table(found, "p", "self") for v in t.values() if str(v).startswith("▲")]
    assert marked == ["MHEX, exact", "LayerCAM"]
    one = summarise([r for s in range(3) for r in cells(s, "independent")])
    assert mean_ranks(one, "deletion", "independent")["ranks"][0] == 1 and [t["method"] for t in score_table(one, "p", "independent") for v in t.values() if str(v).startswith("▲")] == ["MHEX, exact"]


def test_never_over_maskings():
    "The same metric under another masking is another column and another ranking"
    rows = [made([.1*i], plan=p, method=m, metric=k) | {"masking": k.partition("-")[2] or "zero"} for p in "ab" for i, m in enumerate(("mhex", "gradcam", "rise")) for k in ("deletion", "deletion-mean")]
    assert list(score_table(summarise(rows), "a", "self")[0]) == ["method", "deletion (zero) ↓", "deletion (mean) ↓"]


def test_interval():
    v = np.random.default_rng(0).normal(size=(4, 50))
    lo, hi = two_level_interval(v)
    assert lo < v.mean() < hi and two_level_interval(v) == (lo, hi)
    with pytest.raises(ValueError, match="holds no number"): two_level_interval([[np.nan]])


def test_report(ran, tmp_path):
    "Made from the rows, from one file of them, and from the stored summary: the same tables; names of data stay text"
    out, rows = ran
    files = write_comparison(out, tmp_path/"a")
    again = write_comparison(files["summary"], tmp_path/"b")
    strip = lambda p: [l for l in p.read_text("utf-8").splitlines() if l and not l.startswith("Settings:")]
    assert strip(files["markdown"]) == strip(again["markdown"]) and "What did not run" in files["markdown"].read_text("utf-8")
    hostile = tmp_path/"rows.jsonl"
    hostile.write_text("".join(json.dumps({**r, "data": "<script>alert(1)</script>|x"})+"\n" for r in rows))
    page = write_comparison(hostile, tmp_path/"c")["page"].read_text("utf-8")
    assert "<script" not in page and "src=\"http" not in page and accuracy_table(load_summary(hostile))[0]["score"] == "accuracy"
    assert paired_table(load_summary(out), "digits-quick-evidence", "self")


# ---- wrong input

@pytest.mark.parametrize("change, error, said", [
    (dict(data="mnsit"), ValueError, "images: digits, shapes"), (dict(data=[]), ValueError, "data is empty"), (dict(data=3), TypeError, "data is int"), (dict(data="breastmnist"), FileNotFoundError, "breastmnist.npz is missing"),
    (dict(data="magnetic_tile"), FileNotFoundError, "put the pictures into a zip"), (dict(data="sst", metrics=None), FileNotFoundError, "sst_trees"),
    (dict(methods=["lime"]), ValueError, "there are mhex, mhex-"), (dict(methods=[]), ValueError, "methods is empty"), (dict(metrics=["sadd"]), ValueError, "registered: adp"), (dict(metrics=["text_drop"]), ValueError, "for images there are"),
    (dict(metrics=["completeness_delta"]), ValueError, "takes logits"), (dict(judges=["nobody"]), ValueError, "self, independent"), (dict(peers_on=["judge"]), ValueError, "plain, mhex"), (dict(seeds=0), ValueError, "seeds is 0"),
    (dict(images=1), ValueError, "images is 1"), (dict(steps=True), ValueError, "steps is True"), (dict(recipe="fast"), ValueError, "there are mhex-paper"), (dict(mode="frozen"), ValueError, "'train' or 'probe'"), (dict(wdith=3), TypeError, "no setting 'wdith'"),
])
def test_wrong_input(change, error, said, tmp_path, monkeypatch):
    "Said before anything is written"
    monkeypatch.setenv("MHEX_DATA", str(tmp_path/"none")); monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(error, match=said): faithfulness(**{**SMALL, **{k: None for k in TINY}, **change}, out=tmp_path/"out")
    assert not (tmp_path/"out").exists()


def test_no_masks(copy):
    "Agreement asked for where nothing is known: the row says so"
    rows = faithfulness(out=copy, **{**SMALL, "methods": ["mhex-exact"], "metrics": ["AP"]})
    assert {r["missing"] for r in rows if r["metric"] == "average_precision"} == {"ValueError: the data have no masks"}


# ---- command line

def test_cli(ran, copy, capsys, monkeypatch):
    words = ["bench", "faithfulness", "--data", "digits", "--methods", "mhex-exact", "--metrics", "SAD", "--seeds", 1, "--images", 4, "--choose", 2, "--epochs", 1, "--rows", 64, "--width", 8, "--judge", "self", "--out", copy/"cli"]
    assert cli.main(list(map(str, words))) == 0
    out, err = capsys.readouterr()
    assert "Next: mhex bench report" in out and len(read_rows(copy/"cli")) == 4+1+2*len(compare.CONTROLS)
    assert cli.main(["bench", "report", str(copy/"cli")]) == 0 and (copy/"cli"/"report"/"report.html").is_file()
    assert [l.startswith("wrote ") for l in capsys.readouterr().out.splitlines()] == [True]*3
    assert cli.main(["bench", "report", str(copy/"nowhere")]) == 2 and "holds no rows" in capsys.readouterr().err
    assert cli.main(list(map(str, [5 if w == 4 else w for w in words]))) == 2 and "images 4, here 5" in capsys.readouterr().err
    assert cli.main(["bench", "faithfulness", "--data", "digits", "--methods", "lime"]) == 2 and "there are mhex" in capsys.readouterr().err
    def stop(*a, **k): raise KeyboardInterrupt
    monkeypatch.setattr(compare, "faithfulness", stop)
    assert cli.main(list(map(str, words))) == 130 and "the same command goes on" in capsys.readouterr().err


def test_cli_metrics(capsys):
    rows = Path(__file__).resolve().parent.parent/"nbs"/"data"/"metric_speed.jsonl"
    assert cli.main(["bench", "metrics", "--read", str(rows)]) == 0 and capsys.readouterr().out.startswith("| metric | peer | judge |")


# ---- texts

def test_texts(tmp_path):
    "Words: drops by [MASK], comprehensiveness, sufficiency, and rationales from the trees"
    root = need("text/sst_trees/train.txt")
    rows = faithfulness("sst", methods=["mhex-exact", "attention", "gradcam"], seeds=1, images=6, choose=4, rows=60, epochs=1, backbone="mini_bert_small", recipe="scratch-text", root=root, out=tmp_path/"o", progress=False)
    done = {(r["method"], r["metric"]) for r in rows if "value" in r and r["method"] != "prediction"}
    assert done == {(m, k) for m in ("mhex-exact", "attention", "random", "uniform") for k in ("text_drop", "comprehensiveness", "sufficiency", "token_average_precision")}
    assert {r["method"] for r in rows if "missing" in r} == {"gradcam"}
