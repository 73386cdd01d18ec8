# shellcheck shell=bash
# --- settings --------------------------------------------------------------------------------------------------

# A server before 0.10 fills in the comment "# ncpus:" only. When this script comes from standard input, it has no file
# to read the comment from.
NTHREADS="${osgprod_ncpus:-$(sed -n '/^# ncpus: *[0-9]/{s/^# ncpus: *\([0-9]*\).*/\1/p;q;}' "${BASH_SOURCE[0]:-/dev/null}" 2>/dev/null || true)}"
export NTHREADS="${NTHREADS:-1}"
# Gets the slice's file as its last argument. A program that writes how many events it read into the file
# events_read lets the server check that none was skipped.
set -f # no patterns
# shellcheck disable=SC2206  # words
reconstruction=(${OSGPROD_RECON:-hd_root -PJANA:BATCH_MODE=1 -PNTHREADS=$NTHREADS -PTHREAD_TIMEOUT_FIRST_EVENT=3600 -PTHREAD_TIMEOUT=600 -PPLUGINS=danarest})
set +f
