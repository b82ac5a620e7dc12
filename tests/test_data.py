"Data sets: what comes out, in which order, and what is said about bad input."
import hashlib, http.server, io, os, random, subprocess, sys, threading, zipfile, zlib
from functools import partial
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from torch.testing import assert_close
from shared_data import need
from mhex.data import (SPLITS, ImageData, data_folders, data_names, find_data, grouped_split, light_augment, load_data, make_shapes, read_image,
                       register_data, specimens, stratified_split)


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch, tmp_path):
    "Nothing outside the test's own folder is found"
    monkeypatch.delenv("MHEX_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def arrays(n=13, k=3, size=8, seed=0, channels=None):
    g = np.random.default_rng(seed)
    return g.integers(0, 256, (n, size, size) if channels is None else (n, size, size, channels), dtype=np.uint8), np.arange(n) % k


def own(n=13, **kw): return ImageData.from_arrays("own", arrays(n), arrays(6, seed=1), arrays(7, seed=2), **kw)


def fake_medmnist(folder, name, size=28, n=(12, 5, 6), **changes):
    "A file in MedMNIST's layout, with random pixels"
    from medmnist.info import INFO
    info, g, out = INFO[name], np.random.default_rng(0), {}
    k = len(info["label"])
    for split, m in zip(("train", "val", "test"), n):
        out[f"{split}_images"] = g.integers(0, 256, (m, size, size) + ((3,) if info["n_channels"] == 3 else ()), dtype=np.uint8)
        out[f"{split}_labels"] = g.integers(0, 2, (m, k)) if info["task"].startswith("multi-label") else (np.arange(m) % k)[:, None].astype(np.uint8)
    out.update(changes)
    folder = Path(folder); folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{'' if size == 28 else f'_{size}'}.npz"
    np.savez_compressed(path, **{k: v for k, v in out.items() if v is not None})
    return path


def picture(path, size=(20, 30), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def picture_folder(root, classes=("cat", "dog"), n=10, split=""):
    for c in classes:
        for i in range(n): picture(root / split / c / f"{i}.png", (20+i, 30), seed=zlib.crc32(f"{split}/{c}/{i}".encode()))
    return root


# ---- what comes out

def check(data, k, channels, size, multi=False):
    assert (data.n_classes, data.channels, data.size, data.multi_label) == (k, channels, size, multi)
    assert data.preprocess == dict(size=size, channels=channels, mean=data.mean, std=data.std) and len(data.mean) == channels
    for s in SPLITS:
        ds = data[s]
        x, y = ds[len(ds)-1]
        assert x.shape == (channels, size, size) and x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1
        assert (y.shape == (k,) and y.dtype == torch.float32) if multi else type(y) is int
        xb, yb = data.batch(s, [len(ds)-1, 0])
        assert_close(data.denormalize(xb)[0], x, atol=1e-6, rtol=0.)
        assert yb.dtype == (torch.float32 if multi else torch.int64) and len(yb) == 2
        with pytest.raises(IndexError): ds[len(ds)]


def test_digits():
    data = load_data("digits")
    check(data, 10, 1, 28)
    assert data.class_names == list("0123456789") and sum(len(data[s]) for s in SPLITS) == 1797 and not data.has_masks
    assert all(min(c.values()) > 0 for c in data.counts().values()) and set(data.overlap().values()) == {0}
    again, other = load_data("Digits"), load_data("digits", seed=1)
    assert np.array_equal(again.test.x, data.test.x) and not np.array_equal(other.test.x, data.test.x)
    check(load_data("digits", size=32, channels=3), 10, 3, 32)
    assert_close(load_data("digits", size=32, channels=3).train[0][0][0], load_data("digits", size=32).train[0][0][0])


def test_shapes():
    data = load_data("shapes", n=(80, 40, 40))
    check(data, 4, 1, 32)
    assert data.has_masks and data.test.masks.dtype == torch.bool and data.test.masks.shape == (40, 32, 32) and data.test.has_mask.all()
    assert data.counts()["train"] == dict(circle=20, square=20, triangle=20, cross=20)
    same = load_data("shapes", n=(80, 40, 40))
    assert np.array_equal(same.train.x, data.train.x) and torch.equal(same.train.masks, data.train.masks)
    assert not np.array_equal(load_data("shapes", n=(80, 40, 40), seed=1).train.x, data.train.x)
    check(load_data("shapes", n=(8, 8, 8), size=224), 4, 1, 224)


def test_shapes_keep_their_class_to_the_object():
    "Whatever the label, every pixel outside the objects is the same; the objects do differ, and are as large"
    drawn = [make_shapes([k]*50, size=40, seed=3) for k in range(4)]
    union = torch.stack([m for _, m in drawn]).any(0).float()[:, None]
    outside = ~torch.nn.functional.max_pool2d(union, 5, 1, 2)[:, 0].bool().numpy()
    for x, m in drawn[1:]:
        assert np.array_equal(x[outside], drawn[0][0][outside])
        assert (x[~outside] != drawn[0][0][~outside]).mean() > .1
        assert not m.flatten(1).all(1).any() and m.flatten(1).any(1).all()
        assert abs(m.float().mean()/drawn[0][1].float().mean()-1) < .05
        for edge in (m[:, 0], m[:, -1], m[:, :, 0], m[:, :, -1]): assert not edge.any(), "objects lie inside the image"


def test_shapes_cannot_be_told_from_simple_statistics():
    from sklearn.linear_model import LogisticRegression
    data = load_data("shapes", n=(1200, 8, 600))
    def stats(ds):
        x = ds.x.reshape(len(ds), -1)/255
        m = ds.masks.float().flatten(1)
        return np.c_[x.mean(1), x.std(1), x.max(1), np.quantile(x, [.1, .5, .9, .95, .99], axis=1).T, m.mean(1)]
    fit = LogisticRegression(max_iter=500).fit(stats(data.train), data.train.y)
    assert fit.score(stats(data.test), data.test.y) < .35, "chance is .25"


def test_multi_label(tmp_path, capsys):
    data = load_data("chestmnist", root=fake_medmnist(tmp_path, "chestmnist").parent)
    check(data, 14, 1, 28, multi=True)
    assert data.class_names[0] == "atelectasis" and data.class_names[13] == "hernia"
    assert sum(data.counts()["train"].values()) == int(data.train.y.sum())
    assert [b[1].shape for b in data.dls(bs=5, device="cpu").valid] == [(5, 14)]
    assert "several an image" in repr(data)


@pytest.mark.parametrize("name, k, channels", [("pathmnist", 9, 3), ("retinamnist", 5, 3), ("octmnist", 4, 1), ("bloodmnist", 8, 3), ("organamnist", 11, 1)])
def test_every_kind_of_medmnist(tmp_path, name, k, channels):
    data = load_data(name, root=fake_medmnist(tmp_path, name).parent)
    check(data, k, channels, 28)
    assert data.mean == data.std == [.5]*channels and data.train.y.ndim == 1
    check(load_data(name, root=tmp_path, channels=3), k, 3, 28)


def test_sizes(tmp_path):
    for size in (64, 128): check(load_data("breastmnist", size=size, root=fake_medmnist(tmp_path, "breastmnist", size).parent), 2, 1, size)
    with pytest.raises(ValueError, match="28, 64, 128, 224 px"): load_data("breastmnist", size=32, root=tmp_path)


def test_note_is_printed_and_kept(tmp_path, capsys):
    fake_medmnist(tmp_path, "breastmnist")
    data = load_data("breastmnist", root=tmp_path)
    assert "not the official file" in data.note and "train has 12 images, officially 546" in data.note
    assert data.note in capsys.readouterr().out and data.note in repr(data)
    assert load_data("breastmnist", root=tmp_path, check=False).note.startswith("MD5 not checked")


def test_official_file_needs_no_note(tmp_path, capsys, monkeypatch):
    from medmnist.info import INFO
    path = fake_medmnist(tmp_path, "breastmnist")
    monkeypatch.setitem(INFO["breastmnist"], "MD5", hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setitem(INFO["breastmnist"], "n_samples", dict(train=12, val=5, test=6))
    assert load_data("breastmnist", root=tmp_path).note is None and capsys.readouterr().out == ""


def test_splits_are_read_when_used(tmp_path, monkeypatch):
    import mhex.data as m
    read, real = [], m._read_npz
    monkeypatch.setattr(m, "_read_npz", lambda p, k: (read.append(k), real(p, k))[1])
    data = load_data("pathmnist", root=fake_medmnist(tmp_path, "pathmnist").parent)
    assert not [k for k in read if "images" in k]
    data.test[0]; data.test[1]
    assert [k for k in read if "images" in k] == ["test_images"]


# ---- where files are

def test_search_order(tmp_path, monkeypatch):
    a, b, c = tmp_path/"root", tmp_path/"env", tmp_path/"home"/".medmnist"
    assert find_data("breastmnist.npz") is None
    fake_medmnist(c, "breastmnist"); assert find_data("breastmnist.npz").parent == c
    fake_medmnist(b/"medmnist", "breastmnist"); monkeypatch.setenv("MHEX_DATA", str(b)); assert find_data("breastmnist.npz").parent == b/"medmnist"
    fake_medmnist(a, "breastmnist"); assert find_data("breastmnist.npz", root=a).parent == a
    assert find_data("breastmnist.npz", root=tmp_path/"none") is None, "a given root is the only place"
    assert data_folders()[0] == b/"medmnist"
    assert load_data("breastmnist").path.parent == b/"medmnist"


def test_missing_file_says_what_where_and_how(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError) as e: load_data("pneumoniamnist", size=64)
    for part in ("pneumoniamnist_64.npz", str(tmp_path/"home"/".medmnist"), "MHEX_DATA is not set",
                 "python -c \"import mhex; mhex.load_data('pneumoniamnist', size=64, download=True)\""): assert part in str(e.value)
    monkeypatch.setenv("MHEX_DATA", str(tmp_path/"nowhere"))
    with pytest.raises(FileNotFoundError, match=r"nowhere \(no such folder\)"): load_data("pneumoniamnist")
    with pytest.raises(FileNotFoundError, match="cifar10_jpeg_subset.zip"): load_data("cifar10")


@pytest.fixture
def server(tmp_path, monkeypatch):
    "Address of a web server on this machine that hands out tmp_path/server"
    (tmp_path/"server").mkdir()
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *a): pass
    s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path/"server")))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    t = threading.Thread(target=s.serve_forever, daemon=True); t.start()
    yield f"http://127.0.0.1:{s.server_port}"
    s.shutdown(); t.join(); s.server_close()


def test_download_with_md5_check(tmp_path, monkeypatch, server):
    from medmnist.info import INFO
    path = fake_medmnist(tmp_path/"server", "breastmnist")
    monkeypatch.setitem(INFO["breastmnist"], "url", f"{server}/{path.name}")
    root = tmp_path/"new"/"folder"
    with pytest.raises(RuntimeError, match="could not be downloaded.*MD5 750601b1f35ba3300ea97c75c52ff8f6"): load_data("breastmnist", root=root, download=True)
    assert list(root.iterdir()) == [], "nothing half-written is left"
    monkeypatch.setitem(INFO["breastmnist"], "MD5", hashlib.md5(path.read_bytes()).hexdigest())
    data = load_data("breastmnist", root=root, download=True)
    assert data.path == root/"breastmnist.npz" and [p.name for p in root.iterdir()] == ["breastmnist.npz"]
    path.unlink()
    load_data("breastmnist", root=root, download=True)  # present: not fetched again


def test_download_to_a_place_that_cannot_be_written(tmp_path):
    (tmp_path/"file").write_text("")
    with pytest.raises(OSError, match="cannot write to.*root="): load_data("breastmnist", root=tmp_path/"file"/"below", download=True)


def test_download_interrupted(tmp_path, monkeypatch):
    import torchvision.datasets.utils as u
    def stop(url, root, filename, md5): (Path(root)/filename).write_bytes(b"half"); raise KeyboardInterrupt
    monkeypatch.setattr(u, "download_url", stop)
    with pytest.raises(KeyboardInterrupt): load_data("breastmnist", root=tmp_path/"new", download=True)
    assert list((tmp_path/"new").iterdir()) == []


# ---- bad files

def test_truncated_npz(tmp_path):
    path = fake_medmnist(tmp_path, "breastmnist")
    whole = path.read_bytes()
    for n in (0, 10, len(whole)//2, len(whole)-5):
        path.write_bytes(whole[:n])
        with pytest.raises(ValueError, match="truncated or not an npz file.*delete it"): load_data("breastmnist", root=tmp_path)


def test_damaged_inside(tmp_path):
    path = fake_medmnist(tmp_path, "breastmnist")
    b = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as z: at = z.getinfo("test_images.npy").header_offset
    b[at+1200:at+1300] = bytes(100)
    path.write_bytes(b)
    data = load_data("breastmnist", root=tmp_path)
    data.train[0]
    with pytest.raises(ValueError, match="damaged: test_images cannot be read"): data.test[0]


@pytest.mark.parametrize("changes, says", [
    (dict(val_images=None), "lacks val_images; it holds"),
    (dict(train_images=np.zeros((12, 28, 28, 3), np.uint8)), r"train_images is uint8 \(12, 28, 28, 3\)"),
    (dict(train_images=np.zeros((12, 64, 64), np.uint8)), r"expected uint8 \(n, 28, 28\)"),
    (dict(train_images=np.zeros((12, 28, 28))), "float64"),
    (dict(test_labels=np.zeros((5, 1), np.uint8)), "6 images and labels of shape"),
    (dict(train_labels=np.full((12, 1), 2, np.uint8)), "labels run from 2 to 2, but there are 2 classes"),
    (dict(train_labels=np.zeros((12, 14), np.uint8)), r"labels have shape \(12, 14\)"),
    (dict(val_images=np.zeros((0, 28, 28), np.uint8), val_labels=np.zeros((0, 1), np.uint8)), "valid split of breastmnist is empty"),
])
def test_foreign_npz(tmp_path, changes, says):
    fake_medmnist(tmp_path, "breastmnist", **changes)
    with pytest.raises(ValueError, match=says): load_data("breastmnist", root=tmp_path)


def test_not_an_npz_at_all(tmp_path):
    np.save(tmp_path/"x.npy", np.zeros(3)); (tmp_path/"x.npy").rename(tmp_path/"breastmnist.npz")
    with pytest.raises(ValueError, match="truncated or not an npz"): load_data("breastmnist", root=tmp_path)
    np.savez(tmp_path/"breastmnist.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="it lacks train_images.*it holds a"): load_data("breastmnist", root=tmp_path)


def test_masks_of_another_file(tmp_path):
    fake_medmnist(tmp_path, "breastmnist")
    np.savez(tmp_path/"breastmnist_masks.npz", **{f"{k}_masks": np.zeros((3, 28, 28), np.uint8) for k in ("train", "val", "test")})
    with pytest.raises(ValueError, match="one mask an image"): load_data("breastmnist", root=tmp_path)


# ---- bad arguments

@pytest.mark.parametrize("kw, error, says", [
    (dict(name="brestmnist"), ValueError, "sets: digits, shapes, magnetic_tile, cifar10, pathmnist"),
    (dict(name="organmnist3d"), ValueError, "three-dimensional"),
    (dict(name=3), TypeError, "string or a path"),
    (dict(name="digits", size=4), ValueError, "only be enlarged"),
    (dict(name="digits", size=0), ValueError, "number of pixels"),
    (dict(name="digits", size=28.), ValueError, "number of pixels"),
    (dict(name="digits", seed=-1), ValueError, "negative"),
    (dict(name="digits", channels=2), ValueError, "channels"),
    (dict(name="digits", download=True), TypeError, "takes no setting 'download'"),
    (dict(name="shapes", size=8), ValueError, "20 px"),
    (dict(name="shapes", n=(1, 2)), ValueError, "three numbers"),
    (dict(name="cifar10", size=64), ValueError, "32 px"),
])
def test_bad_arguments(kw, error, says):
    with pytest.raises(error, match=says): load_data(**kw)


def test_names():
    assert data_names()[:4] == ["digits", "shapes", "magnetic_tile", "cifar10"] and {"breastmnist", "chestmnist"} < set(data_names())
    with pytest.raises(ValueError, match="taken"): register_data("shapes")(lambda: 0)


a, b = arrays(), arrays(6)


@pytest.mark.parametrize("train, kw, error, says", [
    ((a[0], a[1]), dict(class_names=["x", "y"]), ValueError, r"run from 0 to 2, but there are 2 classes \(0 to 1\)"),
    ((a[0], a[1]-1), dict(class_names=["x", "y", "z"]), ValueError, "run from -1 to 1"),
    ((a[0], a[1]+.5), dict(class_names=list("wxyz")), ValueError, "whole numbers"),
    ((a[0], a[1]*np.nan), {}, ValueError, "nan"),
    ((a[0], a[1].astype(str)), {}, TypeError, "number the classes"),
    ((a[0], np.eye(3)[a[1]]), dict(class_names=list("xyz")), ValueError, "multi_label=True"),
    ((a[0], a[1]), dict(multi_label=True, class_names=list("xyz")), ValueError, r"need \(n, 3\)"),
    ((np.where(np.arange(13)[:, None, None] == 3, np.nan, a[0]/255), a[1]), {}, ValueError, "in 1 of 13, first at index 3"),
    ((np.where(np.arange(13)[:, None, None] == 3, np.inf, a[0]/255), a[1]), {}, ValueError, "infinite"),
    ((a[0]*1., a[1]), {}, ValueError, r"0 to 255, expected floats in \[0,1\]"),
    ((a[0].astype(int), a[1]), {}, TypeError, "int64, expected uint8"),
    ((a[0][:0], a[1][:0]), {}, ValueError, "train split of own is empty"),
    ((a[0], a[1][:5]), {}, ValueError, "13 images and 5 labels"),
    ((a[0][:, :4], a[1]), {}, ValueError, "4 by 8 px"),
    ((a[0][0], a[1][:8]), {}, ValueError, r"shape \(8, 8\)"),
    ((arrays(size=9)[0], a[1]), {}, ValueError, "splits differ"),
    ((*a, a[0]), {}, TypeError, "masks must be boolean"),
    ((*a, a[0][:3] > 0), {}, ValueError, "one mask an image"),
    (a[0], {}, TypeError, r"\(images, labels\)"),
    (a, dict(mean=[.5, .5]), ValueError, "2 values for 1 channels"),
    (a, dict(std=0), ValueError, "positive"),
])
def test_bad_arrays(train, kw, error, says):
    with pytest.raises(error, match=says): ImageData.from_arrays("own", train, b, b, **kw)


@pytest.mark.parametrize("shape", [(13, 8, 8), (13, 1, 8, 8), (13, 8, 8, 1)])
def test_layouts_of_grey(shape):
    data = ImageData.from_arrays("own", (a[0].reshape(shape), torch.tensor(a[1])[:, None]), b, b)
    assert_close(data.train[5][0][0], torch.from_numpy(a[0][5]).float()/255)
    assert data.train.y.tolist() == a[1].tolist()


def test_layouts_of_colour():
    last, y = arrays(channels=3)
    first = torch.from_numpy(last).permute(0, 3, 1, 2).float()/255
    p, q = (ImageData.from_arrays("own", *[(x, y)]*3) for x in (last, first))
    assert_close(p.train[4][0], q.train[4][0]); assert_close(p.train[4][0], first[4])
    with pytest.raises(ValueError, match="throw colour away"): ImageData.from_arrays("own", *[(last, y)]*3, channels=1)


def test_normalize_refuses_other_channels():
    with pytest.raises(ValueError, match="1 channel"): own().normalize(torch.rand(2, 3, 8, 8))
    with pytest.raises(TypeError, match="uint8"): own().normalize(torch.zeros(1, 8, 8, dtype=torch.uint8))
    assert_close(own().normalize(torch.rand(1, 8, 8).round()).abs(), torch.ones(1, 8, 8))


@pytest.mark.parametrize("idxs", [[1, 3], slice(1, 4, 2), torch.tensor([1, 3]), np.array([1, -10]), np.isin(np.arange(13), [1, 3])])
def test_indices(idxs):
    x, y = own().batch("train", idxs)
    assert_close(x, own().batch("train", [1, 3])[0])


def test_bad_indices():
    with pytest.raises(IndexError, match="out of range for 13"): own().batch("train", [13])
    with pytest.raises(TypeError, match="whole numbers"): own().batch("train", [.5])
    with pytest.raises(ValueError, match="train, valid, test"): own().batch("training", [1])


def test_subset_and_overlap():
    data = own()
    x = arrays(6, seed=1)[0].copy(); x[0] = arrays(13)[0][4]
    assert ImageData.from_arrays("own", arrays(13), (x, arrays(6)[1]), arrays(7, seed=2)).overlap() == {("train", "valid"): 1, ("train", "test"): 0, ("valid", "test"): 0}
    s = load_data("shapes", n=(40, 8, 8)).subset(train=10)
    assert len(s.train) == 10 and len(s.train.masks) == 10 and len(s.train.has_mask) == 10 and len(s.test) == 8 and s.source["subset"]["train"] == 10
    assert torch.equal(s.train.y, load_data("shapes", n=(40, 8, 8)).subset(train=10).train.y)
    with pytest.raises(ValueError, match="leave nothing"): data.subset(train=0)


def test_stratified_split():
    y = np.array([0]*50+[1]*7+[2]*3)
    parts = stratified_split(y, seed=4)
    assert sorted(np.concatenate(parts)) == list(range(60))
    assert [np.bincount(y[p], minlength=3).tolist() for p in parts] == [[34, 5, 1], [8, 1, 1], [8, 1, 1]]
    assert any((p != q).any() for p, q in zip(parts, stratified_split(y, seed=5)))


# ---- loaders

def flat(dl): return torch.cat([x for x, _ in dl]), torch.cat([y for _, y in dl])


def test_loaders():
    data = own(14)
    dls = data.dls(bs=4, device="cpu")
    assert (dls.c, dls.vocab, dls.data is data, len(dls.train), len(dls.valid), len(dls.test)) == (3, ["0", "1", "2"], True, 4, 2, 2)
    assert_close(flat(dls.valid)[0], data.batch("valid", range(6))[0])
    assert_close(flat(dls.test)[0], data.batch("test", range(7))[0])
    x, y = dls.one_batch()
    assert type(x) is torch.Tensor and type(y) is torch.Tensor and x.shape == (4, 1, 8, 8)
    assert sorted(flat(dls.train)[1].tolist()) == sorted(data.train.y.tolist())


def test_single_last_image_is_left_out_of_training_only():
    for n, sizes in ((13, [4, 4, 4]), (14, [4, 4, 4, 2]), (12, [4, 4, 4])):
        assert [len(y) for _, y in own(n).dls(bs=4, device="cpu").train] == sizes
    assert [len(y) for _, y in own().dls(bs=6, device="cpu").test] == [6, 1]
    assert [len(y) for _, y in own(1, class_names=list("xyz")).dls(bs=6, device="cpu").train] == [1]


def test_order_depends_on_seed_and_epoch_alone():
    data = own(14)
    dl = data.dls(bs=4, seed=7, device="cpu").train
    runs = [flat(dl)[0] for _ in range(3)]
    assert dl.epoch == 6, "flat makes two passes"
    torch.manual_seed(99); random.seed(99); np.random.seed(99)
    for num_workers in (0, 2):
        again = data.dls(bs=4, seed=7, device="cpu", num_workers=num_workers).train
        assert_close(torch.cat([x for x, _ in again.set_epoch(2)]), runs[1])
    assert not torch.equal(torch.cat([x for x, _ in data.dls(bs=4, seed=8, device="cpu").train.set_epoch(2)]), runs[1])
    assert not torch.equal(runs[0], runs[1])


def test_resume_in_the_middle_of_an_epoch():
    data = own(30)
    def loader(): return data.dls(bs=4, seed=1, device="cpu", augment=light_augment).train
    whole = [b for e in range(3) for b in loader().set_epoch(e)]
    for at in range(8):
        dl, got = loader().set_epoch(1, skip=at), []
        for _ in range(2): got += list(dl)
        want = whole[8+at:]
        assert len(got) == len(want)
        for (x, y), (p, q) in zip(got, want): assert torch.equal(x, p) and torch.equal(y, q)
    with pytest.raises(ValueError, match="8 batches"): loader().set_epoch(1, skip=9)
    with pytest.raises(ValueError, match="epoch=-1"): loader().set_epoch(-1)


def test_broken_off_pass_does_not_count():
    dl = own(14).dls(bs=4, device="cpu").train
    first = next(iter(dl))[1]
    dl.one_batch()
    assert dl.epoch == 0 and torch.equal(next(iter(dl))[1], first)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_global_random_states_are_left_alone(num_workers):
    states = lambda: (random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist())
    before = states()
    dls = own(14).dls(bs=4, device="cpu", augment=light_augment, num_workers=num_workers)
    for dl in dls.loaders: list(dl)
    assert states() == before


def test_augment_only_in_training():
    calls = []
    dls = own(14).dls(bs=4, device="cpu", augment=lambda x: (calls.append(len(x)), 1-x)[1])
    list(dls.valid); list(dls.test); list(dls.train.new(shuffle=False))
    assert calls == []
    x, _ = next(iter(dls.train))
    y, _ = next(iter(own(14).dls(bs=4, device="cpu").train))
    assert_close(x, -y)  # mean .5: 1-x before normalising is -x after it


def test_light_augment():
    x = torch.rand(64, 2, 10, 10)
    torch.manual_seed(0)
    y = light_augment(x, shift=.2)
    assert y.shape == x.shape and not torch.equal(x, y)
    assert {round(v, 6) for v in y[3].flatten().tolist()} <= {round(v, 6) for v in x[3].flatten().tolist()}, "pixels are moved, not mixed"
    core = x[:, :, 2:8, 2:8]
    found = [any(torch.equal(p[:, i:i+6, j:j+6], c) for p in (y[n], y[n].flip(2)) for i in range(5) for j in range(5)) for n, c in enumerate(core)]
    assert all(found)


def test_bad_loader_settings():
    with pytest.raises(ValueError, match="bs"): own().dls(bs=0)
    with pytest.raises(ValueError, match="seed"): own().dls(seed=-1)
    with pytest.raises(ValueError, match="keep the shape"): own().dls(bs=4, device="cpu", augment=lambda x: x[:1]).one_batch()


def test_fastai_learner_runs_on_it():
    import fastai.callback.progress  # adds no_bar
    from fastai.learner import Learner
    data = load_data("shapes", n=(40, 10, 9), size=24)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 4))
    dls = data.dls(bs=13, device="cpu")
    learn = Learner(dls, net, loss_func=torch.nn.CrossEntropyLoss())
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2)
    assert dls.train.epoch == 2
    with learn.no_bar():
        for k, s in enumerate(SPLITS):
            p, y = learn.get_preds(ds_idx=k)
            assert torch.equal(y, data[s].y)
            with torch.no_grad(): assert_close(p, net.eval()(data.batch(s, range(len(y)))[0]))
        p, y = learn.get_preds(dl=dls.test)
    assert len(p) == 9


# ---- folders

def test_folder_of_classes(tmp_path):
    data = load_data(picture_folder(tmp_path/"pets"), size=32)
    check(data, 2, 3, 32)
    assert data.name == "pets" and data.class_names == ["cat", "dog"] and [len(data[s]) for s in SPLITS] == [12, 4, 4] and data.note is None
    assert data.mean == [.485, .456, .406] and set(data.overlap().values()) == {0}
    assert [p.name for p in load_data(str(tmp_path/"pets"), size=32).train.paths] == [p.name for p in data.train.paths]
    check(load_data(tmp_path/"pets", size=32, channels=1), 2, 1, 32)
    assert load_data(tmp_path/"pets").size == 224
    assert [len(y) for _, y in data.dls(bs=5, device="cpu", num_workers=2).train] == [5, 5, 2]


@pytest.mark.parametrize("valid", ["valid", "val"])
def test_folder_with_splits(tmp_path, valid, capsys):
    for s, n in (("train", 6), (valid, 3), ("test", 2)): picture_folder(tmp_path/"pets", n=n, split=s)
    data = load_data(tmp_path/"pets", size=16)
    assert [len(data[s]) for s in SPLITS] == [12, 6, 4] and data.note is None and capsys.readouterr().out == ""
    assert all(p.parent.parent.name == "test" for p in data.test.paths)


def test_folder_without_a_split(tmp_path, capsys):
    for s, n in (("train", 10), ("test", 2)): picture_folder(tmp_path/"pets", n=n, split=s)
    data = load_data(tmp_path/"pets", size=16)
    assert [len(data[s]) for s in SPLITS] == [16, 4, 4] and "no folder for valid" in data.note and data.note in capsys.readouterr().out


def test_bad_folders(tmp_path):
    def bad(says, prepare, d):
        picture_folder(tmp_path/d); prepare(tmp_path/d)
        with pytest.raises(ValueError, match=says): load_data(tmp_path/d, size=16)
    bad("holds no image.*it is empty", lambda d: (d/"eel").mkdir(), "a")
    bad("1 other files, e.g. x.dcm", lambda d: ((d/"eel").mkdir(), (d/"eel/x.dcm").write_text("")), "b")
    bad("'eel'.* has 2 images, too few", lambda d: [picture(d/"eel"/f"{i}.png") for i in range(2)], "c")
    bad("but no train folder", lambda d: picture_folder(d, split="test"), "d")
    bad("more than one valid folder", lambda d: [picture_folder(d, split=s) for s in ("train", "val", "valid")], "e")
    bad("class folders that train lacks: fox", lambda d: [picture_folder(d, split="train"), picture_folder(d, ("cat", "fox"), split="val")], "f")
    (tmp_path/"empty").mkdir()
    with pytest.raises(ValueError, match="no class folders"): load_data(tmp_path/"empty")
    picture_folder(tmp_path/"one", ("cat",))
    with pytest.raises(ValueError, match="one class only"): load_data(tmp_path/"one")
    picture(tmp_path/"loose/x.png")
    with pytest.raises(ValueError, match="no class folders"): load_data(tmp_path/"loose")
    with pytest.raises(ValueError, match="is a file"): load_data(tmp_path/"loose/x.png")
    with pytest.raises(ValueError, match="no data set and no folder"): load_data(tmp_path/"nothing")


@pytest.mark.parametrize("ext", ["png", "jpg", "tif"])
def test_corrupt_images(tmp_path, ext):
    picture_folder(tmp_path/"pets")
    good = tmp_path/"good"/f"x.{ext}"; picture(good, (200, 200))
    cut = tmp_path/"pets"/"cat"/f"cut.{ext}"; cut.write_bytes(good.read_bytes()[:len(good.read_bytes())//2])
    with pytest.raises(ValueError, match=f"1 of 21 images cannot be read, first .*cut.{ext}.*skip_corrupt=True"): load_data(tmp_path/"pets", size=16)
    with pytest.warns(UserWarning, match=f"left out 1 of 21 .*cut.{ext}") as w: data = load_data(tmp_path/"pets", size=16, skip_corrupt=True)
    assert w[0].filename == __file__ and sum(len(data[s]) for s in SPLITS) == 20
    data = load_data(tmp_path/"pets", size=16, check=False)
    with pytest.raises(ValueError, match=f"cut.{ext} cannot be read as an image"): [data[s][i] for s in SPLITS for i in range(len(data[s]))]


def test_read_image(tmp_path):
    deep = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path/"deep.png")
    assert_close(read_image(tmp_path/"deep.png", 8, channels=1)[0], torch.from_numpy(deep/65535).float())
    assert read_image(tmp_path/"deep.png", 8).shape == (3, 8, 8)
    im = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)*4)
    exif = im.getexif(); exif[0x0112] = 6  # the camera was held on its side
    im.save(tmp_path/"turned.png", exif=exif)
    assert_close(read_image(tmp_path/"turned.png", 8, channels=1)[0], torch.from_numpy(np.rot90(np.asarray(im), -1).copy()).float()/255)
    Image.new("RGBA", (5, 9), (255, 0, 0, 10)).save(tmp_path/"a.png"); Image.new("P", (5, 9)).save(tmp_path/"p.gif"); Image.new("1", (5, 9), 1).save(tmp_path/"b.png")
    assert read_image(tmp_path/"a.png", 4)[0].min() == 1 and read_image(tmp_path/"p.gif", 4).shape == (3, 4, 4) and read_image(tmp_path/"b.png", 4, channels=1).min() == 1
    f = io.BytesIO(); im.save(f, "png")
    assert_close(read_image(f, 8, channels=1)[0], torch.from_numpy(np.asarray(im).copy()).float()/255)
    with pytest.raises(ValueError, match="channels"): read_image(tmp_path/"a.png", 4, channels=4)
    with pytest.raises(FileNotFoundError, match="no image file"): read_image(tmp_path/"no.png", 4)
    Image.fromarray(np.full((4, 4), 7., np.float32)).save(tmp_path/"f.tif")
    with pytest.raises(ValueError, match="run from 7 to 7, expected 0 to 1"): read_image(tmp_path/"f.tif", 4)


# ---- real files

def test_breastmnist_and_its_masks(capsys):
    data = load_data("breastmnist", root=need("medmnist/breastmnist.npz"))
    check(data, 2, 1, 28)
    assert data.class_names == ["malignant", "normal, benign"]
    assert {s: list(c.values()) for s, c in data.counts().items()} == dict(train=[147, 399], valid=[21, 57], test=[42, 114])
    assert data.overlap() == {("train", "valid"): 0, ("train", "test"): 1, ("valid", "test"): 0}
    need("medmnist/breastmnist_masks.npz")
    test = data.test
    assert test.masks.shape == (156, 28, 28) and torch.equal(test.has_mask, test.masks.flatten(1).any(1))
    assert 130 <= int(test.has_mask.sum()) <= 135
    assert abs(float(test.masks[test.has_mask].float().mean())-.107) < .003


def test_pneumoniamnist(capsys):
    data = load_data("pneumoniamnist", root=need("medmnist/pneumoniamnist.npz"))
    check(data, 2, 1, 28)
    assert {s: list(c.values()) for s, c in data.counts().items() if s != "valid"} == dict(train=[1214, 3494], test=[234, 390]) and len(data.valid) == 524
    assert data.overlap() == {("train", "valid"): 8, ("train", "test"): 0, ("valid", "test"): 0}


def test_mhex_data_is_looked_at(monkeypatch, capsys):
    monkeypatch.setenv("MHEX_DATA", str(need("medmnist/breastmnist.npz")))
    assert len(load_data("breastmnist").train) == 546


def tile_zip(path, n=24, classes=("Blowhole", "Break", "Crack", "Fray", "Uneven", "Free"), drop=None, names="MT_{c}/exp{e}_num_{f}.jpg"):
    "Tiles as the real file has them: each specimen under three lights, a bright square as its fault"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as z:
        for k, c in enumerate(classes):
            for i in range(n):
                g, name = np.random.default_rng([k, i]), names.format(c=c, e=i % 3, f=10**5*k+5000*(i//3)+20*(i % 3))
                a, m = g.integers(50, 90, (60, 40), dtype=np.uint8), np.zeros((60, 40), np.uint8)
                if c != "Free": a[6:18, 8:16], m[6:18, 8:16] = 250, 255
                if c == "Uneven" and i == 0: m[:] = 0
                for arr, ext in ((a, "jpg"), (m, "png")):
                    if ext == "png" and c == "Free": continue
                    f = io.BytesIO(); Image.fromarray(arr).save(f, "jpeg" if ext == "jpg" else ext)
                    z.writestr(name[:-3]+ext, f.getvalue() if name != drop else f.getvalue()[:100])
    return path


def test_tiles(tmp_path):
    tile_zip(tmp_path/"inspection"/"magnetic_tile.zip")
    data = load_data("magnetic_tile", root=tmp_path, size=30)
    check(data, 6, 1, 30)
    assert data.class_names == ["blowhole", "break", "crack", "fray", "uneven", "no fault"] and sum(len(data[s]) for s in SPLITS) == 6*24
    for s in SPLITS:
        ds = data[s]
        assert set(ds.y.tolist()) == set(range(6)) and ds.masks.shape == (len(ds), 30, 30)
        x, m = ds.images(np.arange(len(ds)))[:, 0], ds.masks
        assert (x[m] > .8).float().mean() > .95 and not m[:, 10:].any() and m[ds.has_mask].flatten(1).sum(1).unique().tolist() == [36], "a mask lies where the fault is: rows 3 to 9, columns 6 to 12"
    groups = [set(data[s].groups.tolist()) for s in SPLITS]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2] and len(set.union(*groups)) == 48
    assert sum(int((~data[s].has_mask & (data[s].y == 4)).sum()) for s in SPLITS) == 1, "the empty mask"
    again, other = load_data("magnetic_tile", root=tmp_path, size=30), load_data("magnetic_tile", root=tmp_path, size=30, seed=1)
    assert torch.equal(again.test.groups, data.test.groups) and not torch.equal(other.test.groups, data.test.groups)
    part = data.subset(train=7)
    assert len(part.train.groups) == len(part.train.has_mask) == 7 and part.test.groups is data.test.groups
    check(load_data("magnetic_tile", root=tmp_path, size=16, channels=3), 6, 3, 16)


def test_broken_tiles(tmp_path):
    z = tmp_path/"magnetic_tile.zip"
    with pytest.raises(FileNotFoundError, match="magnetic_tile.zip is missing.*MT_CLASS/expE_num_N.jpg"): load_data("magnetic_tile", root=tmp_path)
    z.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="truncated or not a zip"): load_data("magnetic_tile", root=tmp_path)
    tile_zip(z, 9, classes=("Blowhole", "Dent"))
    with pytest.raises(ValueError, match="for the classes Blowhole.*got MT_Dent/exp0_num_100000.jpg"): load_data("magnetic_tile", root=tmp_path)
    tile_zip(z, 4)
    with pytest.raises(ValueError, match="has 2 groups, too few for 3 splits"): load_data("magnetic_tile", root=tmp_path)
    tile_zip(z, 9, drop="MT_Fray/exp1_num_300020.jpg")
    with pytest.raises(ValueError, match="is damaged"):
        data = load_data("magnetic_tile", root=tmp_path)
        [data[s][0] for s in SPLITS]


def test_magnetic_tile():
    data = load_data("magnetic_tile", root=need("inspection/magnetic_tile.zip"), size=64)
    check(data, 6, 1, 64)
    assert [sum(v) for v in zip(*(c.values() for c in data.counts().values()))] == [115, 85, 57, 32, 103, 238]
    assert [len(data[s]) for s in SPLITS] == [390, 118, 122] and [len(data[s].groups.unique()) for s in SPLITS] == [36, 23, 19]
    assert set(data.overlap().values()) == {0}
    x = [torch.nn.functional.avg_pool2d(data[s].images(np.arange(len(data[s]))), 2)[:, 0].flatten(1) for s in SPLITS]
    x = [(a-a.mean(1, keepdim=True))/a.std(1, keepdim=True) for a in x]
    assert max(float((a@b.T).max()/a.shape[1]) for a, b in ((x[0], x[1]), (x[0], x[2]), (x[1], x[2]))) < .99, "no picture of one tile on both sides"


def test_specimens_and_groups():
    assert specimens([50, 3000, 10, 1400, 2690]).tolist() == [0, 1, 0, 1, 1]
    assert specimens([50, 3000, 10, 1400, 2690], gap=300).tolist() == [0, 3, 0, 1, 2]
    y, g = np.repeat([0, 1, 2], [60, 30, 10]), np.r_[np.arange(60)//6, 10+np.arange(30)//5, 20+np.arange(10)//3]
    for seed in range(5):
        parts = grouped_split(y, g, seed=seed)
        assert sorted(np.concatenate(parts)) == list(range(100))
        for a in range(3):
            assert set(y[parts[a]]) == {0, 1, 2}
            for b in range(a): assert not set(g[parts[a]]) & set(g[parts[b]])
        counts = np.array([np.bincount(y[p]) for p in parts])
        assert (abs(counts[:, 0]/60-[.6, .2, .2]) <= .11).all() and (abs(counts[:, 1]/30-[.6, .2, .2]) <= .18).all()
    with pytest.raises(ValueError, match="class 1 has 2 groups"): grouped_split([0, 0, 0, 1, 1], range(5))


def test_cifar10():
    data = load_data("cifar10", root=need("cifar10/cifar10_jpeg_subset.zip"))
    check(data, 10, 3, 32)
    assert data.class_names[0] == "airplane" and data.class_names[-1] == "truck" and [len(data[s]) for s in SPLITS] == [9000, 1000, 2000]
    assert set(data.counts()["test"].values()) == {200}


def test_broken_cifar10(tmp_path):
    z = tmp_path/"cifar10_jpeg_subset.zip"
    z.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="truncated or not a zip"): load_data("cifar10", root=tmp_path)
    with zipfile.ZipFile(z, "w") as f: f.writestr("else/x.jpg", b"")
    with pytest.raises(ValueError, match="must hold train/CLASS"): load_data("cifar10", root=tmp_path)


def test_own_modules_stay_apart():
    "Data knows nothing of models"
    code = "import sys, mhex.data; print([m for m in sys.modules if m.startswith('mhex.') and m not in ('mhex.data','mhex.splits')])"
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert out.stdout.strip() == "[]"
