#!/bin/sh
# system_packages.sh build|test|fuzz: make sure that the programs which building, testing or fuzzing needs are installed.
#
# What is missing is installed with apt-get where this user may do so (root on a Debian or Ubuntu); else it is named, with
# the command to type. A need is "WHAT:PACKAGE", WHAT a program.
set -eu

build="gcc:gcc make:make python3:python3 @venv:python3-venv @headers:python3-dev"
tests="ip:iproute2 nft:nftables ping:iputils-ping traceroute:traceroute dig:bind9-dnsutils curl:curl git:git npm:npm \
mount:mount setpriv:util-linux iperf3:iperf3 strace:strace \
ethtool:ethtool tinyproxy:tinyproxy-bin squid:squid danted:dante-server microsocks:microsocks openssl:openssl"

fuzzing="clang:clang @fuzzer:libclang-rt-dev"

case "${1:?build, test or fuzz}" in
build) needs=$build ;;
test) needs="$build $tests" ;;
fuzz) needs="$build $fuzzing" ;;
*) echo "system_packages.sh: say build, test or fuzz" >&2; exit 2 ;;
esac

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

has() {
	case $1 in
	@venv) python3 -c 'import ensurepip, venv' 2>/dev/null || /usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null ;;
	@headers) /usr/bin/python3 -c 'import os, sysconfig as s; os.stat(s.get_path("include") + "/Python.h")' 2>/dev/null ;;
	@fuzzer) ls "$(clang -print-runtime-dir 2>/dev/null)"/*fuzzer* >/dev/null 2>&1 ;;
	*) command -v "$1" >/dev/null ;;
	esac
}

missing=
for need in $needs; do
	has "${need%%:*}" || missing="$missing ${need##*:}"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	echo "installing$missing"
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	# shellcheck disable=SC2086  # a list
	apt-get install -y -qq --no-install-recommends $missing
	exit 0
fi
echo "Missing:$missing. On Debian or Ubuntu: sudo apt-get install$missing" >&2
exit 1
