#!/usr/bin/env bash
# beside.sh LOG WORK... -- COMMAND...: the work fills what time the command leaves, and is shown after it.
# Ends with an error where either does.
set -uo pipefail
log=$1; shift
work=()
while [ "$1" != -- ]; do work+=("$1"); shift; done
shift
mkdir -p "$(dirname "$log")"
# Linux shares the cores between sessions first: within a session of its own, nice alone would yield nothing.
setsid bash -c 'echo 19 2> /dev/null > /proc/self/autogroup; exec nice -n 19 "$@"' beside "${work[@]}" > "$log" 2>&1 &
beside=$!
trap 'kill -INT -- -$beside 2>/dev/null; wait; exit 130' INT TERM
"$@"; code=$?
echo "beside it: ${work[*]}"
wait $beside || code=$?
cat "$log"
exit $code
