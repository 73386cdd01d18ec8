# shellcheck shell=bash
# --- the server --------------------------------------------------------------------------------------------------

readonly EXEC_VERSION=0.16.0

http_status=000   # of the last answer; 000 = no valid answer
is_cut_here=false # could the work script that came not be written to this node's disk?
answer=""         # its Osgprod-Status
head=""           # its head
body=""           # what it says, in one line, or why none came

# The valid answers, by route, HTTP status and Osgprod-Status. Anything else does not come from the server: a portal's
# login page, the 404 of a front server, a head that was cut. Arguments: route, status, Osgprod-Status
is_answer() {
  case "$1 $2 $3" in
  'workscript.bash 200 assigned' | 'workscript.bash 200 completed' | 'workscript.bash 200 wait') ;;
  'workscript.bash 200 no-work' | 'workscript.bash 200 no-time') ;;
  'workscript.ping 200 alive' | 'workscript.ping 403 refused') ;;
  'workscript.ping 409 superseded' | 'workscript.ping 409 wedged') ;;
  'workscript.exit 200 done' | 'workscript.exit 200 failed' | 'workscript.exit 200 node-fault') ;;
  'workscript.exit 403 refused' | 'workscript.exit 409 superseded' | 'workscript.exit 409 contradicted') ;;
  'workscript.'*' '[45][0-9][0-9]' error') ;;
  *) return 1 ;;
  esac
}

# Does HTTP say where the body ends? Only then does curl notice a body that was cut. Argument: head
tells_its_end() {
  [[ ! "$1" =~ ^HTTP/[2-9] ]] || return 0
  find_header Transfer-Encoding "$1"
  [[ "${header,,}" != *chunked ]] || return 0
  find_header Content-Length "$1"
  [[ "$header" =~ ^[0-9]+$ ]]
}

# Is the body not what the server has sent? A proxy may compress it, though nobody has asked for that. Sets header to how.
# Argument: head
is_encoded() {
  find_header Content-Encoding "$1"
  [[ -n "$header" && "${header,,}" != identity ]]
}

# Reads the answer to a request. Sets http_status, answer, head and body.
# Arguments: route, curl's exit code, what curl printed: the heads, then the body, then its own words
read_answer() {
  local route="$1" code="$2" reply="$3" status found
  http_status=000 answer=""
  find_head "$reply"
  head="$head_text" status="$head_status"
  find_header Osgprod-Status "$head"
  found="$header"
  find_header Osgprod-Request "$head"
  if ((code != 0)); then
    body="${reply##*curl: }"
    [[ "$reply" == *'curl: '* ]] || body="exit code $code of curl"
  elif [[ -z "$header" ]] || ! is_answer "$route" "$status" "$found"; then
    body="status $status, but no whole answer of osgprod: is OSGPROD_URL right?"
  elif [[ "$route" == workscript.bash ]] && is_encoded "$head"; then
    body="status $status, but a proxy on the way has encoded it: $header"
  elif ! tells_its_end "$head"; then
    body="status $status, but its body may be cut"
  else
    http_status="$status" answer="$found"
    body="${reply#*"$head"$'\r\n\r\n'}"
  fi
  in_one_line "$body"
}

# Sets body to the first line of a text; for an error of the server, to its message and its hint. Argument: text
in_one_line() {
  local next="${1#*$'\n'}"
  body="${1%%$'\n'*}"
  [[ "$body" == '# osgprod error'* ]] || return 0
  body="${body#\# }"
  [[ "$next" != '# hint: '* ]] || body+="; ${next:2}"
  body="${body%%$'\n'*}"
}

# Becomes curl, which sends one request, as a POST, of which no proxy on the way keeps a copy. The URL is the last line that curl
# reads: if its writer is killed, curl has no URL and sends nothing.
# Arguments: route, file for the body or nothing, then name value pairs
send_request() {
  local route="$1" file="$2"
  shift 2
  exec "${CURL[@]}" ${http_version:+"$http_version"} --max-time 120 -H 'Expect:' -K - -D - 2>&1 \
    < <(
      ca_options
      # Storage believes the token too: it goes to nobody in the clear.
      [[ -n "$magic" || -z "$bearer" || ! "$OSGPROD_URL" =~ ^(https://|http://(127\.0\.0\.1|localhost|\[::1\])[:/]) ]] ||
        curl_option header "Authorization: Bearer $bearer"
      while (($# > 1)); do
        [[ -z "$2" ]] || curl_option data-urlencode "$1=$2"
        shift 2
      done
      [[ -z "$file" ]] || curl_option output "$file"
      curl_option url "${OSGPROD_URL%/}/$route"
    )
}

# Asks the server once. Sets http_status, answer, head and body; the body of workscript.bash goes to a file, and nothing
# else does: the disk may be full. Arguments: route, then name value pairs
request() {
  local route="$1" file="" code=0
  shift
  is_cut_here=false
  if [[ "$route" == workscript.bash ]]; then
    file="$scratch/work/.osgprod/script"
    [[ -d "${file%/*}" ]] || mkdir -p "${file%/*}"
  fi
  [[ -n "$magic" ]] || find_token # HTCondor renews it: the token of the start may have expired
  capture send_request "$route" "$file" project "$OSGPROD_PROJECT" cluster "$cluster" process "$process" \
    magic "$magic" job_key "$job_key" host "$host" site "$site" token "$token" "$@" || code=$?
  learn_from "$code"
  [[ -z "$file" ]] || ((code != 23)) || is_cut_here=true
  read_answer "$route" "$code" "$captured"
  [[ -z "$file" || "$http_status" == 000 || "$answer" == assigned ]] || in_one_line "$(said "$file")"
}

# Asks until there is an answer that counts and isn't "later". Returns 1 when there is none after TRIES attempts, or when this
# node's disk can't take the answer: each request for a work script is a start of the job. Arguments: as of request
persistent_request() {
  local try pause_s again
  for ((try = 1; ; try++)); do
    request "$@"
    case "$http_status" in
    000 | 5?? | 429) ;;
    *) return 0 ;;
    esac
    ! $is_cut_here || return 1
    find_header Retry-After "$head"
    pause_s="$(backoff "$try" "$BACKOFF_MS" "$header")"
    again=""
    ((try >= TRIES)) || again=", asks again in ${pause_s%.*} s"
    log "$1 failed (attempt $try of $TRIES, status $http_status$again): $body"
    ((try < TRIES)) || return 1
    pause "$pause_s"
  done
}

# Asks for a work script until there is one or nothing to wait for. Sets answer: assigned, or why there is none. Returns
# this script's exit code when the server can't be asked, refuses, or has leased all work. Argument: cores
checkout() {
  local left_s="$MAX_WAIT_S" retry_s image full='the disk of this node is full'
  if ! disk_has_room; then
    log "$full"
    return "$EXIT_NODE_FAULT"
  fi
  # What surrounds this script, else what will surround the work.
  plain_text 200 "${APPTAINER_CONTAINER:-${SINGULARITY_CONTAINER:-${OSGPROD_CONTAINER:-}}}"
  image="$plain_text"
  while true; do
    time_left
    if ! persistent_request workscript.bash cpus "$1" schedd "$schedd" qdate "$qdate" time_left_s "$time_left" \
      after "$after" exec_version "$EXEC_VERSION" image "$image"; then
      if $is_cut_here; then
        log "$full: the work script can't be written: $body"
        find_header Osgprod-Token "$head"
        token="$header"
        [[ -z "$token" ]] || report "$EXIT_NOT_FETCHED" fault node reason "$full" || true
        return "$EXIT_NODE_FAULT"
      fi
      log "the server gives no work script: $body"
      return "$EXIT_LATER"
    elif [[ "$http_status" != 200 ]]; then
      log "refused with status $http_status: $body"
      return "$EXIT_REFUSED"
    fi
    [[ "$answer" == wait ]] || return 0
    find_header Retry-After "$head"
    retry_s="$header"
    [[ "$retry_s" =~ ^[0-9]{1,5}$ ]] || retry_s=60
    retry_s="$((10#$retry_s > 0 ? 10#$retry_s : 1))" # with 0 the job would ask without a pause
    if ((retry_s > left_s)); then
      ((MAX_WAIT_S > 0)) || return 0
      log "no work can be assigned yet; the next try would come after OSGPROD_MAX_WAIT_S=$MAX_WAIT_S s, so this job ends"
      return "$EXIT_LATER"
    fi
    log "no work can be assigned yet, asks again in $retry_s s: $body"
    pause "$retry_s.$((RANDOM % 10))"
    left_s=$((left_s - retry_s))
  done
}

# Prints what the server says in a script that has nothing to do, or in an error. The script is read, not run.
# Argument: file
said() {
  sed -n -e "/^printf '%s\\\\n' /{s///p;q;}" -e '/^# osgprod error/{$!N;p;q;}' "$1" 2>/dev/null
}

# Reports how the attempt ended, and what it used. Arguments: exit code, then name value pairs. Returns 1 when no answer came.
report() {
  local code="$1"
  shift
  stop_heartbeats
  plain_text 120 "${reported[door]:-}"
  if ! persistent_request workscript.exit exitcode "$code" door "$plain_text" \
    ${resources[@]+"${resources[@]}"} "$@"; then
    log "no report was accepted by the server (attempts: $TRIES): $body"
    return 1
  fi
  log "reported exit code $code: status $http_status $answer: $body"
}
