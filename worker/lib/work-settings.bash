# shellcheck shell=bash
# --- settings --------------------------------------------------------------------------------------------------

NTHREADS="$(sed -n 's/^# ncpus: *\([0-9][0-9]*\)$/\1/p' "${BASH_SOURCE[0]}" 2>/dev/null | head -n 1)"
export NTHREADS="${NTHREADS:-1}"
# Gets the slice's file as its last argument. A program that writes how many events it read into the file
# events_read lets the server check that none was skipped.
read -r -a reconstruction <<<"${OSGPROD_RECON:-hd_root -PJANA:BATCH_MODE=1 -PNTHREADS=$NTHREADS -PTHREAD_TIMEOUT_FIRST_EVENT=3600 -PTHREAD_TIMEOUT=600 -PPLUGINS=danarest}"
