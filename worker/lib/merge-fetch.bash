# shellcheck shell=bash
# --- fetch the inputs --------------------------------------------------------------------------------------------

readonly EXIT_BAD_INPUTS=65
# If so many inputs are all bad, the storage or this node may be the cause.
readonly MANY_INPUTS=3
# No page that a server sends in place of a file is so large.
readonly MAX_PAGE_BYTES=65536

bad_inputs=""  # BLOCK1,BLOCK2 of each input that must be made again, joined by ':'
input_fault="" # the fault of an input

# Notes an input that doesn't fit its record, or whose files can't be merged. Arguments: BLOCK1,BLOCK2, its fault
bad_input() {
  log "bad input $1: $2"
  [[ ":$bad_inputs:" == *":$1:"* ]] || bad_inputs+="${bad_inputs:+:}$1"
}

# Ends the script if inputs are bad: the server requeues their slices, and the merge waits for them. Argument: how many
# inputs there are
end_if_bad() {
  [[ -n "$bad_inputs" ]] || return 0
  split : "$bad_inputs"
  ((${#fields[@]} < MANY_INPUTS || ${#fields[@]} < $1)) ||
    node_fault "all $1 inputs are bad: is the storage away? osgprod outputs check --requeue makes them again if they are lost"
  add_to_report "bad_inputs=$bad_inputs" || node_fault "${OSGPROD_REPORT:-osgprod_report.txt} can't be written: is the disk full?"
  log "bad inputs: ${#fields[@]} of $1: $bad_inputs"
  exit "$EXIT_BAD_INPUTS"
}

# Does an error of storage say that the file does not exist? Argument: what storage said
is_not_found() {
  case "${1,,}" in
  *'no credentials were shown to'*) return 1 ;;
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
  client_url "$url"
  if [[ "$kind" == file && ! -d "$(dirname "$client_url")" ]]; then
    node_fault "not fetched: this node has no folder $(dirname "$client_url")"
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
    # Without its client, a Pelican object is fetched by curl, and compared then.
    [[ "$kind" != root ]] || ((code != 126 && code != 127)) || no_program xrdfs
    # To a stranger storage may say so of a file that is there.
    if ((code != 0 && code < 126)) && is_not_found "$storage_error" && [[ -z "$(withheld "$url")" ]]; then
      input_fault='is gone'
    fi
    return 0
  fi
  [[ "$captured" != *$'\n'* ]] || stored_adler="${captured#*$'\n'}"
  stored_adler="${stored_adler%%$'\n'*}"
  if [[ "$bytes" != - && "$stored_bytes" != "$bytes" ]]; then
    [[ "$kind" != http ]] || storage confirm_size "$url" "$stored_bytes" ||
      node_fault "not fetched: storage reports $stored_bytes bytes for $(shown_url "$url"), but sends another file: $storage_error"
    input_fault="has $stored_bytes bytes instead of $bytes"
  elif [[ "$adler" != - && -n "$stored_adler" ]] && ! same_adler32 "$adler" "$stored_adler"; then
    if [[ "$kind" == file ]]; then
      input_fault="has the checksum $stored_adler instead of $adler"
    else # some storage writes checksums in another way: the bytes decide
      log "$(shown_url "$url") is said to have the checksum $stored_adler instead of $adler"
      stored_adler=""
    fi
  fi
}

# Is a file of this size behind a URL? A server that answers each request with a page, for a login or since it is being
# repaired, tells the size of the page. Arguments: URL, size [bytes] as HEAD says
confirm_size() {
  local code=0 range
  http_transfer "$1" -r 0-1 --max-time 120 --max-filesize "$MAX_PAGE_BYTES" >/dev/null || code=$?
  find_header content-range "$http_head"
  range="$header"
  case "$http_status" in
  206) [[ "${range##*/}" == "$2" ]] && return 0 ;;
  200) ((code == 63 || $2 == 0 && $(content_length) == 0)) && return 0 ;; # 63: it is larger than a page
  416) (($2 == 0)) && return 0 ;;
  esac
  http_fault >&2
  return 1
}

# Prints the Content-Length of the last answer of storage, or 1.
content_length() {
  find_header content-length "$http_head"
  printf '%s' "${header:-1}"
}

# Fetches an input, and compares it with its record. Wrong bytes are fetched once more: they may have come from a cache.
# Sets input_file, or input_fault. Arguments: kind, URL, size [bytes] or -, adler32 or -, file to fetch it into
fetch_input() {
  local kind="$1" url="$2" bytes="$3" adler="$4" try came
  look_at_input "$kind" "$url" "$bytes" "$adler"
  [[ -z "$input_fault" ]] || return 0
  [[ "$bytes" != - ]] || bytes="$stored_bytes"
  if [[ "$kind" == file ]]; then
    client_url "$url"
    input_file="$client_url" # its checksum was computed just now
    [[ -n "$stored_bytes" ]] || node_fault "not fetched: $input_file can't be read"
    return 0
  fi
  for try in 1 2; do
    input_fault="" input_file="$5"
    fetch_whole "$kind" "$url" "$bytes" "$input_file"
    size_of "$input_file"
    came="$size_of"
    if [[ -n "$bytes" && "$came" != "$bytes" ]]; then
      input_fault="has $came bytes instead of $bytes"
    elif [[ "$adler" != - ]]; then
      came="$(adler32 "$input_file" "$came")" || node_fault "the checksum of $input_file can't be computed: is the disk full?"
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
  local kind="$1" url="$2" bytes="$3" file="$4" try code
  { : >"$file"; } 2>/dev/null || node_fault "$file can't be written: is the disk full?"
  osgprod_source_url="$url" # for the messages of append_range
  if [[ -n "$bytes" ]] && can_fetch "$kind"; then
    doors=("$url") given_up=() refusals=()
    begin_round || true
    append_range 0 "$bytes" "$file"
    return 0
  fi
  for ((try = 1; ; try++)); do
    code=0
    storage "whole_$kind" "$url" "$file" || code=$?
    ((code != 0)) || return 0
    ((code != 126 && code != 127)) || no_program "the client for $(shown_url "$url")"
    ((try < TRIES)) || not_fetched "$storage_error ($try attempts)"
    log "fetch failed (attempt $try): $storage_error"
    pause "$(backoff "$try" "$BACKOFF_MS")"
  done
}
whole_http() {
  call_http_body "$1" >"$2"
}
whole_root() {
  client_url "$1"
  client_for "$1" xrdcp --nopbar --force "$client_url" "$2"
}
whole_pelican() {
  may_use_pelican "$1" || return
  pelican object get "$1" "$2"
}
call_http_body() {
  local code=0
  http_transfer "$1" || code=$?
  ((code == 0)) || http_fault >&2
  return "$code"
}

# Fetches all inputs and unpacks each into the folder BLOCK1,BLOCK2. All bad ones are found, so that the server can requeue
# their slices at once. Arguments: folder for these folders, file for the tarball
fetch_inputs() {
  local line url bytes adler block1 block2 kind folder program n=0
  for program in tar gzip; do
    type -P "$program" >/dev/null || no_program "$program"
  done
  # shellcheck disable=SC2154  # filled in by the server
  for line in "${osgprod_inputs[@]}"; do
    n=$((n + 1))
    split ' ' "$line"
    url="${fields[0]:-}" bytes="${fields[1]:-}" adler="${fields[2]:-}" block1="${fields[3]:-}" block2="${fields[4]:-}"
    [[ "${#fields[@]}" == 5 && "$block2" =~ ^[0-9]+$ && "$block1" =~ ^[0-9]+$ ]] || misconfigured "the server gave an input that this script does not know: $line"
    [[ "$url" != - ]] || misconfigured "no URL is known of the output of blocks $block1,$block2: set output_home of the project, or recycle the slice"
    url_kind "$url" || misconfigured "the input $(shown_url "$url") has no scheme that this script knows: $URL_SCHEMES"
    kind="$url_kind"
    input_url "$url"
    url="$input_url"
    log "input $n of ${#osgprod_inputs[@]}: $(shown_url "$url")"
    fetch_input "$kind" "$url" "$bytes" "$adler" "$2"
    folder="$1/$block1,$block2"
    if [[ -n "$input_fault" ]]; then
      bad_input "$block1,$block2" "$(shown_url "$url") $input_fault"
    elif ! mkdir -p "$folder" 2>/dev/null; then
      node_fault "$folder can't be made: is the disk full?"
    else
      unpack_input "$input_file" "$folder" "$2.log" ||
        bad_input "$block1,$block2" "$(shown_url "$url") is not a whole tarball: $(tail -n 1 "$2.log")"
    fi
    rm -f "$2"
  done
  end_if_bad "${#osgprod_inputs[@]}"
}

# Unpacks a tarball. Fails when the tarball is bad; ends the script when this node can't unpack it.
# Arguments: tarball, folder, file for tar's words
unpack_input() {
  local code=0
  tar -xzf "$1" -C "$2" --no-same-owner >/dev/null 2>"$3" || code=$?
  make_readable "$2" # a job that runs as root packs files of any mode
  ((code != 0)) || return 0
  ((code != 126 && code != 127 && code < 129)) || node_fault "tar ended with $code: $(tail -n 1 "$3")"
  check_room "$(tail -n 1 "$3")"
  code=0
  is_sound_tarball "$1" || code=$?
  ((code < 126)) || node_fault "gzip or tar ended with $code"
  ((code != 0)) || node_fault "a whole tarball can't be unpacked here: $(tail -n 1 "$3")"
  return 1
}

# Can a tarball be read to its end, and do all its files belong into its folder? A sound one is read once. Argument: tarball
is_sound_tarball() {
  local -a codes=(0 0 0)
  # Not tar -z: its exit code does not say that somebody has killed its gzip.
  gzip -dc "$1" 2>/dev/null | tar -tf - 2>/dev/null | grep -aE '^/|(^|/)\.\.(/|$)' >/dev/null || codes=("${PIPESTATUS[@]}")
  ((codes[2] > 0)) || return 1
  if ((codes[0] != 0)); then # the tarball is wrong; or tar has ended before
    gzip -t "$1" 2>/dev/null || return
    ((codes[0] == 141)) || return "$EXIT_NO_PROGRAM"
  fi
  ((codes[1] == 0)) || return "${codes[1]}"
  ((codes[2] == 1)) || return "$EXIT_NO_PROGRAM"
}

# Ends the script if the disk is full, which explains a failure. Argument: what failed
check_room() {
  probe_disk .
  [[ -z "$disk_error" ]] || node_fault "the disk is full: ${1:+$1: }$disk_error"
}
