# shellcheck shell=bash
# --- how the attempt ends ----------------------------------------------------------------------------------------

readonly EXIT_NOT_DELIVERED=74 EXIT_NOT_FETCHED=75 EXIT_MISCONFIGURED=40 EXIT_UNFIT=77 # as reported
readonly PACK_TRIES=3

output_url=""   # where the tarball is, when it was delivered
is_judged=false # did the server call a success a failure?

# The files of a success that has not been reported yet, without their endings: .tar.gz is the tarball, .report is what the report
# will say. A job that starts again in this folder goes on from there. By hand, jobs of another project may have the same
# numbers here.
unreported=""
declare -A written=() # what .report says, as read_written has read it: the first value of each name
written_inputs=""     # the values of its lines merged_input=, each with a line end

free_path=""            # as the function of this name has set it
packed="" pack_error="" # as pack has set them

# Sets free_path to the path for a tarball that stays in this folder. If a file has the name, it is another job's, of another project or
# another queue with the same numbers: then the name gets an additional word. Argument: name without .tar.gz
free_path() {
  free_path="$PWD/$1.tar.gz"
  [[ ! -e "$free_path" && ! -L "$free_path" ]] || free_path="$PWD/$1.${scratch##*.}.tar.gz"
}

# Writes down what the report of a success will say, with resources, and reads it back. The token of the attempt proves that it
# is the same.
# Arguments: name of the tarball, events, number of outputs, size [bytes], adler32, URL or nothing, seconds between
# heartbeats, outputs that the work itself has delivered (JSON) or nothing, its software or nothing, inputs to remove when
# the report is accepted (lines of URL, size, adler32) or nothing
write_down() {
  local file="$unreported.report" try
  for try in 1 2; do # somebody may kill a program
    ! write_report "$file" "$@" || return 0
  done
  return 1
}
write_report() {
  local file="$1"
  shift
  (
    umask 077
    exec >"$file.new" || exit # else the token would go to this job's output
    printf '%s\n' "project=$OSGPROD_PROJECT" "token=$token" "name=$1" "events=$2" "outputs=$3" "bytes=$4" \
      "adler32=$5" "url=$6" "heartbeat_s=$7" "outputs_list=$8" "software=$9" "slices_done=$slices_done" \
      "token_hosts=$osgprod_token_hosts" &&
      printf '%s=%s\n' ${resources[@]+"${resources[@]}"} &&
      { [[ -z "${10}" ]] || printf '%s\n' "${10}" | sed -e '/./!d' -e 's/^/merged_input=/'; } &&
      printf 'complete=yes\n'
  ) 2>/dev/null && mv -fT "$file.new" "$file" 2>/dev/null && read_written && [[ "${written[complete]:-}" == yes ]]
}

# Reads the file of write_down, lines NAME=VALUE. Sets written and written_inputs. Fails when the file can't be read.
read_written() {
  local line name
  written=() written_inputs=""
  [[ -r "$unreported.report" ]] || return 1
  while IFS= read -r line || [[ -n "$line" ]]; do
    name="${line%%=*}"
    case "$name" in
    "$line") ;; # without a value
    merged_input) written_inputs+="${line#*=}"$'\n' ;;
    project | token | token_hosts | name | events | outputs | bytes | adler32 | url | heartbeat_s | outputs_list | software | slices_done | \
      memory_bytes | disk_bytes | fetched_bytes | cpu_s | wall_s | complete)
      [[ -n "${written["$name"]+set}" ]] || written["$name"]="${line#*=}"
      ;;
    esac
  done <"$unreported.report"
}

# Has the work delivered its outputs itself, and left none? Then its tarball holds the log only, and is not sent.
is_delivered() {
  [[ -n "${written[outputs_list]:-}" && "${written[bytes]:-}" == "" ]]
}

# Gives a success that release 0.11 or older has kept here, without the project in its name, today's name.
adopt_unreported() {
  local old="$PWD/unreported_job_${cluster}_${process}"
  [[ -e "$old.report" && "$(sed -n 's/^project=//p' "$old.report" 2>/dev/null | head -n 1)" == "$OSGPROD_PROJECT" ]] || return 0
  mv -f "$old.tar.gz" "$unreported.tar.gz" 2>/dev/null || true
  mv -f "$old.report" "$unreported.report" 2>/dev/null || true
}

# Is there a success of this job, whole, that was not reported?
has_unreported() {
  local file="$unreported.report" bytes adler
  adopt_unreported
  [[ -f "$file" && -r "$file" ]] || return 1
  rm -f "$file.new"
  read_written || return 1
  if [[ "${written[complete]:-}" == yes ]]; then
    [[ -z "${written[url]:-}" ]] && ! is_delivered || return 0
    measure_file "$unreported.tar.gz" 2>/dev/null || true
    [[ "$bytes" != "${written[bytes]:-}" || "$adler" != "${written[adler32]:-}" ]] || return 0
  fi
  log "the result of an earlier start can't be used, and is removed: $file"
  forget_unreported
  return 1
}

forget_unreported() {
  rm -f "$unreported.report" "$unreported.report.new" "$unreported.tar.gz" "$unreported.tar.gz.new" || true
}

# Goes on with the lease of an earlier start: it may have expired, and nobody else has the slice yet.
resume_lease() {
  local heartbeat_s
  token="${written[token]:-}"
  heartbeat_s="${written[heartbeat_s]:-}"
  touch "$scratch/delivering" || return 0
  [[ "$heartbeat_s" =~ ^[1-9][0-9]{0,5}$ ]] || return 0
  request workscript.ping bytes 0
  start_heartbeats "$heartbeat_s" ""
}

# Delivers and reports a success that was written down. Returns this script's exit code.
deliver_and_report() {
  local name bytes adler list software used
  resources=()
  for used in memory_bytes disk_bytes fetched_bytes cpu_s wall_s; do
    resources+=("$used" "${written["$used"]:-}") # as an earlier start has measured it
  done
  slices_done="${written[slices_done]:-}"
  [[ "$slices_done" =~ ^[0-9]{1,6}$ ]] || slices_done=0 # written by an older version
  list="${written[outputs_list]:-}" software="${written[software]:-}"
  name="${written[name]:-}" bytes="${written[bytes]:-}" adler="${written[adler32]:-}"
  token="${written[token]:-}" output_url="${written[url]:-}" osgprod_token_hosts="${written[token_hosts]:-}"
  trust_only
  if [[ -n "${OSGPROD_OUTPUT_URL:-}" && -z "$output_url" ]] && ! is_delivered; then
    if ! send_outputs "$unreported.tar.gz" "$name.tar.gz" "$bytes" "$adler" "$TRIES"; then
      not_delivered "$storage_error"
      return
    fi
    write_down "$name" "${written[events]:-}" "${written[outputs]:-}" "$bytes" "$adler" "$output_url" \
      "${written[heartbeat_s]:-}" "$list" "$software" "$written_inputs" || true
  fi
  if ! report 0 events "${written[events]:-}" outputs "${written[outputs]:-}" output_bytes "$bytes" output_adler32 "$adler" \
    output_url "$output_url" outputs_list "$list" software "$software"; then
    keep_for_later 'the report got no answer'
    return
  fi
  case "$http_status $answer" in
  '200 done')
    remove_merged_inputs
    if [[ -n "$output_url" ]] && ((SLICES > 1)); then
      rm -f "$unreported.tar.gz" # delivered; those of all slices may not fit on the disk
    elif free_path "$name" && mv -fT "$unreported.tar.gz" "$free_path" 2>/dev/null; then
      :
    elif [[ -e "$unreported.tar.gz" ]]; then
      # It may be the only one of a slice that is done. The next slice's would take its place: this job ends.
      log "renaming the tarball to $name.tar.gz failed; it stays here: $unreported.tar.gz"
      rm -f "$unreported.report" "$unreported.report.new"
      slices_done="$SLICES"
      return 0
    elif [[ -z "$output_url" ]] && ! is_delivered; then
      log "the slice is done, but somebody has removed its only tarball, $unreported.tar.gz: requeue it by \`$(recycle_command)\`"
      forget_unreported
      return "$EXIT_NODE_FAULT"
    fi
    forget_unreported
    slices_done=$((10#$slices_done + 1))
    return 0
    ;;
  '200 failed' | '200 node-fault' | '409 superseded' | '409 contradicted')
    unsend "$output_url"
    forget_unreported
    [[ "$http_status" != 200 ]] || is_judged=true
    [[ "$answer" != node-fault ]] || return "$EXIT_NODE_FAULT"
    return "$EXIT_FAILED"
    ;;
  404*) # a restored database may have forgotten the attempt; the work may be needed
    log "the server knows no attempt of this job; the outputs stay: ${output_url:-$unreported.tar.gz}"
    rm -f "$unreported.report"
    return "$EXIT_FAILED"
    ;;
  esac
  log "the report was refused; the outputs stay: ${output_url:-$unreported.tar.gz}"
  return "$EXIT_REFUSED"
}

# Removes the inputs of a merge that the server has accepted, where the project wants that: each that is unchanged.
# An input that can't be removed stays.
remove_merged_inputs() {
  local rest="$written_inputs"
  [[ -n "$rest" ]] || return 0
  if ! are_listed_outputs_there; then
    log 'not all merged files can be seen from here: the inputs are not removed'
    return 0
  fi
  while [[ -n "$rest" ]]; do
    remove_merged_input "${rest%%$'\n'*}"
    rest="${rest#*$'\n'}"
  done
}

# Removes one of them, if it is still the file that was merged. Argument: line of URL, size, adler32
remove_merged_input() {
  local url bytes adler kind line="$1"
  [[ "$line" == *' '*' '* ]] || return 0
  adler="${line##* }" line="${line% *}"
  bytes="${line##* }"
  input_url "${line% *}"
  url="$input_url"
  storage_kind "$url" || return 0
  kind="$url_kind"
  if ! has_arrived "$kind" "$url" "$bytes" "$adler" 1; then
    log "$url has changed since it was merged, and is not removed$(withheld "$url")"
  else
    storage "remove_$kind" "$url" || log "$url can't be removed: $storage_error"
  fi
}

# Are the files that a merge has delivered where it says, as this script sees them? In a container a folder may be another
# one. Each must be listed as the merge script lists files.
are_listed_outputs_there() {
  local list="${written[outputs_list]:-}" rest objects url bytes adler found=0
  local pattern='"url":"([^"\]*)","bytes":([0-9]+),"adler32":"([0-9a-f]*)"'
  rest="$list" objects="${list//[!\{]/}"
  while [[ "$rest" == *'{"kind":'* ]]; do
    rest="${rest#*'{"kind":'}"
    [[ "${rest%%'{"kind":'*}" =~ $pattern ]] || return 1
    url="${BASH_REMATCH[1]}" bytes="${BASH_REMATCH[2]}" adler="${BASH_REMATCH[3]}"
    storage_kind "$url" && has_arrived "$url_kind" "$url" "$bytes" "$adler" "$LOOKS" || return 1
    found=$((found + 1))
  done
  ((found > 0 && found == ${#objects}))
}

# The outputs are here, and their destination doesn't take them. When that may pass and this folder outlives the job, they
# are kept; otherwise another job gets the slice. Returns this script's exit code. Argument: what storage said
not_delivered() {
  if ! is_refusal "$1" && { [[ -z "${_CONDOR_SCRATCH_DIR:-}" ]] || ((CHECKPOINT_CODE > 0)); }; then
    keep_for_later "the outputs could not be delivered: $1"
    return
  fi
  reason_text "outputs not delivered: $1"
  report "$EXIT_NOT_DELIVERED" fault delivery reason "$plain_text" || true
  forget_unreported
  return "$EXIT_LATER"
}

# Leaves a success for this job's next start in the same folder. Returns this script's exit code. Argument: why
keep_for_later() {
  log "$1; the tarball is kept for the next start: $unreported.tar.gz"
  # Not twice for one start of the job: HTCondor starts it again at once, in the same folder.
  if ((CHECKPOINT_CODE > 0)) && ! $is_resumed; then
    return "$CHECKPOINT_CODE"
  fi
  return "$EXIT_LATER"
}

# Packs, delivers and reports a success. Returns this script's exit code.
# Arguments: name of the tarball, slice, seconds between heartbeats
finish_success() {
  local name="$1" count adler bytes events code=0 list rest
  pack "$2" "$unreported.tar.gz" || code=$?
  if ((code > 0)); then
    public_text 500 "the outputs could not be packed: $pack_error"
    if ((code == EXIT_UNFIT)); then # the work's doing: each node would have them like that
      log "$plain_text"
      reported["fault"]=""
      finish_failure "$EXIT_UNFIT" "$1" "$2" "$plain_text"
      return
    fi
    report "$EXIT_NOT_FETCHED" fault node reason "$plain_text" || return "$EXIT_LATER"
    return "$EXIT_NODE_FAULT"
  fi
  count="$packed"
  measure_file "$unreported.tar.gz"
  events="${reported[events]:-}"
  if [[ -n "$events" && ! "$events" =~ ^[0-9]{1,18}$ ]]; then
    log "events=${events:0:40} is not a number of events, and is not reported"
    events=""
  fi
  list="${reported[outputs_list]:-}"
  if [[ -n "$list" ]]; then
    ((count > 0)) || bytes="" adler=""
    rest="$list"
    while [[ "$rest" =~ \"url\"\ *: ]]; do
      rest="${rest#*"${BASH_REMATCH[0]}"}"
      count=$((count + 1))
    done
  fi
  public_text 200 "${reported[software]:-}"
  if ! write_down "$name" "$events" "$count" "$bytes" "$adler" "" "$3" "$list" "$plain_text" "$reported_inputs"; then
    forget_unreported # without a note nobody could report it later
    report "$EXIT_NOT_FETCHED" fault node reason 'the disk of this node is full' || return "$EXIT_LATER"
    return "$EXIT_NODE_FAULT"
  fi
  if must_be_safe_first; then
    stop_heartbeats
    log 'HTCondor saves the tarball now; then this job reports it'
    return "$CHECKPOINT_CODE"
  fi
  deliver_and_report || code=$?
  ! $is_judged || leave_failure "failed_$name" "$2" log-only
  return "$code"
}

# Does the tarball stay here for HTCondor? Then HTCondor must save it before its success is reported: an eviction, or a
# machine that is lost while its files come home, would lose the outputs of a slice that is done.
must_be_safe_first() {
  ((CHECKPOINT_CODE > 0)) && [[ -z "${OSGPROD_OUTPUT_URL:-}" ]] && ! is_delivered
}

# Has this job ended well before, and is its tarball, for which HTCondor was to care, not here? Then it may be lost: a machine
# may have vanished while the tarball came home. By hand, and with OSGPROD_OUTPUT_URL, nothing can have been lost, and a merge has
# delivered its files itself: the server says "its merge".
may_have_lost_outputs() {
  local file
  [[ "$answer" == completed && -z "${OSGPROD_OUTPUT_URL:-}" && -n "${_CONDOR_SCRATCH_DIR:-}" ]] && [[ "$body" != *' its merge'* ]] || return 1
  for file in "$PWD/job_${cluster}_${process}".tar.gz "$PWD/job_${cluster}_${process}".*.tar.gz; do
    [[ ! -e "$file" ]] || return 1
  done
}

# Prints the command that requeues what this job has done.
recycle_command() {
  printf '%s' "osgprod slices recycle $OSGPROD_PROJECT --state done --cluster $cluster --process $process"
}

# Packs what the work left. Sets packed to the number of outputs, and pack_error to why that failed. Returns what pack_outputs returns. It
# packs again when somebody has killed a program, and when the outputs are unfit: files that this job owns are made readable, and those
# of some network file systems seem to change for a moment. Arguments: as of pack_outputs, without the first two
pack() {
  local try=0 code=137
  leftover="$2"
  while (((code == EXIT_UNFIT || code > 128) && try < PACK_TRIES)); do
    if ((code == EXIT_UNFIT)); then
      make_readable "$scratch/work"
      pause 1
    fi
    try=$((try + 1)) code=0
    capture_both pack_outputs "$scratch/work" "$scratch/work.log" "$@" || code=$?
    [[ -z "$captured_errors" ]] || printf '%s\n' "$captured_errors" >&2 || true
  done
  captured_errors="${captured_errors%$'\n'tar: Exiting with failure status*}" # the line before it says why
  pack_error="${captured_errors##*$'\n'}"
  pack_error="${pack_error:-a program ended with $code}"
  ((code == 0)) || rm -f "$2"
  leftover="" packed="${captured%%$'\n'*}"
  return "$code"
}

# Sets bytes and adler to the size and the checksum of a tarball; to nothing when that can't be read. It computes the checksum once
# more when somebody has killed a program. Argument: tarball
measure_file() {
  bytes="" adler=""
  size_of "$1" || size_of "$1" || return
  bytes="$size_of"
  capture adler32 "$1" "$bytes" || capture adler32 "$1" "$bytes" || captured=""
  adler="${captured%$'\n'}"
}

# Leaves the tarball of a failure, its log above all, and tries once to send it. Sets output_url.
# Arguments: name, slice, log-only = without the outputs
leave_failure() {
  local file bytes adler
  free_path "$1"
  file="$free_path"
  output_url=""
  # Outputs that can't be packed must not take the log along.
  pack "$2" "$file" "${3:-}" || pack "$2" "$file" log-only || return 0
  measure_file "$file"
  send_outputs "$file" "${file##*/}" "$bytes" "$adler" 1 || true
}

# Reports a failure and leaves its log. Returns this script's exit code.
# Arguments: exit code to report, name of the tarball, slice, reason
finish_failure() {
  leave_failure "failed_$2" "$3"
  plain_text 20 "${reported[fault]:-}"
  report "$1" output_url "$output_url" fault "$plain_text" reason "$4" \
    bad_inputs "${reported[bad_inputs]:-}" outputs_list "${reported[outputs_list]:-}" log_tail "$(log_tail)" ||
    return "$EXIT_LATER"
  # Which codes are faults of the node, the project says.
  [[ "$answer" != node-fault ]] || return "$EXIT_NODE_FAULT"
  [[ "$answer" != refused && "$http_status" != 400 ]] || return "$EXIT_REFUSED"
  return "$EXIT_FAILED"
}
