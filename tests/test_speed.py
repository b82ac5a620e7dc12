"The bench of metrics: what it asks for, what it keeps when it is interrupted, what it does not pretend to know."
from pathlib import Path
from unittest.mock import MagicMock

import pytest, torch

from mhex import cli, speed
from mhex.files import load_rows, save_rows

STORED = Path(__file__).resolve().parent.parent/"nbs"/"data"
TINY = dict(n=2, size=4, steps=4, which="linear", rounds=1, progress=False)


def test_pairs_are_names():
    "A part of a name is no name, and a slip among good names is said"
    for pairs in ("RO", "drops", ["drop", "ROADS"], []):
        with pytest.raises(ValueError, match="pairs .*'drop and increase'"): speed.metric_speed(**TINY, pairs=pairs)
    with pytest.raises(ValueError, match="which is empty"): speed.metric_speed(**{**TINY, "which": []})


def test_pairs_of_one_name(monkeypatch, tmp_path):
    monkeypatch.setattr(speed, "_row", lambda *a: dict(ratio=1))
    monkeypatch.setattr(speed, "library", lambda *a: MagicMock())
    for pairs, want in (("drop", ["drop"]), (["ROAD", "drop"], ["ROAD", "drop"])):
        assert [r["metric"] for r in speed.metric_speed(**TINY, pairs=pairs)] == want
    with pytest.raises(ValueError): speed.metric_speed(**TINY, pairs="x", out=tmp_path/"new"/"rows.jsonl")
    assert not (tmp_path/"new").exists(), "nothing is made for a call that is wrong"


def test_interrupted(monkeypatch, tmp_path, capsys):
    "Ctrl-C keeps what was measured, and says where"
    def stop(*a, n=[0]):
        n[0] += 1
        if n[0] == 3: raise KeyboardInterrupt
        return dict(ratio=n[0])
    monkeypatch.setattr(speed, "_row", stop)
    monkeypatch.setattr(speed, "library", lambda *a: MagicMock())
    out = tmp_path/"rows.jsonl"
    assert cli.main(["bench", "metrics", "--images", "2", "--size", "4", "--steps", "4", "--judges", "linear", "--rounds", "1", "--out", str(out)]) == 130
    assert [r["ratio"] for r in load_rows(out)] == [1, 2] and [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]
    assert capsys.readouterr().err.endswith(f"interrupted; complete measurements are in {out}\n")


def test_what_is_left_is_more_than_noise(monkeypatch):
    "On a clock that the calls move: no ratio without the judge where the judge is nearly all of it"
    now = [0.]
    def takes(t): return lambda *a: now.__setitem__(0, now[0]+t)
    monkeypatch.setattr(speed.time, "process_time", lambda: now[0])
    bar = type("Bar", (), {"update": lambda self: None})()
    for judge, want in ((.5, 5.), (.94, 34.3), (.96, None), (1.1, None)):
        r = speed._row(takes(1), takes(3), lambda a, o: 0., 1, takes(judge), torch.zeros(1, 1), 1, 1, bar)
        assert (r["ratio"], r["ratio_without_judge"]) == (3, want)


def test_other_rows():
    for rows in (load_rows(STORED/"latency.jsonl"), [{"metric": "ROAD", "peer": "Quantus", "judge": "linear"}], [3]):
        with pytest.raises(ValueError, match="it takes what mhex.speed.metric_speed returned"): speed.speed_table(rows)
    assert speed.speed_table([{"metric": "ROAD", "peer": "Quantus", "judge": "linear", "missing": "no quantus"}]).endswith("| ROAD | Quantus | linear | not installed |  |  |  |  |  |")


def test_command(monkeypatch, capsys, tmp_path):
    "Steps can be given where the usual ones do not divide the pixels, and the error says which would"
    assert cli.main(["bench", "metrics", "--size", "32"]) == 2 and "does not divide 1024 pixels" in (err := capsys.readouterr().err) and err.endswith("take 64\n")
    stored, asked = load_rows(STORED/"metric_speed.jsonl"), []
    monkeypatch.setattr(speed, "metric_speed", lambda **kw: asked.append(kw) or stored)
    assert cli.main(["bench", "metrics", "--size", "32", "--steps", "64"]) == 0 and asked[0]["steps"] == 64 and asked[0]["size"] == 32
    assert cli.main(["bench", "metrics"]) == 0 and asked[1]["steps"] == 49
    capsys.readouterr()
    save_rows(load_rows(STORED/"latency.jsonl"), tmp_path/"other.jsonl")
    assert cli.main(["bench", "metrics", "--read", str(tmp_path/"other.jsonl")]) == 2 and "mhex bench metrics --out" in capsys.readouterr().err
