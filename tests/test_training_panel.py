"The training run and its panel: pauses that hold, resumes that change no bit, failures that are shown, a form that loses nothing."
import json, re, shutil, threading, time, warnings
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
import torch

warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")
from fastai.callback.core import Callback
from mhex.data import ImageData, load_data
from mhex.textdata import TextData
from mhex.train import HISTORY, fit_recipe
from mhex.training_panel import TrainingPanel, View, charts_html, maps_html, status_html
from mhex.training_run import Job, RunSettings, TrainingRun, make_learner, pick_samples

NET = dict(backbone_kw=dict(width=8, blocks=(1, 1)), device="cpu", bs=25)
TINY = RunSettings(epochs=2, pictures=3, look=3, **NET)
HOSTILE = '<img src=x onerror=alert(1)>'


@pytest.fixture(scope="module")
def digits(): return load_data("digits", size=14).subset(train=100, valid=50, test=50)


@pytest.fixture(scope="module")
def whole(digits):
    "A run in one go, 2 epochs of 4 steps"
    run = TrainingRun(digits, TINY).start()
    run.wait(300)
    return run


def at(run, **moves):
    "Make moves when a step is reached (or a batch of the validation: step + .5), in the thread, so that it is exact"
    run.job.every = 0
    def told(r):
        w = r.progress
        here = w.step + (.5 if w.part == "validating" and w.batch else 0)
        for m, s in list(moves.items()):
            if r.job.state == "running" and not r.job.asked and here >= s: del moves[m]; getattr(r, m)()
    run.listen(told)
    return run


def weights(run): return run.model.state_dict()


def assert_same(a, b):
    "Weights, curves, maps and history, to the last bit"
    for (k, p), q in zip(weights(a).items(), weights(b).values(), strict=True): assert torch.equal(p, q), k
    assert a.curves == b.curves and [f.epoch for f in a.frames] == [f.epoch for f in b.frames]
    for f, g in zip(a.frames, b.frames):
        assert torch.equal(f.probs, g.probs) and f.right == g.right
        for k in f.maps: assert all(torch.equal(p, q) for p, q in zip(f.maps[k], g.maps[k]))
    assert (a.folder / HISTORY).read_bytes() == (b.folder / HISTORY).read_bytes()


def until(f, seconds=60):
    end = time.monotonic() + seconds
    while not f():
        assert time.monotonic() < end, "did not happen"
        time.sleep(.01)


# The run

def test_as_fit_recipe(digits, whole):
    learn = fit_recipe(make_learner(digits, TINY), epochs=2, quiet=True)
    for p, q in zip(learn.model.state_dict().values(), weights(whole).values(), strict=True): assert torch.equal(p, q)


def test_pause_holds_and_kernel_is_free(digits):
    run = TrainingRun(digits, TINY.changed(epochs=200, pictures=0, look=0)).start()
    until(lambda: run.progress.step > 1)
    t = time.monotonic()
    turns = 0
    while time.monotonic() - t < .3: turns += 1; time.sleep(.001)
    assert turns > 20  # this thread came to its turn while the other one trained
    run.pause().wait(60)
    assert run.state == "paused"
    step, w = run.progress.step, {k: v.clone() for k, v in run.model.state_dict().items()}
    time.sleep(.4)
    assert run.progress.step == step and all(torch.equal(v, run.model.state_dict()[k]) for k, v in w.items())
    run.resume()
    until(lambda: run.progress.step > step)
    assert run.state == "running"
    with pytest.raises(RuntimeError, match="being trained; pause"): run.model
    run.stop()
    until(lambda: run.state == "stopped")


def test_random_numbers_in_a_pause(digits, whole):
    run = at(TrainingRun(digits, TINY), pause=3).start()
    assert run.wait(120) == "paused" and run.progress.step == 3
    torch.manual_seed(123); torch.rand(10); np.random.rand(10)
    run.resume()
    assert run.wait(120) == "finished"
    assert_same(run, whole)


@pytest.mark.parametrize("step", [1, 3, 4, 4.5, 6, 8.5])
def test_stop_then_resume(digits, whole, step):
    "In the middle of an epoch, at its last batch, while it validates, in the last validation"
    run = at(TrainingRun(digits, TINY), stop=step).start()
    assert run.wait(120) == "stopped" and run.progress.step == int(step)
    run.resume()
    assert run.wait(120) == "finished"
    assert_same(run, whole)


def test_in_another_process(digits, whole, tmp_path):
    run = at(TrainingRun(digits, TINY, folder=tmp_path / "run"), stop=5).start()
    run.wait(120)
    other = TrainingRun.load(tmp_path / "run")  # digits are loaded again by name, and cut as they were
    assert other.state == "stopped" and other.progress.step == 5 and len(other.frames) == 2
    other.resume().wait(120)
    assert_same(other, whole)
    third = TrainingRun.load(tmp_path / "run")
    assert third.state == "finished" and third.progress.part == "done" and torch.equal(third.model(digits.batch("test", [0])[0]), whole.model(digits.batch("test", [0])[0]))


def test_killed(digits, whole, tmp_path):
    "A process that is gone left a checkpoint of some steps before: what came after is done again and stands in the curves once"
    class Gone(Callback):
        def after_step(self):
            if self.learn.train_iter == 7: raise KeyError("gone")
    run = TrainingRun(digits, TINY, folder=tmp_path / "run", every=3)
    run.job.every = 0
    run.listen(lambda r: r.learn.add_cb(Gone()) if r.learn and r.progress.step == 5 and not hasattr(r.learn, "gone") and r.state == "running" else None)
    run.start()
    with pytest.raises(RuntimeError, match="training failed: KeyError"): run.wait(120)
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert facts["state"] == "running"  # as a killed process leaves it
    back = TrainingRun.load(tmp_path / "run")
    assert back.state == "stopped"
    back.resume().wait(120)
    assert_same(back, whole)


@pytest.mark.parametrize("state,move", [(s, m) for s, ms in dict(idle="pause resume stop", running="start resume", paused="start pause", stopped="start pause stop",
                                                                finished="start pause resume stop", failed="start pause stop").items() for m in ms.split()])
def test_impossible_moves(state, move):
    job = Job(lambda job, resume: None, "work")
    job.state = state
    with pytest.raises(RuntimeError, match=re.escape(f"{move}() is not possible: work is {state}; ") + r"\S+"): getattr(job, move)()
    assert job.state == state and job.asked is None


def test_pause_is_taken_back():
    go, seen = threading.Event(), []
    def work(job, resume):
        go.wait(10)
        seen.append(job.hold())
    job = Job(work, "work").start()
    job.pause()
    assert job.state == "running" and job.asked == "pause"
    job.resume()
    go.set()
    assert job.wait(10) == "finished" and seen == [False]


def test_listener_that_fails():
    "A picture that cannot be drawn ends no training"
    job = Job(lambda job, resume: [job.tell(True) for _ in range(3)], "work")
    told = []
    job.listen(lambda j: 1 / 0); job.listen(lambda j: told.append(j.state))
    with pytest.warns(UserWarning, match="a listener of work failed and is called no more: ZeroDivisionError"): job.start().wait(10)
    assert len(told) > 3


@pytest.mark.parametrize("end", ["finished", "failed", "paused"])
def test_who_waits_finds_listeners_told(end):
    "A panel is up to date when `wait` returns, however slow it is to draw"
    told = []

    def work(job, resume):
        while end == "paused" and not job.hold(): time.sleep(.01)
        if end == "failed": raise ValueError("no")
        return end
    job = Job(work, "work")
    job.listen(lambda j: (time.sleep(.2 if j.state == end else 0), told.append(j.state)))
    job.start()
    if end == "paused": job.pause()
    if end == "failed":
        with pytest.raises(RuntimeError, match="work failed: ValueError: no"): job.wait(30)
    else: assert job.wait(30) == end
    assert told[-1] == end
    if end == "paused": job.stop().wait(30)


def test_listener_may_wait():
    "A listener that waits in the job's own thread does not wait for itself"
    seen = []
    job = Job(lambda job, resume: None, "work")
    job.listen(lambda j: seen.append(j.wait(30)) if j.state == "finished" else None)
    assert job.start().wait(30) == "finished" and seen == ["finished"]


def test_told_at_most_four_times_a_second():
    told = []
    job = Job(lambda job, resume: [(job.tell(), time.sleep(.005)) for _ in range(100)], "work")
    job.listen(lambda j: told.append(time.monotonic()))
    job.start().wait(30)
    assert len(told) <= 3 + (told[-1] - told[0]) / job.every


def test_samples(digits):
    idxs = pick_samples(digits, 12)
    y = digits.valid.y[idxs].tolist()
    assert len(set(y[:10])) == 10 and len(set(idxs)) == 12


def test_frames_are_maps_of_the_truth(digits, whole):
    from mhex.saliency import explain
    f, s = whole.frames[-1], whole.samples
    exp = explain(whole.model, digits.batch("valid", s.idxs)[0], target=s.target)
    assert torch.equal(torch.stack(f.maps["exact"]), exp.map(kind="exact")) and torch.equal(f.probs, exp.probs)
    assert torch.equal(f.blocks["paper"][1][2], exp.block_maps(kind="paper")[1][2])
    assert [f.epoch for f in whole.frames] == [0, 1, 2]


def test_head_weights(digits, tmp_path):
    run = at(TrainingRun(digits, TINY.changed(head_weights="rising"), folder=tmp_path / "a"), stop=2).start()
    run.wait(120)
    assert run.learn.mhex.loss_of_heads.weights == [1., 2.]
    facts = json.loads((tmp_path / "a/run.json").read_text())
    facts["settings"]["head_weights"] = None
    (tmp_path / "a/run.json").write_text(json.dumps(facts))
    run = TrainingRun.load(tmp_path / "a")
    run.resume()
    with pytest.raises(RuntimeError, match="belongs to another run: head_weights"): run.wait(120)


def test_several_labels(tmp_path):
    g = np.random.default_rng(0)
    part = lambda n: (g.random((n, 14, 14)).astype("float32"), g.integers(0, 2, (n, 3)))
    data = ImageData.from_arrays("many", part(48), part(16), part(16), class_names=["a", "b", "c"], multi_label=True)
    run = TrainingRun(data, TINY.changed(epochs=1))
    run.start().wait(120)
    run.compare().wait(120)
    y = data.valid.y[run.samples.idxs]
    assert run.samples.truth == [", ".join(c for c, v in zip("abc", r) if v > .5) or "none" for r in y.tolist()]
    assert run.frames[-1].right == ((run.frames[-1].probs > .5) == (y > .5)).all(1).tolist()
    assert set(run.scores) == {"MHEX", "plain"} and run.scores["plain"]["n"] == 16
    shutil.rmtree(run.save(tmp_path / "many") / "model")
    back = TrainingRun.load(tmp_path / "many")
    with pytest.raises(RuntimeError, match=r"TrainingRun.load\(folder, data=...\)"): back.resume().wait(60)


# The panel

@pytest.fixture
def panel(digits): return TrainingPanel(digits, TINY)


def done(panel, *moves):
    for m in moves:
        getattr(panel, m)()
        job = panel.busy
        if job: until(lambda: not job.active)
    panel.refresh()
    return panel


@pytest.fixture(scope="module")
def trained(digits): return done(TrainingPanel(digits, TINY), "start", "compare")


def test_panel_trains(trained, whole):
    assert_same(trained.run, whole)
    p = trained.shown
    assert "finished" in p["status"] and p["charts"].count('class="mx-chart"') == 3 and p["maps"].count("<figure>") == 3 and "plain twin" in p["compare"]
    assert re.search(r"<desc>layer1\.0: [\d.]+; layer2\.0: [\d.]+", p["charts"]) and "plain twin" in p["charts"]


def test_live(digits):
    "What the buttons and controls do, without a browser"
    panel = TrainingPanel(digits, TINY.changed(epochs=100, pictures=2))
    view, go, c = panel.view, panel._go, panel._controls
    on = lambda: {n for n, w in go.items() if not w.disabled}
    assert on() == {"start", "load", "find"} and c["open"].value
    go["start"].click()
    until(lambda: panel.state.view.where.step > 1)
    until(lambda: on() == {"pause", "stop"})
    assert not c["open"].value and c["epochs"].disabled and panel.run.state == "running"
    go["pause"].click()
    until(lambda: on() == {"resume", "stop", "save"})
    assert panel.run.state == "paused" and "paused" in panel._live["parts"]["status"].value
    step = panel.run.progress.step
    time.sleep(.3)
    assert panel.run.progress.step == step
    go["resume"].click()
    until(lambda: panel.state.view.where.step > step)
    go["stop"].click()
    until(lambda: on() == {"start", "resume", "save", "load", "find"})
    assert panel.run.state == "stopped" and not c["epochs"].disabled
    go["resume"].click()
    until(lambda: panel.run.state == "running")
    panel.stop()
    until(lambda: panel.run.state == "stopped")


def test_render_is_pure(trained):
    s = trained.state
    one = trained.render(s)
    state, curves = trained.run.state, json.dumps(trained.run.curves)
    fresh = TrainingPanel(trained.own, TINY)  # another panel, nothing drawn before
    assert fresh.render(s) == one == trained.render(s) and fresh.state.view.frames == ()
    assert trained.run.state == state and json.dumps(trained.run.curves) == curves
    first = trained.render(replace(s, epoch=0))
    assert first["maps"] != one["maps"] and {k: v for k, v in first.items() if k != "maps"} == {k: v for k, v in one.items() if k != "maps"}
    for kind, block, same in (("exact", -1, True), ("paper", 0, True), ("paper", -1, False)): assert trained.render(replace(s, kind=kind, block=block, same=same, epoch=1))["maps"] not in (first["maps"], one["maps"])
    assert list(one) == list(TrainingPanel(trained.own).shown)


def test_failure_is_shown(digits):
    panel = done(TrainingPanel(digits, TINY, head_weights=[1, 2, 3]), "start")
    assert panel.run.state == "failed"
    n = panel.shown["notice"]
    assert "Training failed: head_weights has 3 numbers, the network has 2 heads: layer1.0, layer2.0" in n and 'role="alert"' in n and "Traceback" in n
    assert "failed" in panel.shown["status"] and panel.state.heads == "1, 2, 3"
    panel.update(heads="1, 2")
    done(panel, "start")
    assert panel.run.state == "finished" and "alert" not in panel.shown["notice"] and len(panel.runs) == 2


def test_failure_on_the_way(digits, whole):
    class Full(Callback):
        def after_step(self):
            if self.learn.train_iter == 5 and fail: raise OSError(f"no space left {HOSTILE}")
    fail, panel = [1], TrainingPanel(digits, TINY)
    panel.view
    panel.start()
    panel.run.job.every = 0
    until(lambda: panel.run.learn is not None)
    panel.run.learn.add_cb(Full())
    until(lambda: panel.run.state in ("failed", "finished"))
    if panel.run.state == "finished": pytest.skip("the run was over before the fault was put in")
    panel.refresh()
    assert "no space left &lt;img" in panel.shown["notice"] and HOSTILE not in panel.shown["notice"] and not panel._go["resume"].disabled
    fail.clear()
    done(panel, "resume")
    assert panel.run.state == "finished" and "no space" not in panel.shown["notice"]
    for p, q in zip(weights(panel.run).values(), weights(whole).values(), strict=True): assert torch.equal(p, q)


BAD = [("epochs", "many", "epochs is 'many'; expected a whole number"), ("epochs", "0", "epochs is 0; expected a whole number from 1 up"), ("lr", "-1", "lr is -1.0; expected a number above 0"),
       ("lr", "nan", "lr is nan"), ("heads", "1;x", "head weights are '1;x'"), ("heads", "0, 0", "not all 0"), ("rank", "0", "rank is 0"), ("seed", "-3", "seed is -3"), ("size", "big", "size is 'big'"),
       ("most", "3", "most is 3; expected a whole number from 8 up"), ("gate", "inf", "gate_bias is inf")]


@pytest.mark.parametrize("field,typed,says", BAD)
def test_bad_choices(trained, field, typed, says):
    "A message; what was typed stays; nothing of the run is lost"
    before, run, runs = trained.shown, trained.run, list(trained.runs)
    trained.view
    w = trained._controls[field]
    old = w.value
    try:
        w.value = typed
        assert says in trained.shown["notice"].replace("&#x27;", "'") and w.value == typed and getattr(trained.state, field) == typed
        assert trained.shown["maps"] == before["maps"] and trained.shown["charts"] == before["charts"]
        trained._go["start"].click()
        assert says in trained.shown["notice"].replace("&#x27;", "'") and trained.run is run and trained.runs == runs and run.state == "finished"
        with pytest.raises(ValueError, match=re.escape(says)): trained.start()
    finally:
        w.value = old
    assert says not in trained.shown["notice"]


@pytest.mark.parametrize("change,says", [(dict(source="folder", path=""), "the path is empty"), (dict(source="folder", path="not there"), "there is no folder 'not there'"),
                                         (dict(source="csv", path="nothing.csv"), "there is no file 'nothing.csv'"), (dict(backbone="resnet19"), "training failed: backbone is 'resnet19'")])
def test_bad_data_and_network(panel, change, says):
    panel.view
    panel.update(**change)
    panel._go["start"].click()
    if panel.run: until(lambda: not panel.run.active)
    panel.refresh()
    seen = (panel.shown["notice"] + panel._live["said"].value).replace("&#x27;", "'")
    assert says.lower() in seen.lower()
    for k, v in change.items(): assert getattr(panel.state, k) == v


def test_moves_that_make_no_sense(panel):
    panel.view
    for what, says in dict(pause="nothing to pause yet", resume="nothing to resume yet", compare="nothing to compare", save="nothing to save", load="name the folder", use_lr="no suggestion").items():
        panel.safely(getattr(panel, what))
        assert says in panel._live["said"].value
    panel.update(folder="no run here")
    panel.safely(panel.load)
    assert "holds no run.json" in panel._live["said"].value


def test_hostile_names():
    g = np.random.default_rng(0)
    names = [HOSTILE, '"><script>alert(2)</script>', "\u202egnp.exe"]
    part = lambda n: (g.random((n, 14, 14)).astype("float32"), np.arange(n) % 3)
    data = ImageData.from_arrays(f"data{HOSTILE}", part(48), part(15), part(15), class_names=names)
    panel = done(TrainingPanel(data, TINY.changed(epochs=1)), "start", "compare")
    panel.update(folder=HOSTILE, path=f'"{HOSTILE}', heads=HOSTILE)
    panel.safely(panel.load)
    page = "".join(panel.shown.values()) + panel.static() + "".join(w.value for w in panel.view.children if isinstance(getattr(w, "value", None), str))
    assert "<img src=x" not in page and "<script>alert" not in page and "\u202e" not in page and "&lt;img src=x" in page
    v = replace(panel.state.view, error=f"training failed: {HOSTILE}", trace=f"line\n  {HOSTILE}", what=HOSTILE, kept=HOSTILE, curves={**panel.state.view.curves, "blocks": [HOSTILE, "b"],
                "epochs": [{**r, f"accuracy {HOSTILE}": .5, "accuracy b": .5} for r in panel.state.view.curves["epochs"]], "looks": [{"step": 0, HOSTILE: .1}]})
    page = "".join(panel.render(replace(panel.state, view=v)).values())
    assert "<img src=x" not in page and page.count("&lt;img src=x") > 5


def test_typing_while_the_thread_draws(digits):
    "What a person chooses while a new view is put in place is never lost"
    panel = TrainingPanel(digits, TINY)
    panel.view
    end = threading.Event()
    def draw():
        while not end.is_set(): panel.refresh()
    t = threading.Thread(target=draw)
    t.start()
    try:
        for i in range(60):
            panel._controls["most"].value = str(i + 8)
            assert panel.state.most == str(i + 8) == panel._controls["most"].value
    finally: end.set(); t.join(20)


def test_finder(digits, trained):
    panel = TrainingPanel(digits, TINY)
    panel.find_lr()
    panel.probe.finder.every = 0
    until(lambda: panel.busy is None)
    panel.refresh()
    assert panel.run is None and "Learning-rate finder" in panel.shown["finder"] and "<polyline" in panel.shown["finder"] and panel.state.view.lr["valley"] > 0
    panel.use_lr()
    assert float(panel.state.lr) == pytest.approx(panel.state.view.lr["valley"], rel=.05)
    maps = trained.shown["maps"]
    done(trained, "find_lr")
    assert trained.shown["maps"] == maps and trained.shown["compare"] and trained.shown["finder"]  # the finished run stays in view


def test_save_and_load(digits, tmp_path):
    panel = TrainingPanel(digits, TINY, lr=.01, head_weights=[1, 3], rank=4)
    panel.start()
    at(panel.run, stop=5)
    until(lambda: panel.busy is None)
    panel.update(folder=str(tmp_path / "mine"))
    panel.save()
    other = TrainingPanel()
    other.update(folder=str(tmp_path / "mine"))
    other.load()
    s = other.state
    assert (s.lr, s.heads, s.rank, s.epochs) == ("0.01", "1, 3", "4", "2") and other.run.state == panel.run.state and other.shown["maps"] == panel.shown["maps"]
    if other.run.state == "stopped": done(other, "resume")
    done(panel, *["resume"] * (panel.run.state == "stopped"))
    assert all(torch.equal(p, q) for p, q in zip(weights(other.run).values(), weights(panel.run).values(), strict=True))
    other.start
    other.view
    other.safely(other.start)
    assert "holds a run already" in other._live["said"].value


def test_to_html(trained, tmp_path):
    page = trained.to_html(tmp_path / "run.html").read_text()
    assert 'type="range"' in page and "untrained" in page and not re.search(r'(?:src|href)="(?!data:)|https?:|url\(', page)
    assert len(page) < 600_000
    for e in (0, 1, 2): assert maps_html(trained.state.view, e)[:80].split("<span")[0].encode() and f"epoch {e}" in page or e == 0
    one = trained.static(axes={})
    assert "<script" not in one and "left" not in status_html(trained.state.view)


def test_no_clock_in_what_is_stored(digits, trained):
    "Two runs with the same settings give the same page"
    again = done(TrainingPanel(digits, TINY), "start", "compare")
    assert again.static() == TrainingPanel(digits, run=trained.run).static() or again.shown == trained.render(replace(again.state, view=trained.state.view, lr=again.state.lr))


def test_texts():
    g = np.random.default_rng(0)
    say = lambda y: " ".join(g.permutation(["the", HOSTILE, *g.choice([["tree", "hill", "path"], ["wave", "sail", "tide"]][y], 2)]))
    part = lambda n: ([say(i % 2) for i in range(n)], [i % 2 for i in range(n)])
    data = TextData.from_lists("walks", part(64), part(16), part(16), class_names=["land", "<b>sea"])
    panel = done(TrainingPanel(data, backbone="mini_bert_small", backbone_kw=dict(vocab_size=60, width=16), epochs=1, pictures=2, device="cpu"), "start", "compare")
    p = panel.shown
    assert panel.run.state == "finished" and panel.state.kind == "exact" and p["maps"].count('class="mhex-auto"') == 2 and p["charts"].count('class="mx-chart"') == 2
    assert "<img src=x" not in "".join(p.values()) and "<b>sea" not in "".join(p.values())
    panel.view
    assert panel._controls["size"].layout.display == "none" and panel._controls["backbone"].options[0] == "mini_bert"
    f = panel.run.frames[-1]
    i = int(f.probs[0].argmax())
    from mhex.saliency import explain
    exp = explain(panel.run.model, panel.run.learn.dls.data.batch("valid", panel.run.samples.idxs)[0], target=panel.run.samples.target)
    torch.testing.assert_close(f.maps["exact"][0].sum(), exp.logits[0, panel.run.samples.target[0]], atol=1e-4, rtol=1e-4)  # words add up to the logit


def test_quick_to_draw(trained):
    "Eight heads with long curves: what is drawn four times a second takes a fraction of that"
    n = 400
    names = [f"layer{i}" for i in range(8)]
    c = dict(steps=list(range(1, n + 1)), losses=[[1.] * 8] * n, loss=[1.] * n, rate=[.1] * n, blocks=names, of=dict(steps=n, epochs=40, batches=10), n=0, sums=None, frames=[],
             epochs=[{"epoch": e, "valid_loss": 1., "accuracy": .5, **{f"accuracy {b}": .5 for b in names}} for e in range(40)], looks=[{"step": i * 6, **{b: .1 for b in names}} for i in range(60)])
    v = replace(trained.state.view, curves=c)
    t = time.perf_counter()
    html = charts_html(v)
    assert time.perf_counter() - t < .5 and len(html) < 120_000
    assert status_html(View()).count("ready")
