# shellcheck shell=bash
# --- the work ----------------------------------------------------------------------------------------------------

readonly SUPERSEDED=8 WEDGED=9 # exit codes of send_heartbeats: another attempt has the work; there was no progress

work_status=0          # exit code of the work
heartbeat_status=0     # exit code of send_heartbeats
resources=()           # what the work has used: name value pairs for the report
ticks=0                # see children_ticks
declare -A reported=() # what the work's report says: the last value of each name
reported_inputs=""     # the values of its lines merged_input=, each with a line end

# Copies the proxy and the token into the work's folder, the only one that a container shows. HTCondor renews them: it is
# done again with each heartbeat. Argument: folder
copy_credentials() {
  find_token
  copy_secret "${X509_USER_PROXY:-}" "$1/proxy"
  copy_secret "${BEARER_TOKEN_FILE:-}" "$1/token"
}
# Arguments: file or nothing, its copy
copy_secret() {
  [[ ! -f "$1" ]] || (umask 077 && cp "$1" "$2.new" && mv -f "$2.new" "$2") 2>/dev/null || log "$1 can't be copied"
}

# Becomes the work script, in the current folder, in a container if there is one.
# Arguments: folder with the script, the report, and in a container the credentials
become_work() {
  local own="$1" words word
  local -a container=()
  unset OSGPROD_MAGIC OSGPROD_MAGIC_FILE OSGPROD_JOB_KEY
  export OSGPROD_REPORT="$own/report.txt"
  if [[ -n "${OSGPROD_CONTAINER:-}" ]]; then
    set -f
    # shellcheck disable=SC2086  # words separated by spaces
    for words in ${OSGPROD_CONTAINER}; do
      word=""
      while [[ "$words" == *'{}'* ]]; do
        word+="${words%%'{}'*}$PWD"
        words="${words#*'{}'}"
      done
      container+=("$word$words")
    done
    set +f
    export APPTAINER_BIND="${APPTAINER_BIND:+$APPTAINER_BIND,}$PWD" TMPDIR="$own"
    export SINGULARITY_BIND="${SINGULARITY_BIND:+$SINGULARITY_BIND,}$PWD"
    [[ -z "${X509_USER_PROXY:-}" ]] || export X509_USER_PROXY="$own/proxy"
    [[ -z "${BEARER_TOKEN_FILE:-}" ]] || export BEARER_TOKEN_FILE="$own/token"
  fi
  exec ${container[@]+"${container[@]}"} bash "$own/script"
}

# Runs the script in a separate process group and folder. Sets work_status, heartbeat_status and resources.
# Argument: seconds between heartbeats, 0 = none
run_work() {
  local own="$scratch/work/.osgprod" began_s="$SECONDS" began_ticks
  children_ticks
  began_ticks="$ticks"
  [[ -z "${OSGPROD_CONTAINER:-}" ]] || copy_credentials "$own"
  set -m
  (
    cd "$scratch/work" || exit # somebody has removed it: attempt looks for it
    become_work "$own"
  ) 8>&- 9>&- >"$scratch/work.log" 2>&1 &
  work_group=$!
  set +m
  start_heartbeats "$1" "$own"
  wait "$work_group" || work_status=$?
  await_signal "$work_status"
  end_group "$work_group" # the processes that it left in the background
  end_strays "OSGPROD_REPORT=$own/report.txt"
  open_folders
  # The heartbeats go on until the report: delivery may take longer than the lease.
  { : >"$scratch/delivering"; } 2>/dev/null || stop_heartbeats
  work_group=""
  revive_heartbeats "$1"
  children_ticks
  read_report "$own/report.txt"
  measure "$((SECONDS - began_s))" "$((ticks - began_ticks))"
  run print_log "$scratch/work.log" "$((MAX_LOG_BYTES / SLICES))" || true
}

# The work may have left this job's own folders such that this job can't use them.
open_folders() {
  local path
  for path in "$scratch" "$scratch/work" "$scratch/work/.osgprod"; do
    [[ -r "$path" && -w "$path" && -x "$path" ]] || chmod u+rwx "$path" 2>/dev/null || true
  done
}

# Prints a file, of a long one the head and the tail. Arguments: file, greatest number of bytes
print_log() {
  local half=$(($2 / 2))
  size_of "$1"
  if ((size_of <= $2)); then
    cat "$1"
    return
  fi
  head -c "$half" "$1"
  printf '\n--- osgprod_exec: %d bytes of the work'\''s output are left out here ---\n' "$((size_of - 2 * half))"
  tail -c "$half" "$1"
}

cpu_seconds=0 memory_bytes=0 folder_bytes=0 # as the functions of these names have set them

# Sets cpu_seconds to the CPU time that the processes of a group have used so far [s], from /proc. Argument: process group
cpu_seconds() {
  local file line total=0
  local -a fields
  for file in /proc/[0-9]*/stat; do
    line=""
    { IFS= read -r line <"$file"; } 2>/dev/null || true # it has ended
    # shellcheck disable=SC2206  # numbers
    fields=(${line##*) })
    # after the name: 0 state, 1 parent, 2 group; 11-14 ticks, own and of ended children
    [[ "${fields[2]:-}" != "$1" ]] || total=$((total + fields[11] + fields[12] + fields[13] + fields[14]))
  done
  cpu_seconds="$((total / 100))"
}

# Sets ticks to the CPU time that this script's ended children have used, with theirs [ticks].
children_ticks() {
  local line
  local -a fields
  IFS= read -r line <"/proc/$$/stat"
  # shellcheck disable=SC2206  # numbers
  fields=(${line##*) })
  ticks="$((fields[13] + fields[14]))"
}

# Sets memory_bytes to the memory of a process group, with what its processes have started: resident now, or the peak of
# its largest process, if that is more. Not the peak of the cgroup: it holds the files that were read, and a pilot's other
# jobs. Argument: process group
memory_bytes() {
  local file line pid up depth resident=0 largest=0 key value
  local -a fields parents=()
  for file in /proc/[0-9]*/stat; do
    line=""
    { IFS= read -r line <"$file"; } 2>/dev/null || true # it has ended
    # shellcheck disable=SC2206  # numbers
    fields=(${line##*) })
    pid="${file//[!0-9]/}"
    # after the name: 1 parent, 2 group
    parents[pid]="${fields[1]:-0}"
    [[ "${fields[2]:-}" != "$1" || "$pid" == "$1" ]] || parents[pid]="$1"
  done
  for pid in "${!parents[@]}"; do
    up="$pid"
    for ((depth = 0; depth < 100 && up > 1 && up != $1; depth++)); do
      up="${parents[up]:-0}"
    done
    ((up != $1)) || while read -r key value _; do
      case "$key" in
      VmHWM:) ((value <= largest)) || largest="$value" ;;
      VmRSS:) resident=$((resident + value)) ;;
      esac
    done 2>/dev/null <"/proc/$pid/status" || true
  done
  memory_bytes="$((1024 * (resident > largest ? resident : largest)))"
}

# Sets resources from the looks while the work ran, and from the files that it left. Arguments: seconds that it took, ticks
measure() {
  local memory=0 disk=0 fetched
  read -r -t 0.1 -u 8 memory disk || true
  [[ "$memory" =~ ^[0-9]{1,18}$ && "$disk" =~ ^[0-9]{1,18}$ ]] || memory=0 disk=0
  folder_bytes "$scratch/work"
  ((folder_bytes <= disk)) || disk="$folder_bytes"
  fetched="${reported[fetched_bytes]:-}"
  [[ "$fetched" =~ ^[0-9]{1,18}$ ]] || fetched=""
  ((memory > 0)) || memory="" # it was too short to be looked at
  resources=(memory_bytes "$memory" disk_bytes "$disk" fetched_bytes "$fetched" cpu_s "$(($2 / 100))")
  (($1 < 0)) || resources+=(wall_s "$1") # the clock was set back
}

# Sets folder_bytes to the size of a folder, without the file systems that are mounted in it. Argument: folder
folder_bytes() {
  capture disk_usage "$1" || true
  folder_bytes=0
  [[ ! "$captured" =~ ^[0-9]{1,15} ]] || folder_bytes="$((BASH_REMATCH[0] * 1024))"
}
disk_usage() {
  cd "$1" && exec du -xsk . 2>/dev/null
}

# Arguments: seconds between heartbeats, 0 = none, folder for credentials or nothing, seconds before the first [the same]
start_heartbeats() {
  (($1 > 0)) || return 0
  [[ -z "$2" ]] || { : >"$2/sends-heartbeats"; } 2>/dev/null || true
  send_heartbeats "$1" "$2" "${3:-$1}" &
  heartbeat_pid=$!
}

# Renews the lease until the server reports the attempt as superseded or wedged, or until this script was killed; then it
# ends the work, if it has not ended, and after a kill it removes this job's folder. The work may ask whether it still has
# the lease: it makes the file confirm-lease, and the next heartbeat is sent at once; when the file is gone, there is a file
# no-lease if the server did not confirm it.
# Arguments: seconds between heartbeats, folder for credentials, seconds before the first
send_heartbeats() {
  local interval_s="$1" own="$2" left_s="$3" memory=0 disk=0 n=0
  pipe="$scratch/pipe.heartbeat"
  hear TERM 'end_children; exit 0'
  while kill -0 "$$" 2>/dev/null; do
    if ((left_s > 0)) && [[ ! -e "$own/confirm-lease" ]]; then
      ((n++ % 5 != 1)) || look # first after a second: work that has just begun has not allocated its memory
      pause 1
      left_s=$((left_s - 1))
    else
      left_s="$interval_s"
      send_heartbeat
      [[ ! -e "$own/confirm-lease" ]] || pause 1 # it has been made again, or can't be removed
    fi
  done
  end_work
  remove_tree "$scratch"
}

# Sends one heartbeat, with what the work uses. Where the server wants the work to stop, it ends the work and this process. Its
# variables are those of send_heartbeats.
send_heartbeat() {
  [[ -z "${OSGPROD_CONTAINER:-}" || -e "$scratch/delivering" ]] || copy_credentials "$own"
  folder_bytes "$scratch/work"
  ((folder_bytes <= disk)) || disk="$folder_bytes"
  look
  cpu_seconds "$work_group"
  request workscript.ping bytes "$folder_bytes" cpu "$cpu_seconds"
  if [[ "$answer" == alive ]]; then
    rm -f "$scratch/work/.osgprod/no-lease"
  else # until then a merge script replaces nothing
    touch "$scratch/work/.osgprod/no-lease" 2>/dev/null || true
  fi
  [[ "$http_status" != 4?? || "$http_status" == 409 && "$answer" != error ]] || log "heartbeat refused with status $http_status: $body"
  if [[ "$http_status" == 409 && "$answer" != error ]]; then
    log "stopping the work: $body"
    trap '' TERM # the end of the work must not hide why
    end_work
    [[ "$answer" == wedged ]] || exit "$SUPERSEDED"
    exit "$WEDGED"
  fi
  rm -f "$scratch/work/.osgprod/confirm-lease"
}

# Looks how much memory the work uses, and leaves the most that was seen, with the caller's disk, for measure.
look() {
  [[ -n "$work_group" && ! -e "$scratch/delivering" ]] || return 0
  memory_bytes "$work_group"
  ((memory_bytes <= memory)) || memory="$memory_bytes"
  while read -r -t 0.01 -u 8 _; do :; done
  printf '%s %s\n' "$memory" "$disk" >&8
}

end_work() {
  [[ -e "$scratch/delivering" ]] || end_group "$work_group"
}

# Starts the heartbeats again when somebody has killed their process, as the system does when memory is short: the report may be far.
# Argument: seconds between heartbeats
revive_heartbeats() {
  [[ -n "$heartbeat_pid" ]] && ! kill -0 "$heartbeat_pid" 2>/dev/null || return 0
  wait "$heartbeat_pid" 2>/dev/null || heartbeat_status=$?
  heartbeat_pid=""
  ((heartbeat_status > 128)) || return 0
  heartbeat_status=0
  log 'somebody has killed the process that sends heartbeats: the lease may have expired while the work ran'
  start_heartbeats "$1" "" 0
}

stop_heartbeats() {
  if [[ -n "$heartbeat_pid" ]]; then
    # Again until it has ended: bash forgets a signal that comes before a child has its own traps.
    while kill -TERM "$heartbeat_pid" 2>/dev/null; do pause 0.02; done
    wait "$heartbeat_pid" 2>/dev/null || heartbeat_status=$?
    heartbeat_pid=""
  fi
}

# Sets plain_text to the last line of the work's output that isn't empty, as the reason of a failure, without the time and the name
# of the work script in front.
last_words() {
  log_end
  reason_text "$(printf '%s\n' "$log_end" | sed -e '/^[[:space:]]*$/d' -e 's/^[0-9TZ:-]* osgprod_[a-z]*: //' | tail -n 1)"
}

log_end="" # as the function of this name has set it

# Sets log_end to the end of the work's log, at most 10000 bytes, without the secrets of this job: also without the end of one
# that begins before these bytes.
log_end() {
  without_secrets "$(tail -c 20000 "$scratch/work.log" 2>/dev/null | tr -d '\000\r')"
  log_end="$without_secrets"
  ((${#log_end} <= 10000)) || log_end="${log_end: -10000}"
}

without_secrets="" # as the function of this name has set it

# Sets without_secrets to a text without the secrets of this job. Argument: text
without_secrets() {
  local secret
  without_secrets="$1"
  for secret in "$magic" "$bearer" "$job_key" "$token"; do
    ((${#secret} < 6)) || without_secrets="${without_secrets//"$secret"/(secret)}"
  done
}

# Sets plain_text to the first characters of what the work or storage has said, for the report: cut only after its secrets are gone.
# Arguments: as of plain_text
public_text() {
  without_secrets "$2"
  plain_text "$1" "$without_secrets"
}

# Sets plain_text to a reason for the report: at most 1000 characters with both ends, since the cause stands at the end. Argument: text
reason_text() {
  local text
  without_secrets "$1"
  text="$without_secrets"
  ((${#text} <= 1000)) || text="${text:0:400} ... ${text: -590}"
  plain_text 1000 "$text"
}

# Reads what the work has left in its report, lines NAME=VALUE; it may have left none. Sets reported and reported_inputs.
# Argument: file
read_report() {
  local line name
  reported=() reported_inputs=""
  [[ -f "$1" && -r "$1" ]] || return 0
  while IFS= read -r line || [[ -n "$line" ]]; do # without its NULs
    name="${line%%=*}"
    case "$name" in
    "$line") ;; # without a value
    merged_input) reported_inputs+="${line#*=}"$'\n' ;;
    bad_inputs | door | events | fault | fetched_bytes | misconfigured | outputs_list | software)
      reported["$name"]="${line#*=}"
      ;;
    esac
  done <"$1"
}

# Prints the end of the work's log for the report of a failure, at most 4000 bytes, without the secrets of this job.
log_tail() {
  log_end
  ((${#log_end} <= 4000)) || log_end="${log_end: -4000}"
  printf '%s' "$log_end"
}
