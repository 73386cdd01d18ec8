# shellcheck shell=bash
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
