"""childflow as its users get it: the wheel, installed in a virtual environment that an ordinary user may read.

The tests' own interpreter may lie in a closed home folder, so the lab uses one of the system's. Two steps:

    collect()                       with a network (`make` calls it): wheels of what childflow needs, in build/wheels
    make_environment(), install()   without (each test session): childflow's wheel is built and installed in HOME

The built wheel is kept under build/wheels too, named by a hash of the sources, and is built again when they change.

Invariants: files appear under build/ whole or not at all (a folder of another name is renamed).
Not here:   the environment in .venv, which is for developers and is made by the Makefile.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from .enter import PROJECT, SCRATCH

WHEELS = Path(PROJECT, "build", "wheels")
HOME = Path(SCRATCH, "venv")
_SYSTEM_FOLDERS = ("/usr/bin", "/usr/local/bin")
_NAMES = ("python3.13", "python3.12", "python3.11", "python3")
_PROBE = (
    "import sys, sysconfig, os, venv; sys.exit(not (sys.version_info >= (3, 11) and "
    "os.path.exists(sysconfig.get_path('include') + '/Python.h')))"
)
_BUILD_TOOLS = ("pip", "setuptools>=65", "wheel")
_TIME_LIMIT = 600


def system_python() -> str:
    """The interpreter that every user may run: version 3.11 or later, with its headers."""
    for name in _NAMES:
        for folder in _SYSTEM_FOLDERS:
            path = f"{folder}/{name}"
            if os.path.exists(path) and subprocess.run([path, "-c", _PROBE], check=False, timeout=20).returncode == 0:
                return path
    raise FileNotFoundError("no Python >= 3.11 with headers in /usr/bin; install python3-dev and python3-venv")


def collect() -> None:
    """Bring what childflow needs (pyproject.toml) to build/wheels as wheels, for the system's Python."""
    python, ready = system_python(), WHEELS / _needs_key()
    if ready.is_dir():
        return
    work = WHEELS / f"new-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    tool = work / "tool"
    try:
        subprocess.run([python, "-m", "venv", str(tool)], check=True, timeout=_TIME_LIMIT)
        subprocess.run(
            [str(tool / "bin/pip"), "wheel", "--quiet", "-w", str(work), *_BUILD_TOOLS, *_needs()],
            check=True,
            timeout=_TIME_LIMIT,
        )
        shutil.rmtree(tool)
        work.rename(ready)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def make_environment() -> None:
    """The virtual environment with all but childflow. Needs `collect()` to have run, but no network."""
    wheels = WHEELS / _needs_key()
    if not wheels.is_dir():
        raise FileNotFoundError("build/wheels is missing or not for this pyproject.toml; run `make test-wheels`")
    subprocess.run([system_python(), "-m", "venv", "--without-pip", str(HOME)], check=True, timeout=_TIME_LIMIT)
    _pip("install", "--find-links", str(wheels), *_BUILD_TOOLS, *_needs())


def install() -> None:
    """childflow's wheel into the environment."""
    _pip("install", "--no-deps", str(_own_wheel()))


def _own_wheel() -> Path:
    folder = WHEELS / f"childflow-{_source_key()}"
    if not folder.is_dir():
        work = Path(SCRATCH, "wheel-build")
        _copy_sources(work / "source")
        _pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(work / "made"), str(work / "source"))
        for old in WHEELS.glob("childflow-*"):
            shutil.rmtree(old)
        new = WHEELS / f"new-{os.getpid()}"
        shutil.copytree(work / "made", new)
        new.rename(folder)
        shutil.rmtree(work)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _pip(*arguments: str) -> None:
    """The tests' own pip, at work on the new environment; with its whole output when it fails."""
    argv = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(HOME / "bin/python"),
        "--no-input",
        arguments[0],
        "--no-index",
        "--quiet",
        *arguments[1:],
    ]
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIME_LIMIT,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"},
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}\n{done.stdout}\n{done.stderr}")


def _sources() -> list[Path]:
    """What goes into the wheel: the package without anything that a build leaves behind."""
    project = Path(PROJECT)
    kinds, generated = {".py", ".c", ".h", ".typed"}, {"_netstack.c", "_sandbox.c"}
    package = [
        path for path in project.joinpath("childflow").rglob("*") if path.suffix in kinds and path.name not in generated
    ]
    top = [project / name for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")]
    return sorted(path for path in [*package, *top] if path.is_file())


def _copy_sources(target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    for path in _sources():
        copy = target / path.relative_to(PROJECT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _needs() -> list[str]:
    project = tomllib.loads(Path(PROJECT, "pyproject.toml").read_text())["project"]
    return [str(requirement) for requirement in project["dependencies"]]


def _needs_key() -> str:
    return "needs-" + _hash([*_needs(), *_BUILD_TOOLS, _version_of(system_python())])


def _source_key() -> str:
    return _hash([_version_of(system_python()), *(f"{path}\0{path.read_text()}" for path in _sources())])


def _version_of(python: str) -> str:
    argv = [python, "-c", "import sys; print(sys.implementation.cache_tag)"]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=20).stdout


def _hash(texts: list[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


if __name__ == "__main__":
    collect()
