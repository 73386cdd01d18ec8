# shellcheck shell=bash
# --- processes ---------------------------------------------------------------------------------------------------

readonly EXIT_FAILED=10 EXIT_NODE_FAULT=20 EXIT_LATER=30 EXIT_REFUSED=40 EXIT_TERM=143
readonly EXIT_NO_FORK=254 # of bash
readonly KILL_AFTER_S=3   # from SIGTERM to SIGKILL of the work
readonly MAX_CAPTURED=65536

scratch=""       # this job's folder: the script, the work's folder, two pipes
pipe=""          # what a command prints on its way to capture
child_group=""   # process group of the command that is waited for
work_group=""    # process group of the work
heartbeat_pid="" # sends the heartbeats
leftover=""      # file that is not whole yet
is_stopped=false # has a signal asked this script to end?

# Waits, without a child that could outlive this script. Argument: seconds
pause() {
  read -r -t "$1" -u 9 || true
}

# Runs a command in a separate process group, so that this script can handle SIGTERM at once and end the whole group.
# Returns its exit code. Arguments: command
run() {
  local status=0
  set -m
  "$@" &
  child_group=$!
  set +m
  wait "$child_group" || status=$?
  child_group=""
  await_signal "$status"
  return "$status"
}

# Waits 1 s for a signal after a signal ended a child: HTCondor or the batch system may end a job's child before the job. The
# job then was stopped, and its child did not fail. Argument: exit code of the child
await_signal() {
  case "$1" in
  130 | 137 | 143) pause 1 ;;
  esac
}

# The same for a command whose output is needed. Sets captured to what it printed, without NULs, the first MAX_CAPTURED bytes; no disk
# is needed.
# To open a pipe waits for its other end: descriptor 7 is both ends, so that no child waits for ever for a parent that was killed.
# Somebody may have removed the pipe, with this job's folder: it is made again, so that the job can still report.
capture() {
  local status=0 text
  [[ -p "$pipe" ]] || { mkdir -p "$scratch" && rm -f "$pipe" && mkfifo -m 600 "$pipe"; } || return 1
  exec 7<>"$pipe"
  set -m
  "$@" >"$pipe" 7>&- &
  child_group=$!
  set +m
  exec 6<"$pipe" 7>&-
  captured="" text=""
  while ((${#captured} < MAX_CAPTURED)) && IFS= read -r -d '' -n "$((MAX_CAPTURED - ${#captured}))" -u 6 text; do
    captured+="$text" text=""
  done
  captured+="$text"
  exec 6<&-
  wait "$child_group" || status=$?
  child_group=""
  await_signal "$status"
  return "$status"
}

# Ends a process group: politely, then for good. Argument: its number
end_group() {
  local n
  kill -TERM -- "-$1" 2>/dev/null || return 0
  for ((n = 0; n < KILL_AFTER_S * 10; n++)); do
    kill -0 -- "-$1" 2>/dev/null || return 0
    pause 0.1
  done
  kill -KILL -- "-$1" 2>/dev/null || true
}

# Ends the processes that have a line in their environment. The work may have left some in process groups of their own: they would go on
# writing into its outputs. Those of other users are not seen. Argument: line
end_strays() {
  local n signal=TERM strays
  for ((n = 0; n <= KILL_AFTER_S * 10; n++)); do
    strays="$(grep -lszxF -e "$1" /proc/[0-9]*/environ)" || true # 2 = one of them has ended
    [[ -n "$strays" ]] || return 0
    ((n < KILL_AFTER_S * 10)) || signal=KILL
    strays="${strays//[!0-9$'\n']/}"
    # shellcheck disable=SC2086  # numbers
    kill "-$signal" $strays 2>/dev/null || true
    pause 0.1
  done
}

make_scratch() {
  local parent word
  printf -v word '%04x%04x%04x' "$RANDOM" "$RANDOM" "$RANDOM"
  for parent in "${_CONDOR_SCRATCH_DIR:-}" "${TMPDIR:-}" "$PWD" /tmp /var/tmp; do
    if [[ -z "$scratch" && -n "$parent" ]]; then
      [[ "$parent" == /* ]] || parent="$PWD/$parent" # the work runs in another folder
      scratch="$parent/osgprod.$word"                # before there is one: a signal may come in between
      mkdir -m 700 "$scratch" 2>/dev/null || scratch=""
    fi
  done
  [[ -n "$scratch" ]] || die "$EXIT_NODE_FAULT" 'no folder here can be written'
  export TMPDIR="$scratch" # bash's own here-documents need one that can be written
  pipe="$scratch/pipe"
  mkfifo "$scratch/clock" "$scratch/peaks" "$scratch/pipe" "$scratch/pipe.heartbeat"
  exec 9<>"$scratch/clock" # nothing is ever written there: a read from it is a wait
  exec 8<>"$scratch/peaks" # look leaves a line there for measure: a file would take room on the disk
}

# Can this node's disk take another 64 KiB? Outputs that were written to a full disk may be cut. Leaves an empty file.
disk_has_room() {
  local status=1
  for _ in 1 2; do # somebody may kill a program
    # A subshell, which a limit on the size of files may kill.
    ((status == 0)) || ! (printf '%65536s' '' >"$scratch/probe") 2>/dev/null || status=0
  done
  { : >"$scratch/probe"; } 2>/dev/null || true
  return "$status"
}

# Kills what this process waits for: also a child that it has just begun, when a signal came before child_group or work_group
# was set. The work and the heartbeats are not among them.
end_children() {
  local group
  for group in "$child_group" "${!:-}"; do
    [[ -z "$group" || "$group" == "$work_group" || "$group" == "$heartbeat_pid" ]] || kill -KILL -- "-$group" 2>/dev/null || true
  done
}

# The signals that ask a job to end: batch systems send others than SIGTERM too, as a warning or at a limit.
readonly SIGNALS=(TERM INT HUP QUIT USR1 USR2 ALRM XCPU)

# Has a command that does not return run at a signal. bash runs no trap while it leaves a loop by break or continue, and the signal would be
# lost: so this script has neither. The bracket in the second line is not reached. But where bash 5.2 is about to parse a
# $(...), it takes the text for the inside of that, and without a bracket it would end with a syntax error. Arguments: signal, command
hear() {
  # shellcheck disable=SC2064  # the command of now
  trap "$2"$'\n)' "$1"
}
hear_signals() {
  local signal
  for signal in "${SIGNALS[@]}"; do
    hear "$signal" "on_signal $signal"
  done
}

# Ends this script. Argument: the signal's name
on_signal() {
  [[ "$BASHPID" == "$$" ]] || exit "$EXIT_TERM"
  set +e # a program that somebody kills must not end this before all is done
  is_stopped=true
  trap '' "${SIGNALS[@]}"
  pause() { sleep "$1"; } # after SIGALRM no "read" of bash 4.2 ends by its timeout any more
  log "SIG$1: the slice stays leased to this job until its lease expires"
  end_children
  if [[ -n "$work_group" ]]; then
    end_group "$work_group"
    print_log "$scratch/work.log" 100000 || true
  fi
  tidy_up
  # bash 5.2 now and then crashes in "exit" here, when the signal came while it parsed a $(...).
  shopt -s execfail
  trap - EXIT
  exec "$BASH" -pc "exit $EXIT_TERM" 2>/dev/null || exit "$EXIT_TERM"
}

cleanup() {
  local status=$?
  # A child that is ended before it has begun still has these traps: it must not remove our folder.
  [[ "$BASHPID" == "$$" ]] || exit "$status"
  set +e
  trap '' "${SIGNALS[@]}"              # one that comes now would leave our folder, or crash bash
  ! $is_stopped || status="$EXIT_TERM" # bash may have another code, from the command that the signal interrupted
  stop_heartbeats
  [[ -z "$work_group" ]] || end_group "$work_group"
  # bash could start no process, so it can't remove anything either: it would end here with 254.
  ((status != EXIT_NO_FORK)) || exit "$EXIT_NODE_FAULT"
  tidy_up
  case "$status" in
  0 | "$EXIT_FAILED" | "$EXIT_NODE_FAULT" | "$EXIT_LATER" | "$EXIT_REFUSED" | "$EXIT_TERM") exit "$status" ;;
  esac
  ((status != ${CHECKPOINT_CODE:-0})) || exit "$status"
  log "a command of this script failed with $status" # because of what this node has, or has not
  exit "$EXIT_NODE_FAULT"
}

tidy_up() {
  stop_heartbeats
  [[ -z "$leftover" ]] || rm -f "$leftover"
  [[ -z "$scratch" ]] || remove_tree "$scratch"
}
