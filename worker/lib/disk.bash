# shellcheck shell=bash
# --- disk --------------------------------------------------------------------------------------------------------

readonly PROBE_BYTES=1048576

# Can a small file still be written in a folder? Prints the system's error when it can't. Argument: folder
probe_disk() {
  local probe="$1/.osgprod_probe.$$" words code=0
  words="$({ head -c "$PROBE_BYTES" /dev/zero >"$probe"; } 2>&1)" || code=1
  rm -f "$probe"
  words="${words##*: }"
  ((code == 0)) || printf '%s' "${words:-no reason given}" # by a limit on the size of files, for example
}
