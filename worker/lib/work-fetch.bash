# shellcheck shell=bash
# --- fetch the slice ---------------------------------------------------------------------------------------------

readonly EXIT_NOT_FILLED=64 EXIT_NOT_FETCHED=75 EXIT_MISCONFIGURED=40

# The slice can't be had here: the exit code says so to osgprod_exec.sh. Argument: message
not_fetched() {
  rm -f "${slice:-}" # first: on a full disk nothing can be logged
  log "$*"
  exit "$EXIT_NOT_FETCHED"
}

# A setting is wrong: no node and no other slice would do better. osgprod_exec.sh reads the line in the report, puts
# the slice back and holds the job. Argument: message
misconfigured() {
  rm -f "${slice:-}"
  log "$*"
  printf 'misconfigured=%s\n' "$*" >>"${OSGPROD_REPORT:-osgprod_report.txt}" || true
  exit "$EXIT_MISCONFIGURED"
}

# Appends the bytes that a hexadecimal text stands for. Arguments: text, file
append_hex() {
  # shellcheck disable=SC2059  # the escapes are the point; the text is hexadecimal digits
  printf "$(printf '%s' "$1" | sed 's/../\\x&/g')" >>"$2"
}

# Each kind of source (url_kind) has a function read_KIND URL OFFSET LENGTH that prints the bytes, or as many as come; it exits with
# EXIT_NOT_FETCHED when it is of no use to ask again.
read_file() {
  local path
  path="$(client_url "$1")"
  [[ -r "$path" ]] || not_fetched "$path can't be read here"
  tail -c "+$(($2 + 1))" "$path" | head -c "$3" || true # tail ends by SIGPIPE
}

# Nothing is written beside the slice: the disk may be full.
read_http() {
  local code=0
  http_transfer "$1" -r "$2-$(($2 + $3 - 1))" || code=$?
  case "$http_status" in
  206)
    [[ "$(header_of content-range "$http_head")" == "bytes $2-"* ]] || not_fetched "$1: the server sends another range"
    ;;
  200)
    [[ "$2" == 0 && "$(header_of content-length "$http_head")" == "$3" ]] ||
      not_fetched "$1: the server ignores byte ranges"
    ;;
  401 | 403 | 404 | 410 | 416) not_fetched "$1: status $http_status" ;;
  *) log "$1: status $http_status: $http_error" ;;
  esac
  return "$code"
}

# By XRootD's Python bindings.
read_root() {
  "$xrootd_python" -c '
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
' "$(client_url "$1")" "$2" "$3"
}

# Appends one range, going on where it broke off, as long as bytes come; at most one byte too many is taken, should the
# server send more than was asked for. Arguments: url, offset [bytes], length [bytes], file
append_range() {
  local url="$1" offset="$2" length="$3" file="$4" kind start got had=0 tries=0
  local -a ends
  kind="$(url_kind "$url")" || misconfigured "$url: no scheme that this script knows: $URL_SCHEMES"
  start="$(size_of "$file")"
  while ((had < length)); do
    ends=(0 0)
    "read_$kind" "$url" "$((offset + had))" "$((length - had))" | head -c "$((length - had + 1))" >>"$file" ||
      ends=("${PIPESTATUS[@]}")
    ((ends[0] != EXIT_NOT_FETCHED)) || exit "$EXIT_NOT_FETCHED"
    learn_from "${ends[0]}"
    ((ends[1] == 0)) || not_fetched "$file can't be written: is the disk full?"
    got=$(($(size_of "$file") - start))
    ((got == had)) || tries=0
    had="$got"
    if ((had < length)); then
      tries=$((tries + 1))
      # shellcheck disable=SC2153  # a setting
      ((tries < TRIES)) || not_fetched "$url: $had of $length bytes at $offset came"
      sleep "$(backoff "$tries" "$BACKOFF_MS")"
    fi
  done
  ((had == length)) || not_fetched "$url: more than $length bytes came for a range"
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
  [[ "$(url_kind "$1")" == root ]] || return 0
  for xrootd_python in python3 /usr/bin/python3; do
    ! "$xrootd_python" -c 'from XRootD import client' 2>/dev/null || return 0
  done
  return 1
}
