#!/usr/bin/env bash
#
# osgprod_work.bash: processes one slice of a raw data file. The server fills in the lines below for the job that
# asks; copy this file to DOCUMENT_ROOT/PROJECT/ and change what you like. It also runs by hand on a whole file:
#     bash osgprod_work.bash hd_rawdata_001234_000.evio
#
# ncpus:
# cluster:
# process:
# nstarts:
# project:
# source:
# started:
#
# Runs in the current folder, where the outputs are left. Environment:
#     OSGPROD_RECON   the reconstruction command, words separated by spaces; default see "settings"
#     OSGPROD_REPORT  file for what shall be told with the exit report [osgprod_report.txt]
#     OSGPROD_TRIES   how often a range is asked for without getting a byte [8]
#     OSGPROD_BACKOFF_MS  pause after the first of these; doubled each time, up to 32 fold [ms; 1000]
#     BEARER_TOKEN, BEARER_TOKEN_FILE, X509_USER_PROXY  what storage may want to see
# Exit codes: those of the reconstruction (128 + n = killed by signal n: the node's fault); 75 = the slice could not
# be fetched (the site's fault); 64 = nothing to do was filled in.

#input_eviofile_list="root://xrootd.server.dns/path/to/file.evio ..."
#output_filename="file.evio"
#osgprod_token=of this attempt, for heartbeats and the report
#osgprod_source_url=of the whole file
#osgprod_size_bytes=of the slice as a file of its own
#osgprod_events=that the slice holds
#osgprod_pieces=byte ranges of the file, and literal bytes, whose concatenation is the slice

set -euo pipefail
IFS=$' \t\n'
export LC_ALL=C
export PATH="${PATH:+$PATH:}/usr/local/bin:/usr/bin:/bin" # some sites have an empty one

# --- settings --------------------------------------------------------------------------------------------------

NTHREADS="$(sed -n 's/^# ncpus: *\([0-9][0-9]*\)$/\1/p' "${BASH_SOURCE[0]}" 2>/dev/null | head -n 1)"
export NTHREADS="${NTHREADS:-1}"
# Gets the slice's file as its last argument. A program that writes how many events it read into the file
# events_read lets the server check that none was skipped.
read -r -a reconstruction <<<"${OSGPROD_RECON:-hd_root -PJANA:BATCH_MODE=1 -PNTHREADS=$NTHREADS -PTHREAD_TIMEOUT_FIRST_EVENT=3600 -PTHREAD_TIMEOUT=600 -PPLUGINS=danarest}"

# ---------------------------------------------------------------------------------------------------------------

readonly EXIT_NOT_FILLED=64 EXIT_NOT_FETCHED=75
readonly TRIES="${OSGPROD_TRIES:-8}" BACKOFF_MS="${OSGPROD_BACKOFF_MS:-1000}"

log() {
  printf '%s osgprod_work: %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$*" >&2 || true # the disk may be full
}

# The slice can't be had here: whoever runs this script is told so by the exit code.
not_fetched() {
  rm -f "${slice:-}" # first: on a full disk nothing can be logged
  log "$*"
  exit "$EXIT_NOT_FETCHED"
}

size_of() {
  wc -c <"$1" | tr -d ' '
}

# Appends the bytes that a hexadecimal text stands for. Arguments: text, file
append_hex() {
  # shellcheck disable=SC2059  # the escapes are the point; the text is hexadecimal digits
  printf "$(printf '%s' "$1" | sed 's/../\\x&/g')" >>"$2"
}

# Each kind of source has a function read_KIND URL OFFSET LENGTH that prints the bytes, or as many as come; it exits with
# EXIT_NOT_FETCHED when it is of no use to ask again.
read_local() {
  [[ -r "$1" ]] || not_fetched "$1 can't be read here"
  tail -c "+$(($2 + 1))" "$1" | head -c "$3" || true # tail ends by SIGPIPE
}

# A curl configuration with what storage may want to see: a proxy certificate; a token, but not in the clear. Argument: URL
credentials() {
  local bearer="${BEARER_TOKEN:-}"
  [[ -n "$bearer" || ! -r "${BEARER_TOKEN_FILE:-}" ]] || bearer="$(<"$BEARER_TOKEN_FILE")"
  [[ -z "${X509_USER_PROXY:-}" ]] || printf 'cert = "%s"\nkey = "%s"\n' "$X509_USER_PROXY" "$X509_USER_PROXY"
  [[ -z "$bearer" || "$1" != https://* ]] || printf 'header = "Authorization: Bearer %s"\n' "${bearer//[[:space:]\"\\]/}"
}

# No .curlrc, and no cache of the site in between. Nothing is written beside the slice: the disk may be full.
read_http() {
  local reply status
  {
    reply="$(curl -q -g -sS -f -L --noproxy '*' --proto-redir "=${1%%:*}" --connect-timeout 20 --speed-limit 1000 \
      --speed-time 120 -K - -D /dev/stderr -r "$2-$(($2 + $3 - 1))" "$1" < <(credentials "$1") 2>&1 >&3)" || true
  } 3>&1
  status="$(printf '%s\n' "$reply" | sed -n 's/^HTTP[^ ]* \([0-9]*\).*/\1/p' | tail -n 1)"
  case "$status" in
  206)
    [[ "$(header content-range "$reply")" == "bytes $2-"* ]] || not_fetched "$1: the server sends another range"
    ;;
  200)
    [[ "$2" == 0 && "$(header content-length "$reply")" == "$3" ]] || not_fetched "$1: the server ignores byte ranges"
    ;;
  401 | 403 | 404 | 410 | 416) not_fetched "$1: status $status" ;;
  *) log "$1: status ${status:-none}: $(printf '%s\n' "$reply" | sed -n '/^curl: /p')" ;;
  esac
}

# Arguments: name, curl's headers
header() {
  printf '%s\n' "$2" | tr -d '\r' | sed -n "s/^$1: *//Ip" | tail -n 1
}

# By XRootD's Python bindings.
read_root() {
  XRD_CONNECTIONWINDOW="${XRD_CONNECTIONWINDOW:-20}" XRD_CONNECTIONRETRY="${XRD_CONNECTIONRETRY:-1}" \
    XRD_REQUESTTIMEOUT="${XRD_REQUESTTIMEOUT:-300}" "$xrootd_python" -c '
import sys
from XRootD import client
url, offset, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with client.File() as file:
    status, _ = file.open(url)
    while status.ok and length > 0:
        status, data = file.read(offset, min(length, 8 << 20))
        if not data:
            break
        sys.stdout.buffer.write(data)
        offset, length = offset + len(data), length - len(data)
if not status.ok:
    sys.stderr.write("osgprod_work: %s: %s\n" % (url, status.message.strip()))
    sys.exit(75 if status.errno in (3010, 3011) else 1)  # not authorized, not found
' "$@"
}

# Appends one range, going on where it broke off, as long as bytes come; at most one byte too many is taken, should the
# server send more than was asked for. Arguments: url, offset [bytes], length [bytes], file
append_range() {
  local url="$1" offset="$2" length="$3" file="$4" kind=local start got had=0 tries=0
  local -a ends
  case "$url" in
  http://* | https://*) kind=http ;;
  root://* | roots://*) kind=root ;;
  file://*) url="${url#file://}" ;;
  esac
  start="$(size_of "$file")"
  while ((had < length)); do
    ends=(0 0)
    "read_$kind" "$url" "$((offset + had))" "$((length - had))" | head -c "$((length - had + 1))" >>"$file" ||
      ends=("${PIPESTATUS[@]}")
    ((ends[0] != EXIT_NOT_FETCHED)) || exit "$EXIT_NOT_FETCHED"
    ((ends[1] == 0)) || not_fetched "$file can't be written: is the disk full?"
    got=$(($(size_of "$file") - start))
    ((got == had)) || tries=0
    had="$got"
    if ((had < length)); then
      tries=$((tries + 1))
      ((tries < TRIES)) || not_fetched "$url: $had of $length bytes at $offset came"
      backoff "$tries"
    fi
  done
  ((had == length)) || not_fetched "$url: more than $length bytes came for a range"
}

# Waits before try n + 1, with a random part so that jobs don't come back all at once. Argument: n
backoff() {
  local ms=$((BACKOFF_MS * (1 << ($1 > 6 ? 5 : $1 - 1))))
  ms=$((ms + RANDOM % (ms / 2 + 1)))
  sleep "$((ms / 1000)).$(printf '%03d' "$((ms % 1000))")"
}

# Puts the slice together. Argument: file
fetch_slice() {
  local file="$1" piece kind rest
  : >"$file" || not_fetched "$file can't be written"
  # shellcheck disable=SC2154  # filled in above by the server, as osgprod_size_bytes is
  for piece in "${osgprod_pieces[@]}"; do
    kind="${piece%% *}" rest="${piece#* }"
    case "$kind" in
    range) append_range "$osgprod_source_url" "${rest% *}" "${rest#* }" "$file" ;;
    hex) append_hex "$rest" "$file" || not_fetched "$file can't be written: is the disk full?" ;;
    *) not_fetched "unknown piece: $piece" ;;
    esac
  done
  # shellcheck disable=SC2154
  [[ "$(size_of "$file")" -eq "$osgprod_size_bytes" ]] ||
    not_fetched "the slice has $(size_of "$file") bytes instead of $osgprod_size_bytes"
}

# Can ranges of this URL be read with what is here? Sets xrootd_python. Argument: url
can_fetch() {
  case "$1" in
  root://* | roots://*) ;;
  *) return 0 ;;
  esac
  for xrootd_python in python3 /usr/bin/python3; do
    ! "$xrootd_python" -c 'from XRootD import client' 2>/dev/null || return 0
  done
  return 1
}

main() {
  local status=0
  local -a inputs
  slice="${output_filename:-}"
  if [[ -n "${osgprod_source_url:-}" ]] && can_fetch "$osgprod_source_url"; then
    trap 'rm -f "$slice"' EXIT # whole or not, it is no output
    fetch_slice "$slice"
    inputs=("$slice")
  elif [[ -n "${input_eviofile_list:-}" ]]; then
    log 'no XRootD bindings for Python: the reconstruction must understand names like file.evio+1,2'
    read -r -d '' -a inputs <<<"$input_eviofile_list" || true
  elif (($# > 0)); then
    inputs=("$@")
  else
    log 'no slice is filled in: fetch this script from the server, or name a file'
    exit "$EXIT_NOT_FILLED"
  fi
  "${reconstruction[@]}" "${inputs[@]}" || status=$?
  if [[ -s events_read ]]; then
    printf 'events=%s\n' "$(head -n 1 events_read)" >>"${OSGPROD_REPORT:-osgprod_report.txt}"
  fi
  return "$status"
}

if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
  main "$@"
fi
