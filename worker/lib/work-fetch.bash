# shellcheck shell=bash
# --- fetch the slice ---------------------------------------------------------------------------------------------

readonly EXIT_MISCONFIGURED=40 EXIT_NOT_FILLED=64 EXIT_NODE_FAULT=75
readonly LIMIT_EXCEEDED=153 # SIGXFSZ has killed a program
# A cache that is overloaded answers 403 or 404 for a file that exists: such an answer is believed when it comes so often.
readonly MAX_REFUSALS=4

# This node can't do it: the exit code says so to osgprod_exec.sh, and the last line of the log says why.
# Arguments: message
node_fault() {
  rm -f "${slice:-}" # first: on a full disk nothing can be logged
  [[ -z "${OSGPROD_REPORT:-}" ]] || add_to_report "fault=${fault:-node}" || true
  log "$*"
  exit "$EXIT_NODE_FAULT"
}

# Waits. Where sleep knows whole seconds only, a little longer. Argument: seconds, with decimals
pause() {
  sleep "$1" 2>/dev/null || sleep "$((${1%.*} + 1))" || true
}

# A setting is wrong: no other node and no other slice would do better. osgprod_exec.sh finds the line in the report file,
# and reports fault=setting, so that the server requeues the slice; HTCondor holds the job. Arguments: message
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

# Appends the bytes that a hexadecimal text stands for. Arguments: text, at most a few 1000 digits; file
append_hex() {
  local escaped="" at
  for ((at = 0; at < ${#1}; at += 2)); do
    escaped+="\\x${1:at:2}"
  done
  { printf '%b' "$escaped" >>"$2"; } 2>/dev/null
}

# Each kind of source (url_kind), but pelican (see read_place), has a function read_KIND URL OFFSET LENGTH that prints the
# bytes from OFFSET on, or as many as arrive. If bytes are missing, it calls "verdict".

# Tells read_place, on descriptor 5, whether to retry the missing bytes. Arguments: "again", "refused" (may be true) or
# "never"; exit code of the client; pause that the server wants [s], or nothing; reason
verdict() {
  local wait_s="$3"
  [[ "$wait_s" =~ ^[0-9]{1,9}$ ]] || wait_s=0
  printf '%s %s %s %s\n' "$1" "$2" "$wait_s" "${4//$'\n'/ }" >&5
}

read_file() {
  local path size=""
  client_url "$1"
  path="$client_url"
  ! size_of "$path" 2>/dev/null || size="$size_of"
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
  local code=0
  http_transfer "$1" -r "$2-$(($2 + $3 - 1))" || code=$?
  case "$http_status" in
  206)
    find_header content-range "$http_head"
    if [[ "$header" != "bytes $2-"* ]]; then
      verdict never "$code" '' 'another range came'
    else
      verdict again "$code" '' "broke off: ${http_error:-too few bytes}"
    fi
    ;;
  200)
    find_header content-length "$http_head"
    if [[ "$2" == 0 && "$header" == "$3" ]]; then
      verdict again "$code" '' "broke off: ${http_error:-too few bytes}"
    else
      verdict never "$code" '' 'the server ignores byte ranges'
    fi
    ;;
  403 | 404)
    find_header retry-after "$http_head"
    verdict refused "$code" "$header" "status $http_status$(withheld "$http_url")"
    ;;
  401) verdict never "$code" '' "status 401$(withheld "$http_url")" ;;
  410 | 416) verdict never "$code" '' "status $http_status" ;;
  000) verdict again "$code" '' "no answer: ${http_error:-none}" ;;
  [45]??)
    find_header retry-after "$http_head"
    verdict again "$code" "$header" "status $http_status"
    ;;
  *) verdict again "$code" '' "status $http_status: $http_error" ;;
  esac
}

# By XRootD's Python bindings. The Python program itself writes the verdict, in each case.
read_root() {
  client_url "$1"
  client_for "$1" "$xrootd_python" -c '
import os, sys
from XRootD import client
url, offset, length, withheld = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
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
    reason += withheld
sys.stdout.buffer.flush()
os.write(5, ("%s 0 0 %s\n" % (word, reason)).encode("utf-8", "replace"))
' "$client_url" "$2" "$3" "$(withheld "$1")" || true
}

# Where the bytes may come from. Doors are the URLs of the whole file that the server gave, in order of preference; a
# Pelican door stands for the caches that its director names. Places are those left to try in this round, "KIND URL" with
# KIND door, public or token. The first place is read from as long as it serves. A round ends when each place has failed.
doors=()
places=()
declare -A given_up=() # URLs that would fail again
declare -A refusals=() # how often a URL was refused, which may be false

# Begins a round. Fails when all doors were given up.
begin_round() {
  local door
  places=()
  for door in "${doors[@]}"; do
    [[ -n "${given_up["$door"]:-}" ]] || places[${#places[@]}]="door $door"
  done
  ((${#places[@]} > 0))
}

# Replaces the first place, a Pelican door, by its caches. Fails when there is none; then it sets word, wait_s and reason
# as a verdict has them.
ask_director() {
  local line named
  local -a caches=()
  named="$(pelican_places "${places[0]#* }")" || {
    word=again wait_s=0 reason='the director was not asked: somebody has killed a program'
    return 1
  }
  while IFS= read -r line; do
    if [[ "$line" == failed\ * ]]; then
      IFS=' ' read -r word wait_s reason <<<"${line#* }"
      return 1
    fi
    [[ "$line" != token\ * ]] || find_token
    if [[ "$line" == token\ * ]] && ! may_have_credentials "${places[0]#* }"; then
      word=never wait_s=0 reason="the director demands a token$(withheld "${places[0]#* }")"
      return 1
    fi
    if [[ "$line" == token\ * && -z "$bearer" ]]; then
      word=never wait_s=0 reason='the director demands a token, and this job has none'
      return 1
    fi
    [[ -n "${given_up["${line#* }"]:-}" ]] || caches[${#caches[@]}]="$line"
  done <<<"$named"
  if ((${#caches[@]} == 0)); then
    word=refused wait_s=0 reason='no cache that the director names has served the file'
    return 1
  fi
  places=("${caches[@]}" "${places[@]:1}")
}

# The first place has failed: the next one is tried. Argument: the verdict's word
leave_place() {
  local url="${places[0]#* }" refused
  places=("${places[@]:1}")
  if [[ "$1" == refused ]]; then
    refused=$((${refusals["$url"]:-0} + 1))
    refusals["$url"]="$refused"
    ((refused < MAX_REFUSALS)) || given_up["$url"]=true
  elif [[ "$1" == never ]]; then
    given_up["$url"]=true
  fi
}

place_name="" # as the function of this name has set it

# Sets place_name to a place without its path, and without a password, for logs and the report. Argument: URL
place_name() {
  local place="${1#*://}"
  place="${place%%[/?#]*}"
  case "$1" in
  [Ff][Ii][Ll][Ee]:* | /*) place_name='file' ;;
  *) place_name="${1%%://*}://${place##*@}" ;;
  esac
}

# Reads from the first place. Appends the bytes to a file; word, code, wait_s and reason become the verdict.
# Arguments: offset [bytes], length [bytes], file
read_place() {
  local url="${places[0]#* }" kind found
  url_kind "$url"
  kind="$url_kind"
  if [[ "$kind" == pelican ]]; then
    code=0
    ask_director || return 0
    url="${places[0]#* }" kind=http
  fi
  found="$(
    exec 5>&1
    case "${places[0]%% *}" in
    public) shows_credentials=false ;;
    token) trust "$url" ;; # by the director of a federation that is trusted
    esac
    "read_$kind" "$url" "$1" "$2" | head -c "$(($2 + 1))" 2>/dev/null >>"$3" ||
      # Was head killed, but by no limit on the size of files? Then bytes are missing, as if the transfer had broken off.
      ((PIPESTATUS[1] == 0 || PIPESTATUS[1] > 128 && PIPESTATUS[1] != LIMIT_EXCEEDED)) || printf 'full\n' >&5
  )" || true
  [[ $'\n'"$found"$'\n' != *$'\nfull\n'* ]] || node_fault "$3 can't be written: is the disk full?"
  [[ ! "${found%%$'\n'*}" =~ ^([^ ]+)\ ([^ ]+)\ ([^ ]+)\ (.*)$ ]] ||
    word="${BASH_REMATCH[1]}" code="${BASH_REMATCH[2]}" wait_s="${BASH_REMATCH[3]}" reason="${BASH_REMATCH[4]}"
}

# Appends one range to a file. Goes on where a transfer broke off as long as bytes come, and from the next place when one
# fails. Arguments: offset [bytes], length [bytes], file
append_range() {
  local offset="$1" length="$2" file="$3" start got had=0 attempts=0 longest_s=0 word code wait_s reason from url
  size_of "$file"
  start="$size_of"
  while ((had < length)); do
    word="" code="" wait_s="" reason=""
    read_place "$((offset + had))" "$((length - had))" "$file"
    size_of "$file"
    got=$((size_of - start))
    if ((got > length)) && [[ "$word" != never ]]; then
      word=never reason="more than $length bytes came for a range"
    fi
    if [[ "$word" == never ]] && ((got > had)); then # wrong ones
      dd if=/dev/null of="$file" bs=1 seek="$((start + had))" 2>/dev/null || node_fault "$file can't be written"
      got="$had"
    fi
    if ((got > had)); then
      attempts=0 refusals=()
    fi
    had="$got"
    ((had < length)) || break
    url="${places[0]#* }" from=""
    place_name "$url"
    [[ "${#doors[@]} ${places[0]%% *}" == '1 door' ]] || from="$place_name: "
    reason="${reason:-no reason given}"
    leave_place "$word"
    ((wait_s <= longest_s)) || longest_s="$wait_s"
    if ((${#places[@]} > 0)); then
      place_name "${places[0]#* }"
      log "fetch failed (attempt $((attempts + 1)), $had of $length bytes): $from$reason: going on to $place_name"
      learn_from "${code:-0}"
      continue
    fi
    attempts=$((attempts + 1))
    if ! begin_round || ((attempts >= TRIES)); then
      [[ "$word" == never ]] || reason+=" ($attempts attempts, $had of $length bytes at $offset came)"
      not_fetched "$reason" "$url"
    fi
    log "fetch failed (attempt $attempts, $had of $length bytes): $from$reason"
    learn_from "${code:-0}"
    pause "$(backoff "$attempts" "$BACKOFF_MS" "$longest_s")"
    longest_s=0
  done
}

# Arguments: message, URL that failed last (default: the preferred one)
not_fetched() {
  fault=fetch node_fault "not fetched: $1: $(shown_url "${2:-$osgprod_source_url}")"
}

# Fetches the slice, whole and checked. Where wrong bytes come, it is fetched from the next place. Argument: file
fetch_slice() {
  local size damage url from
  begin_round || not_fetched 'no door is known'
  while true; do
    assemble_slice "$1"
    size_of "$1"
    size="$size_of"
    # shellcheck disable=SC2154
    ((size == osgprod_size_bytes)) || not_fetched "the slice has $size bytes instead of $osgprod_size_bytes"
    ! check_slice "$1" "$size" "${osgprod_events:-}" || break
    url="${places[0]#* }"
    leave_place never
    ((${#places[@]} > 0)) || begin_round || not_fetched "$damage" "$url"
    place_name "$url"
    from="$place_name"
    place_name "${places[0]#* }"
    log "fetch failed: $from: $damage: going on to $place_name"
  done
  place_name "${places[0]#* }"
  [[ -z "${OSGPROD_REPORT:-}" ]] || add_to_report "door=$place_name"$'\n'"fetched_bytes=$size" || true
}

# Joins the pieces of the slice. Argument: file
assemble_slice() {
  local file="$1" piece kind words
  { : >"$file"; } 2>/dev/null || node_fault "$file can't be written"
  # shellcheck disable=SC2154  # filled in above by the server, as osgprod_size_bytes is
  for piece in "${osgprod_pieces[@]}"; do
    kind="${piece%% *}" words="${piece#* }"
    case "$kind" in
    range) append_range "${words% *}" "${words#* }" "$file" ;;
    hex) append_hex "$words" "$file" || node_fault "$file can't be written: is the disk full?" ;;
    *) misconfigured "the server gave a piece that this script does not know: $piece" ;;
    esac
  done
}

# Sets doors to the URLs of the file that this node can read, in the server's order. An older server gives one URL, in
# osgprod_source_url. Fails when XRootD's bindings are missing for all of them.
find_doors() {
  local url unknown=""
  local -a urls=("$osgprod_source_url")
  [[ -z "${osgprod_source_urls[*]:-}" ]] || urls=("${osgprod_source_urls[@]}")
  doors=()
  for url in "${urls[@]}"; do
    if ! url_kind "$url"; then
      unknown="the source $(shown_url "$url") has no scheme that this script knows: $URL_SCHEMES"
    elif can_fetch "$url_kind"; then
      doors[${#doors[@]}]="$url"
    else
      unknown=""
    fi
  done
  ((${#doors[@]} == 0)) || return 0
  [[ -z "$unknown" ]] || misconfigured "$unknown"
  return 1
}

# Does this node have a program that reads ranges? Sets xrootd_python. Argument: kind of the URL
can_fetch() {
  [[ "$1" == root ]] || return 0
  for xrootd_python in python3 /usr/bin/python3; do
    ! "$xrootd_python" -c 'from XRootD import client' 2>/dev/null || return 0
  done
  return 1
}
