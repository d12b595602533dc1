#!/bin/sh
# A rank that dies, hangs or leaves ends the whole cell: mpirun exits non-zero within the limit.
# usage: rank_death.sh MODE CELL LIMIT_S MPIRUN...
mode=$1
cell=$2
limit=$3
shift 3
start=$(date +%s)
timeout -k 5 60 "$@" "$cell" "$mode"
code=$?
took=$(($(date +%s) - start))
echo "mode=$mode exit=$code seconds=$took"
if [ "$mode" = none ]; then
  [ "$code" -eq 0 ]
else
  [ "$code" -ne 0 ] && [ "$code" -ne 124 ] && [ "$took" -le "$limit" ]
fi
