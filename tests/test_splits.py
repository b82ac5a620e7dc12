"What images and texts share: the order of their batches, which is fixed for good, and what a loader hands on."
import random, zlib
import numpy as np, pytest, torch
from mhex.data import ImageData, ImageDL, light_augment
from mhex.textdata import EncodedTexts, TextData, TextDataset, TextDL


def crc(o): return zlib.crc32(np.asarray(o, dtype=np.int64).tobytes())


def images(n=37):
    "Every image is its own class, so that labels are indices."
    def part(n): return np.arange(n, dtype=np.uint8)[:, None, None] + np.arange(36, dtype=np.uint8).reshape(6, 6), np.arange(n)
    return ImageData.from_arrays("numbered", part(n), part(9), part(8), class_names=list(map(str, range(n))))


def texts(n=230):
    "Every text is its own class, too; some lengths occur often."
    def part(n):
        ids = [np.full(3 + i * i % 29, 4 + i % 7) for i in range(n)]
        words = EncodedTexts(dict(input_ids=ids, special_tokens_mask=[np.zeros_like(o) for o in ids]), None, dict(input_ids=0, special_tokens_mask=1))
        return TextDataset([f"text {i}" for i in range(n)], torch.arange(n), encoded=words)
    return TextData("numbered", part(n), part(9), part(8), list(map(str, range(n))), max_length=32)


def order(dl, epoch, skip=0): return torch.cat([y for _, y in dl.set_epoch(epoch, skip=skip)]).tolist()


# Taken once and never to change: with another order, no run could be repeated or resumed
ORDERS = [(images, {}, [0x54cfeea5, 0xa785e94b, 0x76e6a720]), (texts, {}, [0x53d58eb3, 0x998ef6be, 0xa3c560ad]), (texts, dict(pool=2), [0xc66ffd9c, 0x5f0d8b0a, 0x3bb10816]), (texts, dict(bucket=False), [0xcd90f2fa, 0xe614ed79, 0x2c996585])]


@pytest.mark.parametrize("make,kw,want", ORDERS, ids=["images", "texts", "texts-pool", "texts-unsorted"])
def test_order_is_fixed(make, kw, want):
    data = make()
    dls = data.dls(bs=8, seed=5, device="cpu", **kw)
    got = [order(dls.train, e) for e in range(3)]
    assert sorted(got[0]) == list(range(len(data.train))) and [crc(o) for o in got] == want, [hex(crc(o)) for o in got]
    assert order(dls.train, 2, skip=2) == got[2][16:] and order(dls.train.new(), 1) == got[1]
    for s in ("valid", "test"): assert order(getattr(dls, s), 3) == list(range(len(data[s])))


def test_augmentation_is_fixed():
    dl = images().dls(bs=8, seed=5, device="cpu", augment=light_augment).train
    got = [crc((torch.cat([x for x, _ in dl.set_epoch(e)])*127.5+127.5).round()) for e in range(2)]
    assert got == [0x46de5970, 0x906be1a2], list(map(hex, got))


@pytest.mark.parametrize("make,want", [(images, [0x4ba1f16a, 0x5ddcb6f7, 0xf93a987e]), (texts, [0xd919db5a, 0x5ddcb6f7, 0xf93a987e])])
def test_subset_is_fixed(make, want):
    part = make().subset(train=20, valid=5, seed=3)
    got = [crc(part[s].y) for s in ("train", "valid", "test")]
    assert [len(part[s]) for s in ("train", "valid", "test")] == [20, 5, 8] and got == want, list(map(hex, got))


@pytest.mark.parametrize("make,DL,what,says", [
    (images, ImageDL, "images", "ImageData numbered: 6 px, 1 channel, 37 classes\n  0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10 | 11 | 12 | 13 | ...\n"
     "  train 37  1 to 1 a class\n  valid 9  0 to 1 a class\n  test  8  0 to 1 a class"),
    (texts, TextDL, "texts", "TextData numbered: 230 classes, encoded up to 32 tokens\n  0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10 | 11 | 12 | 13 | ...\n"
     "  train 230  1 to 1 a class\n  valid 9  0 to 1 a class\n  test  8  0 to 1 a class")])
def test_same_words_for_both(make, DL, what, says):
    "What is printed, what is raised, and what a copied loader keeps."
    data, n = make(), len(make().train)
    assert repr(data) == says and data["val"] is data.valid and data.counts()["test"] == {c: int(int(c) < 8) for c in data.class_names}
    for idxs, e, m in [(n, IndexError, f"index {n} is out of range for {n} {what}"), ([-n-1, 0], IndexError, f"index {-n-1} is out of range for {n} {what}"), ([.5], TypeError, "idxs must be whole numbers, got float64")]:
        with pytest.raises(e) as got: data.batch("train", idxs)
        assert str(got.value) == m
    with pytest.raises(ValueError, match="no split 'holdout'; there are train, valid, test"): data["holdout"]
    with pytest.raises(ValueError, match=f"valid=0 would leave nothing; ask for 1 to 9 {what}"): data.subset(valid=0)
    dls = data.dls(bs=8, seed=5, device="cpu")
    with pytest.raises(ValueError, match=r"epoch=-1, skip=0: epoch counts from 0, and a pass has \d+ batches to skip"): dls.train.set_epoch(-1)
    dl = dls.train.set_epoch(2).new(bs=4)
    assert type(dl) is DL and dl.epoch == 2 and dl.seed == 5 and dl.shuffle and dl.bs == 4 and dl.dataset is data.train
    assert dls.test.shuffle is False and dls.c == data.n_classes and dls.vocab == data.class_names and dls.data is data
    if DL is TextDL: assert (dl.bucket, dl.pool) == (True, 50)
    else: assert dl.normalize == data.normalize and dl.augment is None


@pytest.mark.parametrize("make,DL", [(images, ImageDL), (texts, TextDL)])
def test_loader_by_itself(make, DL):
    "Default sizes, and nothing drawn from the generators."
    before = random.getstate(), torch.get_rng_state()
    dl = DL(make().train, shuffle=True)
    first = list(dl)
    assert dl.bs == (64 if DL is ImageDL else 32) and len(first) == len(dl) and dl.epoch == 1
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
