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
#     OSGPROD_TOKEN_HOSTS  hosts that storage may redirect to with the bearer token, separated by spaces
#     BEARER_TOKEN, BEARER_TOKEN_FILE, X509_USER_PROXY  what storage may want to see
# Exit codes: those of the reconstruction (128 + n = killed by signal n: the node's fault); 75 = the slice could not
# be fetched (the site's fault); 64 = nothing to do was filled in; 40 = a setting is wrong, the log names it.
#
# Made of: worker/lib/work-head.bash worker/lib/shell.bash worker/lib/work-settings.bash worker/lib/log.bash worker/lib/settings.bash worker/lib/backoff.bash worker/lib/url.bash worker/lib/token.bash worker/lib/http.bash worker/lib/work-fetch.bash worker/lib/work-main.bash

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
export PATH="${PATH:+$PATH:}/usr/local/bin:/usr/bin:/bin" # some sites have an empty PATH
# Of XRootD's clients: their own patience is half an hour for a request.
export XRD_CONNECTIONWINDOW="${XRD_CONNECTIONWINDOW:-20}" XRD_CONNECTIONRETRY="${XRD_CONNECTIONRETRY:-1}" \
  XRD_REQUESTTIMEOUT="${XRD_REQUESTTIMEOUT:-300}"

# --- settings --------------------------------------------------------------------------------------------------

NTHREADS="$(sed -n 's/^# ncpus: *\([0-9][0-9]*\)$/\1/p' "${BASH_SOURCE[0]}" 2>/dev/null | head -n 1)"
export NTHREADS="${NTHREADS:-1}"
# Gets the slice's file as its last argument. A program that writes how many events it read into the file
# events_read lets the server check that none was skipped.
read -r -a reconstruction <<<"${OSGPROD_RECON:-hd_root -PJANA:BATCH_MODE=1 -PNTHREADS=$NTHREADS -PTHREAD_TIMEOUT_FIRST_EVENT=3600 -PTHREAD_TIMEOUT=600 -PPLUGINS=danarest}"

# --- log and exit ------------------------------------------------------------------------------------------------

log_name=osgprod # the script, and the job when it has one: begins each log line

# Writes one line to the standard error output. Control characters become "?": the text may come from a stranger's
# server. A full disk or a closed pipe there stops nothing.
log() {
  local text="$*"
  printf '%s %s: %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ 2>&1)" "$log_name" "${text//[[:cntrl:]]/?}" >&2 || true
}

# Logs a message and ends the script. Arguments: exit code, message
die() {
  log "$2"
  exit "$1"
}

# Prints the size of a file [bytes]. Argument: file
size_of() {
  wc -c <"$1" | tr -d ' '
}

# --- settings ----------------------------------------------------------------------------------------------------

# Prints the number that an environment variable holds, or its default when the variable is unset or empty. Fails, and
# logs the rule, when the variable holds anything but a whole number in the range.
# Arguments: name of the variable, default, least, greatest (inclusive, at most 9 digits)
number_setting() {
  local text="${!1:-$2}"
  if [[ ! "$text" =~ ^[0-9]{1,9}$ ]] || ((10#$text < $3 || 10#$text > $4)); then
    log "$1 is '${text:0:40}': it must be a whole number from $3 to $4, without a unit"
    return 1
  fi
  printf '%d' "$((10#$text))"
}

# --- backoff -----------------------------------------------------------------------------------------------------

# Prints how long to wait before the next attempt [s, with 3 decimals]: doubled with each attempt, up to 32 fold, and
# with a random part of up to a half, so that jobs don't return all at once.
# Arguments: number of the attempt that failed (from 1), first pause [ms], least pause that the server wants [s; 0],
#            greatest pause that it may want [s; 300]
backoff() {
  local attempt="$1" ms="$2" wanted_s="${3:-0}" greatest_s="${4:-300}"
  ms=$((ms * (1 << (attempt > 6 ? 5 : attempt - 1))))
  [[ "$wanted_s" =~ ^[0-9]{1,9}$ ]] || wanted_s=0 # a date, for example
  wanted_s=$((10#$wanted_s > greatest_s ? greatest_s : 10#$wanted_s))
  ((ms >= wanted_s * 1000)) || ms=$((wanted_s * 1000))
  ms=$((ms + RANDOM % (ms / 2 + 1)))
  printf '%d.%03d' "$((ms / 1000))" "$((ms % 1000))"
}

# --- URLs --------------------------------------------------------------------------------------------------------

# The table of URL schemes. Prints the kind of client that a URL needs: http (curl), root (XRootD), pelican, or file
# for a path of this node. Fails for any other scheme, for a relative path, and for a URL with a control character.
# Argument: URL
url_kind() {
  [[ ! "$1" =~ [[:cntrl:]] ]] || return 1
  case "$1" in
  [Hh][Tt][Tt][Pp]://?* | [Hh][Tt][Tt][Pp][Ss]://?* | [Dd][Aa][Vv]://?* | [Dd][Aa][Vv][Ss]://?*) printf http ;;
  [Rr][Oo][Oo][Tt]://?* | [Rr][Oo][Oo][Tt][Ss]://?* | [Xx][Rr][Oo][Oo][Tt]://?* | [Xx][Rr][Oo][Oo][Tt][Ss]://?*) printf root ;;
  [Oo][Ss][Dd][Ff]://?* | [Pp][Ee][Ll][Ii][Cc][Aa][Nn]://?*) printf pelican ;;
  [Ff][Ii][Ll][Ee]:///?* | /*) printf file ;;
  *) return 1 ;;
  esac
}

# The schemes that url_kind knows, for a message.
readonly URL_SCHEMES='http, https, dav, davs, root, roots, xroot, xroots, osdf, pelican, file:///, or an absolute path'

# Prints a URL as its client wants it: dav and davs are http and https to curl, xroot and xroots are root and roots to
# XRootD, and a file is its path. Argument: URL that url_kind knows
client_url() {
  local scheme="${1%%://*}" rest="${1#*://}"
  [[ "$1" != /* ]] || {
    printf '%s' "$1"
    return 0
  }
  case "${scheme,,}" in
  http | dav) printf 'http://%s' "$rest" ;;
  https | davs) printf 'https://%s' "$rest" ;;
  root | xroot) printf 'root://%s' "$rest" ;;
  roots | xroots) printf 'roots://%s' "$rest" ;;
  file) printf '/%s' "${rest#/}" ;;
  *) printf '%s://%s' "${scheme,,}" "$rest" ;;
  esac
}

# Prints host and port of a URL in lower case, and without them the scheme's own port. Argument: http or https URL
host_and_port() {
  local scheme="${1%%://*}" place="${1#*://}"
  place="${place%%[/?#]*}"
  place="${place##*@}"
  [[ "$place" =~ :[0-9]+$ ]] || case "${scheme,,}" in
  https) place+=:443 ;;
  *) place+=:80 ;;
  esac
  printf '%s' "${place,,}"
}

# --- bearer token ------------------------------------------------------------------------------------------------

# Finds a bearer token where all WLCG tools look, and where HTCondor puts one. Sets bearer, and exports
# BEARER_TOKEN_FILE for other clients when the token is in a file. Call it before each use: HTCondor renews the file.
find_token() {
  local uid file found="${BEARER_TOKEN:-}"
  bearer=""
  found="${found//[[:space:]]/}"
  if [[ -n "$found" ]]; then
    bearer="$found"
    return 0
  fi
  uid="$(id -u)"
  if [[ -n "${BEARER_TOKEN_FILE:-}" ]]; then
    set -- "$BEARER_TOKEN_FILE" # a file that is named is the only one
  else                          # HTCondor's belongs to this job; the others may belong to all who run as this user
    set -- "${_CONDOR_CREDS:-/nonexistent}"/*.use "${XDG_RUNTIME_DIR:-/nonexistent}/bt_u$uid" "/tmp/bt_u$uid"
  fi
  for file in "$@"; do
    [[ -f "$file" && -r "$file" ]] || continue
    found="$(tr -d '[:space:]\000' <"$file")" || found=""
    if [[ -n "$found" ]]; then
      bearer="$found"
      export BEARER_TOKEN_FILE="$file"
      return 0
    fi
  done
}

# May the bearer token be sent to this URL? Only over https, to the host that the URL of the request names, or, after
# a redirect, to one that OSGPROD_TOKEN_HOSTS lists: host or host:port, separated by spaces or commas.
# Arguments: URL, URL of the request before any redirect
may_have_token() {
  local place first host
  [[ "${1%%://*}" == [Hh][Tt][Tt][Pp][Ss] ]] || return 1
  place="$(host_and_port "$1")"
  first="$(host_and_port "$2")"
  [[ "$place" != "$first" ]] || return 0
  for host in ${OSGPROD_TOKEN_HOSTS//,/ }; do
    [[ "${host,,}" != "$place" && "${host,,}" != "${place%:*}" ]] || return 0
  done
  return 1
}

# --- HTTP --------------------------------------------------------------------------------------------------------

# -q: no .curlrc of whoever owns this node; -g: no patterns in URLs; --noproxy: no web cache of the site in between.
readonly CURL=(curl -q -g -sS --noproxy '*' --connect-timeout 20)
http_version="" # of storage; --http1.1 once a stream of HTTP/2 has failed

# Prints one line of a curl configuration. Secrets reach curl on its standard input, never on its command line.
# Arguments: option, value
curl_option() {
  local value="$2"
  value="${value//\\/\\\\}"
  value="${value//\"/\\\"}"
  value="${value//$'\n'/\\n}"
  printf '%s = "%s"\n' "$1" "$value"
}

# Prints the curl configuration for certificates of authorities that only the grid knows.
ca_options() {
  local folder="${X509_CERT_DIR:-/etc/grid-security/certificates}"
  [[ ! -d "$folder" ]] || curl_option capath "$folder"
}

# Prints the curl configuration with what storage may want to see: a proxy certificate, a token.
# Arguments: URL, URL of the request before any redirect
storage_options() {
  ca_options
  if [[ -n "${X509_USER_PROXY:-}" ]]; then
    curl_option cert "$X509_USER_PROXY"
    curl_option key "$X509_USER_PROXY"
  fi
  find_token
  [[ -z "$bearer" ]] || ! may_have_token "$1" "$2" || curl_option header "Authorization: Bearer $bearer"
}

# Sends a request to storage and follows redirects: not curl, which in old versions sends a token along to any host.
# Prints the body of the last answer, and nothing of a redirect or of an error. Nothing is written to a disk.
# Sets http_status (000 = no answer), http_head (the last answer's head) and http_error (curl's words).
# Returns curl's exit code: 0, 22 = http_status is 400 or more, 47 = a redirect that is not followed, ...
# Arguments: URL (http, https, dav, davs), curl's options without secrets
http_transfer() {
  local first url next place hop reply code
  first="$(client_url "$1")"
  url="$first"
  shift
  for ((hop = 0; hop < 6; hop++)); do
    code=0
    # With -L and no redirect allowed, curl drops the body of a redirect and ends with 47. The x keeps the line ends.
    {
      reply="$(
        storage_options "$url" "$first" |
          "${CURL[@]}" ${http_version:+"$http_version"} -f -L --max-redirs 0 --speed-limit 1000 --speed-time 120 \
            -K - -D /dev/stderr "$@" "$url" 2>&1 >&3 | tr -d '\000' || code=$?
        printf x
        exit "$code"
      )" || code=$?
    } 3>&1
    reply="${reply%x}"
    http_head="$(head_of "$reply")"
    http_status="$(status_of "$http_head")"
    http_error="$(printf '%s\n' "$reply" | sed -n '/^curl: /p' | tail -n 1)"
    ((code == 47)) || return "$code"
    next="$(header_of location "$http_head")"
    place="${url#*://}"
    [[ "$next" != /* || "$next" == //* ]] || next="${url%%://*}://${place%%[/?#]*}$next"
    case "$next" in
    [Hh][Tt][Tt][Pp][Ss]://?*) ;;
    [Hh][Tt][Tt][Pp]://?*) [[ "$url" == http://* ]] || return 47 ;; # never from https to plain http
    *) return 47 ;;
    esac
    url="$next"
  done
  return 47
}

# Remembers what a failed transfer tells about the next one: after an error of an HTTP/2 stream, HTTP/1.1 is used.
# Call it where the change lasts: not in a subshell. Argument: curl's exit code
learn_from() {
  case "$1" in
  16 | 92) http_version=--http1.1 ;;
  esac
}

# Prints the head of the answer in what curl's -D gave. Interim answers (1xx) before it don't count, nor does a head that
# was cut: it lacks the empty line at its end. Argument: curl's text, a body may follow the head
head_of() {
  local rest="$1" head
  while [[ "$rest" == HTTP/*$'\r\n\r\n'* ]]; do
    head="${rest%%$'\r\n\r\n'*}"
    rest="${rest#*$'\r\n\r\n'}"
    if [[ ! "$head" =~ ^HTTP/[0-9.]+\ 1 ]]; then
      printf '%s' "$head"
      return 0
    fi
  done
}

# Prints the status of a head of HTTP, 000 when there is none. Argument: head
status_of() {
  local pattern='^HTTP/[0-9.]+ ([1-9][0-9][0-9])'
  if [[ "$1" =~ $pattern ]]; then printf '%s' "${BASH_REMATCH[1]}"; else printf 000; fi
}

# Prints the value of a header, without spaces around it; nothing when there is none. The last one counts.
# Arguments: name in any case, head
header_of() {
  local line value=""
  while IFS= read -r line; do
    line="${line%$'\r'}"
    [[ "${line%%:*}" != "$line" && "${line,,}" == "${1,,}:"* ]] || continue
    value="${line#*:}"
    value="${value#"${value%%[![:space:]]*}"}"
    value="${value%"${value##*[![:space:]]}"}"
  done < <(printf '%s\n' "$2")
  printf '%s' "$value"
}

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

# --- the work ----------------------------------------------------------------------------------------------------

main() {
  local status=0
  local -a inputs
  log_name=osgprod_work
  TRIES="$(number_setting OSGPROD_TRIES 8 1 1000)" || misconfigured 'OSGPROD_TRIES is wrong'
  BACKOFF_MS="$(number_setting OSGPROD_BACKOFF_MS 1000 1 600000)" || misconfigured 'OSGPROD_BACKOFF_MS is wrong'
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
