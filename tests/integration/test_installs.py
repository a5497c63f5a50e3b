"""What childflow is for: installs and clones, compared with the same command without childflow."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import npm_mirror
from tests.lab.lab import Caller, Lab, outside
from tests.lab.trees import differences, fingerprint

WHEEL = "tiny-1.0-py3-none-any.whl"


@pytest.fixture(scope="module")
def wheels(direct_map: Lab) -> None:
    """A wheel of two files on the lab's HTTP server, at /wheels/."""
    folder = direct_map.www / "wheels"
    folder.mkdir()
    make_wheel(folder / WHEEL)


def make_wheel(path: Path) -> None:
    files = {
        "tiny/__init__.py": "GREETING = 'hello from a wheel'\n",
        "tiny-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "tiny-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: lab\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [f"{name},sha256={urlsafe_sha256(text)},{len(text)}" for name, text in files.items()]
    record = "tiny-1.0.dist-info/RECORD"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, record: "\n".join([*rows, f"{record},,", ""])}.items():
            archive.writestr(name, text)


def urlsafe_sha256(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def test_pip_install(lab: Lab, caller: Caller, family: int, wheels: None) -> None:
    target = caller.folder("site")
    links = ("--no-index", "--find-links", lab.url("/wheels/", family), "--trusted-host", lab.server_ip(family))
    pip = ("python", "-m", "pip", "install", "--disable-pip-version-check", "--no-cache-dir", "--target", str(target))
    r = caller.childflow(*pip, *links, "tiny").ok()
    assert "Successfully installed tiny-1.0" in r.stdout
    assert (target / "tiny/__init__.py").read_text() == "GREETING = 'hello from a wheel'\n"


@pytest.fixture(scope="module")
def repository(direct_map: Lab) -> str:
    """A bare repository on the lab's HTTP server: /git/sample.git by git's own protocol, /sample.git as plain files.
    Returns the commit at its tip."""
    work, bare = direct_map.folder / "work", direct_map.git / "sample.git"
    work.mkdir()
    work.joinpath("big").write_bytes(hashlib.shake_256(b"sample").digest(3 << 20))
    for n in range(20):
        work.joinpath(f"file-{n}").write_text(f"content of {n}\n" * (n + 1))
    git(work, "init", "-q", "-b", "main")
    git(work, "add", ".")
    git(work, "-c", "user.name=lab", "-c", "user.email=lab@lab.test", "commit", "-q", "-m", "first")
    git(work, "clone", "-q", "--bare", ".", str(bare))
    git(bare, "update-server-info")
    direct_map.www.joinpath("sample.git").symlink_to(bare)
    return git(bare, "rev-parse", "main")


def git(folder: Path, *arguments: str) -> str:
    argv = ["git", "-c", "safe.directory=*", *arguments]
    return subprocess.run(argv, cwd=folder, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


@pytest.mark.parametrize("path", ["/git/sample.git", "/sample.git"], ids=["smart", "dumb"])
def test_git_clone(lab: Lab, caller: Caller, family: int, repository: str, path: str) -> None:
    clone = caller.folder("clones") / "sample"
    caller.childflow("git", "clone", "-q", lab.url(path, family), str(clone)).ok()
    assert caller.direct("git", "rev-parse", "HEAD", cwd=clone).ok().stdout.strip() == repository
    assert caller.direct("git", "fsck", "--full", cwd=clone).ok().stdout == ""
    assert caller.direct("git", "status", "--porcelain", cwd=clone).ok().stdout == ""


@pytest.fixture(scope="module")
def registry(direct_map: Lab) -> Iterator[tuple[str, ...]]:
    """npm's options for the mirror in the lab."""
    assert npm_mirror.folder().is_dir(), (
        "build/npm-mirror is missing or older than the lock file; run `make npm-mirror`"
    )
    running = direct_map.serve("tests.lab.npm_mirror", "serve", str(npm_mirror.PORT))
    yield ("--registry", npm_mirror.BASE)
    running.kill()


@pytest.fixture(scope="module")
def reference(direct_map: Lab, registry: tuple[str, ...]) -> dict[str, str]:
    """node_modules as `npm ci` leaves it without childflow."""
    caller = direct_map.caller("ordinary")
    project = npm_project(caller, "reference")
    caller.direct("npm", "ci", *registry, cwd=project, timeout=120).ok()
    return fingerprint(project / "node_modules")


def npm_project(caller: Caller, name: str) -> Path:
    """A fresh copy of the sample project that belongs to the caller, who has never used npm before."""
    caller.folder(".npm").rmdir()
    project = caller.folder(name)
    npm_mirror.copy_sample(project)
    return project


def test_npm_ci_from_a_mirror(lab: Lab, caller: Caller, registry: tuple[str, ...], reference: dict[str, str]) -> None:
    project = npm_project(caller, "project")
    r = caller.childflow("npm", "ci", *registry, cwd=project, timeout=120).ok()
    assert len(list(project.glob("node_modules/**/package.json"))) >= 250
    assert differences(fingerprint(project / "node_modules"), reference) == []
    assert r.events_of("connect_result")


@pytest.mark.network
def test_npm_ci_from_the_real_registry(outside_caller: Caller, real_reference: dict[str, str]) -> None:
    project = npm_project(outside_caller, "real-project")
    outside_caller.childflow("npm", "ci", cwd=project, timeout=180).ok()
    assert len(list(project.glob("node_modules/**/package.json"))) >= 250
    assert differences(fingerprint(project / "node_modules"), real_reference) == []


@pytest.fixture(scope="module")
def real_reference(machine_network: None) -> dict[str, str]:
    """node_modules as `npm ci` leaves it without childflow, from the registry that this machine's npm is set to."""
    caller = outside("ordinary")
    project = npm_project(caller, "real-reference")
    caller.direct("npm", "ci", cwd=project, timeout=180).ok()
    return fingerprint(project / "node_modules")
