"""The compiled parts: two cffi extensions and the executable childflow-init. All else is in pyproject.toml."""

import os
import sys

from setuptools import setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from childflow._sandbox_ext.build import build_init


class BuildAll(build_ext):
    """Builds childflow-init beside the extensions."""

    def run(self) -> None:
        super().run()
        top = "" if self.inplace else self.build_lib
        build_init(self.compiler, self.build_temp, os.path.join(top, "childflow", "sandbox"))


setup(
    cffi_modules=["childflow/_netstack_ext/build.py:ffi", "childflow/_sandbox_ext/build.py:ffi"],
    cmdclass={"build_ext": BuildAll},
)
