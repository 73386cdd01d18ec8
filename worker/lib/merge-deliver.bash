# shellcheck shell=bash
# --- deliver -----------------------------------------------------------------------------------------------------

readonly EXIT_NOT_DELIVERED=74
readonly MAX_LIST_BYTES=16000 # of outputs_list in the report
readonly MAX_CONFIRM_S=600    # that osgprod_exec.sh may take for a heartbeat, its retries included

outputs_list=""  # JSON objects of the delivered files
merged_folder="" # URL of the folder for merged files; {kind} stands for the kind
attempt_word=""  # see find_attempt_word

# Waits until the server confirms that this attempt has the lease, and ends the script if that lasts: another job may have
# the merge now, and what lies under the names of the merged files may be on record for it. osgprod_exec.sh sends a
# heartbeat when there is the file confirm-lease, removes it then, and keeps the file no-lease while the server does not
# answer; if another job has the merge, it ends this script.
hold_lease() {
  local try own="${OSGPROD_REPORT%/*}" tenths
  for ((try = 1; ; try++)); do
    if [[ -e "$own/sends-heartbeats" ]]; then
      touch "$own/confirm-lease" 2>/dev/null || node_fault "$own/confirm-lease can't be made: is the disk full?"
      for ((tenths = 0; tenths < MAX_CONFIRM_S * 10; tenths++)); do
        [[ -e "$own/confirm-lease" ]] || break
        pause 0.1
      done
      [[ ! -e "$own/confirm-lease" ]] || node_fault "nobody sends heartbeats any more, the lease may have ended: nothing is replaced"
    fi
    [[ -e "$own/no-lease" ]] || return 0
    ((try < TRIES)) || node_fault 'the server does not answer heartbeats, the lease may have ended: nothing is replaced'
    pause "$(backoff "$try" "$BACKOFF_MS")"
  done
}

# Delivers a merged file: sends it under a name that nobody else uses, looks whether it arrived whole, and renames it. A file
# of that name is what an earlier attempt left, which did not count, or a merge that was superseded: it is replaced.
# Arguments: kind of storage, URL, file, size [bytes], adler32, number of the attempt
deliver_merged() {
  local kind="$1" url="$2" file="$3" bytes="$4" adler="$5" part is_moved=true
  [[ -n "$attempt_word" ]] || find_attempt_word
  part="$2.$attempt_word.$6.part"
  storage_error=""
  if [[ "$kind" != pelican ]]; then
    if ! send_whole "$kind" "$file" "$part" "$bytes" "$adler"; then
      withdraw "$kind" "$part"
      return 1
    fi
    if make_way "$kind" "$url"; then
      storage "move_$kind" "$part" "$url" || {
        is_moved=false
        log "$url: renaming failed: $storage_error"
      }
      if has_arrived "$kind" "$url" "$bytes" "$adler" "$LOOKS" && { $is_moved || tells_checksum; }; then
        $is_moved || withdraw "$kind" "$part" # another attempt has delivered the same file meanwhile
        return 0
      fi
    fi
    withdraw "$kind" "$part"
  fi
  # Storage that can't rename, or can't remove: what it then takes under this name, it has replaced.
  make_way "$kind" "$url" || true
  send_whole "$kind" "$file" "$url" "$bytes" "$adler"
}

# Sets attempt_word to a word that only this attempt has, for names. Its token is a secret.
find_attempt_word() {
  attempt_word="$(printf '%s' "${osgprod_token:-$$}" | cksum)" || node_fault "cksum ended with $?"
  attempt_word="${attempt_word// /}"
}

# Removes a file that is not whole; keeps the error that was before. Arguments: kind of storage, URL
withdraw() {
  local error="$storage_error"
  storage "remove_$1" "$2" || true
  storage_error="$error"
}

# Removes the file that has the name of a merged file. Fails when it is still there. Arguments: kind of storage, URL
make_way() {
  local look error=""
  hold_lease
  for ((look = 1; look <= LOOKS; look++)); do
    captured=""
    storage "stored_$1" "$2" || true
    [[ -n "${captured%%$'\n'*}" ]] || return 0
    if ((look == 1)); then
      log "$2 is replaced: an attempt that does not count left it"
      storage "remove_$1" "$2" || error="$storage_error"
    else
      pause "$(backoff "$((look - 1))" "$BACKOFF_MS")"
    fi
  done
  storage_error="the file that has its name can't be removed${error:+: $error}"
  log "$2: $storage_error"
  return 1
}

# Sets merged_folder to the URL of the folder for merged files: the project's merge_output_url, else a folder for this project
# in that of the jobs' tarballs. The names of merged files hold no project: in one folder two projects would replace each
# other's. Nothing = no folder is set.
find_merged_folder() {
  local tarballs="${OSGPROD_OUTPUT_URL:-}" path
  merged_folder="${osgprod_merge_output_url:-}"
  [[ -z "$merged_folder" && -n "$tarballs" ]] || return 0
  [[ -n "${OSGPROD_PROJECT:-}" ]] || misconfigured 'OSGPROD_PROJECT is not set: merged files go to its folder in OSGPROD_OUTPUT_URL'
  merged_folder="${tarballs%/}/$OSGPROD_PROJECT"
  # Below a folder that takes tarballs, the project's may be made, also where that is the first folder of a path (/outputs).
  client_url "$tarballs"
  path="$client_url"
  url_kind "$tarballs" || true
  [[ "$url_kind" != file || ! -d "$path" ]] || mkdir -p "${path%/}/$OSGPROD_PROJECT" 2>/dev/null || true
}

# Delivers a merged file in several attempts, and adds it to outputs_list, which osgprod_exec.sh reports. Arguments: kind, file, its events or nothing
send_merged() {
  local kind="$1" file="$2" events="$3" url store bytes adler try last="$TRIES"
  url="${merged_folder//\{kind\}/$kind}"
  url="${url%/}/${file##*/}"
  storage_kind "$url"
  store="$url_kind"
  size_of "$file"
  bytes="$size_of"
  adler="$(adler32 "$file" "$bytes")" || node_fault "the checksum of $file can't be computed"
  find_token
  if ! is_stored_already "$store" "$url" "$bytes" "$adler"; then
    for ((try = 1; ; try++)); do
      ! deliver_merged "$store" "$url" "$file" "$bytes" "$adler" "$try" || break
      log "not delivered to $url (attempt $try of $last): ${storage_error:-it did not arrive whole}"
      # A refusal is looked at once more: an overloaded server may refuse, a token may be renewed.
      ! is_refusal "$storage_error" || ((last <= try + 1)) || last=$((try + 1))
      if ((try >= last)); then
        log "not delivered: $url: ${storage_error:-it did not arrive whole}"
        exit "$EXIT_NOT_DELIVERED"
      fi
      pause "$(backoff "$try" "$BACKOFF_MS")"
    done
  fi
  log "delivered $url, $bytes bytes${events:+, $events events}"
  json_text "$kind"
  outputs_list+="${outputs_list:+,}{\"kind\":$json_text"
  json_text "$url"
  outputs_list+=",\"url\":$json_text,\"bytes\":$bytes,\"adler32\":\"$adler\""
  outputs_list+="${events:+,\"events\":$events}}"
  ((${#outputs_list} <= MAX_LIST_BYTES)) ||
    misconfigured "the list of merged files has ${#outputs_list} bytes: let merge_kinds have fewer kinds, at most $MAX_LIST_BYTES bytes fit"
  # After each file: if this attempt fails behind it, the server knows which files are in storage.
  add_to_report "outputs_list=[$outputs_list]" || node_fault "${OSGPROD_REPORT:-osgprod_report.txt} can't be written: is the disk full?"
}

json_text="" # as the function of this name has set it

# Sets json_text to a text as JSON has it. Argument: text without control characters
json_text() {
  json_text="${1//\\/\\\\}"
  json_text="\"${json_text//\"/\\\"}\""
}

# Reports to osgprod_exec.sh which inputs to remove when the server has accepted the report.
report_merged() {
  local line url bytes adler
  [[ "${osgprod_merge_cleanup:-keep}" == delete ]] || return 0
  for line in "${osgprod_inputs[@]}"; do
    split ' ' "$line"
    url="${fields[0]:-}" bytes="${fields[1]:-}" adler="${fields[2]:-}"
    # Only the input that was merged: its record must identify it.
    [[ "$bytes" == - || "$adler" == - ]] || add_to_report "merged_input=$url $bytes $adler" || true
  done
}
