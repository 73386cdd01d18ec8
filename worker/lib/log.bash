# shellcheck shell=bash
# --- log and exit ------------------------------------------------------------------------------------------------

log_name=osgprod # the script, and the job when it has one: begins each log line

# Writes one line to the standard error output. Control characters become "?": the text may come from a stranger's
# server. A full disk or a closed pipe there stops nothing.
log() {
  local text="$*"
  TZ=UTC0 printf '%(%Y-%m-%dT%H:%M:%SZ)T %s: %s\n' -1 "$log_name" "${text//[[:cntrl:]]/?}" >&2 || true
}

# Logs a message and ends the script. Arguments: exit code, message
die() {
  log "$2"
  exit "$1"
}

size_of="" # as the function of this name has set it

# Sets size_of to the size of a file [bytes]. Argument: file
size_of() {
  size_of="$(exec wc -c <"$1")"
}

# Removes a file or folder with all that is in it, also in folders that may not be written, as copies of CVMFS's are. It
# leaves files that can't be removed, and the files of a file system that the work has mounted there: storage, for example.
# Argument: absolute path
remove_tree() {
  if ! is_mount_point "$1" && ! find "$1" -xdev -delete 2>/dev/null && [[ -e "$1" ]]; then
    make_writable "$1"
    find "$1" -xdev -delete 2>/dev/null || true
  fi
  [[ ! -e "$1" ]] || log "$1 stays: something is mounted there, or may not be removed"
}

# Makes all folders in a folder writable, but none of another file system. Argument: folder
make_writable() {
  find "$1" -xdev -type d ! -perm -700 -exec chmod u+rwx {} \; 2>/dev/null || true
}

# Makes all folders and files in a folder that this user owns readable for this user, but none of another file system. Argument: folder
make_readable() {
  find "$1" -xdev \( -type d ! -perm -700 -o -type f ! -perm -400 \) -exec chmod u+rwX {} \; 2>/dev/null || true
}

# Is a path the root of another file system than the folder that it is in? Argument: absolute path
is_mount_point() {
  local devices
  [[ -e "$1" ]] || return 1
  devices="$(exec stat -c %d "$1" "${1%/*}/" 2>/dev/null)" || true
  [[ "$devices" != "${devices%%$'\n'*}"$'\n'"${devices%%$'\n'*}" ]]
}
