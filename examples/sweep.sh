#!/bin/sh
# Which learning rate is best, and does guidance help? Tries four settings with two seeds each, offline, then runs the
# best setting again:
#
#     sh examples/sweep.sh [options of lgfast sweep]
#
# Needs the extra [sweep]. Results are in runs/example-sweep (or OUT); open index.html there.
set -e
out=${OUT:-runs/example-sweep}

lgfast sweep --recipe digits --epochs 10 --out "$out" \
    --sweep optim.lr=1e-3,2e-3 --sweep guidance.weight=0,2.5 --sweep seed=0,1 "$@"
lgfast train --config "$out/best.yaml" --run-dir "$out-best"      # the best setting, as a run of its own
lgfast report "$out-best"
