# shellcheck shell=bash
# --- the story ---------------------------------------------------------------------------------------------------

cluster="" process=""                 # HTCondor's identity of the job
schedd="" qdate=""                    # the job's access point, and when it was submitted there [s since 1970]
TRIES=""                              # OSGPROD_TRIES
TIME_LEFT_S=""                        # OSGPROD_TIME_LEFT_S, if it is set
ends_at=""                            # when the job must end [s since 1970]; nothing = not known
ad_value="" ad_number="" time_left="" # as the functions of these names have set them
magic="" job_key="" bearer="" host="" site=""
token=""               # of the attempt
osgprod_token_hosts="" # of a merge: the hosts of the project's settings, as the server names them
after=""               # token of the success after which the job asks for another slice
slices_done=0          # successes of this job, as far as this start knows
is_resumed=false       # does this start go on from an earlier one?

# Prints the text of a file, without NULs and without the line ends at its end, as osgprod project set-magic reads it.
# Argument: file
text_of() {
  local text
  text="$(tr -d '\000' <"$1" && printf x)" || return 1
  text="${text%x}"
  printf '%s' "${text%"${text##*[!$'\r\n']}"}"
}

# Sets ad_value to the value of an attribute as a ClassAd file has it, or to nothing when it isn't there. Arguments: file, name
ad_value() {
  local line key name="${2,,}"
  ad_value=""
  [[ -f "$1" && -r "$1" ]] || return 0
  while IFS= read -r line || [[ -n "$line" ]]; do
    key="${line%%=*}"
    key="${key//[[:space:]]/}"
    if [[ "$line" == *=* && "${key,,}" == "$name" ]]; then
      line="${line#*=}"
      line="${line#"${line%%[![:space:]]*}"}"
      ad_value="${line%"${line##*[![:space:]]}"}"
      return 0
    fi
  done <"$1"
}

# Sets ad_number to the value if it is a whole number of at most 15 digits, and to nothing for anything else.
# Arguments: file, name
ad_number() {
  ad_value "$1" "$2"
  ad_number=""
  [[ ! "$ad_value" =~ ^[0-9]{1,15}$ ]] || ad_number="$((10#$ad_value))"
}

# Sets schedd and qdate from the job ad. They stay the same over restarts of the job, unlike all that tells the node.
find_identity() {
  local id
  ad_value "${_CONDOR_JOB_AD:-}" GlobalJobId
  id="${ad_value#\"}"
  id="${id%\"}"
  ad_number "${_CONDOR_JOB_AD:-}" QDate
  qdate="$ad_number"
  [[ "$id" == *'#'* ]] || return 0
  plain_text 128 "${id%%#*}"
  schedd="$plain_text"
  id="${id##*#}"
  [[ -n "$qdate" || ! "$id" =~ ^[0-9]{1,15}$ ]] || qdate="$((10#$id))"
}

# Sets ends_at to the earliest time by which the job must end: what the pilot, the job's allowed duration and
# OSGPROD_TIME_LEFT_S say. A pilot that names only GLIDEIN_ToRetire is taken to end then.
find_end() {
  local job="${_CONDOR_JOB_AD:-}" machine="${_CONDOR_MACHINE_AD:-}" start executing
  ad_number "$machine" GLIDEIN_ToDie
  [[ -n "$ad_number" ]] || ad_number "$machine" GLIDEIN_ToRetire
  ((ad_number == 0)) || must_end_at "$ad_number"
  ad_number "$job" JobCurrentStartDate
  start="$ad_number"
  [[ -n "$start" ]] || printf -v start '%(%s)T' -1
  ad_number "$job" AllowedJobDuration
  [[ -z "$ad_number" ]] || must_end_at "$((start + ad_number))"
  ad_number "$job" JobCurrentStartExecutingDate
  executing="$ad_number"
  ((executing >= start)) || executing="$start" # not there yet, or that of an earlier start
  ad_number "$job" AllowedExecuteDuration
  [[ -z "$ad_number" ]] || must_end_at "$((executing + ad_number))"
  [[ -z "$TIME_LEFT_S" ]] || must_end_at "$((start + TIME_LEFT_S))"
}
# Argument: time [s since 1970]
must_end_at() {
  [[ -n "$ends_at" ]] && ((ends_at <= $1)) || ends_at="$1"
}

# Sets time_left to how long this job may still run [s, not below 0], or to nothing when that is not known.
time_left() {
  local now
  time_left=""
  [[ -n "$ends_at" ]] || return 0
  printf -v now '%(%s)T' -1
  time_left="$((ends_at > now ? ends_at - now : 0))"
}

# Reads and checks the environment; ends the script, and names the setting, when one is wrong.
configure() {
  local name
  number_setting OSGPROD_SLICES 1 1 100000 SLICES || die "$EXIT_REFUSED" "$setting_error"
  number_setting OSGPROD_TRIES 10 1 1000 TRIES || die "$EXIT_REFUSED" "$setting_error"
  number_setting OSGPROD_BACKOFF_MS 1000 1 600000 BACKOFF_MS || die "$EXIT_REFUSED" "$setting_error"
  number_setting OSGPROD_MAX_WAIT_S 600 0 604800 MAX_WAIT_S || die "$EXIT_REFUSED" "$setting_error"
  [[ -z "${OSGPROD_TIME_LEFT_S:-}" ]] ||
    number_setting OSGPROD_TIME_LEFT_S 0 0 999999999 TIME_LEFT_S || die "$EXIT_REFUSED" "$setting_error"
  number_setting OSGPROD_MAX_LOG_BYTES 10000000 0 999999999 MAX_LOG_BYTES || die "$EXIT_REFUSED" "$setting_error"
  number_setting OSGPROD_CHECKPOINT_CODE 0 0 125 CHECKPOINT_CODE || die "$EXIT_REFUSED" "$setting_error"
  case "$CHECKPOINT_CODE" in
  1 | 2 | "$EXIT_FAILED" | "$EXIT_NODE_FAULT" | "$EXIT_LATER" | "$EXIT_REFUSED")
    die "$EXIT_REFUSED" "OSGPROD_CHECKPOINT_CODE is $CHECKPOINT_CODE, which says something else: use 85"
    ;;
  esac
  [[ -n "${OSGPROD_URL:-}" ]] || die "$EXIT_REFUSED" 'OSGPROD_URL is not set: the server, like https://host/osgprod'
  [[ "$OSGPROD_URL" =~ ^https?://[^/] ]] || die "$EXIT_REFUSED" 'OSGPROD_URL does not begin with https:// or http://'
  [[ ! "$OSGPROD_URL" =~ ^https?://[^/?#]*@ ]] || # it would be on curl's command line
    die "$EXIT_REFUSED" 'OSGPROD_URL contains a user or a password: use OSGPROD_MAGIC_FILE or a bearer token'
  [[ -n "${OSGPROD_PROJECT:-}" ]] || die "$EXIT_REFUSED" 'OSGPROD_PROJECT is not set'
  if [[ -n "${OSGPROD_OUTPUT_URL:-}" ]]; then
    storage_kind "$OSGPROD_OUTPUT_URL" || die "$EXIT_REFUSED" \
      "OSGPROD_OUTPUT_URL is not a folder, or contains a query or a password; schemes: $URL_SCHEMES"
  elif ((SLICES > 1 && CHECKPOINT_CODE == 0)) && [[ -n "${_CONDOR_SCRATCH_DIR:-}" ]]; then
    die "$EXIT_REFUSED" "OSGPROD_SLICES is $SLICES: an eviction would lose the tarballs of slices that are done;\
 set OSGPROD_OUTPUT_URL (outputs= of osgprod.sub, in place of destination=), or OSGPROD_CHECKPOINT_CODE to the submit file's\
 checkpoint_exit_code"
  fi
  job_key="${OSGPROD_JOB_KEY:-}"
  [[ -z "$job_key" || "$job_key" =~ ^[A-Za-z0-9._-]{1,128}$ ]] ||
    die "$EXIT_REFUSED" 'OSGPROD_JOB_KEY: use 1 to 128 letters, digits, dots, underscores or hyphens'
  magic="${OSGPROD_MAGIC:-}"
  if [[ -n "${OSGPROD_MAGIC_FILE:-}" ]]; then
    magic="$(text_of "$OSGPROD_MAGIC_FILE" 2>/dev/null)" ||
      die "$EXIT_REFUSED" "OSGPROD_MAGIC_FILE: $OSGPROD_MAGIC_FILE can't be read"
  fi
  # The work runs in another folder.
  for name in OSGPROD_MAGIC_FILE X509_USER_PROXY X509_CERT_DIR BEARER_TOKEN_FILE; do
    [[ -z "${!name:-}" || "${!name}" == /* ]] || export "$name=$PWD/${!name}"
  done
  [[ -r "/proc/$$/stat" ]] || die "$EXIT_NODE_FAULT" '/proc is not mounted on this node'
  [[ -w . ]] || die "$EXIT_NODE_FAULT" "this folder can't be written: $PWD"
  command -v curl >/dev/null || die "$EXIT_NODE_FAULT" 'curl is not installed on this node'
  find_token
  [[ -n "$magic$bearer" ]] || log 'neither a magic nor a bearer token was found: set OSGPROD_MAGIC_FILE, or BEARER_TOKEN_FILE'
}

# Runs one attempt. Returns this script's exit code. Argument: cores
attempt() {
  local nstarts slice name heartbeat_s reason code=0
  checkout "$1" || code=$?
  if ((code > 0)); then
    ((slices_done == 0)) || log "no other slice was assigned: this job ends (slices done: $slices_done)"
    return "$((slices_done > 0 ? 0 : code))"
  fi
  if [[ "$answer" != assigned ]]; then
    log "$answer: $body" # nothing runs, and there is nothing to report
    may_have_lost_outputs || return 0
    log 'the tarball of this job is not here: if it did not come home either, it is lost'
    log "see \`osgprod jobs $OSGPROD_PROJECT $cluster.$process\`; requeue its slice by \`$(recycle_command)\`, then remove this job"
    return "$EXIT_REFUSED"
  fi
  find_header Osgprod-Token "$head"
  token="$header"
  find_header Osgprod-Token-Hosts "$head"
  osgprod_token_hosts="$header"
  trust_only
  find_header Osgprod-Nstarts "$head"
  nstarts="$header"
  find_header Osgprod-Slice "$head"
  slice="$header"
  find_header Osgprod-Heartbeat "$head"
  heartbeat_s="$header"
  [[ "$heartbeat_s" =~ ^[0-9]{1,6}$ ]] || heartbeat_s=0
  log "start $nstarts on $slice"
  name="job_${cluster}_${process}"
  [[ ! "$nstarts" =~ ^[0-9]{1,9}$ || "$nstarts" == 1 ]] || name+=".$nstarts" # another start may have sent its own
  run_work "$((10#$heartbeat_s))"
  if ((work_status != 0)); then
    stop_heartbeats # did it end the work?
  fi
  if (((heartbeat_status == SUPERSEDED || heartbeat_status == WEDGED) && work_status != 0)); then
    report "$work_status" reason 'stopped by the server' || true
    # Another attempt was faster, or has the slice now: that is not this node's fault. No progress may be.
    return "$((heartbeat_status == WEDGED ? EXIT_NODE_FAULT : EXIT_FAILED))"
  fi
  if ((work_status == EXIT_MISCONFIGURED)) && [[ -n "${reported[misconfigured]:-}" ]]; then
    reason_text "${reported[misconfigured]}"
    reason="$plain_text"
    report "$EXIT_MISCONFIGURED" fault setting reason "configuration: $reason" || true
    die "$EXIT_REFUSED" "configuration: $reason"
  fi
  reason=""
  disk_has_room || reason='the disk of this node is full'
  ((work_status == 0)) || [[ -e "$scratch/work.log" && -d "$scratch/work" ]] ||
    reason="the folder of the work or its log is gone, or could not be made: has somebody removed $scratch, is the disk full?"
  if [[ -n "$reason" ]]; then
    # A node fault: the data is not the cause, and the outputs may be incomplete.
    remove_tree "$scratch/work"
    report "$EXIT_NOT_FETCHED" fault node reason "$reason" || return "$EXIT_LATER"
    return "$EXIT_NODE_FAULT"
  fi
  if ((work_status == 0)); then
    finish_success "$name" "$slice" "$((10#$heartbeat_s))"
  else
    # To pack and send the outputs of a failure may take longer than the lease still lasts.
    start_heartbeats "$((10#$heartbeat_s))" "" "$((10#$heartbeat_s < 5 ? 10#$heartbeat_s : 5))"
    last_words
    finish_failure "$work_status" "$name" "$slice" "$plain_text"
  fi
}

# Makes ready for another attempt, after a success for another slice of this job.
forget_attempt() {
  after=""
  [[ "$answer" != "done" ]] || after="$token"
  reported=() reported_inputs=""
  token="" output_url="" resources=() work_status=0 heartbeat_status=0 is_judged=false is_resumed=false
  remove_tree "$scratch/work"
  rm -f "$scratch/work.log" "$scratch/delivering"
  if [[ -e "$scratch/work" ]]; then # the next slice's tarball would hold its files
    log "$scratch/work can't be removed: this job ends with what it has done"
    slices_done="$SLICES"
  fi
  while read -r -t 0.01 -u 8 _; do :; done # what look has left
}

main() {
  local code=0
  cluster="${1:-}" process="${2:-}"
  log_name="osgprod_exec $cluster.$process"
  (($# == 2 || $# == 3)) || die "$EXIT_REFUSED" "usage: ${0##*/} <cluster> <process> [<ncpus>]"
  configure
  # Not HOSTNAME of bash: it comes from the environment, which may be the submitter's.
  { IFS= read -r host </proc/sys/kernel/hostname; } 2>/dev/null || host="$(uname -n)"
  plain_text 128 "$host"
  host="$plain_text"
  ad_value "${_CONDOR_MACHINE_AD:-}" GLIDEIN_Site
  [[ ! "$ad_value" =~ ^\"(.*)\"$ ]] || site="${BASH_REMATCH[1]}"
  plain_text 128 "${OSGPROD_SITE:-$site}"
  site="$plain_text"
  find_identity
  find_end
  unreported="$PWD/unreported_job_${cluster}_$process.$OSGPROD_PROJECT"
  hear_signals # before EXIT, whose trap would take its end for a node fault
  trap cleanup EXIT
  trap : PIPE # a closed output stops nothing
  make_scratch
  if has_unreported; then
    is_resumed=true
    log 'an earlier start of this job has left a success that was not reported'
    resume_lease
    deliver_and_report || code=$?
    # A success that does not count does not end the job: HTCondor may start the job with the same files again.
    ((code == 0 || code == EXIT_FAILED)) || return "$code"
    [[ "$http_status" != 404 ]] || return "$code" # the next success would take the place of the outputs that stay
    forget_attempt
  fi
  while ((slices_done < SLICES)); do
    attempt "${3:-1}" # another code than 0 ends this script
    [[ "$answer" == "done" ]] || return 0
    ((slices_done >= SLICES)) || forget_attempt # cleanup removes the last slice's files
  done
}

# Read as one command, so that nothing more is read when this file changes meanwhile.
if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
  main "$@"
  exit
fi
