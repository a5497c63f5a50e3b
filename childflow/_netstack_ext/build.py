"""Builds the C stack: cffi's API mode, from one header that is both the cdef and what the C files include.

Run as a script from the repository's root it builds the extension in place.
"""

import os
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# Python's own flags have -DNDEBUG; our assertions stay in.
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-g", "-UNDEBUG", "-fvisibility=hidden"]

ffi = FFI()
ffi.cdef((HERE / "api.h").read_text())
ffi.set_source(
    "childflow._netstack",
    '#include "stack.h"\n',
    sources=sorted(os.path.relpath(path, ROOT) for path in HERE.glob("*.c")),
    depends=sorted(os.path.relpath(path, ROOT) for path in HERE.glob("*.h")),
    include_dirs=[str(HERE)],
    # No -Werror: a compiler newer than ours must not stop an installation; `make lint` has it.
    extra_compile_args=[*FLAGS, "-Wall", "-Wextra"],
)

if __name__ == "__main__":
    ffi.compile(tmpdir=str(ROOT), target="_netstack.abi3.so")  # the name that setuptools gives it
