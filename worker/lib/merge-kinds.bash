# shellcheck shell=bash
# --- merge by kind -----------------------------------------------------------------------------------------------

readonly EXIT_NOT_MERGED=66 EXIT_NO_PROGRAM=127
readonly MAX_HEADER_BYTES=1000000 # of an HDDM file; GlueX's have some 30,000

run="" seqno=""  # digits of names
merged_events="" # of a merged file; empty = they can't be counted
fields=()        # see split

# The result is not what it must be. Argument: message
not_merged() {
  log "$1"
  exit "$EXIT_NOT_MERGED"
}

# A program is missing here. Argument: its name
no_program() {
  log "$1 is not on this node"
  exit "$EXIT_NO_PROGRAM"
}

# Sets fields to the words of the first line of a text. Arguments: characters that divide words, text
split() {
  local IFS="$1"
  set -f
  # shellcheck disable=SC2206  # words
  fields=(${2%%$'\n'*})
  set +f
}

# Prints a file's name without its extension, and without the slice's name in front. Argument: name
stem_of() {
  local stem="${1%.*}"
  if [[ "$stem" =~ ^(.*)\+[0-9]+,[0-9]+(\..*)?$ ]]; then
    stem="${BASH_REMATCH[2]#.}"
    [[ -n "$stem" ]] || stem="${BASH_REMATCH[1]}"
  fi
  stem="${stem//[!A-Za-z0-9._+-]/_}"
  [[ "$stem" != .* && -n "$stem" ]] || stem="_${stem#.}" # no hidden file
  printf '%s' "$stem"
}

# Finds the line of the table for a file. Sets row_kind, row_how, row_merged, row_slices, and row_has_stem: does the name
# of the file make the kind? Argument: name
find_row() {
  local row
  for row in "${merge_kinds[@]}"; do
    split $' \t' "$row"
    # shellcheck disable=SC2053  # a pattern
    [[ "$1" == ${fields[1]} ]] || continue
    row_kind="${fields[0]}" row_how="${fields[2]}" row_merged="${fields[3]}" row_slices="${fields[4]}"
    row_has_stem=false
    [[ "$row_kind" != *'{stem}'* ]] || row_has_stem=true
    ! $row_has_stem || row_kind="${row_kind//\{stem\}/$(stem_of "$1")}"
    return 0
  done
  return 1
}

# Is the table sound? A line that can't be understood is named.
check_table() {
  local row
  ((${#merge_kinds[@]} > 0)) || misconfigured 'merge_kinds has no line'
  for row in "${merge_kinds[@]}"; do
    split $' \t' "$row"
    row_kind="${fields[0]:-}" row_how="${fields[2]:-}" row_merged="${fields[3]:-}" row_slices="${fields[4]:-}"
    [[ "${#fields[@]}" == 5 && "$row_kind" =~ ^[A-Za-z0-9._+{}-]+$ && "$row_how" =~ ^(root|hddm|evio|cat|tar)$ && "$row_merged" != */* ]] &&
      [[ "$row_slices" =~ ^(all|must|some)$ ]] || misconfigured "merge_kinds has a line that is none: ${row:0:100}"
  done
}

# Sets run and seqno to the digits of names; seqno is empty when a whole run is merged.
find_numbers() {
  # shellcheck disable=SC2154  # filled in by the server
  printf -v run '%06d' "$((10#$osgprod_run))"
  seqno=""
  [[ ! "${osgprod_seqno:-}" =~ ^[0-9]+$ ]] || printf -v seqno '%03d' "$((10#$osgprod_seqno))"
}

# Does each merged file have a name that no other merge of the project gives its own? The number of the run must be in its name or
# in that of its folder, and so must the number of the file, unless a whole run is merged.
check_names() {
  local row name
  find_numbers
  for row in "${merge_kinds[@]}"; do
    split $' \t' "$row"
    name="${fields[3]}"
    [[ "$name" == *'{run}'* || "$merged_folder" =~ (^|[^0-9])"$run"([^0-9]|$) ]] ||
      misconfigured "merge_kinds: the name $name lacks {run}: each run would replace the merged file of the one before"
    [[ -z "$seqno" || "$name" == *'{seqno}'* || "$merged_folder" =~ (^|[^0-9])"$seqno"([^0-9]|$) ]] ||
      misconfigured "merge_kinds: the name $name lacks {seqno}: each file would replace the merged file of the one before"
  done
}

# Sorts the files of all slices by kind: KIND.list holds their paths, each ended by a NUL, in the order of slices and names.
# A slice that lacks a kind which it must have is bad. Arguments: folder of the slices' folders, folder for the lists
sort_by_kind() {
  local slices="$1" lists="$2" slice path line kind
  local -a names=()
  local -A how=() merged=() wanted=() has=() count=()
  for line in "${osgprod_inputs[@]}"; do
    split ' ' "$line"
    names[${#names[@]}]="${fields[3]},${fields[4]}"
  done
  for line in "${merge_kinds[@]}"; do
    split $' \t' "$line"
    kind="${fields[0]}"
    [[ "${fields[4]}" != must || "$kind" == *'{stem}'* ]] || wanted["$kind"]=must
  done
  for slice in "${names[@]}"; do
    (cd "$slices" && find "$slice" \( -type f -o -type l \) -print0 | LC_ALL=C sort -z) >"$lists/files" ||
      node_fault "the files of the slice $slice can't be listed: is the disk full?"
    while IFS= read -r -d '' path; do
      find_row "${path##*/}" || continue
      kind="$row_kind"
      [[ ! -L "$slices/$path" || "$row_how" == tar ]] || is_link_inside "$slices" "$path" ||
        not_merged "$path is a symbolic link to no file of its slice"
      if [[ -z "${how["$kind"]:-}" ]]; then
        how["$kind"]="$row_how" merged["$kind"]="$row_merged" wanted["$kind"]="$row_slices"
      elif [[ "${how["$kind"]}" != "$row_how" ]] && $row_has_stem; then
        not_merged "$path is of the kind $kind, as files that are merged by ${how["$kind"]}: give it a line in merge_kinds"
      elif [[ "${how["$kind"]}" != "$row_how" ]]; then
        misconfigured "merge_kinds merges $kind in two ways, $row_how and ${how["$kind"]}"
      fi
      printf '%s\0' "$path" >>"$lists/$kind.list" || node_fault "$lists/$kind.list can't be written: is the disk full?"
      [[ -n "${has["$kind $slice"]:-}" ]] || count["$kind"]=$((${count["$kind"]:-0} + 1))
      has["$kind $slice"]=true
    done <"$lists/files"
  done
  ((${#wanted[@]} > 0)) || not_merged 'the tarballs hold no file that merge_kinds names'
  for kind in "${!wanted[@]}"; do
    if [[ "${wanted["$kind"]}" == must && -z "${count["$kind"]:-}" ]]; then
      not_merged "no slice has a file of the kind $kind"
    elif [[ "${wanted["$kind"]}" != some ]]; then
      for slice in "${names[@]}"; do
        [[ -n "${has["$kind $slice"]:-}" ]] || bad_input "$slice" "it has no file of the kind $kind, as the others have"
      done
    fi
    printf '%s %s\n' "${how["$kind"]}" "$(merged_name "$kind" "${merged["$kind"]}")" >"$lists/$kind.how" ||
      node_fault "$lists/$kind.how can't be written: is the disk full?"
  done
  end_if_bad "${#names[@]}"
}

# Does a symbolic link lead to a file of the same slice? Arguments: folder of the slices' folders, path of the link in it
is_link_inside() {
  local target own
  target="$(readlink -f "$1/$2" 2>/dev/null)" && own="$(readlink -f "$1/${2%%/*}")" && [[ -f "$target" && "$target" == "$own"/* ]]
}

# Prints the name of a merged file. Arguments: kind, name with placeholders
merged_name() {
  local name="${2//\{kind\}/$1}"
  [[ -n "$seqno" ]] || name="${name//_\{seqno\}/}"
  name="${name//\{run\}/$run}"
  printf '%s' "${name//\{seqno\}/$seqno}"
}

# Merges one kind. The current folder is that of the slices' folders. Sets merged_events.
# Arguments: how, output, file with the list of inputs
merge_kind() {
  local path
  local -a inputs=()
  while IFS= read -r -d '' path; do
    inputs[${#inputs[@]}]="$path"
  done <"$3"
  merged_events=""
  "merge_$1" "$2" "${inputs[@]}"
  [[ -s "$2" ]] || not_merged "${2##*/} is empty"
}

merge_cat() {
  local output="$1"
  shift
  cat -- "$@" >"$output" || node_fault "$output can't be written: is the disk full?"
}

merge_tar() {
  local output="$1"
  shift
  printf '%s\0' "$@" | tar -czf "$output" --no-recursion --null -T - || node_fault "$output can't be written: is the disk full?"
}

merge_root() {
  local path status=0
  command -v "${hadd_command[0]}" >/dev/null || no_program "${hadd_command[0]}"
  for path in "${@:2}"; do
    is_whole_root "$path" || bad_input "${path%%/*}" "$path is not a whole ROOT file"
  done
  end_if_bad "${#osgprod_inputs[@]}"
  "${hadd_command[@]}" "$@" >"$1.log" 2>&1 </dev/null || status=$?
  judge_program "${hadd_command[0]}" "$status" "$1.log"
  is_whole_root "$1" || not_merged "${1##*/}: hadd left no whole ROOT file"
  count_events root "$@"
}

merge_hddm() {
  local output="$1" path status=0 packed=false first="" differs=""
  shift
  for path in "$@"; do
    if ! hddm_header "$path"; then
      bad_input "${path%%/*}" "$path is no HDDM file"
      continue
    fi
    [[ "$hddm_header" == "${first:=$hddm_header}" ]] || differs="$path"
    ! is_packed_hddm "$path" || packed=true
  done
  end_if_bad "${#osgprod_inputs[@]}"
  # Before hddmcat blames a file: it is unclear which of them is wrong.
  [[ -z "$differs" ]] || not_merged "$differs has another header than $1: other software made it"
  if $packed; then # of what hddmcat makes of these, readers find the first file's records only
    command -v "$PYTHON" >/dev/null || no_program "$PYTHON"
  else
    command -v "${hddmcat_command[0]}" >/dev/null || no_program "${hddmcat_command[0]}"
    "${hddmcat_command[@]}" "$@" >"$output" 2>"$output.log" </dev/null || status=$?
    judge_program "${hddmcat_command[0]}" "$status" "$output.log"
  fi
  count_events hddm "$output" "$@"
}

hddm_header="" # as the function of this name has set it

# Sets hddm_header to the header of an HDDM file: the text up to the line </HDDM>. Fails when it has none. Argument: file
hddm_header() {
  local line
  hddm_header=""
  while ((${#hddm_header} < MAX_HEADER_BYTES)) && IFS= read -r -n "$MAX_HEADER_BYTES" line; do
    hddm_header+="$line"$'\n'
    [[ "$hddm_header" == '<HDDM'* ]] || return 1
    [[ "$line" != '</HDDM>' ]] || return 0
  done <"$1"
  return 1
}

# Is the HDDM file compressed of which hddm_header has read the header? Then a control record is behind that. Argument: file
is_packed_hddm() {
  local words
  words="$(exec od -A n -v -t x1 -j "${#hddm_header}" -N 8 "$1")" || node_fault "$1 can't be read"
  [[ "$words" == ' 00 00 00 01 00 00 00 08' ]]
}

merge_evio() {
  command -v "$PYTHON" >/dev/null || no_program "$PYTHON"
  count_events evio "$@"
}

# Ends the script if a program failed. Inputs that its errors name are bad. Arguments: program, exit code, its output
judge_program() {
  local line words input path='[0-9]+,[0-9]+/[^ ]*' errors='error|cannot|can.t|not a|zombie|recover|invalid|truncated|corrupt'
  (($2 != 0)) || return 0
  tail -n 20 "$3" >&2 || true
  (($2 != 126 && $2 != 127)) || no_program "$1"
  (($2 < 128)) || node_fault "$1 was killed by signal $(($2 - 128))"
  check_room "$1 ended with $2"
  while IFS= read -r line || [[ -n "$line" ]]; do
    [[ "${line,,}" =~ $errors && "$line" =~ (^|[^0-9,])([0-9]+,[0-9]+)/ ]] || continue
    input="${BASH_REMATCH[2]}" words="$line"
    # Words of a file name are not words of an error: 1,2/error_hist.root
    while [[ "$words" =~ $path ]]; do
      words="${words/"${BASH_REMATCH[0]}"/}"
    done
    [[ ! "${words,,}" =~ $errors ]] || bad_input "$input" "$line"
  done <"$3"
  end_if_bad "${#osgprod_inputs[@]}"
  not_merged "$1 ended with $2: $(tail -n 1 "$3")"
}

# Joins EVIO files, or counts the events of what another program merged. Sets merged_events. Without Python nothing is
# counted. Arguments: evio, hddm or root; output; inputs
count_events() {
  local status=0 said
  if ! command -v "$PYTHON" >/dev/null; then
    log "${2##*/}: nobody has counted the events: $PYTHON is not on this node"
    add_to_report "software=merged without a count of events: $PYTHON is not on the node" || true
    return 0
  fi
  merge_program >"$2.py" 2>/dev/null || node_fault "$2.py can't be written: is the disk full?"
  merged_events="$("$PYTHON" "$2.py" "$@" 2>"$2.log" </dev/null)" || status=$?
  said="$(tail -n 1 "$2.log")"
  [[ -z "$said" ]] || log "$said"
  [[ "$merged_events" =~ ^[0-9]{1,18}$ ]] || merged_events=""
  case "$status" in
  0) return 0 ;;
  "$EXIT_BAD_INPUTS")
    said="${said#bad input }"
    bad_input "${said%%/*}" "${said#*/}"
    end_if_bad "${#osgprod_inputs[@]}"
    ;;
  *)
    check_room "the program for $1 ended with $status"
    ((status < 128)) || node_fault "$PYTHON was killed by signal $((status - 128))"
    ((status != 75)) || node_fault "${2##*/}: $said"
    ;;
  esac
  not_merged "${2##*/} is not what it must be: ${said:-$PYTHON ended with $status}"
}

# Is a file a whole ROOT file? Its header says where it ends. Source: ROOT's TFile: "root", version, begin, end (32 bits, and
# 64 bits from version 1000000 on), big-endian. Argument: file
is_whole_root() {
  local -a byte
  local end=0 n last=15 words
  [[ -f "$1" ]] || return 1
  { words="$(exec od -A n -v -t u1 -N 20 "$1")" && size_of "$1"; } || node_fault "$1 can't be read"
  split ' ' "${words//$'\n'/ }"
  byte=("${fields[@]:-}")
  ((${#byte[@]} == 20)) && [[ "${byte[*]:0:4}" == '114 111 111 116' ]] || return 1
  ((byte[4] * 16777216 + byte[5] * 65536 + byte[6] * 256 + byte[7] < 1000000)) || last=19
  for ((n = 12; n <= last; n++)); do
    end=$((end * 256 + byte[n]))
  done
  ((size_of == end))
}
