# shellcheck shell=bash
# --- bearer token ------------------------------------------------------------------------------------------------

# Finds a bearer token where all WLCG tools look, and where HTCondor puts one. Sets bearer, and exports
# BEARER_TOKEN_FILE for other clients when the token is in a file. Call it before each use: HTCondor renews the file.
find_token() {
  local uid file part found="${BEARER_TOKEN:-}"
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
    found=""
    if [[ -f "$file" && -r "$file" ]]; then
      while IFS= read -r -d '' part || [[ -n "$part" ]]; do # up to a NUL, or to the end
        found+="${part//[[:space:]]/}"
      done 2>/dev/null <"$file" || true
    fi
    if [[ -n "$found" ]]; then
      bearer="$found"
      export BEARER_TOKEN_FILE="$file"
      return 0
    fi
  done
}

trusted=" " # hosts to which this job sends its credentials: host:port, or host for all its ports, with a space around each

# Sets the hosts to which this job sends its credentials, a bearer token or a proxy certificate. The submitter or the operator
# named them in OSGPROD_URL, OSGPROD_OUTPUT_URL and OSGPROD_TOKEN_HOSTS, in osgprod_token_hosts, which the server fills in, and in
# the arguments. Other URLs are what jobs have reported. Arguments: URLs
trust_only() {
  local word lists="${OSGPROD_TOKEN_HOSTS:-} ${osgprod_token_hosts:-}"
  trusted=" "
  set -f
  # shellcheck disable=SC2086  # words separated by spaces or commas
  for word in "${OSGPROD_URL:-}" "${OSGPROD_OUTPUT_URL:-}" "$@" ${lists//,/ }; do
    trust "$word"
  done
  set +f
}
# Argument: URL, host, or host:port
trust() {
  local place="${1,,}"
  [[ "$1" != *://* ]] || host_and_port "$1"
  [[ -z "$place" || "$place" == :* || "$place" == *[/[:space:]]* ]] || trusted+="$place "
}

# May this job's credentials be shown to the host of a URL? Only to one that trust has named, and never in the clear.
# Argument: URL
may_have_credentials() {
  local place
  case "$1" in
  [Hh][Tt][Tt][Pp]://* | [Dd][Aa][Vv]://*) return 1 ;;
  esac
  host_and_port "$1"
  [[ "$place" != :* && ("$trusted" == *" $place "* || "$trusted" == *" ${place%:*} "*) ]]
}

# Prints why a host may have refused a request, if this job's credentials were kept from it; nothing otherwise. To a disk, over
# plain http, and for public data none are shown anyway. Argument: URL
withheld() {
  local place
  $shows_credentials || return 0
  case "${1,,}" in
  /* | file:* | http://* | dav://*) return 0 ;;
  esac
  ! may_have_credentials "$1" || return 0
  find_token
  [[ -n "$bearer${X509_USER_PROXY:-}" ]] || return 0
  host_and_port "$1"
  printf '; no credentials were shown to %s: OSGPROD_TOKEN_HOSTS does not name it' "$place"
}

# Runs a client that finds credentials by itself, as XRootD's do: for a host that may not see them, without any.
# Arguments: URL, command
client_for() {
  local url="$1"
  shift
  if may_have_credentials "$url"; then
    "$@"
    return
  fi
  (
    unset BEARER_TOKEN BEARER_TOKEN_FILE X509_USER_PROXY
    export XrdSecPROTOCOL=unix # the name of this user is all that it shows
    exec "$@"
  )
}
