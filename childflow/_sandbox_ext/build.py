"""Builds `childflow._sandbox` (cffi, API mode) and the executable `childflow-init`.

`api.h` is the cdef and what C includes. `setup.py` uses `ffi` and `build_init` from here; run by hand, this file builds
both in place.

childflow-init is linked statically where a static C library is there: it is executed twice in each run, and a dynamic
loader is a good part of what that costs. Elsewhere it is linked as usual.
"""

from __future__ import annotations

import os
from typing import Any

from cffi import FFI

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
# No -Werror: a compiler newer than ours must not stop an installation; `make lint` has it.
WARNINGS = ["-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra"]
# cffi's generated glue has parameters that it does not use.
EXTENSION_FLAGS = ["-O2", *WARNINGS, "-Wno-unused-parameter"]
INIT_FLAGS = ["-O2", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2", *WARNINGS]
INIT_SOURCE = os.path.join("childflow", "sandbox", "init.c")
INIT_NAME = "childflow-init"

ffi = FFI()
with open(os.path.join(HERE, "api.h"), encoding="utf-8") as header:
    ffi.cdef(header.read())
ffi.set_source(
    "childflow._sandbox",
    '#include <stdint.h>\n#include "api.h"\n',
    sources=[os.path.join("childflow", "_sandbox_ext", "calls.c")],
    include_dirs=[os.path.join("childflow", "_sandbox_ext")],
    depends=[os.path.join("childflow", "_sandbox_ext", "api.h")],
    extra_compile_args=EXTENSION_FLAGS,
)


def build_init(compiler: Any, build_temp: str, package_dir: str) -> str:
    """Compile and link childflow-init into `package_dir` (childflow/sandbox, built or source); returns its path."""
    from distutils.errors import LinkError

    objects = compiler.compile([INIT_SOURCE], output_dir=build_temp, extra_postargs=INIT_FLAGS)
    os.makedirs(package_dir, exist_ok=True)
    path = os.path.join(package_dir, INIT_NAME)
    if os.path.exists(path):
        os.unlink(path)  # never written into: a run may be executing it
    try:
        compiler.link_executable(objects, INIT_NAME, output_dir=package_dir, extra_postargs=["-static"])
    except LinkError:
        compiler.link_executable(objects, INIT_NAME, output_dir=package_dir)
    return path


def _build_by_hand() -> None:
    import tempfile

    import setuptools  # type: ignore[import-untyped]  # isort: skip  (brings distutils, which Python 3.12 has no more)
    from distutils.ccompiler import new_compiler  # isort: skip
    from distutils.sysconfig import customize_compiler  # isort: skip

    assert setuptools
    os.chdir(ROOT)
    ffi.compile(target="_sandbox.abi3.so")  # the name that setuptools gives it, so that neither hides the other
    compiler = new_compiler()
    customize_compiler(compiler)
    with tempfile.TemporaryDirectory() as build_temp:
        build_init(compiler, build_temp, os.path.join("childflow", "sandbox"))


if __name__ == "__main__":
    _build_by_hand()
