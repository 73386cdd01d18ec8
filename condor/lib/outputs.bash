# shellcheck shell=bash
# --- outputs -----------------------------------------------------------------------------------------------------

# Prints the name under which the work script fetches a slice: name+1,4.evio for name.evio+1,4. Argument: slice
slice_file() {
  local blocks="${1##*+}" name="${1%+*}"
  [[ "$name" != *.* ]] || printf '%s' "${name%.*}+$blocks.${name##*.}"
}

# Prints the files of a folder that are outputs, each ended by a NUL: all but the work script's own folder, the files
# that are this job's credentials, under any name, and the files of a file system that the work has mounted. Argument: folder
list_outputs() {
  local file
  local -a credentials=()
  for file in "${X509_USER_PROXY:-}" "${BEARER_TOKEN_FILE:-}" "${OSGPROD_MAGIC_FILE:-}"; do
    [[ ! -f "$file" ]] || credentials+=(! -samefile "$file")
  done
  (cd "$1" && find . -xdev -path ./.osgprod -prune -o ! -type d \
    ${credentials[@]+"${credentials[@]}"} -print0)
}

# Removes core dumps, which are no outputs. Argument: folder
remove_cores() {
  local file
  while IFS= read -r -d '' file; do
    [[ "$(head -c 4 "$file" 2>/dev/null | tr -d '\000')" == $'\x7fELF' ]] || continue
    log "left out: core dump ${file#"$1/"}, $(size_of "$file") bytes"
    rm -f "$file"
  done < <(find "$1" -xdev -type f \( -name core -o -name 'core.*' -o -name 'vgcore.*' \) -print0)
}

# Packs what the work left into a tarball. Prints the number of its files, without the log.
# Arguments: folder of the work, its log, slice, tarball
pack_outputs() {
  local work="$1" work_log="$2" slice_path tarball="$4"
  slice_path="$(slice_file "$3")"
  [[ -z "$slice_path" ]] || rm -f "$work/$slice_path"
  remove_cores "$work"
  rm -f "$work/osgprod_work.log"
  list_outputs "$work" | tr -dc '\000' | wc -c
  tail -c 100000 "$work_log" >"$work/osgprod_work.log" 2>/dev/null || true
  list_outputs "$work" | tar -czf "$tarball" -C "$work" --no-recursion --null -T -
}
