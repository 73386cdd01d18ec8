#!/bin/bash
#
# osgprod_exec.sh <cluster> <process> [<ncpus>]: runs around the work: asks the server for a work script, runs it, beats
# meanwhile, gathers the outputs into job_<cluster>_<process>.tar.gz, sends them, and reports how it ended.
# Runs on grid nodes that nobody here controls: bash 4.2, curl 7.29, nothing else is taken for granted. (/bin/bash, since
# "env bash" finds none where PATH is empty.)
#
# Environment (osgprod.sub sets it):
#     OSGPROD_URL         the server, like https://host/osgprod
#     OSGPROD_PROJECT     the project
#     OSGPROD_MAGIC       its secret; or OSGPROD_MAGIC_FILE, a file that holds it; without both a bearer token is sent
#     OSGPROD_OUTPUT_URL  folder for the tarball: http(s)://, root://, osdf://, pelican://, file:// or a path; unset = it
#                         stays here for HTCondor
#     OSGPROD_CONTAINER   command before the work script, like "apptainer exec image.sif"
#     OSGPROD_TRIES       how often a request, or an upload, is tried at most [10]
#     OSGPROD_BACKOFF_MS  pause after the first of these; doubled each time, up to 64 fold [ms; 1000]
#     OSGPROD_MAX_WAIT_S  how long to wait when work may come back [s; 600]; 0 = end at once, as when there is none
#     OSGPROD_SITE        name of the site, for the record [the one that HTCondor's machine ad tells]
#     OSGPROD_TOKEN_HOSTS hosts that storage may redirect to with the bearer token, like "door2.site.org pool.site.org:8443"
#     BEARER_TOKEN ...    see find_token
# The tarball of a job's nth start, n > 1, is job_<cluster>_<process>.<n>.tar.gz; that of a failed one failed_job_...
# Exit codes, for HTCondor (osgprod.sub says what becomes of the job): 0 done, or nothing to do; 10 the slice failed, maybe
# its data; 20 this node's fault; 30 the server or the storage is away, or all work is out; 40 refused or misconfigured;
# 143 told to stop by SIGTERM (nothing reported, the restarted job gets its slice back).
#
# Made of: condor/lib/exec-head.bash worker/lib/shell.bash worker/lib/log.bash worker/lib/settings.bash worker/lib/backoff.bash worker/lib/url.bash worker/lib/token.bash worker/lib/http.bash condor/lib/exec-rest.bash

set -euo pipefail
IFS=$' \t\n'
export LC_ALL=C
export PATH="${PATH:+$PATH:}/usr/local/bin:/usr/bin:/bin" # some sites have an empty PATH
# Of XRootD's clients: their own patience is half an hour for a request.
export XRD_CONNECTIONWINDOW="${XRD_CONNECTIONWINDOW:-20}" XRD_CONNECTIONRETRY="${XRD_CONNECTIONRETRY:-1}" \
  XRD_REQUESTTIMEOUT="${XRD_REQUESTTIMEOUT:-300}"

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
  local place first host hosts="${OSGPROD_TOKEN_HOSTS:-}"
  [[ "${1%%://*}" == [Hh][Tt][Tt][Pp][Ss] ]] || return 1
  place="$(host_and_port "$1")"
  first="$(host_and_port "$2")"
  [[ "$place" != "$first" ]] || return 0
  for host in ${hosts//,/ }; do
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

# Prints the curl configuration for certificates of authorities that only the grid knows, beside those that curl trusts
# anyway. Told of a folder, curl no longer looks at these two variables.
ca_options() {
  local folder="${X509_CERT_DIR:-/etc/grid-security/certificates}" bundle="${CURL_CA_BUNDLE:-${SSL_CERT_FILE:-}}"
  [[ -d "$folder" ]] || return 0
  curl_option capath "$folder"
  [[ -z "$bundle" ]] || curl_option cacert "$bundle"
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
        { # a redirect's query may be a secret
          curl_option url "$url"
          storage_options "$url" "$first"
        } |
          "${CURL[@]}" ${http_version:+"$http_version"} -f -L --max-redirs 0 --speed-limit 1000 --speed-time 120 \
            -K - -D /dev/stderr "$@" 2>&1 >&3 | tr -d '\000' || code=$?
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

readonly EXIT_FAILED=10 EXIT_NODE_FAULT=20 EXIT_LATER=30 EXIT_REFUSED=40 EXIT_TERM=143
readonly EXIT_NOT_FETCHED=75 # of the work script
readonly TOLD_TO_STOP=9      # of the heartbeat
readonly KILL_AFTER_S=3

scratch="" work_pid="" beat_pid="" child_pid="" token="" magic="" bearer="" host="" site="" beat_status=0

# Waits without a child that could outlive us. Argument: seconds
pause() {
  read -r -t "$1" -u 9 || true
}

# Reads what the environment says; sets magic and bearer.
configure() {
  [[ -n "${OSGPROD_URL:-}" ]] || die "$EXIT_REFUSED" 'OSGPROD_URL is not set: the server, like https://host/osgprod'
  [[ -n "${OSGPROD_PROJECT:-}" ]] || die "$EXIT_REFUSED" 'OSGPROD_PROJECT is not set'
  TRIES="$(number_setting OSGPROD_TRIES 10 1 1000)" || exit "$EXIT_REFUSED"
  BACKOFF_MS="$(number_setting OSGPROD_BACKOFF_MS 1000 1 600000)" || exit "$EXIT_REFUSED"
  MAX_WAIT_S="$(number_setting OSGPROD_MAX_WAIT_S 600 0 604800)" || exit "$EXIT_REFUSED"
  command -v curl >/dev/null || die "$EXIT_NODE_FAULT" 'there is no curl here'
  [[ -z "${OSGPROD_OUTPUT_URL:-}" ]] || storage_kind "$OSGPROD_OUTPUT_URL" >/dev/null ||
    die "$EXIT_REFUSED" "OSGPROD_OUTPUT_URL: give a folder without a query or a password; schemes: $URL_SCHEMES"
  magic="${OSGPROD_MAGIC:-}"
  if [[ -n "${OSGPROD_MAGIC_FILE:-}" ]]; then
    [[ -r "$OSGPROD_MAGIC_FILE" ]] || die "$EXIT_REFUSED" "OSGPROD_MAGIC_FILE: $OSGPROD_MAGIC_FILE can't be read"
    IFS= read -r magic <"$OSGPROD_MAGIC_FILE" || true # no newline at the end is all right
  fi
  find_token
  [[ -n "$magic$bearer" ]] || log 'neither a magic nor a bearer token is here'
}

# Sends one request; POST, which no proxy on the way keeps a copy of. Sets http_status (000 = no whole answer), headers
# and body; the body of a work script goes to a file instead, and nothing else does: the disk may be full.
# Arguments: route, then name value pairs
request() {
  local route="$1" reply is_whole=true
  shift
  [[ -n "$magic" ]] || find_token # HTCondor renews it: what was read at the start may have expired
  reply="$(
    {
      # Storage believes it too: it goes to nobody in the clear.
      [[ -n "$magic" || -z "$bearer" || ! "$OSGPROD_URL" =~ ^(https://|http://(127\.0\.0\.1|localhost|\[::1\])[:/]) ]] ||
        curl_option header "Authorization: Bearer $bearer"
      set -- project "$OSGPROD_PROJECT" cluster "$cluster" process "$process" magic "$magic" host "$host" \
        site "$site" token "$token" "$@"
      while (($# > 1)); do
        [[ -z "$2" ]] || curl_option data-urlencode "$1=$2"
        shift 2
      done
      [[ "$route" != workscript.bash ]] || curl_option output "$scratch/script"
    } | "${CURL[@]}" --max-time 120 -H 'Expect:' -K - -D - -w '\n%{http_code}' "${OSGPROD_URL%/}/$route" 2>&1
  )" || is_whole=false
  http_status="${reply##*$'\n'}"
  headers="${reply%%$'\r\n\r\n'*}"
  body="${reply#*$'\r\n\r\n'}"
  [[ "$route" != workscript.bash ]] || body="$(head -n 1 "$scratch/script" 2>/dev/null)" || body=""
  if ! $is_whole; then # a script that is cut short must not run
    http_status=000
    body="curl: ${reply#*curl: }"
  fi
  body="${body%%$'\n'*}"
}

# The same, again until there is an answer that stands.
persistent_request() {
  local try
  for ((try = 1; ; try++)); do
    request "$@"
    case "$http_status" in
    000 | 5?? | 429) ;;
    *) return 0 ;;
    esac
    log "no luck with $1 (try $try of $TRIES, status $http_status): $body"
    ((try < TRIES)) || return 1
    pause "$(backoff "$try" "$BACKOFF_MS" "$(header Retry-After)")"
  done
}

# Argument: name of a header of the last answer
header() {
  printf '%s\n' "$headers" | sed -n "s/^$1: *\([^[:space:]]*\).*/\1/Ip" | tail -n 1
}

# Asks for the work script until there is one or nothing to wait for. Sets answer, the server's word of what it is.
checkout() {
  local deadline=$((SECONDS + MAX_WAIT_S)) retry_s
  while true; do
    persistent_request workscript.bash cpus "$ncpus" || die "$EXIT_LATER" "the server gives no script: $body"
    [[ "$http_status" == 200 ]] || die "$EXIT_REFUSED" "refused with status $http_status: $body"
    answer="$(header Osgprod-Status)"
    [[ "$answer" == wait ]] || return 0
    retry_s="$(header Retry-After)"
    retry_s="${retry_s:-60}"
    if ((SECONDS + retry_s > deadline)); then
      ((MAX_WAIT_S == 0)) || die "$EXIT_LATER" 'all work is out; it may come back, but not while this job waits'
      return 0
    fi
    pause "$retry_s.$((RANDOM % 10))"
  done
}

# CPU seconds used so far by the work's processes, from /proc; nothing where there is none.
cpu_seconds() {
  local file line total=0
  local -a fields
  for file in /proc/[0-9]*/stat; do
    { IFS= read -r line <"$file"; } 2>/dev/null || continue
    # shellcheck disable=SC2206  # numbers
    fields=(${line##*) })
    # behind the name: 0 state, 1 parent, 2 group; 11-14 ticks, own and of ended children
    [[ "${fields[2]}" == "$work_pid" ]] || continue
    total=$((total + fields[11] + fields[12] + fields[13] + fields[14]))
  done
  printf '%s' "$((total / 100))"
}

# Renews the lease until told that the slice is no longer ours, or until we were killed; then ends the work.
# Argument: seconds between beats
beat() {
  local kilobytes next="$1"
  trap 'exit 0' TERM
  while true; do
    while ((next > 0)); do
      pause "$((next > 5 ? 5 : next))"
      next=$((next - 5))
      kill -0 "$$" 2>/dev/null || break 2
    done
    next="$1"
    kilobytes="$(du -sk "$scratch/work" 2>/dev/null | cut -f 1)" || kilobytes=0
    request workscript.ping bytes "$((${kilobytes:-0} * 1024))" cpu "$(cpu_seconds)"
    if [[ "$http_status" == 409 ]]; then
      log "stopping the work: $body"
      trap '' TERM # the end of the work must not hide why
      end_work
      exit "$TOLD_TO_STOP"
    fi
  done
  end_work
}

# Ends the work and all its children: politely, then for good.
end_work() {
  local n
  kill -TERM -- "-$work_pid" 2>/dev/null || return 0
  for ((n = 0; n < KILL_AFTER_S * 10; n++)); do
    kill -0 -- "-$work_pid" 2>/dev/null || return 0
    pause 0.1
  done
  kill -KILL -- "-$work_pid" 2>/dev/null || true
}

# Runs the script in a process group and a folder of its own; sets work_status.
run_work() {
  local -a container=()
  local beat_s
  mkdir "$scratch/work"
  [[ -z "${OSGPROD_CONTAINER:-}" ]] || IFS=' ' read -r -a container <<<"$OSGPROD_CONTAINER"
  set -m # a process group for each job in the background
  (
    cd "$scratch/work" || exit 1
    unset OSGPROD_MAGIC
    export OSGPROD_REPORT="$scratch/report.txt"
    exec ${container[@]+"${container[@]}"} bash "$scratch/script"
  ) 9>&- >"$scratch/work.log" 2>&1 &
  work_pid=$!
  set +m
  beat_s="$(header Osgprod-Heartbeat)"
  if ((${beat_s:-0} > 0)); then
    beat "$beat_s" &
    beat_pid=$!
  fi
  work_status=0
  wait "$work_pid" || work_status=$?
  end_work # whatever it left in the background
  work_pid=""
  stop_beating
  cat "$scratch/work.log"
}

stop_beating() {
  if [[ -n "$beat_pid" ]]; then
    kill -TERM "$beat_pid" 2>/dev/null || true
    wait "$beat_pid" 2>/dev/null || beat_status=$?
    beat_pid=""
  fi
}

# Packs what the work left into $tarball; the slice itself, proxies and tokens are not taken along.
pack_outputs() {
  local slice_path
  slice_path="$(slice_file)"
  [[ -z "$slice_path" ]] || rm -f "$scratch/work/$slice_path"
  tail -c 100000 "$scratch/work.log" >"$scratch/work/osgprod_work.log" 2>/dev/null || true
  tar -czf "$tarball.new" -C "$scratch/work" --exclude='x509*' --exclude='bt_u*' --exclude='*.use' \
    --exclude='*.scitoken' . && mv "$tarball.new" "$tarball" && return 0
  rm -f "$tarball.new"
  return 1
}

# The name under which the work script fetches the slice: name+1,4.evio for name.evio+1,4
slice_file() {
  local blocks="${slice##*+}" name="${slice%+*}"
  [[ "$name" != *.* ]] || printf '%s' "${name%.*}+$blocks.${name##*.}"
}

# The checksum that storage systems know, as 8 hexadecimal digits, from the first program here that works. Argument: file
adler32() {
  local how sum
  for how in adler32_of_xrootd adler32_of_python adler32_of_awk; do
    sum="$("$how" "$1" 2>/dev/null)" && [[ "$sum" =~ ^[0-9a-f]{8}$ ]] || continue
    printf '%s\n' "$sum"
    return 0
  done
  return 1
}

adler32_of_xrootd() {
  xrdadler32 "$1" | cut -d ' ' -f 1
}

adler32_of_python() {
  python3 -c 'import sys, zlib
a = 1
with open(sys.argv[1], "rb") as f:
    for block in iter(lambda: f.read(1 << 20), b""):
        a = zlib.adler32(block, a)
print("%08x" % (a & 0xffffffff))' "$1"
}

adler32_of_awk() {
  od -A n -v -t u1 "$1" | awk 'BEGIN { a = 1 } { for (i = 1; i <= NF; i++) { a += $i; b += a } a %= 65521; b %= 65521 }
    END { printf "%04x%04x\n", b, a }'
}

# Runs a command so that SIGTERM is heard meanwhile.
run() {
  local status=0
  set -m # a process group of its own, so that all of it can be ended
  "$@" <&0 &
  child_pid=$!
  set +m
  wait "$child_pid" || status=$?
  child_pid=""
  return "$status"
}

# http_transfer, heard by SIGTERM. Arguments: as of http_transfer
curl_storage() {
  run logged_transfer "$@"
}
logged_transfer() {
  local code=0
  http_transfer "$@" || code=$?
  ((code == 0)) || log "$1: status $http_status: $http_error"
  return "$code"
}

# Each kind of storage has four functions: send_KIND FILE URL; stored_KIND URL prints the size of what is there and, if
# storage tells it, its adler32, a line each; move_KIND URL URL renames; remove_KIND URL.
send_http() {
  curl_storage "$2" -o /dev/null -T "$1"
}
stored_http() {
  local headers
  headers="$(curl_storage "$1" -I --max-time 120 -H 'Want-Digest: adler32')" || return 1
  printf '%s\n' "$(header_of content-length "$headers")"
  header_of digest "$headers" | sed -n 's/^.*adler32=\([0-9A-Fa-f]*\).*/\1/p'
}
move_http() {
  curl_storage "$1" -o /dev/null --max-time 120 -X MOVE -H "Destination: $2" -H 'Overwrite: F'
}
remove_http() {
  curl_storage "$1" -o /dev/null --max-time 120 -X DELETE
}

send_root() {
  run xrdcp --nopbar --force --posc "$1" "$2" >&2 # posc: nothing stays when the connection is lost
}
stored_root() {
  run_xrdfs "$1" stat | sed -n 's/^Size: *//p'
  run_xrdfs "$1" query checksum 2>/dev/null | sed -n 's/^adler32 *//p'
}
move_root() {
  run_xrdfs "$1" mv "$(path_of "$2")"
}
remove_root() {
  run_xrdfs "$1" rm
}
# Arguments: URL, xrdfs command, what follows the path
run_xrdfs() {
  local rest="${1#*://}" url="$1" command="$2"
  shift 2
  if [[ "$command" == query ]]; then
    command="query $1"
    shift
  fi
  # shellcheck disable=SC2086  # one or two words
  xrdfs "${url%%//*}//${rest%%/*}" $command "$(path_of "$url")" "$@"
}
# The path in a root URL, whose own slash is doubled. Argument: URL
path_of() {
  local path="${1#*://*/}"
  printf '/%s' "${path#/}"
}

send_pelican() {
  run pelican object put "$1" "$2" >&2
}
stored_pelican() {
  pelican object stat "$1" | sed -n 's/^ *[Ss]ize: *\([0-9]*\).*/\1/p'
}
move_pelican() {
  false # the client has no way
}
remove_pelican() {
  false
}

send_file() {
  mkdir -p "$(dirname "${2#file://}")" && run cp "$1" "${2#file://}"
}
stored_file() {
  [[ -e "${1#file://}" ]] || return 1
  size_of "${1#file://}"
  adler32 "${1#file://}"
}
move_file() {
  mv -n "${1#file://}" "${2#file://}"
}
remove_file() {
  rm -f "${1#file://}"
}

# Prints the kind of storage that a URL names. One with a secret would get into logs and lists of processes, and behind a
# query there is no place for a name.
storage_kind() {
  [[ ! "$1" =~ \?|://[^/]*:[^/]*@ ]] || return 1
  url_kind "$1"
}

# Is the tarball at this URL, whole? Storage that tells no checksum is believed by the size. Arguments: kind, URL
has_arrived() {
  local -a stored
  mapfile -t stored < <("stored_$1" "$2" | tr A-F a-f)
  [[ "${stored[0]:-}" != "$output_bytes" || "${stored[1]:-$output_adler32}" != "$output_adler32" ]] || return 0
  log "$2: ${stored[*]:-nothing} arrived instead of $output_bytes $output_adler32"
  return 1
}

# Sends the tarball under a name of its own, looks whether it arrived whole, and renames it: a killed upload leaves a file
# that looks well, and a server that remembers the checksum of a former one. Arguments: kind, URL, number of the try
deliver() {
  local kind="$1" url="$2" part="$2.$nonce.$3.part"
  find_token
  if [[ "$kind" != pelican ]]; then
    if ! "send_$kind" "$tarball" "$part" || ! has_arrived "$kind" "$part"; then
      "remove_$kind" "$part" 2>/dev/null || true
      return 1
    fi
    ! "move_$kind" "$part" "$url" || ! has_arrived "$kind" "$url" || return 0
    log "$url: the storage can't rename"
    "remove_$kind" "$part" || true
  fi
  "send_$kind" "$tarball" "$url" && has_arrived "$kind" "$url"
}

# Argument: tries at most. Sets output_url when the tarball is where it belongs.
send_outputs() {
  local tries="$1" url="${OSGPROD_OUTPUT_URL:-}" kind try nonce
  [[ -n "$url" ]] || return 0
  url="${url%/}/${tarball##*/}"
  kind="$(storage_kind "$url")"
  nonce="${scratch##*.}"
  find_token
  # Numbered by start, no job has this name but this one: unless there are two access points, or an older database.
  [[ -z "$("stored_$kind" "$url" 2>/dev/null)" ]] || url="${url%.tar.gz}.$nonce.tar.gz"
  for ((try = 1; try <= tries; try++)); do
    if deliver "$kind" "$url" "$try"; then
      output_url="$url"
      return 0
    fi
    log "outputs not sent to $url (try $try of $tries)"
    ((try == tries)) || pause "$(backoff "$try" "$BACKOFF_MS")"
  done
  return 1
}

# Takes away what was sent but doesn't count, and the tarball here.
unsend_outputs() {
  rm -f "$tarball"
  [[ -z "$output_url" ]] || "remove_$(storage_kind "$output_url")" "$output_url" || log "$output_url does not count, and stays"
}

# Tells the server. Argument: exit code; then name value pairs
report() {
  local code="$1"
  shift
  persistent_request workscript.exit exitcode "$code" "$@" ||
    die "$EXIT_LATER" 'the server took no report; the lease will run out'
  log "reported exit code $code: status $http_status: $body"
}

# The work's last words, as the reason of a failure.
last_words() {
  grep -v '^[[:space:]]*$' "$scratch/work.log" | tail -n 1 | tr -d '\r' | cut -c 1-120
}

# Packs, sends, reports; returns this script's exit code.
finish() {
  local output_url="" output_bytes="" output_adler32="" events="" count=""
  local name="job_${cluster}_${process}"
  [[ "${nstarts:-1}" == 1 ]] || name+=".$nstarts" # another start of this job may have sent its own
  ((work_status == 0)) || name="failed_$name"
  tarball="$PWD/$name.tar.gz"
  if pack_outputs; then
    output_bytes="$(size_of "$tarball")"
    output_adler32="$(adler32 "$tarball")" || output_adler32=""
  elif ((work_status == 0)); then
    report "$EXIT_NOT_FETCHED" reason 'the outputs could not be packed'
    return "$EXIT_NODE_FAULT"
  fi
  if ((work_status != 0)); then
    [[ -z "$output_bytes" ]] || send_outputs 1 || true # nice to have
    report "$work_status" output_url "$output_url" reason "$(last_words)"
    # Which codes are faults of the node, the project says.
    [[ "$(header Osgprod-Status)" != node-fault ]] || return "$EXIT_NODE_FAULT"
    return "$EXIT_FAILED"
  fi
  if ! send_outputs "$TRIES"; then
    report "$EXIT_NOT_FETCHED" reason 'the outputs could not be sent'
    return "$EXIT_LATER"
  fi
  events="$(sed -n 's/^events=\([0-9][0-9]*\)$/\1/p' "$scratch/report.txt" 2>/dev/null | tail -n 1)" || events=""
  count="$(find "$scratch/work" -type f ! -name osgprod_work.log | wc -l)"
  report 0 events "$events" outputs "$((count))" output_bytes "$output_bytes" output_adler32 "$output_adler32" \
    output_url "$output_url"
  case "$http_status $(header Osgprod-Status)" in
  200\ done) return 0 ;;
  200\ * | 404\ * | 409\ *) # judged a failure; forgotten by a restored database; another attempt's outputs count
    unsend_outputs
    return "$EXIT_FAILED"
    ;;
  esac
  return "$EXIT_REFUSED"
}

on_term() {
  [[ "$BASHPID" == "$$" ]] || exit "$EXIT_TERM"
  trap '' TERM INT HUP
  log 'told to stop; the slice stays ours until its lease runs out'
  [[ -z "$child_pid" ]] || kill -TERM -- "-$child_pid" 2>/dev/null || true
  if [[ -n "$work_pid" ]]; then
    end_work
    cat "$scratch/work.log"
  fi
  exit "$EXIT_TERM"
}

cleanup() {
  local status=$?
  # A child that is told to end before it has begun still has our traps: it must not take our folder along.
  [[ "$BASHPID" == "$$" ]] || exit "$status"
  stop_beating
  [[ -z "$scratch" ]] || rm -rf "$scratch"
  case "$status" in
  0 | "$EXIT_FAILED" | "$EXIT_NODE_FAULT" | "$EXIT_LATER" | "$EXIT_REFUSED" | "$EXIT_TERM") exit "$status" ;;
  esac
  log "a command of this script failed with $status" # by what is, or isn't, on this node
  exit "$EXIT_NODE_FAULT"
}

make_scratch() {
  local parent
  for parent in "${_CONDOR_SCRATCH_DIR:-}" "${TMPDIR:-}" "$PWD" /tmp /var/tmp; do
    [[ -n "$parent" ]] || continue
    scratch="$(mktemp -d "$parent/osgprod.XXXXXX" 2>/dev/null)" && break
    scratch=""
  done
  [[ -n "$scratch" ]] || die "$EXIT_NODE_FAULT" 'no folder here can be written'
  export TMPDIR="$scratch" # bash's own here-documents need one that can be written
  mkfifo "$scratch/clock"
  exec 9<>"$scratch/clock" # nothing is ever written there: a read from it is a wait
}

main() {
  cluster="${1:-}" process="${2:-}" ncpus="${3:-1}" work_status=0 http_status="" headers="" body="" answer="" tarball=""
  (($# == 2 || $# == 3)) || die "$EXIT_REFUSED" "usage: ${0##*/} <cluster> <process> [<ncpus>]"
  log_name="osgprod_exec $cluster.$process"
  configure
  host="$(hostname 2>/dev/null || uname -n)"
  site="${OSGPROD_SITE:-$(sed -n 's/^GLIDEIN_Site = "\(.*\)"$/\1/p' "${_CONDOR_MACHINE_AD:-/dev/null}" 2>/dev/null || true)}"
  trap cleanup EXIT
  make_scratch
  trap on_term TERM INT HUP

  checkout
  if [[ "$answer" != assigned ]]; then
    bash "$scratch/script" # it says why, and there is nothing to report
    return 0
  fi
  token="$(header Osgprod-Token)" nstarts="$(header Osgprod-Nstarts)" slice="$(header Osgprod-Slice)"
  log "start $nstarts on $slice"
  run_work
  if ((beat_status == TOLD_TO_STOP && work_status != 0)); then
    report "$work_status" reason 'stopped by the server'
    return "$EXIT_NODE_FAULT"
  fi
  finish
}

if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
  main "$@"
fi
