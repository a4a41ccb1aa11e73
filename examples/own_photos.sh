#!/bin/sh
# From a folder of photographs to predictions:
#
#     sh examples/own_photos.sh PHOTOS NEW_PICTURES [options of lgfast train]
#
# PHOTOS holds a folder for each class. Results lie in runs/own-photos (or RUN).
set -e
photos=$1 new=$2 run=${RUN:-runs/own-photos}
shift 2

lgfast doctor --data "$photos"                                                    # counts, broken files, copies
lgfast train --recipe photos --data.root "$photos" --run-dir "$run" "$@"          # the CNN first, then the transformer
lgfast evaluate "$run"                                                            # on the part kept for the test
lgfast predict "$run" "$new" --top 2 --out "$run/predictions.csv"
