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
export PATH="${PATH:-/usr/local/bin:/usr/bin:/bin}"

# --- settings --------------------------------------------------------------------------------------------------

NTHREADS="$(sed -n 's/^# ncpus: *\([0-9][0-9]*\)$/\1/p' "${BASH_SOURCE[0]}" 2>/dev/null | head -n 1)"
export NTHREADS="${NTHREADS:-1}"
# Gets the slice's file as its last argument. A program that writes how many events it read into the file
# events_read lets the server check that none was skipped.
read -r -a reconstruction <<<"${OSGPROD_RECON:-hd_root -PJANA:BATCH_MODE=1 -PNTHREADS=$NTHREADS -PTHREAD_TIMEOUT_FIRST_EVENT=3600 -PTHREAD_TIMEOUT=600 -PPLUGINS=danarest}"

# ---------------------------------------------------------------------------------------------------------------

readonly EXIT_NOT_FILLED=64 EXIT_NOT_FETCHED=75
readonly TRIES="${OSGPROD_TRIES:-8}"

log() {
  printf '%s osgprod_work: %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$*" >&2
}

# The slice can't be had here: whoever runs this script is told so by the exit code.
not_fetched() {
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

# Appends a range of a file on disk. Arguments: path, offset [bytes], length [bytes], file
append_local() {
  [[ -r "$1" ]] || not_fetched "$1 can't be read here"
  tail -c "+$(($2 + 1))" "$1" | head -c "$3" >>"$4" || true # tail ends by SIGPIPE; lengths are compared
}

# Appends a range over http(s); at most one byte too many, should the server send more than was asked for.
# Arguments: url, offset [bytes], length [bytes], file
append_http() {
  local headers="$4.headers" status
  : >"$headers"
  curl -sS -f -L --noproxy '*' --connect-timeout 20 --speed-limit 1000 --speed-time 120 -D "$headers" \
    ${X509_USER_PROXY:+--cert "$X509_USER_PROXY" --key "$X509_USER_PROXY"} \
    -r "$2-$(($2 + $3 - 1))" "$1" 2>"$4.error" | head -c "$(($3 + 1))" >>"$4" || true # lengths are compared
  status="$(sed -n 's/^HTTP[^ ]* \([0-9]*\).*/\1/p' "$headers" | tail -n 1)"
  case "$status" in
  206) ;;
  200) not_fetched "$1: the server ignores byte ranges" ;;
  401 | 403 | 404 | 410 | 416) not_fetched "$1: status $status" ;;
  *) log "$1: status ${status:-none}: $(head -n 1 "$4.error")" ;;
  esac
}

# Appends a range by XRootD's Python bindings. Arguments: url, offset [bytes], length [bytes], file
append_root() {
  python3 - "$@" <<'PYTHON' || true # lengths are compared
import sys
from XRootD import client
url, offset, length, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
with client.File() as file, open(out, "ab") as output:
    status, _ = file.open(url)
    while status.ok and length > 0:
        status, data = file.read(offset, min(length, 8 << 20))
        if not data:
            break
        output.write(data)
        offset, length = offset + len(data), length - len(data)
    if not status.ok:
        sys.exit("osgprod_work: %s: %s" % (url, status.message.strip()))
PYTHON
}

# Appends one range, going on where it broke off, as long as bytes come.
# Arguments: url, offset [bytes], length [bytes], file
append_range() {
  local url="$1" offset="$2" length="$3" file="$4" start got had=0 tries=0
  start="$(size_of "$file")"
  while ((had < length)); do
    case "$url" in
    http://* | https://*) append_http "$url" "$((offset + had))" "$((length - had))" "$file" ;;
    root://* | roots://*) append_root "$url" "$((offset + had))" "$((length - had))" "$file" ;;
    *) append_local "${url#file://}" "$((offset + had))" "$((length - had))" "$file" ;;
    esac
    got=$(($(size_of "$file") - start))
    ((got > had)) && tries=0
    had="$got"
    if ((had < length)); then
      tries=$((tries + 1))
      ((tries < TRIES)) || not_fetched "$url: $had of $length bytes at $offset came"
      sleep "$((tries > 5 ? 30 : 1 << (tries - 1))).$((RANDOM % 10))"
    fi
  done
  ((had == length)) || not_fetched "$url: more than $length bytes came for a range"
}

# Puts the slice together. Argument: file
fetch_slice() {
  local file="$1" piece kind first second
  : >"$file" || not_fetched "$file can't be written"
  # shellcheck disable=SC2154  # filled in above by the server, as osgprod_size_bytes is
  for piece in "${osgprod_pieces[@]}"; do
    read -r kind first second <<<"$piece"
    case "$kind" in
    range) append_range "$osgprod_source_url" "$first" "$second" "$file" ;;
    hex) append_hex "$first" "$file" ;;
    *) not_fetched "unknown piece: $piece" ;;
    esac
  done
  rm -f "$file.headers" "$file.error"
  # shellcheck disable=SC2154
  [[ "$(size_of "$file")" -eq "$osgprod_size_bytes" ]] ||
    not_fetched "the slice has $(size_of "$file") bytes instead of $osgprod_size_bytes"
}

# Can ranges of this URL be read with what is here? Argument: url
can_fetch() {
  case "$1" in
  root://* | roots://*) python3 -c 'from XRootD import client' 2>/dev/null ;;
  *) true ;;
  esac
}

main() {
  local slice="${output_filename:-}" status=0
  local -a inputs
  if [[ -n "${osgprod_source_url:-}" ]] && can_fetch "$osgprod_source_url"; then
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
  [[ -z "${osgprod_source_url:-}" || -z "$slice" ]] || rm -f "$slice"
  if [[ -s events_read ]]; then
    printf 'events=%s\n' "$(head -n 1 events_read)" >>"${OSGPROD_REPORT:-osgprod_report.txt}"
  fi
  return "$status"
}

if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
  main "$@"
fi
