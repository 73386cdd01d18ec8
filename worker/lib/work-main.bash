# shellcheck shell=bash
# --- the work ----------------------------------------------------------------------------------------------------

# Arguments: whole files to process when no slice is filled in
main() {
  local status=0 kind
  local -a inputs
  log_name=osgprod_work
  TRIES="$(number_setting OSGPROD_TRIES 8 1 1000 2>&1)" || misconfigured "${TRIES#*"$log_name: "}"
  BACKOFF_MS="$(number_setting OSGPROD_BACKOFF_MS 1000 1 600000 2>&1)" || misconfigured "${BACKOFF_MS#*"$log_name: "}"
  slice="${output_filename:-}"
  if [[ -n "${osgprod_source_url:-}" ]]; then
    kind="$(url_kind "$osgprod_source_url")" ||
      misconfigured "the source $(shown_url "$osgprod_source_url") has no scheme that this script knows: $URL_SCHEMES"
    [[ "$kind" != pelican ]] ||
      misconfigured "the source $(shown_url "$osgprod_source_url") can't be read: give the project a prefix of http(s)://, root:// or a path"
  fi
  if [[ -n "${kind:-}" ]] && can_fetch "$kind"; then
    trap 'rm -f "$slice"' EXIT # whole or not, it is no output
    fetch_slice "$slice"
    inputs=("$slice")
  elif [[ -n "${input_eviofile_list:-}" ]]; then
    log 'no XRootD bindings for Python: the reconstruction must understand names like file.evio+1,2'
    IFS=$' \n' read -r -d '' -a inputs < <(printf '%s' "$input_eviofile_list") || true
  elif (($# > 0)); then
    inputs=("$@")
  else
    log 'no slice is filled in: fetch this script from the server, or name a file'
    exit "$EXIT_NOT_FILLED"
  fi
  "${reconstruction[@]}" "${inputs[@]}" || status=$?
  if [[ -s events_read ]]; then
    printf 'events=%s\n' "$(head -n 1 events_read)" >>"${OSGPROD_REPORT:-osgprod_report.txt}"
  fi
  return "$status"
}

if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
  main "$@"
fi
