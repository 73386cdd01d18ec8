# shellcheck shell=bash
# --- the work ----------------------------------------------------------------------------------------------------

# After a reconstruction: a full disk explains a failure, and many programs succeed although their last writes failed.
# Argument: exit code of the reconstruction
check_disk() {
  probe_disk .
  [[ -z "$disk_error" ]] || node_fault "the disk is full: outputs may be cut short, the reconstruction ended with $1: $disk_error"
  (($1 != 0)) || return 0
  probe_disk "${TMPDIR:-/tmp}"
  case "$disk_error" in
  *'No space'* | *[Qq]uota*) node_fault "the disk of ${TMPDIR:-/tmp} is full, the reconstruction ended with $1: $disk_error" ;;
  esac
}

# Tells the exit report how many events the reconstruction read, when it left that in the file events_read.
report_events() {
  local events=""
  [[ -s events_read ]] || return 0
  IFS=$' \t\r' read -r events <events_read || true
  if [[ ! "$events" =~ ^[0-9]{1,18}$ ]]; then
    log "events_read holds no number: ${events:0:40}"
  else
    add_to_report "events=$events" || node_fault "${OSGPROD_REPORT:-osgprod_report.txt} can't be written: is the disk full?"
  fi
}

# Arguments: whole files to process when no slice is filled in
main() {
  local status=0
  local -a inputs
  log_name=osgprod_work
  number_setting OSGPROD_TRIES 8 1 1000 TRIES || misconfigured "$setting_error"
  number_setting OSGPROD_BACKOFF_MS 1000 1 600000 BACKOFF_MS || misconfigured "$setting_error"
  slice="${output_filename:-}"
  if [[ -n "${osgprod_source_url:-}" ]] && find_doors; then
    trust_only "${doors[@]}"
    trap 'rm -f "$slice"' EXIT # whole or not, it is not an output
    fetch_slice "$slice"
    inputs=("$slice")
  elif [[ -n "${input_eviofile_list:-}" ]]; then
    log 'no XRootD bindings for Python: the reconstruction must understand names like file.evio+1,2'
    set -f # no patterns
    # shellcheck disable=SC2206  # words
    inputs=($input_eviofile_list)
    set +f
  elif (($# > 0)); then
    inputs=("$@")
  elif [[ -n "${osgprod_source_url:-}" ]]; then
    node_fault 'this node has no XRootD bindings for Python, and the work script lacks the line #input_eviofile_list='
  else
    [[ -z "${OSGPROD_REPORT:-}" ]] || misconfigured 'no slice is filled in: the work script lacks lines like #osgprod_source_url='
    log 'no slice is filled in: fetch this script from the server, or name a file'
    exit "$EXIT_NOT_FILLED"
  fi
  # Not the standard input of this script: this script may come from there.
  "${reconstruction[@]}" "${inputs[@]}" </dev/null || status=$?
  check_disk "$status"
  report_events
  return "$status"
}

# Read as one command, so that nothing more is read when this script comes from standard input.
if [[ "${BASH_SOURCE[0]:-$0}" == "$0" ]]; then
  main "$@"
  exit
fi
