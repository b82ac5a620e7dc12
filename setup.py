"Everything comes from settings.ini; this file only hands it to setuptools."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
ini = ConfigParser(delimiters=["="])
ini.read(here / "settings.ini", encoding="utf-8")
s = ini["DEFAULT"]


def lines(key):
    "One entry per line; a value on one line is split at blanks."
    v = s.get(key, "").strip()
    return [o.strip() for o in v.splitlines() if o.strip()] if "\n" in v else v.split()


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
    extras_require={"text": lines("text_requirements"), "dev": lines("dev_requirements")},
    entry_points={
        "console_scripts": lines("console_scripts"),
        "nbdev": [f"{s['lib_path']}={s['lib_path']}._modidx:d"],
    },
)
