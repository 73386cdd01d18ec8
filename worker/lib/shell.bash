# shellcheck shell=bash
set -euo pipefail
IFS=$' \t\n'
export LC_ALL=C
export PATH="${PATH:+$PATH:}/usr/local/bin:/usr/bin:/bin" # some sites have an empty PATH
# Of XRootD's clients: their own patience is half an hour for a request.
export XRD_CONNECTIONWINDOW="${XRD_CONNECTIONWINDOW:-20}" XRD_CONNECTIONRETRY="${XRD_CONNECTIONRETRY:-1}" \
  XRD_REQUESTTIMEOUT="${XRD_REQUESTTIMEOUT:-300}"
