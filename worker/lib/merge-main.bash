# shellcheck shell=bash
# --- the merge ---------------------------------------------------------------------------------------------------

main() {
  local area="$PWD/osgprod_merge" list kind how name events count=0 report="${OSGPROD_REPORT:-}"
  log_name=osgprod_merge
  OSGPROD_REPORT="${OSGPROD_REPORT:-osgprod_report.txt}"
  [[ "$OSGPROD_REPORT" == /* ]] || OSGPROD_REPORT="$PWD/$OSGPROD_REPORT"
  number_setting OSGPROD_TRIES 8 1 1000 TRIES || misconfigured "$setting_error"
  number_setting OSGPROD_BACKOFF_MS 1000 1 600000 BACKOFF_MS || misconfigured "$setting_error"
  if [[ -z "${osgprod_inputs[*]:-}" || ! "${osgprod_run:-}" =~ ^[0-9]+$ ]]; then
    [[ -z "$report" ]] || misconfigured 'no merge is filled in: the project'\''s copy of osgprod_merge.bash lacks a line like #osgprod_run='
    log 'no merge is filled in: fetch this script from the server'
    exit "$EXIT_NOT_FILLED"
  fi
  check_table
  find_merged_folder
  trust_only "$merged_folder"
  [[ -n "$merged_folder" ]] || misconfigured 'no folder for merged files is set: osgprod project set PROJECT merge_output_url=...'
  storage_kind "$merged_folder" ||
    misconfigured "merge_output_url $(shown_url "$merged_folder") is not a folder, or contains a query or a password; schemes: $URL_SCHEMES"
  check_names
  trap 'remove_tree "$PWD/osgprod_merge"' EXIT # neither inputs nor delivered files are outputs of this job
  remove_tree "$area"
  mkdir -p "$area/slices" "$area/kinds" "$area/merged" 2>/dev/null || node_fault "$area can't be made: is the disk full?"
  fetch_inputs "$area/slices" "$area/input.tar.gz"
  sort_by_kind "$area/slices" "$area/kinds"
  for list in "$area/kinds"/*.list; do
    kind="${list##*/}"
    kind="${kind%.list}"
    IFS=' ' read -r how name <"${list%.list}.how"
    [[ ! -e "$area/merged/$name" ]] || misconfigured "merge_kinds gives the name $name to two kinds"
    log "$kind: $name"
    (
      cd "$area/slices" || exit
      trap - EXIT
      merge_kind "$how" "$area/merged/$name" "$list"
      { printf '%s' "$merged_events" >"${list%.list}.events"; } 2>/dev/null || node_fault "${list%.list}.events can't be written: is the disk full?"
    )
  done
  check_room 'the merged files may be cut short'
  # Nothing is delivered before all is merged.
  for list in "$area/kinds"/*.list; do
    kind="${list##*/}"
    kind="${kind%.list}"
    IFS=' ' read -r how name <"${list%.list}.how"
    events=""
    IFS= read -r events <"${list%.list}.events" || true # it has no line end
    send_merged "$kind" "$area/merged/$name" "$events"
    rm -f "$area/merged/$name"
    count=$((count + 1))
  done
  report_merged
  log "slices merged: ${#osgprod_inputs[@]}, files delivered: $count"
}

# Read as one command, so that nothing more is read when this script comes from standard input.
if [[ "${BASH_SOURCE[0]:-$0}" == "$0" ]]; then
  main "$@"
  exit
fi
