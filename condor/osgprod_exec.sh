#!/usr/bin/env bash
#
# osgprod_exec.sh <cluster> <process> [<ncpus>]: runs around the work: asks the server for a work script, runs it, beats
# meanwhile, gathers the outputs into job_<cluster>_<process>.tar.gz, sends them, and reports how it ended.
# Runs on grid nodes that nobody here controls: bash 4.2, curl 7.29, nothing else is taken for granted.
#
# Environment (osgprod.sub sets it):
#     OSGPROD_URL         the server, like https://host/osgprod
#     OSGPROD_PROJECT     the project
#     OSGPROD_MAGIC       its secret; or OSGPROD_MAGIC_FILE, a file that holds it
#     OSGPROD_OUTPUT_URL  folder for the tarball: http(s)://, file:// or a path; unset = it stays here for HTCondor
#     OSGPROD_CONTAINER   command before the work script, like "apptainer exec image.sif"
#     OSGPROD_TRIES       how often a request is sent at most [10]
#     OSGPROD_MAX_WAIT_S  how long to wait when work may come back [s; 600]; 0 = end at once
#     OSGPROD_SITE        name of the site, for the record
# Exit codes, for HTCondor: 0 done, or nothing to do; 10 the slice failed, maybe its data (run another job, not this one
# again); 20 this node's fault (run elsewhere); 30 the server can't be reached or the outputs can't be sent (try again
# later); 40 refused or misconfigured (hold the job); 143 told to stop by SIGTERM (nothing reported, the restarted job
# gets its slice back).

set -euo pipefail
IFS=$' \t\n'
export LC_ALL=C
export PATH="${PATH:-/usr/local/bin:/usr/bin:/bin}" # some sites have an empty one

readonly EXIT_FAILED=10 EXIT_NODE_FAULT=20 EXIT_LATER=30 EXIT_REFUSED=40 EXIT_TERM=143
readonly EXIT_NOT_FETCHED=75 # of the work script
readonly TRIES="${OSGPROD_TRIES:-10}" MAX_WAIT_S="${OSGPROD_MAX_WAIT_S:-600}"
readonly KILL_AFTER_S=5 # a batch system gives little time

scratch="" work_pid="" beat_pid="" token="" magic="" host=""

log() {
  printf '%s osgprod_exec %s.%s: %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "${cluster:-}" "${process:-}" "$*" >&2
}

# Arguments: exit code, message
die() {
  log "$2"
  exit "$1"
}

# Waits without a child that could outlive us. Argument: seconds
pause() {
  read -r -t "$1" -u 9 || true
}

# Seconds before try n: 1, 2, 4 ... 64, and a random part so that jobs don't come back all at once. Argument: n
backoff() {
  local n="$1"
  printf '%s.%s' "$((1 << (n > 6 ? 6 : n - 1)))" "$((RANDOM % 10))"
}

# One line of a curl configuration; secrets go that way, not on the command line. Arguments: name, value
field() {
  local value="$2"
  value="${value//\\/\\\\}"
  value="${value//\"/\\\"}"
  printf 'data-urlencode = "%s=%s"\n' "$1" "$value"
}

# Sends one request; POST, which no proxy on the way keeps a copy of. Sets http_status (000 = no answer); the answer is in
# $scratch/NAME and $scratch/NAME.headers. Arguments: route, NAME, then name value pairs
request() {
  local route="$1" answer="$scratch/$2"
  shift 2
  : >"$answer.headers"
  http_status="$(
    {
      field project "$OSGPROD_PROJECT"
      field cluster "$cluster"
      field process "$process"
      field magic "$magic"
      field host "$host"
      [[ -z "${OSGPROD_SITE:-}" ]] || field site "$OSGPROD_SITE"
      while (($# > 1)); do
        field "$1" "$2"
        shift 2
      done
    } | curl -sS --noproxy '*' --connect-timeout 20 --max-time 120 -K - -D "$answer.headers" -o "$answer" \
      -w '%{http_code}' "${OSGPROD_URL%/}/$route" 2>"$answer.error" || true
  )"
  http_status="${http_status:-000}"
}

# The same, again until there is an answer that stands. Arguments: as request
persistent_request() {
  local try
  for ((try = 1; ; try++)); do
    request "$@"
    case "$http_status" in
    000 | 5?? | 429) ;;
    *) return 0 ;;
    esac
    log "no luck with $1 (try $try of $TRIES, status $http_status): $(answer_line "$2")"
    ((try < TRIES)) || return 1
    pause "$(backoff "$try")"
  done
}

# The first line that tells why. Argument: NAME of a request
answer_line() {
  if [[ "$http_status" == 000 ]]; then
    head -n 1 "$scratch/$1.error"
  else
    head -n 1 "$scratch/$1"
  fi
}

# Arguments: NAME of a request, header
header() {
  sed -n "s/^$2: *\([^[:space:]]*\).*/\1/Ip" "$scratch/$1.headers" | tail -n 1
}

# Asks for the work script until there is one or nothing to wait for.
checkout() {
  local deadline=$((SECONDS + MAX_WAIT_S)) retry_s
  while true; do
    persistent_request workscript.bash script cpus "$ncpus" || die "$EXIT_LATER" 'the server gives no script'
    [[ "$http_status" == 200 ]] || die "$EXIT_REFUSED" "refused with status $http_status: $(answer_line script)"
    retry_s="$(header script Retry-After)"
    [[ "$(header script Osgprod-Status)" == wait ]] || return 0
    if ((SECONDS + ${retry_s:-60} > deadline)); then
      log 'work may come back, but not in the time that this job waits'
      return 0
    fi
    pause "${retry_s:-60}.$((RANDOM % 10))"
  done
}

# CPU seconds used so far by the work's processes, from /proc; nothing where there is none.
cpu_seconds() {
  local file line total=0
  local -a fields
  for file in /proc/[0-9]*/stat; do
    { read -r line <"$file"; } 2>/dev/null || continue
    read -r -a fields <<<"${line##*) }"
    # behind the name: 0 state, 1 parent, 2 group; 11-14 ticks, own and of ended children
    [[ "${fields[2]}" == "$work_pid" ]] || continue
    total=$((total + fields[11] + fields[12] + fields[13] + fields[14]))
  done
  printf '%s' "$((total / 100))"
}

# Renews the lease until told that the slice is no longer ours; then ends the work. Argument: seconds between beats
beat() {
  local bytes
  trap 'exit 0' TERM
  while pause "$1"; do
    bytes="$(du -sk "$scratch/work" 2>/dev/null | cut -f 1)"
    request workscript.ping ping token "$token" bytes "$((${bytes:-0} * 1024))" cpu "$(cpu_seconds)"
    if [[ "$http_status" == 409 ]]; then
      log "stopping the work: $(answer_line ping)"
      : >"$scratch/stopped"
      end_work
      return 0
    fi
  done
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
  [[ -z "${OSGPROD_CONTAINER:-}" ]] || read -r -a container <<<"$OSGPROD_CONTAINER"
  set -m # a process group for each job in the background
  (
    cd "$scratch/work"
    unset OSGPROD_MAGIC
    export OSGPROD_REPORT="$scratch/report.txt"
    exec ${container[@]+"${container[@]}"} bash "$scratch/script"
  ) 9>&- >"$scratch/work.log" 2>&1 &
  work_pid=$!
  set +m
  beat_s="$(header script Osgprod-Heartbeat)"
  if ((${beat_s:-0} > 0)); then
    beat "$beat_s" &
    beat_pid=$!
  fi
  work_status=0
  wait "$work_pid" || work_status=$?
  stop_beating
  cat "$scratch/work.log"
}

stop_beating() {
  if [[ -n "$beat_pid" ]]; then
    kill -TERM "$beat_pid" 2>/dev/null || true
    wait "$beat_pid" 2>/dev/null || true
    beat_pid=""
  fi
}

# Packs what the work left; proxies and tokens lie elsewhere, and are not taken along should they have been copied.
pack_outputs() {
  tail -c 100000 "$scratch/work.log" >"$scratch/work/osgprod_work.log" 2>/dev/null || true
  rm -f "$tarball"
  tar -czf "$tarball.new" -C "$scratch/work" --exclude='x509*' --exclude='bt_u*' --exclude='*.use' --exclude='*.scitoken' . &&
    mv "$tarball.new" "$tarball"
}

# The checksum that storage systems know. Argument: file
adler32() {
  if command -v xrdadler32 >/dev/null; then
    xrdadler32 "$1" | cut -d ' ' -f 1
  elif command -v python3 >/dev/null; then
    python3 -c 'import sys, zlib
a = 1
with open(sys.argv[1], "rb") as f:
    for block in iter(lambda: f.read(1 << 20), b""):
        a = zlib.adler32(block, a)
print("%08x" % (a & 0xffffffff))' "$1"
  fi
}

size_of() {
  wc -c <"$1" | tr -d ' '
}

# Sends the tarball and makes sure that it arrived whole. Arguments: file, URL
send() {
  local path
  case "$2" in
  http://* | https://*) send_http "$1" "$2" ;;
  file://* | /*)
    path="${2#file://}"
    mkdir -p "$(dirname "$path")" && cp "$1" "$path.part" && mv "$path.part" "$path" &&
      [[ "$(size_of "$path")" -eq "$(size_of "$1")" ]]
    ;;
  *)
    log "no way to send to $2"
    return 1
    ;;
  esac
}

# A killed upload leaves a file that looks well: the size is asked for. Arguments: file, URL
send_http() {
  local stored
  curl -sS -f -L --noproxy '*' --connect-timeout 20 --speed-limit 1000 --speed-time 120 -o /dev/null \
    ${X509_USER_PROXY:+--cert "$X509_USER_PROXY" --key "$X509_USER_PROXY"} -T "$1" "$2" || return 1
  stored="$(curl -sS -f -L -I --noproxy '*' --connect-timeout 20 --max-time 120 \
    ${X509_USER_PROXY:+--cert "$X509_USER_PROXY" --key "$X509_USER_PROXY"} "$2" |
    sed -n 's/^content-length: *\([0-9]*\).*/\1/Ip' | tail -n 1)" || return 1
  [[ "$stored" == "$(size_of "$1")" ]]
}

# Sets output_url when the outputs are where they belong.
send_outputs() {
  local try name
  [[ -n "${OSGPROD_OUTPUT_URL:-}" ]] || return 0
  name="job_${cluster}_${process}.tar.gz"
  # Another start of this job may have sent its own: nothing is overwritten.
  [[ "${nstarts:-1}" == 1 ]] || name="job_${cluster}_${process}.${nstarts}.tar.gz"
  for ((try = 1; try <= TRIES; try++)); do
    if send "$tarball" "${OSGPROD_OUTPUT_URL%/}/$name"; then
      output_url="${OSGPROD_OUTPUT_URL%/}/$name"
      return 0
    fi
    log "outputs not sent (try $try of $TRIES)"
    ((try == TRIES)) || pause "$(backoff "$try")"
  done
  return 1
}

# Tells the server. Argument: exit code; then name value pairs
report() {
  local code="$1"
  shift
  persistent_request workscript.exit verdict exitcode "$code" ${token:+token "$token"} "$@" ||
    die "$EXIT_LATER" 'the server took no report; the lease will run out'
  log "reported exit code $code: status $http_status: $(answer_line verdict)"
}

# The work's last words, as the reason of a failure.
last_words() {
  grep -v '^[[:space:]]*$' "$scratch/work.log" | tail -n 1 | tr -d '\r' | cut -c 1-120
}

# Packs, sends, reports; returns this script's exit code.
finish() {
  local output_url="" events="" adler=""
  if ! pack_outputs || ! send_outputs; then
    report "$EXIT_NOT_FETCHED" reason 'the outputs could not be packed or sent'
    return "$EXIT_LATER"
  fi
  events="$(sed -n 's/^events=\([0-9][0-9]*\)$/\1/p' "$scratch/report.txt" 2>/dev/null | tail -n 1)"
  adler="$(adler32 "$tarball")" || adler=""
  set -- output_bytes "$(size_of "$tarball")" outputs "$(find "$scratch/work" -type f ! -name osgprod_work.log | wc -l)" \
    ${events:+events "$events"} ${adler:+output_adler32 "$adler"} ${output_url:+output_url "$output_url"}
  if ((work_status != 0)); then
    report "$work_status" "$@" reason "$(last_words)"
    ((work_status <= 128 && work_status != EXIT_NOT_FETCHED)) || return "$EXIT_NODE_FAULT"
    return "$EXIT_FAILED"
  fi
  report 0 "$@"
  case "$http_status $(header verdict Osgprod-Status)" in
  200\ failed) return "$EXIT_FAILED" ;;
  200\ *) return 0 ;;
  409\ *)
    rm -f "$tarball" # another attempt's outputs count
    return 0
    ;;
  esac
  return "$EXIT_REFUSED"
}

on_term() {
  trap '' TERM INT HUP
  log 'told to stop; the slice stays ours until its lease runs out'
  if [[ -n "$work_pid" ]]; then
    end_work
    cat "$scratch/work.log"
  fi
  exit "$EXIT_TERM"
}

cleanup() {
  local status=$?
  stop_beating
  [[ -z "$scratch" ]] || rm -rf "$scratch"
  exit "$status"
}

make_scratch() {
  local parent
  for parent in "${_CONDOR_SCRATCH_DIR:-}" "${TMPDIR:-}" "$PWD" /tmp /var/tmp; do
    [[ -n "$parent" ]] || continue
    scratch="$(mktemp -d "$parent/osgprod.XXXXXX" 2>/dev/null)" && return 0
  done
  scratch=""
  die "$EXIT_NODE_FAULT" 'no folder here can be written'
}

main() {
  (($# == 2 || $# == 3)) || die "$EXIT_REFUSED" "usage: ${0##*/} <cluster> <process> [<ncpus>]"
  cluster="$1" process="$2" ncpus="${3:-1}" http_status=000 work_status=0
  : "${OSGPROD_URL:?is the server, like https://host/osgprod}" "${OSGPROD_PROJECT:?is the project}"
  command -v curl >/dev/null || die "$EXIT_NODE_FAULT" 'there is no curl here'
  magic="${OSGPROD_MAGIC:-}"
  [[ -z "${OSGPROD_MAGIC_FILE:-}" ]] || IFS= read -r magic <"$OSGPROD_MAGIC_FILE" || [[ -n "$magic" ]]
  host="$(hostname 2>/dev/null || uname -n)"
  tarball="$PWD/job_${cluster}_${process}.tar.gz"
  trap cleanup EXIT
  make_scratch
  mkfifo "$scratch/clock"
  exec 9<>"$scratch/clock" # nothing is ever written there: a read from it is a wait
  trap on_term TERM INT HUP

  checkout
  if [[ "$(header script Osgprod-Status)" =~ ^(no-work|completed|wait)$ ]]; then
    bash "$scratch/script" # it says why, and there is nothing to report
    return 0
  fi
  token="$(header script Osgprod-Token)"
  nstarts="$(header script Osgprod-Nstarts)"
  log "start $nstarts on $(header script Osgprod-Slice)"
  run_work
  if [[ -e "$scratch/stopped" ]]; then
    return 0 # another attempt has the slice
  fi
  finish
}

if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
  main "$@"
fi
