# shellcheck shell=bash
# --- delivery ----------------------------------------------------------------------------------------------------

# Delivers a file: sends it under a name that nobody else uses, looks whether it arrived whole, and renames it. A killed
# upload leaves a name that ends in .part. Sets output_url when the file is where it belongs.
# Arguments: kind, URL, file, size [bytes], adler32, word that is unique to this start, number of the attempt
deliver() {
  local kind="$1" url="$2" file="$3" bytes="$4" adler="$5" word="$6" try="$7" part="$2.$6.$7.part" error found="" is_moved=true
  storage_error=""
  if [[ "$kind" != pelican ]]; then
    if ! send_whole "$kind" "$file" "$part" "$bytes" "$adler"; then
      error="$storage_error"
      storage "remove_$kind" "$part" || true
      # An earlier attempt may have arrived after all.
      if ((try > 1)) && has_arrived "$kind" "$url" "$bytes" "$adler" 1; then
        output_url="$url"
        return 0
      fi
      storage_error="$error"
      return 1
    fi
    storage "move_$kind" "$part" "$url" || {
      is_moved=false
      log "$url: renaming failed: $storage_error"
    }
    if has_arrived "$kind" "$url" "$bytes" "$adler" "$LOOKS" && { $is_moved || tells_checksum; }; then
      $is_moved || storage "remove_$kind" "$part" || true # an earlier start has delivered the same file meanwhile
      output_url="$url"
      return 0
    fi
    found="$captured" # under the name of this job's tarball: another's, or what the rename has left
    storage "remove_$kind" "$part" || true
  fi
  # Storage that can't rename: a new name for each attempt, since half an object may stay that can't be replaced.
  [[ "$try" == 1 && -z "$found" ]] || url="${url%.tar.gz}.$word.$try.tar.gz"
  send_whole "$kind" "$file" "$url" "$bytes" "$adler" || return 1
  output_url="$url"
}

queue_name="" # as name_queue has set it

# Sets queue_name to what tells this job's tarballs from those of a job with the same numbers, of another access point or of a queue that
# counts from 1 again: .<access point>.<time of submission>, as far as they are known.
name_queue() {
  queue_name="${schedd:+.${schedd//[!A-Za-z0-9.-]/_}}${qdate:+.$qdate}"
}

# Delivers a tarball to OSGPROD_OUTPUT_URL, in several attempts; without that setting it stays here. Sets output_url.
# Arguments: tarball, name here, size [bytes], adler32, greatest number of attempts
send_outputs() {
  local file="$1" bytes="$3" adler="$4" tries="$5" url="${OSGPROD_OUTPUT_URL:-}" kind try word="${scratch##*.}"
  [[ -n "$url" ]] || return 0
  name_queue
  url="${url%/}/${2%.tar.gz}$queue_name.tar.gz"
  storage_kind "$url"
  kind="$url_kind"
  find_token
  # Numbered by start, this name is unique to this job, unless the database is older or the job ad is missing.
  if is_stored_already "$kind" "$url" "$bytes" "$adler"; then
    output_url="$url" # by an earlier start, which was killed before its report
    return 0
  fi
  if [[ -n "$captured" ]]; then
    url="${url%.tar.gz}.$word.tar.gz"
  fi
  for ((try = 1; try <= tries; try++)); do
    ! deliver "$kind" "$url" "$file" "$bytes" "$adler" "$word" "$try" || return 0
    log "outputs not delivered to $url (attempt $try of $tries): $storage_error"
    # A refusal is looked at once more: an overloaded server may refuse, a token may be renewed.
    ! is_refusal "$storage_error" || ((tries <= try + 1)) || tries=$((try + 1))
    ((try == tries)) || pause "$(backoff "$try" "$BACKOFF_MS")"
  done
  return 1
}

# Removes a delivered file that doesn't count. Argument: URL, or nothing
unsend() {
  [[ -n "$1" ]] || return 0
  storage_kind "$1"
  storage "remove_$url_kind" "$1" || log "$1 does not count, and stays: $storage_error"
}
