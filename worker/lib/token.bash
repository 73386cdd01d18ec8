# shellcheck shell=bash
# --- bearer token ------------------------------------------------------------------------------------------------

# Finds a bearer token where all WLCG tools look, and where HTCondor puts one. Sets bearer, and exports
# BEARER_TOKEN_FILE for other clients when the token is in a file. Call it before each use: HTCondor renews the file.
find_token() {
  local uid file found="${BEARER_TOKEN:-}"
  bearer=""
  found="${found//[[:space:]]/}"
  if [[ -n "$found" ]]; then
    bearer="$found"
    return 0
  fi
  uid="$EUID"
  if [[ -n "${BEARER_TOKEN_FILE:-}" ]]; then
    set -- "$BEARER_TOKEN_FILE" # a file that is named is the only one
  else                          # HTCondor's belongs to this job; the others may belong to all who run as this user
    set -- "${_CONDOR_CREDS:-/nonexistent}"/*.use "${XDG_RUNTIME_DIR:-/nonexistent}/bt_u$uid" "/tmp/bt_u$uid"
  fi
  for file in "$@"; do
    [[ -f "$file" && -r "$file" ]] || continue
    found="$(tr -d '[:space:]\000' <"$file")" || found=""
    if [[ -n "$found" ]]; then
      bearer="$found"
      export BEARER_TOKEN_FILE="$file"
      return 0
    fi
  done
}

# May the bearer token be sent to this URL? Only over https, to the host that the URL of the request names, or, after
# a redirect, to one that OSGPROD_TOKEN_HOSTS lists: host or host:port, separated by spaces or commas.
# Arguments: URL, URL of the request before any redirect
may_have_token() {
  local place first host hosts="${OSGPROD_TOKEN_HOSTS:-}"
  [[ "${1%%://*}" == [Hh][Tt][Tt][Pp][Ss] ]] || return 1
  place="$(host_and_port "$1")"
  first="$(host_and_port "$2")"
  [[ "$place" != "$first" ]] || return 0
  for host in ${hosts//,/ }; do
    [[ "${host,,}" != "$place" && "${host,,}" != "${place%:*}" ]] || return 0
  done
  return 1
}
