# shellcheck shell=bash
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

# Removes a file or folder with all that is in it, also in folders that may not be written, as copies of CVMFS's are. What
# can't be removed stays. Argument: path
remove_tree() {
  [[ ! -d "$1" ]] || chmod -R u+rwx "$1" 2>/dev/null || true
  rm -rf "$1" 2>/dev/null || true
}
