# shellcheck shell=bash
# --- fetch the inputs --------------------------------------------------------------------------------------------

readonly EXIT_BAD_INPUTS=65
# If so many inputs are all gone, the storage may be away.
readonly MANY_INPUTS=3

bad_inputs=""  # BLOCK1,BLOCK2 of each input that must be made again, joined by ':'
input_fault="" # the fault of an input
gone=0         # inputs that are not there

# Notes an input that doesn't fit its record, or whose files can't be merged. Arguments: BLOCK1,BLOCK2, its fault
bad_input() {
  log "bad input $1: $2"
  [[ ":$bad_inputs:" == *":$1:"* ]] || bad_inputs+="${bad_inputs:+:}$1"
}

# Ends the script if inputs are bad: the server requeues their slices, and the merge waits for them. Argument: how many
# inputs there are
end_if_bad() {
  local -a names
  [[ -n "$bad_inputs" ]] || return 0
  ((gone < MANY_INPUTS || gone < $1)) ||
    node_fault "all $1 inputs are gone: is the storage away? osgprod outputs check --requeue makes them again if they are lost"
  IFS=: read -r -a names < <(printf '%s\n' "$bad_inputs")
  add_to_report "bad_inputs=$bad_inputs" || node_fault "${OSGPROD_REPORT:-osgprod_report.txt} can't be written: is the disk full?"
  log "bad inputs: ${#names[@]} of $1: $bad_inputs"
  exit "$EXIT_BAD_INPUTS"
}

# Does an error of storage say that the file does not exist? Argument: what storage said
is_not_found() {
  case "${1,,}" in
  '' | 'status 404 '* | 'status 410 '* | *'[3011]'* | *'no such file'* | *'not found'* | *'does not exist'*) ;;
  *) return 1 ;;
  esac
}

# Compares an input with what storage says of it. Sets input_fault; empty = nothing is wrong, as far as storage says. Sets
# stored_bytes and stored_adler, empty = storage does not say. A file that seems to be gone is looked for several times: an
# overloaded cache answers so for files that exist. Arguments: kind, URL, size [bytes] or -, adler32 or -
look_at_input() {
  local kind="$1" url="$2" bytes="$3" adler="$4" look code
  input_fault="" stored_bytes="" stored_adler=""
  if [[ "$kind" == file && ! -d "$(dirname "$(client_url "$url")")" ]]; then
    node_fault "not fetched: this node has no folder $(dirname "$(client_url "$url")")"
  fi
  for ((look = 1; look <= LOOKS; look++)); do
    ((look == 1)) || pause "$(backoff "$((look - 1))" "$BACKOFF_MS")"
    code=0
    storage "stored_$kind" "$url" || code=$?
    stored_bytes="${captured%%$'\n'*}"
    [[ -z "$stored_bytes" ]] || break
  done
  if [[ ! "$stored_bytes" =~ ^[0-9]+$ ]]; then
    stored_bytes=""
    if ((code != 0)) && is_not_found "$storage_error"; then
      input_fault='is gone'
      gone=$((gone + 1))
    fi
    return 0
  fi
  [[ "$captured" != *$'\n'* ]] || stored_adler="${captured#*$'\n'}"
  stored_adler="${stored_adler%%$'\n'*}"
  if [[ "$bytes" != - && "$stored_bytes" != "$bytes" ]]; then
    input_fault="has $stored_bytes bytes instead of $bytes"
  elif [[ "$adler" != - && -n "$stored_adler" ]] && ! same_adler32 "$adler" "$stored_adler"; then
    input_fault="has the checksum $stored_adler instead of $adler"
  fi
}

# Fetches an input, and compares it with its record. Wrong bytes are fetched once more: they may have come from a cache.
# Sets input_file, or input_fault. Arguments: kind, URL, size [bytes] or -, adler32 or -, file to fetch it into
fetch_input() {
  local kind="$1" url="$2" bytes="$3" adler="$4" try came
  look_at_input "$kind" "$url" "$bytes" "$adler"
  [[ -z "$input_fault" ]] || return 0
  [[ "$bytes" != - ]] || bytes="$stored_bytes"
  if [[ "$kind" == file ]]; then
    input_file="$(client_url "$url")" # its checksum was computed just now
    [[ -n "$stored_bytes" ]] || node_fault "not fetched: $input_file can't be read"
    return 0
  fi
  for try in 1 2; do
    input_fault="" input_file="$5"
    fetch_whole "$kind" "$url" "$bytes" "$input_file"
    came="$(size_of "$input_file")"
    if [[ -n "$bytes" && "$came" != "$bytes" ]]; then
      input_fault="has $came bytes instead of $bytes"
    elif [[ "$adler" != - ]]; then
      came="$(adler32 "$input_file")" || node_fault "the checksum of $input_file can't be computed: is the disk full?"
      same_adler32 "$adler" "$came" || input_fault="has the checksum $came instead of $adler"
    fi
    [[ -n "$input_fault" ]] || return 0
    log "$(shown_url "$url") $input_fault (attempt $try of 2)"
  done
  # Storage holds what its record says: the bytes went wrong on the way.
  [[ "$adler" == - || -z "$stored_adler" ]] || node_fault "not fetched: wrong bytes came: $(shown_url "$url") $input_fault"
}

# Fetches a whole file. Arguments: kind, URL, size [bytes] or nothing, file
fetch_whole() {
  local kind="$1" url="$2" bytes="$3" file="$4" try
  { : >"$file"; } 2>/dev/null || node_fault "$file can't be written: is the disk full?"
  osgprod_source_url="$url" # for the messages of append_range
  if [[ -n "$bytes" ]] && can_fetch "$kind"; then
    doors=("$url") given_up=() refusals=()
    begin_round || true
    append_range 0 "$bytes" "$file"
    return 0
  fi
  for ((try = 1; ; try++)); do
    ! storage "whole_$kind" "$url" "$file" || return 0
    ((try < TRIES)) || not_fetched "$storage_error ($try attempts)"
    log "fetch failed (attempt $try): $storage_error"
    pause "$(backoff "$try" "$BACKOFF_MS")"
  done
}
whole_http() {
  call_http_body "$1" >"$2"
}
whole_root() {
  xrdcp --nopbar --force "$(client_url "$1")" "$2"
}
whole_pelican() {
  pelican object get "$1" "$2"
}
call_http_body() {
  local code=0
  http_transfer "$1" || code=$?
  ((code == 0)) || printf 'status %s %s\n' "$http_status" "$http_error" >&2
  return "$code"
}

# Fetches all inputs and unpacks each into the folder BLOCK1,BLOCK2. All bad ones are found, so that the server can requeue
# their slices at once. Arguments: folder for these folders, file for the tarball
fetch_inputs() {
  local line url bytes adler block1 block2 kind folder n=0
  # shellcheck disable=SC2154  # filled in by the server
  for line in "${osgprod_inputs[@]}"; do
    n=$((n + 1))
    IFS=' ' read -r url bytes adler block1 block2 < <(printf '%s\n' "$line") || true
    [[ "$block2" =~ ^[0-9]+$ && "$block1" =~ ^[0-9]+$ ]] || misconfigured "the server gave an input that this script does not know: $line"
    kind="$(url_kind "$url")" || misconfigured "the input $(shown_url "$url") has no scheme that this script knows: $URL_SCHEMES"
    log "input $n of ${#osgprod_inputs[@]}: $(shown_url "$url")"
    fetch_input "$kind" "$url" "$bytes" "$adler" "$2"
    folder="$1/$block1,$block2"
    if [[ -n "$input_fault" ]]; then
      bad_input "$block1,$block2" "$(shown_url "$url") $input_fault"
    elif ! mkdir -p "$folder" 2>/dev/null; then
      node_fault "$folder can't be made: is the disk full?"
    elif ! tar -xzf "$input_file" -C "$folder" --no-same-owner >/dev/null 2>"$2.log"; then
      check_room "$(tail -n 1 "$2.log")"
      bad_input "$block1,$block2" "$(shown_url "$url") is not a whole tarball: $(tail -n 1 "$2.log")"
    fi
    rm -f "$2"
  done
  end_if_bad "${#osgprod_inputs[@]}"
}

# Ends the script if the disk is full, which explains a failure. Argument: what failed
check_room() {
  local words
  words="$(probe_disk .)"
  [[ -z "$words" ]] || node_fault "the disk is full: $1: $words"
}
