#!/bin/sh
# run.sh [COMMAND...]: what `make run` does. The command, or `npm ci`, runs under childflow in the sample project, with a
# summary of what it reached; where there is no npm, pip installs a small package instead. BIN: where childflow is.
set -eu
: "${BIN:?the folder of the childflow to run}"
cd "$(dirname "$0")/npm-project"

if [ $# = 0 ]; then
	if command -v npm >/dev/null; then
		set -- npm ci
	else
		echo "there is no npm here, so pip installs something instead"
		set -- "$BIN/python" -m pip install --disable-pip-version-check --upgrade --target ../../build/pip-demo dnslib
	fi
fi
echo "childflow --summary -- $*"
exec "$BIN/childflow" --summary -- "$@"
