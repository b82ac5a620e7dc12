"Everything comes from settings.ini; this file only hands it to setuptools."
from configparser import ConfigParser
from pathlib import Path
from shutil import copy2
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).resolve().parent
ini = ConfigParser(delimiters=["="])
ini.read(here / "settings.ini", encoding="utf-8")
s = ini["DEFAULT"]


def lines(key):
    "One entry per line; a value on one line is split at blanks."
    v = s.get(key, "").strip()
    return [o.strip() for o in v.splitlines() if o.strip()] if "\n" in v else v.split()


class WithTutorials(build_py):
    "The tutorials are written in nbs/tutorials; a built package has them in mhex/tutorials, where `mhex tutorials` finds them."

    def run(self):
        super().run()
        if getattr(self, "editable_mode", False): return  # a checkout has them already
        top = here / "nbs/tutorials"
        for p in sorted([*top.glob("*.ipynb"), *top.glob("images/*")]):
            to = Path(self.build_lib, s["lib_path"], "tutorials", p.relative_to(top))
            to.parent.mkdir(parents=True, exist_ok=True)
            copy2(p, to)


spdx = {"mit": "MIT", "apache2": "Apache-2.0", "bsd3": "BSD-3-Clause"}
readme = here / "README.md"
setup(
    name=s["lib_name"],
    version=s["version"],
    description=s["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=s["author"],
    license_expression=spdx[s["license"]],
    license_files=["LICENSE"],
    url=s["git_url"],
    keywords=s["keywords"].split(),
    python_requires=">=" + s["min_python"],
    packages=find_packages(include=[s["lib_path"], s["lib_path"] + ".*"]),
    include_package_data=True,
    install_requires=lines("requirements"),
    extras_require={o: lines(f"{o}_requirements") for o in ("text", "notebooks", "dev")},
    cmdclass={"build_py": WithTutorials},
    entry_points={
        "console_scripts": lines("console_scripts"),
        "nbdev": [f"{s['lib_path']}={s['lib_path']}._modidx:d"],
    },
)
