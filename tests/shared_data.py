"Where tests find real data; they skip, with the reason, where there is none."
import os
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent


def data_root():
    "`MHEX_DATA`, else shared/data beside the repository, else None"
    for d in (os.environ.get("MHEX_DATA"), ROOT.parent / "shared" / "data"):
        if d and Path(d).is_dir(): return Path(d)


DATA = data_root()  # looked up once: tests change the environment


def need(file):
    "The data root, if it holds `file` (relative to it); otherwise skip"
    if DATA is None or not (DATA / file).is_file(): pytest.skip(f"{file} is not here: set MHEX_DATA to a folder that holds it")
    return DATA
