#!/bin/bash
# Shows what shimd does, with a private daemon that is gone afterwards: a container, an exec, its plan, the time that
# each phase takes. Run by `make demo`, as root; needs $VENV, with shimd installed, and a static busybox.
set -euo pipefail

[[ $(id -u) == 0 ]] || { echo 'demo: needs root, for namespaces, mounts and cgroups' >&2; exit 1; }
bin=$(realpath "${VENV:-.venv}")/bin
work=$(mktemp -d /tmp/shimd-demo-XXXXXX)
export SHIMD_ADDRESS=$work/shimd.sock
daemon='' keeper=''

clean_up() {
  if [[ -n $daemon ]]; then
    "$bin/shimctl" delete --force demo >/dev/null 2>&1 || true
    kill "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
    [[ -z $keeper ]] || kill "$keeper" 2>/dev/null || true
  fi
  rm -rf "$work"
}
trap clean_up EXIT

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() { printf '$ %s\n' "$*"; "$bin/$1" "${@:2}"; }

say 'A root file system: one static busybox'
mkdir -p "$work"/rootfs/{bin,dev,etc,proc,sys,tmp}
busybox=$(command -v busybox)
cp "$busybox" "$work/rootfs/bin/busybox"
for name in $("$busybox" --list); do [[ $name == busybox ]] || ln -s busybox "$work/rootfs/bin/$name"; done
echo "$work/rootfs"

say 'A private daemon'
mkfifo "$work/log.fifo"
"$bin/shimd" --socket "$SHIMD_ADDRESS" --state "$work/state" </dev/null >"$work/log.fifo" 2>&1 &
daemon=$!
# Its log tells when it serves; what follows goes to a file.
exec 3<"$work/log.fifo"
line=''
while [[ $line != *' serving '* ]] && read -r line <&3; do echo "$line"; done
[[ $line == *' serving '* ]] || exit 1
cat <&3 >"$work/log" &
exec 3<&-
show shimctl version
keeper=$("$bin/shimctl" --output json version | sed -n 's/.*"keeper_pid": \([0-9]*\).*/\1/p')

# shellcheck disable=SC2016  # the container's shell expands it
hello='echo "hello from $(hostname), process $$ of $(uname -sr)"; exit 7'
say 'A container: its output, its exit code, the time of each phase'
code=0
show shimctl run --rootfs "$work/rootfs" --timing -- sh -c "$hello" || code=$?
echo "exit code $code"

say 'A container that goes on, with limits'
show shimctl run --rootfs "$work/rootfs" --id demo --detach --memory 64m --pids-limit 20 -- sh -c 'while sleep 1; do :; done'
show shimctl list

say 'A second process in it'
show shimctl exec demo ps
show shimctl stats

say 'The end of it'
show shimctl kill --signal KILL demo
"$bin/shimctl" wait demo || echo "exit code $?"
show shimctl delete demo

say 'What would be done to make such a container'
show shimctl plan --rootfs "$work/rootfs" -- true

say 'What this host offers and lacks'
show shimctl doctor || true
