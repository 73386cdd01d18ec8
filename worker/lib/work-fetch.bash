# shellcheck shell=bash
# --- fetch the slice ---------------------------------------------------------------------------------------------

readonly EXIT_MISCONFIGURED=40 EXIT_NOT_FILLED=64 EXIT_NODE_FAULT=75
# A cache that is overloaded answers 403 or 404 for a file that exists: such an answer is believed when it comes again.
readonly MAX_REFUSALS=4

# This node can't do it: the exit code says so to osgprod_exec.sh, and the last line of the log says why.
# Arguments: message
node_fault() {
  rm -f "${slice:-}" # first: on a full disk nothing can be logged
  log "$*"
  exit "$EXIT_NODE_FAULT"
}

# A setting is wrong: no other node and no other slice would do better. osgprod_exec.sh finds the line in the report,
# gives the slice back and holds the job. Arguments: message
misconfigured() {
  rm -f "${slice:-}"
  add_to_report "misconfigured=$*" || true
  log "$*"
  exit "$EXIT_MISCONFIGURED"
}

# Adds a line to the file for the exit report. Fails when the line can't be written. Argument: line
add_to_report() {
  { printf '%s\n' "$1" >>"${OSGPROD_REPORT:-osgprod_report.txt}"; } 2>/dev/null
}

# Prints a URL as a log may show it: without a query and a password, which may be secrets. Argument: URL
shown_url() {
  local url="${1%%\?*}" place
  place="${url#*://}"
  place="${place%%/*}"
  [[ "$url" != *://* || "$place" != *@* ]] || url="${url%%://*}://${place##*@}${url#*"$place"}"
  printf '%s' "$url"
}

# Appends the bytes that a hexadecimal text stands for. Arguments: text, file
append_hex() {
  # shellcheck disable=SC2059  # the escapes are the point; the text is hexadecimal digits
  { printf "$(printf '%s' "$1" | sed 's/../\\x&/g')" >>"$2"; } 2>/dev/null
}

# Each kind of source (url_kind) has a function read_KIND URL OFFSET LENGTH that prints the bytes from OFFSET on, or as
# many as arrive. If bytes are missing, it calls "verdict".

# Tells append_range, on descriptor 5, whether to retry the missing bytes. Arguments: "again", "refused" (may be true) or
# "never"; exit code of the client; pause that the server wants [s], or nothing; reason
verdict() {
  local wait_s="$3"
  [[ "$wait_s" =~ ^[0-9]{1,9}$ ]] || wait_s=0
  printf '%s %s %s %s\n' "$1" "$2" "$wait_s" "${4//$'\n'/ }" >&5
}

read_file() {
  local path size
  path="$(client_url "$1")"
  size="$(size_of "$path" 2>/dev/null)" || size=""
  if [[ -z "$size" ]]; then
    verdict never 0 '' "can't be read here"
  elif ((size < $2 + $3)); then
    verdict never 0 '' "is shorter than when it was registered: $size bytes"
  else
    verdict again 0 '' 'broke off'
    tail -c "+$(($2 + 1))" "$path" 2>/dev/null | head -c "$3" || true # tail ends by SIGPIPE
  fi
}

read_http() {
  local code=0 range
  http_transfer "$1" -r "$2-$(($2 + $3 - 1))" || code=$?
  case "$http_status" in
  206)
    range="$(header_of content-range "$http_head")"
    if [[ "$range" != "bytes $2-"* ]]; then
      verdict never "$code" '' 'another range came'
    else
      verdict again "$code" '' "broke off: ${http_error:-too few bytes}"
    fi
    ;;
  200)
    if [[ "$2" == 0 && "$(header_of content-length "$http_head")" == "$3" ]]; then
      verdict again "$code" '' "broke off: ${http_error:-too few bytes}"
    else
      verdict never "$code" '' 'the server ignores byte ranges'
    fi
    ;;
  403 | 404) verdict refused "$code" "$(header_of retry-after "$http_head")" "status $http_status" ;;
  401 | 410 | 416) verdict never "$code" '' "status $http_status" ;;
  000) verdict again "$code" '' "no answer: ${http_error:-none}" ;;
  [45]??) verdict again "$code" "$(header_of retry-after "$http_head")" "status $http_status" ;;
  *) verdict again "$code" '' "status $http_status: $http_error" ;;
  esac
}

# By XRootD's Python bindings.
read_root() {
  "$xrootd_python" -c '
import os, sys
from XRootD import client
url, offset, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
reason, word = "broke off", "again"
with client.File() as file:
    status, _ = file.open(url)
    while status.ok and length > 0:
        status, data = file.read(offset, min(length, 8 << 20))
        if not data:
            break
        sys.stdout.buffer.write(data)
        offset, length = offset + len(data), length - len(data)
if not status.ok:
    reason = " ".join(status.message.split())
    if status.errno in (3010, 3011):  # not authorized, not found
        word = "refused"
sys.stdout.buffer.flush()
os.write(5, ("%s 0 0 %s\n" % (word, reason)).encode("utf-8", "replace"))
' "$(client_url "$1")" "$2" "$3" || true
}

# Appends one range to a file. Goes on where a transfer broke off, as long as bytes come. Takes at most one byte too
# many from a server that sends more than it was asked for. Arguments: URL, offset [bytes], length [bytes], file
append_range() {
  local url="$1" offset="$2" length="$3" file="$4" kind start got had=0 attempts=0 refusals=0 found word code wait_s reason
  kind="$(url_kind "$url")"
  start="$(size_of "$file")"
  while ((had < length)); do
    found="$(
      exec 5>&1
      "read_$kind" "$url" "$((offset + had))" "$((length - had))" |
        { head -c "$((length - had + 1))" >>"$file" || printf 'full\n' >&5; } 2>/dev/null
    )" || true
    [[ $'\n'"$found"$'\n' != *$'\nfull\n'* ]] || node_fault "$file can't be written: is the disk full?"
    IFS=' ' read -r word code wait_s reason < <(printf '%s\n' "$found") || true
    got=$(($(size_of "$file") - start))
    ((got == had)) || attempts=0 refusals=0
    had="$got"
    [[ "$word" != never ]] || not_fetched "$reason"
    ((had < length)) || break
    attempts=$((attempts + 1))
    [[ "$word" != refused ]] || refusals=$((refusals + 1))
    ((attempts < TRIES && refusals < MAX_REFUSALS)) ||
      not_fetched "${reason:-no reason given} ($attempts attempts, $had of $length bytes at $offset came)"
    log "fetch failed (attempt $attempts, $had of $length bytes): ${reason:-no reason given}"
    learn_from "${code:-0}"
    sleep "$(backoff "$attempts" "$BACKOFF_MS" "${wait_s:-0}")"
  done
  ((had == length)) || not_fetched "more than $length bytes came for a range"
}

# Argument: message
not_fetched() {
  node_fault "not fetched: $1: $(shown_url "$osgprod_source_url")"
}

# Assembles the slice. Argument: file
fetch_slice() {
  local file="$1" piece kind rest size
  { : >"$file"; } 2>/dev/null || node_fault "$file can't be written"
  # shellcheck disable=SC2154  # filled in above by the server, as osgprod_size_bytes is
  for piece in "${osgprod_pieces[@]}"; do
    kind="${piece%% *}" rest="${piece#* }"
    case "$kind" in
    range) append_range "$osgprod_source_url" "${rest% *}" "${rest#* }" "$file" ;;
    hex) append_hex "$rest" "$file" || node_fault "$file can't be written: is the disk full?" ;;
    *) misconfigured "the server gave a piece that this script does not know: $piece" ;;
    esac
  done
  size="$(size_of "$file")"
  # shellcheck disable=SC2154
  ((size == osgprod_size_bytes)) || not_fetched "the slice has $size bytes instead of $osgprod_size_bytes"
  check_slice "$file" "$size" "${osgprod_events:-}"
}

# Does this node have a program that reads ranges? Sets xrootd_python. Argument: kind of the URL
can_fetch() {
  [[ "$1" == root ]] || return 0
  for xrootd_python in python3 /usr/bin/python3; do
    ! "$xrootd_python" -c 'from XRootD import client' 2>/dev/null || return 0
  done
  return 1
}
