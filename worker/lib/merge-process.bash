# shellcheck shell=bash
# --- commands ----------------------------------------------------------------------------------------------------

# What condor/lib/process.bash has for osgprod_exec.sh, in its process group: osgprod_exec.sh ends that as a whole. pause is
# the work script's.

# Sets captured to what a command printed. Returns its exit code. Arguments: command
capture() {
  local status=0
  captured="$("$@")" || status=$?
  return "$status"
}
