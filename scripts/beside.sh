#!/usr/bin/env bash
# beside.sh LOG WORK... -- COMMAND...: the work fills what time the command leaves, and is shown after it.
# Ends with an error where either does.
set -uo pipefail
log=$1; shift
work=()
while [ "$1" != -- ]; do work+=("$1"); shift; done
shift
mkdir -p "$(dirname "$log")"
nice -n 19 setsid "${work[@]}" > "$log" 2>&1 &
beside=$!
trap 'kill -INT -- -$beside 2>/dev/null; wait; exit 130' INT TERM
"$@"; code=$?
echo "beside it: ${work[*]}"
wait $beside || code=$?
cat "$log"
exit $code
