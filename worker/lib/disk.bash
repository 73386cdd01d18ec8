# shellcheck shell=bash
# --- disk --------------------------------------------------------------------------------------------------------

readonly PROBE_BYTES=1048576

disk_error="" # as probe_disk has set it

# Can a small file still be written in a folder? Sets disk_error to the system's words when it can't, else to nothing.
# Argument: folder
probe_disk() {
  local probe="$1/.osgprod_probe.$$" code
  for _ in 1 2; do # somebody may kill a program
    code=0
    disk_error="$(exec 2>&1 && exec head -c "$PROBE_BYTES" /dev/zero >"$probe")" || code=$?
    ((code > 128)) || break
  done
  rm -f "$probe"
  disk_error="${disk_error##*: }"
  ((code > 0)) || disk_error=""
  ((code == 0)) || disk_error="${disk_error:-no reason given}" # by a limit on the size of files, for example
}
