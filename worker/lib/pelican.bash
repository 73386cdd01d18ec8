# shellcheck shell=bash
# --- Pelican -----------------------------------------------------------------------------------------------------

readonly MAX_CACHES=6 # of a director's answer

# Prints "HOST[:PORT] PATH" of a Pelican URL: the federation's host, and the path of the object. osdf:///PATH and
# osdf://FOLDER/PATH name no host. Argument: osdf or pelican URL
federation_of() {
  local object="${1#*://}" host="$OSDF_HOST"
  object="${object%%[?#]*}"
  if [[ "${1,,}" == pelican:* ]]; then
    host="${object%%/*}"
    object="${object#"$host"}"
  fi
  printf '%s /%s' "$host" "${object#"${object%%[!/]*}"}"
}

# Prints the places that a federation's director names for an object, the first one is to be tried first, a line each:
# "public URL", or "token URL" where the director demands a token. Prints "failed WORD WAIT_S REASON" when it names none
# (WORD and WAIT_S: see verdict). Fails when a program was killed. Two requests: for the federation's configuration, and to its
# director.
# Source: https://docs.pelicanplatform.org; RFC 6249 for Link with rel=duplicate and pri
# Argument: osdf or pelican URL
pelican_places() {
  local host path text director kind=public url named
  local -a places=()
  read -r host path <<<"$(federation_of "$1")"
  shows_credentials=false
  text="$(http_transfer "https://$host/.well-known/pelican-configuration" --max-time 60 --max-filesize 65536 ||
    printf '\nfailed: %s' "${http_error:-status $http_status}")" || text=$'\nfailed: somebody has killed the request'
  if [[ "$text" == *$'\n'failed:* ]]; then
    printf 'failed again 0 no configuration of the federation %s: %s\n' "$host" "${text##*$'\n'failed: }"
    return 0
  fi
  text="${text//\\\//\/}" # JSON may write / as \/
  if [[ ! "$text" =~ \"director_endpoint\"[[:space:]]*:[[:space:]]*\"(https://[^\"[:space:]]+)\" ]]; then
    printf 'failed never 0 the federation %s names no director\n' "$host"
    return 0
  fi
  director="${BASH_REMATCH[1]%/}"
  # A director answers with a redirect. Should the object itself come, a byte of it is enough.
  http_request "$director$path" --max-time 60 -r 0-0 >/dev/null || true
  if [[ "$http_status" != 30[1278] ]]; then
    case "$http_status" in
    403 | 404) text=refused ;;
    *) text=again ;;
    esac
    find_header retry-after "$http_head"
    url="$header"
    [[ "$url" =~ ^[0-9]{1,9}$ ]] || url=0
    [[ "$http_status" != 000 ]] || http_status="${http_error:-nothing}"
    printf 'failed %s %s the director answers %s instead of a redirect\n' "$text" "$url" "$http_status"
    return 0
  fi
  find_header x-pelican-namespace "$http_head"
  [[ ! "$headers" =~ require-token=[Tt]rue ]] || kind=token
  named="$(named_places "$http_head")" || return
  while IFS= read -r url; do
    case "$kind $url" in
    *' '[Hh][Tt][Tt][Pp][Ss]://?* | 'public '[Hh][Tt][Tt][Pp]://?*) places[${#places[@]}]="$kind $url" ;;
    esac
  done <<<"$named"
  ((${#places[@]} > 0)) || places=('failed again 0 the director names no cache')
  printf '%s\n' "${places[@]:0:MAX_CACHES}"
}

# Prints the URLs of a redirect, one a line: its Location, then its Link headers by their pri, none twice. The query of
# the Location, which may be a signature, makes no difference. Argument: head
named_places() {
  local location links attributes url pri sorted seen=$'\n' pattern='<([^<>[:space:]]+)>([^<]*)(.*)'
  find_header location "$1"
  location="$header"
  find_header link "$1"
  links="${headers//$'\n'/,}"
  [[ -z "$location" ]] || printf '%s\n' "$location"
  sorted="$(
    while [[ "$links" =~ $pattern ]]; do
      url="${BASH_REMATCH[1]}" attributes="${BASH_REMATCH[2]}" links="${BASH_REMATCH[3]}" pri=999999
      [[ "$attributes" != *rel=* || "$attributes" =~ rel=\"?duplicate ]] || continue
      [[ ! "$attributes" =~ pri=\"?([0-9]{1,6}) ]] || pri="$((10#${BASH_REMATCH[1]}))"
      printf '%s %s\n' "$pri" "$url"
    done | sort -s -n -k 1,1
  )" || return
  while IFS=' ' read -r pri url; do
    [[ -n "$url" && "$url" != "${location%%\?*}" && "$seen" != *$'\n'"$url"$'\n'* ]] || continue
    seen+="$url"$'\n'
    printf '%s\n' "$url"
  done <<<"$sorted"
}
