#!/bin/sh
# The Python for .venv: the first of these that runs, is 3.11 or later, can make virtual environments and has its headers.
probe='import ensurepip, os, sys, sysconfig, venv
sys.exit(not (sys.version_info >= (3, 11) and os.path.exists(sysconfig.get_path("include") + "/Python.h")))'
for name in python3.13 python3.12 python3.11 python3 /usr/bin/python3; do
	if "$name" -c "$probe" 2>/dev/null; then
		command -v "$name"
		exit 0
	fi
done
echo "childflow needs Python 3.11 or later with python3-venv and python3-dev" >&2
exit 1
