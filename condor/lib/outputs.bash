# shellcheck shell=bash
# --- outputs -----------------------------------------------------------------------------------------------------

slice_file="" # as the function of this name has set it

# Sets slice_file to the name under which the work script fetches a slice: name+1,4.evio for name.evio+1,4. Argument: slice
slice_file() {
  local blocks="${1##*+}" name="${1%+*}"
  slice_file=""
  [[ "$name" != *.* ]] || slice_file="${name%.*}+$blocks.${name##*.}"
}

# Prints the files, symbolic links and folders below the current folder, each ended by a NUL: all but the work script's own folder, the
# files that are this job's credentials, under any name, and the files of a file system that the work has mounted. A socket, a named
# pipe or a device is no output. Names begin with ./; the word "whole" at the end says that find was neither killed nor kept out of a
# folder.
list_outputs() {
  local file
  local -a credentials=()
  for file in "${X509_USER_PROXY:-}" "${BEARER_TOKEN_FILE:-}" "${OSGPROD_MAGIC_FILE:-}"; do
    [[ ! -f "$file" ]] || credentials+=(! -samefile "$file")
  done
  find . -xdev -path ./.osgprod -prune -o \( -type f -o -type l -o -type d \) ${credentials[@]+"${credentials[@]}"} -print0 && printf 'whole\0'
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

# The outputs are not such that they can be packed, and that is the work's doing, not the node's. Argument: why
unfit() {
  printf '%s\n' "${1//[[:cntrl:]]/?}" >&2
  return "$EXIT_UNFIT"
}

# May this job read a file that the work has left, or a folder and what is in it? What is mounted there is no output. Argument: path
is_readable() {
  if [[ -d "$1" ]]; then
    [[ -r "$1" && -x "$1" ]] || is_mount_point "$PWD/$1"
  else
    [[ -r "$1" || ! -e "$1" ]]
  fi
}

# Packs what the work left into a tarball. Prints the number of its files, without the log. Returns EXIT_UNFIT when the outputs can't be
# packed as they are, and 137 when not all files could be listed.
# Arguments: folder of the work, its log, slice, tarball, log-only = without the outputs
pack_outputs() {
  local file is_whole=false unreadable=""
  local -a files=() codes=(0 0 0)
  slice_file "$3"
  [[ -d "$1" ]] || {
    printf 'somebody has removed the folder of the work: %s\n' "$1" >&2
    return 1
  }
  cd "$1" 2>/dev/null || unfit "the work has left its folder such that this job may not enter it: $1" || return
  while [[ "${5:-}" != log-only ]] && IFS= read -r -d '' file; do
    if [[ "$file" == whole ]]; then
      is_whole=true
    elif [[ "$file" == "./$slice_file" || "$file" == ./osgprod_work.log ]]; then
      rm -f "$file"
    elif [[ ! -L "$file" ]] && ! is_readable "$file"; then
      : "${unreadable:=${file#./}}" # named when find has ended: its own error message may come later than this
    elif [[ -d "$file" && ! -L "$file" ]]; then
      :
    elif is_core "$file"; then
      size_of "$file"
      log "left out: core dump ${file#./}, $size_of bytes"
      rm -f "$file"
    else
      files[${#files[@]}]="$file"
    fi
  done < <(list_outputs)
  [[ -z "$unreadable" ]] || unfit "the work has left a file or folder that this job may not read: $unreadable" || return
  $is_whole || [[ "${5:-}" == log-only ]] || return 137
  printf '%d\n' "${#files[@]}"
  [[ ! -e osgprod_work.log ]] || rm -f osgprod_work.log # a named pipe, for example, which would wait for a reader
  ! tail -c 100000 "$2" >osgprod_work.log 2>/dev/null || files[${#files[@]}]=./osgprod_work.log
  printf '%s\0' ${files[@]+"${files[@]}"} | tar -cf - --no-recursion --null -T - | gzip -c >"$4" || codes=("${PIPESTATUS[@]}")
  ((codes[2] == 0)) || return "${codes[2]}"
  ((codes[1] != 1)) || return "$EXIT_UNFIT" # a file has changed: tar has named it
  ((codes[1] != 2)) || for file in ${files[@]+"${files[@]}"}; do
    [[ -e "$file" || -L "$file" ]] || unfit "a file vanished while it was packed: ${file#./}" || return
  done
  ((codes[1] == 0)) || return "${codes[1]}"
  return "${codes[0]}"
}
