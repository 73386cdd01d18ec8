# shellcheck shell=bash
# --- outputs -----------------------------------------------------------------------------------------------------

slice_file="" # as the function of this name has set it

# Sets slice_file to the name under which the work script fetches a slice: name+1,4.evio for name.evio+1,4. Argument: slice
slice_file() {
  local blocks="${1##*+}" name="${1%+*}"
  slice_file=""
  [[ "$name" != *.* ]] || slice_file="${name%.*}+$blocks.${name##*.}"
}

# Prints the files of the current folder that are outputs, each ended by a NUL: all but the work script's own folder, the files
# that are this job's credentials, under any name, the files of a file system that the work has mounted, and sockets, which no
# tarball can hold. Names begin with ./; the word "whole" at the end says that find was neither killed nor kept out of a folder.
list_outputs() {
  local file
  local -a credentials=()
  for file in "${X509_USER_PROXY:-}" "${BEARER_TOKEN_FILE:-}" "${OSGPROD_MAGIC_FILE:-}"; do
    [[ ! -f "$file" ]] || credentials+=(! -samefile "$file")
  done
  find . -xdev -path ./.osgprod -prune -o ! -type d ! -type s ${credentials[@]+"${credentials[@]}"} -print0 && printf 'whole\0'
}

# Is a file a core dump? Argument: file
is_core() {
  local magic=""
  case "${1##*/}" in
  core | core.* | vgcore.*) ;;
  *) return 1 ;;
  esac
  [[ -f "$1" && ! -L "$1" ]] || return 1
  { IFS= read -r -n 4 magic <"$1"; } 2>/dev/null || true
  [[ "$magic" == $'\x7fELF' ]]
}

# Packs what the work left into a tarball. Prints the number of its files, without the log. Returns 137 when not all files could be
# listed.
# Arguments: folder of the work, its log, slice, tarball
pack_outputs() {
  local file is_whole=false
  local -a files=()
  slice_file "$3"
  cd "$1" || return
  while IFS= read -r -d '' file; do
    if [[ "$file" == whole ]]; then
      is_whole=true
    elif [[ "$file" == "./$slice_file" || "$file" == ./osgprod_work.log ]]; then
      rm -f "$file"
    elif is_core "$file"; then
      size_of "$file"
      log "left out: core dump ${file#./}, $size_of bytes"
      rm -f "$file"
    else
      files[${#files[@]}]="$file"
    fi
  done < <(list_outputs)
  $is_whole || return 137
  printf '%d\n' "${#files[@]}"
  ! tail -c 100000 "$2" >osgprod_work.log 2>/dev/null || files[${#files[@]}]=./osgprod_work.log
  printf '%s\0' ${files[@]+"${files[@]}"} | tar -cf - --no-recursion --null -T - | gzip >"$4"
}
